"""A task that is data: found like a Python one, checked as strictly, and wrong in one message with file and line."""

import json
from datetime import date
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from llmkit import Session
from llmkit.errors import LLMDatasetError, LLMEvaluationError
from llmkit.evals import Dataset, Sample, load_tasks
from llmkit.evals.tasks.schema_model import SchemaProblem, build_output_type
from llmkit.evals.tasks.yaml_task import load_task_data

TASK = """\
name: invoices
dataset: invoices.jsonl
description: What is to be paid.
system: You read invoices.
prompt: |
  Text: {input}
  JSON:
prompts:
  short: "{input}"
output_schema:
  type: object
  additionalProperties: false
  properties:
    total: {type: number, minimum: 0}
    due: {type: string, format: date}
    tags: {type: array, items: {enum: [food, rent]}}
    note: {type: string}
  required: [total, due, tags]
scorers:
  - exact_match
  - field_match: [total, due]
  - numeric_tolerance: {field: total, absolute: 0.01}
  - set_f1: tags
  - field_match:
      fields: [note]
      normalise: true
      name: note_match
parameters:
  temperature: 0
"""
LINE = {"input": "pay 3", "target": {"total": 3, "due": "2024-05-01", "tags": ["food"]}}


def write(folder, text, line=LINE):
    (folder / "invoices.jsonl").write_text(json.dumps(line), encoding="utf-8")
    (folder / "task.yaml").write_text(text, encoding="utf-8")
    return folder / "task.yaml"


def test_a_yaml_file_and_its_folder_are_a_task(tmp_path):
    (task,) = load_tasks(write(tmp_path, TASK))
    assert task.task_sha256 == load_tasks(tmp_path)[0].task_sha256
    assert task.name == "invoices"
    assert [scorer.name for scorer in task.scorers] == [
        "exact_match", "field_match", "numeric_tolerance", "set_f1", "note_match",
    ]  # fmt: skip
    assert task.load().samples[0].target == LINE["target"]
    output = task.output_type.model_validate(LINE["target"])
    assert output.due == date(2024, 5, 1)
    assert output.note is None
    assert set(task.prompts) == {"short"}
    with pytest.raises(ValidationError):
        task.output_type.model_validate({**LINE["target"], "tags": ["fuel"]})


def test_a_schema_may_stand_in_a_file_beside_it(tmp_path):
    schema = {"properties": {"label": {"enum": ["a", "b"]}}, "required": ["label"]}
    (tmp_path / "label.json").write_text(json.dumps(schema), encoding="utf-8")
    text = "name: t\ndataset: invoices.jsonl\nprompt: '{input}'\noutput_schema: label.json\n"
    (task,) = load_tasks(write(tmp_path, text))
    assert get_args(task.output_type.model_fields["label"].annotation) == ("a", "b")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: invoices", "name: [a]", "task.yaml:1: name: Input should be a valid string"),
        ("name: invoices", "nam: invoices", "task.yaml:1: nam: Extra inputs are not permitted"),
        ("dataset: invoices.jsonl\n", "", "task.yaml:1: dataset: Field required"),
        ("prompt: |", "prompt: |\n  {", "template cannot be read"),
        ("{type: number, minimum: 0}", "{type: numbr}", "task.yaml:14: output_schema.properties.total: type is one of"),
        ("minimum: 0", "minimun: 0", "task.yaml:14: output_schema.properties.total.minimun: the keyword 'minimun'"),
        ("format: date", "format: data", "task.yaml:15: output_schema.properties.due.format: unknown format 'data'"),
        ("[total, due, tags]", "[sum]", "task.yaml:18: output_schema.required: required names 'sum'"),
        (
            "- exact_match",
            "- exact_mach",
            "task.yaml:20: scorers.0: unknown scorer 'exact_mach'; known scorers: balanced_accuracy, calib",
        ),
        ("absolute: 0.01", "absolut: 0.01", "task.yaml:22: scorers.2.numeric_tolerance.absolut: numeric_tolerance"),
        ("absolute: 0.01", "absolute: much", "task.yaml:22: scorers.2.numeric_tolerance.absolute: "),
        ("absolute: 0.01", "absolute: 0", "task.yaml:22: scorers.2: numeric_tolerance needs"),
        ("set_f1: tags", "set_f1: tag", "has no field 'tag'"),
        ("temperature: 0", "temprature: 0", "Unknown parameter temprature"),
        ("system:", "name:", "task.yaml:4: not YAML: the key 'name' appears twice"),
        ("name: invoices", "name: *x", "task.yaml:1: not YAML: found undefined alias"),
        ("name: invoices", "name: 'x", "not YAML"),
        (
            "system: You read invoices.",
            "system: !!python/name:os.system",
            "not YAML: could not determine a constructor",
        ),
    ],
)
def test_what_is_wrong_is_one_message_with_file_line_and_field(tmp_path, old, new, message):
    assert old in TASK
    with pytest.raises(LLMEvaluationError) as caught:
        load_tasks(write(tmp_path, TASK.replace(old, new, 1)))
    assert message in str(caught.value)
    assert "task.yaml" in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n", "a\n", "a: &x [1]\nb: *x\n", "a: 1\n---\nb: 2\n", "\x00", "[" * 5_000])
def test_a_file_that_is_no_task_is_refused(tmp_path, text):
    with pytest.raises(LLMEvaluationError, match=r"task\.yaml"):
        load_tasks(write(tmp_path, text))


def test_a_bad_line_of_its_dataset_is_named(tmp_path):
    (task,) = load_tasks(write(tmp_path, TASK, {"inputs": "x"}))
    with pytest.raises(LLMDatasetError, match=r"invoices\.jsonl, line 1: inputs: unknown field"):
        task.load()


# --- schemas ------------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "$defs": {"Place": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
    "properties": {
        "n": {"type": "integer", "minimum": 1, "exclusiveMaximum": 5},
        "x": {"type": ["number", "null"]},
        "code": {"type": "string", "pattern": "^[a-c]+$", "maxLength": 3},
        "kind": {"const": "k"},
        "place": {"$ref": "#/$defs/Place"},
        "either": {"anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/Place"}]},
        "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
        "list": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    },
    "required": ["n", "x", "code", "kind", "place", "either", "counts", "list"],
}
PLACES = st.one_of(st.fixed_dictionaries({"city": st.text(max_size=2)}), st.just({}))
DOCUMENTS = st.fixed_dictionaries(
    {
        "n": st.integers(0, 6),
        "x": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
        "code": st.text("abcd", max_size=4),
        "kind": st.sampled_from(["k", "l"]),
        "place": PLACES,
        "either": st.one_of(st.booleans(), PLACES),
        "counts": st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
        "list": st.lists(st.text(max_size=2), max_size=2),
    }
)


@given(DOCUMENTS)
@settings(max_examples=60)
def test_the_model_accepts_what_the_schema_accepts(document):
    accepted = Draft202012Validator(SCHEMA).is_valid(document)
    model = build_output_type(SCHEMA)
    try:
        model.model_validate(document, strict=True)
    except ValidationError:
        assert not accepted
    else:
        assert accepted


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string", "pattern": "("}, "cannot be checked"),
        ({"type": "object"}, "needs properties"),
        ({"properties": {"a": {"type": "array"}}}, "a schema is an object"),
        ({"properties": {"a": {"oneOf": []}}}, "'oneOf' cannot be enforced"),
        ({"properties": {"a": {}}}, "type is one of"),
        ({"properties": {"a": {"type": "string", "not": {}}}}, "'not' cannot be enforced"),
        ({"properties": {"a": {"$ref": "#/$defs/B"}}}, "no definition"),
        (
            {"$defs": {"B": {"properties": {"b": {"$ref": "#/$defs/B"}}}}, "properties": {"a": {"$ref": "#/$defs/B"}}},
            "contains itself",
        ),
        ({"properties": {"a": {"enum": [1.5]}}}, "enum and const contain"),
        ({"properties": {"": {"type": "string"}}}, "must be a string that is not empty"),
        ({"properties": {"a": {"type": "string", "pattern": "("}}}, "cannot be checked"),
    ],
)
def test_a_schema_that_a_model_cannot_enforce_is_refused(schema, message):
    with pytest.raises(SchemaProblem, match=message):
        build_output_type(schema)


@pytest.mark.parametrize(
    ("schema", "target", "answer"),
    [
        ("{type: string}", "a b", "a b"),
        ("{type: number}", 1.5, "1.5"),
        ("{enum: [yes please, never]}", "never", "never"),
        ("{type: array, items: {properties: {n: {type: integer}}, required: [n]}}", [{"n": 1}], '[{"n": 1}]'),
    ],
)
def test_an_output_need_not_be_an_object(tmp_path, schema, target, answer):
    (tmp_path / "d.jsonl").write_text(json.dumps({"input": "a", "target": target, "id": "s"}))
    file = tmp_path / "task.yaml"
    file.write_text(
        f"name: t\ndataset: d.jsonl\nprompt: '{{input}}'\nscorers: [exact_match]\noutput_schema: {schema}\n"
    )
    with Session("w", database_url=f"sqlite:///{tmp_path}/llm.db", warm_up=False) as session:
        report = session.score(load_task_data(file), {"s": answer}, progress=False)
    assert report.summary()["mean"].tolist() == [1.0]


@pytest.mark.parametrize("name", ["model_name", "from", "class", "invoice-no", "_id", "json", "copy", "a b", "1", "."])
def test_any_property_name_of_json_is_an_alias(name):
    model = build_output_type({"properties": {name: {"type": "string"}}, "required": [name]})
    output = model.model_validate_json(json.dumps({name: "x"}))
    assert output.model_dump(by_alias=True) == {name: "x"}
    assert model.model_json_schema()["required"] == [name]


def test_two_properties_never_share_a_field():
    names = ["a-b", "a b", "field_a_b"]
    model = build_output_type({"properties": {name: {"type": "string"} for name in names}})
    output = model.model_validate({name: name for name in names})
    assert output.model_dump(by_alias=True) == {name: name for name in names}


def test_a_scorer_names_a_property_as_the_schema_does(tmp_path):
    schema = {"properties": {"invoice-no": {"type": "string"}, "b": {"type": "string"}}, "required": ["invoice-no"]}
    (tmp_path / "s.json").write_text(json.dumps(schema))
    (tmp_path / "d.jsonl").write_text('{"input": "a", "target": {"invoice-no": "7"}}')
    file = tmp_path / "task.yaml"
    file.write_text(
        "name: t\ndataset: d.jsonl\nprompt: '{input}'\noutput_schema: s.json\nscorers:\n- field_match: invoice-no\n"
    )
    task = load_task_data(file)
    output = task.output_type.model_validate({"invoice-no": "7"})
    assert task.scorer_objects[0](output, task.load().samples[0]).value == 1.0


# --- splits -------------------------------------------------------------------------------------------------------


def dataset(count, group=lambda number: None):
    return Dataset.load([Sample(f"text {n}", id=f"s{n}", group=group(n)) for n in range(count)])


def test_splits_have_their_shares_and_repeat():
    parts = dataset(100).splits({"dev": 0.2, "test": 0.7}, seed=1)
    assert {name: len(part) for name, part in parts.items()} == {"dev": 20, "test": 70}
    again = dataset(100).shuffle(5).splits({"dev": 0.2, "test": 0.7}, seed=1)
    assert {s.key for s in again["dev"]} == {s.key for s in parts["dev"]}
    other = dataset(100).splits({"dev": 0.2, "test": 0.7}, seed=2)
    assert {s.key for s in other["dev"]} != {s.key for s in parts["dev"]}


@given(st.integers(4, 60), st.integers(1, 5), st.integers())
@settings(max_examples=50)
def test_groups_stay_together_and_nothing_is_lost_or_doubled(count, size, seed):
    whole = dataset(count, lambda number: f"g{number // size}")
    try:
        parts = whole.splits({"a": 0.5, "b": 0.5}, seed)
    except LLMDatasetError:
        return
    a, b = ({sample.key for sample in parts[name]} for name in "ab")
    assert a | b == set(whole.by_id)
    assert not a & b
    assert not {s.group for s in parts["a"]} & {s.group for s in parts["b"]}
    assert abs(len(a) - count / 2) <= size


def test_an_added_sample_moves_few_others():
    before, after = (dataset(count).splits({"a": 0.5, "b": 0.5}) for count in (100, 101))
    assert len({s.key for s in before["a"]} - {s.key for s in after["a"]}) <= 1


@pytest.mark.parametrize("shares", [{}, {"a": 0}, {"a": 0.6, "b": 0.5}, {"a": 0.001, "b": 0.9}])
def test_shares_that_cannot_be_are_refused(shares):
    with pytest.raises(LLMDatasetError):
        dataset(10).splits(shares)
