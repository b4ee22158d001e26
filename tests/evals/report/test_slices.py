"""Slices: the same numbers for a part of the samples, with what must be said about parts."""

import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel

from llmkit.errors import LLMEvaluationError
from llmkit.evals import GateRules, Sample, Task, field_match
from llmkit.evals.ci.gate import check_gate, match_variants
from llmkit.evals.report.analysis import SLICE_COLUMNS, SLICE_COMPARISON_COLUMNS
from llmkit.session import Session


class Answer(BaseModel):
    label: str


# Even samples are right for `a` and English; documents of 30 samples each.
SAMPLES = [
    Sample({"n": n}, "yes", id=f"s{n}", group=f"d{n // 30}", metadata={"language": "en" if n % 2 == 0 else "de"})
    for n in range(60)
] + [Sample({"n": 60}, "yes", id="s60", group="d2")]
TASK = Task("t", SAMPLES, "{input}", Answer, [field_match("label")])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    answers = {
        "a": {sample.id: "yes" if int(sample.id[1:]) % 2 == 0 else "no" for sample in SAMPLES},
        "b": {sample.id: "no" for sample in SAMPLES},
    }
    with Session("w", database_url=f"sqlite:///{tmp_path_factory.mktemp('slices')}/llm.db") as session:
        yield session.score(TASK, answers, name="run", progress=False)


def means(frame, variant="a"):
    return frame[frame["variant"] == variant].set_index("slice")["mean"].to_dict()


def test_summary_by_field_group_and_function(report):
    frame = report.summary(by="metadata.language")
    assert dict(frame.dtypes.astype(str)) == {**SLICE_COLUMNS, **dict(frame.dtypes.astype(str))}
    assert means(frame) == {"de": 0.0, "en": 1.0, "(none)": 1.0}
    assert frame[frame["variant"] == "a"]["is_small"].tolist() == [False, False, True]
    assert means(report.summary(by="group")) == {"d0": 0.5, "d1": 0.5, "d2": 1.0}

    def is_early(sample):
        return sample.input["n"] < 10

    assert means(report.summary(by=is_early)) == {"false": pytest.approx(26 / 51), "true": 0.5}
    assert means(report.summary(by="input.n"))["60"] == 1.0


def test_slices_add_up_to_the_whole(report):
    for by in ("group", "metadata.language", "input.n"):
        frame = report.summary(by=by)
        frame = frame[frame["variant"] == "a"]
        assert frame["n"].sum() == 61
        assert np.average(frame["mean"], weights=frame["scored"]) == pytest.approx(report.summary()["mean"].iloc[0])


def test_one_group_is_a_population_of_its_own(report):
    """Else a slice that is one cluster would have no interval."""
    frame = report.summary(by="group")
    assert frame[frame["slice"] == "d0"]["interval"].tolist() == ["wilson", "wilson"]
    assert report.summary(by="metadata.language")["interval"].tolist()[0] == "clustered wilson"


def test_comparison_by_slice_adjusts_for_all_slices(report):
    frame = report.compare("a", "b", by="group")
    assert list(frame.columns) == list(SLICE_COMPARISON_COLUMNS)
    assert frame["difference"].tolist() == [0.5, 0.5, 1.0]
    whole = report.slices("group")["d0"].compare("a", "b")
    assert frame["p_holm"].iloc[0] == pytest.approx(3 * whole["p_value"].iloc[0])
    small, many = frame.attrs["warnings"]
    assert small == "Slices by group with fewer than 20 samples say little: d2 (1)."
    assert many.startswith("3 comparisons in 3 slices: p_holm is adjusted for all of them.")


def test_gate_checks_each_slice(report):
    gate = check_gate(report, GateRules(minimums={"field_match": 0.4}, by="metadata.language"), only=["a"])
    assert {check.slice: check.passed for check in gate.checks} == {
        None: True, "metadata.language de": False, "metadata.language en": True, "metadata.language (none)": True,
    }  # fmt: skip
    assert gate.checks[1].title == "minimum of field_match: a in metadata.language de"
    assert any("fewer than 20 samples" in note for note in gate.notes)
    compared = check_gate(report, GateRules(by="group"), variants=match_variants(report, None, None, "a"))
    assert [(row["slice"], row["pairs"]) for row in compared.comparisons] == [
        (None, 61), ("group d0", 30), ("group d1", 30), ("group d2", 1),
    ]  # fmt: skip
    assert {row["slice"]: row["passed"] for row in compared.to_json()["checks"] if row["name"] == "regression"} == {
        None: False, "group d0": False, "group d1": False, "group d2": True,
    }  # fmt: skip


def test_page_shows_slices_that_are_few(report, tmp_path):
    page = report.to_html(tmp_path / "page.html").read_text()
    assert "field_match by group: mean [95 %]" in page
    assert "field_match by metadata.language: mean [95 %]" in page


def test_what_cannot_be_sliced_is_one_clear_error(report, tmp_path):
    def broken(sample):
        return sample.metadata["language"].upper()

    with pytest.raises(LLMEvaluationError, match=r"No sample has 'metadata.lang'; slices are by group"):
        report.summary(by="metadata.lang")
    with pytest.raises(LLMEvaluationError, match="The function broken failed on sample s60: KeyError"):
        report.summary(by=broken)
    with Session("x", database_url=f"sqlite:///{tmp_path}/llm.db") as session:
        session.import_run(report.export(tmp_path / "run.jsonl"))
        stored = session.report("run")
        assert means(stored.summary(by="group")) == {"d0": 0.5, "d1": 0.5, "d2": 1.0}
        with pytest.raises(LLMEvaluationError, match=r"need the samples: session.report"):
            stored.summary(by="metadata.language")
        pd.testing.assert_frame_equal(
            session.report("run", task=TASK).summary(by="metadata.language"), report.summary(by="metadata.language")
        )
