"""Policies are read from YAML and Python files; what cannot be read is one line that names the policy."""

import pytest

from llmkit.errors import LLMEvaluationError
from llmkit.evals import Below, Cascade, Mix, Split, load_policies

YAML = """
careful: {cascade: [a/x, {cascade: [b/y, c/z], when: repaired}], when: [failed, {below: confidence, threshold: 0.8}]}
vote: {cascade: [a/x, b/y], when: epochs_disagree, epochs: 3}
split: {split: metadata.lang, choose: {de: a/x, 3: b/y}, default: {mix: [a/x, b/y], share: 0.1}}
one: a/x
"""


def test_yaml_has_every_kind(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(YAML)
    inner = Cascade("b/y", "c/z", "repaired")
    assert load_policies(file) == {
        "careful": Cascade("a/x", inner, ("failed", Below("confidence", 0.8))),
        "vote": Cascade("a/x", "b/y", "epochs_disagree", 3),
        "split": Split("metadata.lang", {"de": "a/x", 3: "b/y"}, Mix("a/x", "b/y", 0.1)),
        "one": "a/x",
    }


def test_python_has_the_policies_of_a_module(tmp_path):
    file = tmp_path / "p.py"
    file.write_text(
        "from llmkit.evals import Cascade\ncareful = Cascade('a/x', 'b/y', when=lambda out, s: out['n'] < 3)\n"
    )
    assert list(load_policies(file)) == ["careful"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "mapping from name"),
        ("p: 3", "p: a policy is a route"),
        ("p: {cascade: [a/x]}", "p: cascade is a list of two"),
        ("p: {cascade: [a/x, b/y], wenn: failed}", "unknown key 'wenn'"),
        ("p: {cascade: [a/x, b/y], when: sometimes}", "Unknown condition 'sometimes'"),
        ("p: {cascade: [a/x, b/y], when: {below: c}}", "below: FIELD"),
        ("p: {mix: [a/x, b/y]}", "needs share"),
        ("p: {mix: [a/x, b/y], share: 2}", "between 0 and 1"),
        ("p: {split: group, choose: [a/x]}", "choose maps"),
        ("p: {split: language, choose: {a: b/y}}", "'group', 'metadata.KEY'"),
        ("p: [", "cannot be read as YAML"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, text, message):
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(LLMEvaluationError, match=message):
        load_policies(file)


def test_a_missing_file_and_an_empty_module_are_refused(tmp_path):
    with pytest.raises(LLMEvaluationError, match="no file of policies"):
        load_policies(tmp_path / "absent.yaml")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(LLMEvaluationError, match="defines no policy"):
        load_policies(tmp_path / "empty.py")
