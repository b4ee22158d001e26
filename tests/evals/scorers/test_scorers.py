"""Scorers compare by type, and their own failures are theirs."""

import asyncio
from datetime import date
from enum import Enum
from functools import partial
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from llmkit.errors import LLMEvaluationError
from llmkit.evals import Sample, Score, Task, exact_match, field_match, numeric_tolerance, ranked_list, set_f1
from llmkit.evals.scorers import apply_scorers, as_scorer


class Unit(Enum):
    KG = "kg"
    G = "g"


class Address(BaseModel):
    city: str
    zip_code: str | None = None


class Invoice(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    number: int
    total: float
    day: date
    unit: Unit = Unit.KG
    address: Address
    tags: set[str] = Field(default_factory=set)
    lines: list[str] = Field(default_factory=list)
    paid: bool = Field(default=False, alias="isPaid")


OUTPUT = Invoice(
    number=3, total=0.1 + 0.2, day=date(2024, 5, 1), address=Address(city="Köln"), tags={"a", "b"}, lines=["x"]
)


def scores(scorer, output, target):
    found = asyncio.run(apply_scorers([as_scorer(scorer)], output, Sample("x", target, id="s")))
    return found.values, found.errors


def value(scorer, output, target):
    values, errors = scores(scorer, output, target)
    assert errors == {}
    return values[scorer.name]


@pytest.mark.parametrize(
    ("field", "target", "hit"),
    [
        ("number", "3", 1),
        ("number", 4, 0),
        ("number", True, 0),
        ("total", 0.3, 1),
        ("total", "0.3", 1),
        ("total", 0.31, 0),
        ("day", "2024-05-01", 1),
        ("day", "2024-05-02", 0),
        ("day", "first of May", 0),
        ("unit", "kg", 1),
        ("unit", "g", 0),
        ("address", {"city": "Köln"}, 1),
        ("address", {"city": "Köln", "zip_code": "50667"}, 0),
        ("tags", ["b", "a"], 1),
        ("tags", ["b"], 0),
        ("lines", ["x"], 1),
        ("lines", ["x", "y"], 0),
        ("paid", False, 1),
        ("paid", None, 0),
    ],
)
def test_a_field_is_compared_by_its_type(field, target, hit):
    assert value(field_match(field), OUTPUT, {field: target}) == hit


def test_dotted_paths_and_aliases():
    assert value(field_match("address.city"), OUTPUT, {"address": {"city": "Köln"}}) == 1
    assert value(field_match("paid"), OUTPUT, {"isPaid": False}) == 1


def test_several_fields_are_a_share_and_metrics_of_their_own():
    values, errors = scores(field_match("number", "unit"), OUTPUT, {"number": 3, "unit": "g"})
    assert values == {"field_match": 0.5, "field_match.number": 1.0, "field_match.unit": 0.0}
    assert errors == {}


class Label(BaseModel):
    label: str


def test_a_bare_target_belongs_to_the_only_field():
    assert value(field_match("label"), Label(label="a"), "a") == 1
    assert value(exact_match(), Label(label="a"), "b") == 0
    _, errors = scores(exact_match(), OUTPUT, "a")
    assert "name the field to compare" in errors["exact_match"]


def test_texts_can_be_normalised():
    output = Label(label="  STRAẞE  Eins ")
    assert value(field_match("label"), output, "straße eins") == 0
    assert value(field_match("label", normalise=True), output, "strasse eins") == 1


def test_exact_match_wants_every_field_or_its_default():
    target = {"number": 3, "total": 0.3, "day": "2024-05-01", "address": {"city": "Köln"}, "tags": ["a", "b"]}
    assert value(exact_match(), OUTPUT, {**target, "lines": ["x"]}) == 1
    assert value(exact_match(), OUTPUT, target) == 0
    assert value(exact_match(), OUTPUT, {"number": 3}) == 0


@pytest.mark.parametrize(("scorer", "target"), [(field_match("label"), None), (field_match("label"), {"other": 1})])
def test_a_target_that_is_not_there_is_a_scorer_error(scorer, target):
    values, errors = scores(scorer, Label(label="a"), target)
    assert values == {}
    assert "target" in errors["field_match"]


class Number(BaseModel):
    n: float


@pytest.mark.parametrize(
    ("options", "got", "hit"),
    [
        ({"absolute": 0.5}, 10.5, 1),
        ({"absolute": 0.5}, 10.6, 0),
        ({"relative": 0.1}, 11, 1),
        ({"relative": 0.1}, 8.9, 0),
    ],
)
def test_numeric_tolerance(options, got, hit):
    assert value(numeric_tolerance(**options), Number(n=got), 10) == hit
    assert value(numeric_tolerance("n", **options), Number(n=got), {"n": "10"}) == hit


def test_a_tolerance_of_nothing_is_refused():
    with pytest.raises(LLMEvaluationError, match="absolute= or relative="):
        numeric_tolerance("n")


class Tags(BaseModel):
    tags: list[str]


def test_set_f1():
    values, _ = scores(set_f1("tags"), Tags(tags=["a", "b", "c", "c"]), {"tags": ["b", "c", "d", "e"]})
    precision, recall = 2 / 3, 2 / 4
    assert values == {
        "set_f1": pytest.approx(2 * precision * recall / (precision + recall)),
        "set_f1.precision": pytest.approx(precision),
        "set_f1.recall": recall,
    }
    assert value(set_f1(normalise=True), Tags(tags=["A "]), ["a"]) == 1
    _, errors = scores(set_f1(), Label(label="a"), "a")
    assert "collections" in errors["set_f1"]


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")))
def test_set_f1_is_symmetric_and_bounded(a, b):
    there, back = value(set_f1(), Tags(tags=a), b), value(set_f1(), Tags(tags=b), a)
    assert there == pytest.approx(back)
    assert 0 <= there <= 1
    assert (there == 1) == (set(a) == set(b))


def test_functions_may_be_asynchronous_and_return_several_kinds():
    async def slow(output, sample):
        await asyncio.sleep(0)
        return Score(0.25, "why", {"part": 1})

    def truth(output, sample):
        return True

    assert scores(slow, Label(label="a"), None)[0] == {"slow": 0.25, "slow.part": 1.0}
    assert scores(truth, Label(label="a"), None)[0] == {"truth": 1.0}


@pytest.mark.parametrize("result", ["1", None, float("nan"), [1], Score(float("inf"))])
def test_a_score_that_is_no_number_is_a_scorer_error(result):
    def odd(output, sample):
        return result

    values, errors = scores(odd, Label(label="a"), None)
    assert values == {}
    assert "odd" in errors


def test_a_crash_keeps_its_text_and_the_other_scores():
    def crash(output, sample):
        raise KeyError("x" * 9_999)

    found = asyncio.run(
        apply_scorers([as_scorer(crash), field_match("label")], Label(label="a"), Sample("x", "a", id="s"))
    )
    assert found.values == {"field_match": 1.0}
    assert found.errors["crash"].startswith("KeyError")
    assert len(found.errors["crash"]) <= 500


@pytest.mark.parametrize("asynchronous", [False, True])
def test_scorer_gets_its_own_copy(asynchronous):
    """A scorer that changes its arguments changes them for no other scorer."""

    def careless(output, sample):
        output.lines.clear()
        sample.target.clear()
        sample.metadata["seen"] = True
        return 1.0

    async def later(output, sample):
        return careless(output, sample)

    output, sample = OUTPUT.model_copy(deep=True), Sample("x", {"lines": ["x"]}, id="s")
    scorers = [as_scorer(later if asynchronous else careless), field_match("lines")]
    found = asyncio.run(apply_scorers(scorers, output, sample))
    assert (found.values["field_match"], found.errors) == (1.0, {})
    assert (output, sample) == (OUTPUT, Sample("x", {"lines": ["x"]}, id="s"))


def one_argument(output):
    return 1.0


def make_task(**parts):
    given = {"name": "t", "dataset": [Sample("x")], "prompt": "{input}", "output_type": Label, "scorers": []}
    return Task(**given | parts)


@pytest.mark.parametrize(
    ("scorers", "message"),
    [
        ([field_match("lable")], r"Label has no field 'lable'; its fields: label"),
        ([field_match("label"), field_match("label")], "Two scorers are called 'field_match'"),
        ([lambda output, sample: 1], "named function"),
        ([partial(print)], "named function"),
        ([3], "named function"),
        ([field_match], r"field_match is a factory of scorers: call it, field_match\(\.\.\.\)"),
        ([one_argument], r"one_argument must take two arguments, \(output, sample\)"),
        (field_match("label"), r"scorers is a list, scorers=\[\.\.\.\]; got _FieldMatch"),
        ("field_match", "scorers is a list.* got str"),
    ],
)
def test_a_scorer_that_cannot_be_used_is_refused_with_the_task(scorers, message):
    with pytest.raises(LLMEvaluationError, match=message):
        make_task(scorers=scorers)


class Choice(BaseModel):
    label: Literal["a", "b"]


def test_editing_a_scorer_changes_its_hash():
    def rule(output, sample):
        return 1

    before = make_task(scorers=[rule]).scorers_sha256

    def rule(output, sample):
        return 2

    assert make_task(scorers=[rule]).scorers_sha256 != before
    assert make_task(scorers=[field_match("label")]).scorers_sha256 == (
        make_task(scorers=[field_match("label")], output_type=Choice).scorers_sha256
    )
    assert make_task(scorers=[field_match("label", normalise=True)]).scorers_sha256 != (
        make_task(scorers=[field_match("label")]).scorers_sha256
    )


class Anything(BaseModel):
    value: object = None


class Optionals(BaseModel):
    tags: list[str] | None = None


@pytest.mark.parametrize("given", ["12 kg", "", [12], {"n": 12}])
def test_output_that_is_no_number_is_wrong(given):
    """It is not an error of the scorer."""
    assert value(numeric_tolerance("value", absolute=1), Anything(value=given), {"value": 12}) == 0
    errors = scores(numeric_tolerance("value", absolute=1), Anything(value=12), {"value": "12 kg"})[1]
    assert "12 kg" in errors["numeric_tolerance"]


def test_numbers_that_no_float_can_hold_are_compared():
    huge = 10**400
    assert value(field_match(), Anything(value=huge), {"value": huge}) == 1
    assert value(field_match(), Anything(value=huge), {"value": 1.5}) == 0
    assert value(numeric_tolerance("value", relative=0.1), Anything(value=-huge), {"value": 1.5}) == 0


def test_a_target_of_nothing_is_an_empty_collection():
    for scorer in (set_f1(), ranked_list()):
        assert value(scorer, Optionals(), {"tags": None}) == 1
        assert value(scorer, Optionals(tags=["a"]), {"tags": None}) == 0


def test_a_detail_of_another_type_ends_no_run():
    def odd(output, sample):
        return Score(1.0, detail={"why": 3})

    assert scores(odd, Anything(), None) == ({"odd": 1.0}, {})
