"""Targets go through the aliases and validators of their fields, and one that no answer can equal is refused."""

from __future__ import annotations

import datetime as dt
import json
import re
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, StringConstraints, ValidationInfo, create_model, field_validator, model_validator

from llmkit.errors import LLMDatasetError, LLMEvaluationError
from llmkit.evals import (
    Sample,
    contains,
    date_tolerance,
    exact_match,
    field_match,
    numeric_tolerance,
    ranked_list,
    regex_match,
    set_f1,
    text_match,
)
from llmkit.evals.answer_type import AnswerType
from llmkit.evals.scorers import apply_scorers
from llmkit.evals.scorers.conversion import Target, convert_target
from llmkit.pydanticai.output_shape import OutputShape
from tests.support.awkward_types import CASES, Alias, Case, Choices, GermanDay, Lower, Paths, Wrapper
from tests.support.eval_fakes import FakeExtract, run, sentiment_task

COMPARABLE = {name: case for name, case in CASES.items() if name != "Number"}


def read_answer(case: Case) -> Any:
    return OutputShape.of(case.kind).read_json(case.answer)


async def score(scorer: Any, output: Any, target: Any) -> float:
    scores = await apply_scorers([scorer], output, Sample("x", target, id="s"))
    assert scores.errors == {}
    return scores.values[scorer.name]


@pytest.mark.parametrize("case", COMPARABLE.values(), ids=COMPARABLE)
@pytest.mark.parametrize("scorer", [field_match(), exact_match()], ids=["field_match", "exact_match"])
async def test_the_answer_itself_as_target_scores_one(case: Case, scorer: Any) -> None:
    target = json.loads(case.answer)
    given = target["response"] if OutputShape.of(case.kind).wrapped else target
    assert await score(scorer, read_answer(case), given) == 1


WRITABLE = {name: case for name, case in COMPARABLE.items() if case.example is not None}


@pytest.mark.parametrize("case", WRITABLE.values(), ids=WRITABLE)
async def test_an_instance_as_target_scores_one(case: Case) -> None:
    output = read_answer(case)
    assert await score(field_match(), output, output) == 1


def test_an_instance_that_no_json_is_read_as_is_refused() -> None:
    with pytest.raises(LLMDatasetError, match="give the target as JSON"):
        Sample("x", GermanDay(day="31.12.2024"))


class Constrained(BaseModel):
    label: Annotated[str, StringConstraints(to_lower=True, strip_whitespace=True)]


@pytest.mark.parametrize("kind", [Constrained, Lower])
@pytest.mark.parametrize("target", [" Positive", {"label": "POSITIVE"}])
async def test_a_target_is_normalised_as_the_answer_is(kind: type[BaseModel], target: Any) -> None:
    assert await score(field_match(), kind(label="Positive "), target) == 1


@pytest.mark.parametrize(
    ("kind", "target", "values"),
    [
        (Choices, {"unit": "m"}, {"units": "m"}),
        (Choices, {"units": "m"}, {"units": "m"}),
        (Paths, {"names": ["a", "b"], "city": ["Bonn"]}, {"first": "a", "second": "b", "city": "Bonn"}),
        (Paths, {"names": ["a"]}, {"first": "a"}),
        (Wrapper, {"k": {"measurement_units": "m"}}, {"root": {"k": Alias(measurement_units="m")}}),
    ],
)
def test_fields_are_found_by_name_or_alias(kind: type[BaseModel], target: Any, values: dict[str, Any]) -> None:
    assert convert_target(kind, Sample("x", target)).values == values


class Trip(BaseModel):
    start: dt.date
    end: dt.date
    mode: Literal["train", "bus"]

    @field_validator("end")
    @classmethod
    def after_start(cls, value: dt.date, info: ValidationInfo) -> dt.date:
        if value < info.data["start"]:
            raise ValueError("ends before it starts")
        return value

    @model_validator(mode="after")
    def never_whole(self) -> Trip:
        raise ValueError("a target may break rules about the whole")


def test_a_part_of_an_answer_is_converted_without_rules_about_the_whole() -> None:
    target = convert_target(Trip, Sample("x", {"start": "2024-05-01", "end": "2024-05-02"}))
    assert (target.values["end"], target.problems) == (dt.date(2024, 5, 2), {})


def test_a_validator_that_needs_an_absent_field_is_left_out() -> None:
    target = convert_target(Trip, Sample("x", {"end": "2024-05-02"}))
    assert (target.values, target.problems) == ({"end": dt.date(2024, 5, 2)}, {})


def test_one_value_that_does_not_fit_leaves_the_others_converted() -> None:
    target = convert_target(Trip, Sample("x", {"start": "2024-05-01", "mode": "plane"}))
    assert target.values == {"start": dt.date(2024, 5, 1), "mode": "plane"}
    assert list(target.problems) == ["mode"]


class Address(BaseModel):
    city: Annotated[str, StringConstraints(to_lower=True)]
    street: str


class Person(BaseModel):
    home: Address | None = None
    age: int = 0


async def test_a_part_of_an_object_is_converted_alone() -> None:
    output = Person(home=Address(city="Bonn", street="x"))
    assert await score(field_match("home.city"), output, {"home": {"city": "BONN"}}) == 1


class Renamed(BaseModel):
    label: str

    @model_validator(mode="before")
    @classmethod
    def rename(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {"label": data["old_label"]} if "old_label" in data else data


async def test_a_validator_of_the_model_may_give_meaning_to_other_keys() -> None:
    assert await score(exact_match(), Renamed(label="a"), {"old_label": "a"}) == 1


class Counts(BaseModel):
    words: dict[str, int]


async def test_an_object_may_be_the_value_of_the_only_field() -> None:
    assert await score(field_match(), Counts(words={"a": 1}), {"a": "1"}) == 1


async def test_accepted_texts_are_converted_one_by_one() -> None:
    class City(BaseModel):
        name: str

        @field_validator("name")
        @classmethod
        def full(cls, value: str) -> str:
            return {"NYC": "New York"}.get(value, value)

    assert await score(text_match(), City(name="NYC"), ["Boston", "NYC"]) == 1


class Node(BaseModel):
    name: Annotated[str, StringConstraints(to_lower=True)]
    children: list[Node] = Field(default=[], validation_alias="Children")


async def test_a_type_that_contains_itself_is_converted() -> None:
    target = {"Children": [{"name": "B", "Children": []}]}
    output = Node(name="A", Children=[Node(name="b")])
    assert await score(field_match("children"), output, target) == 1


# --- refused before anything is paid ------------------------------------------------------------------------------


class Report(BaseModel):
    day: dt.date = dt.date(2024, 1, 1)
    count: int = 0
    mode: Literal["train", "bus"] = "bus"
    tags: list[Literal["a", "b"]] = []
    price: str = ""
    home: Address | None = None


REFUSED = [
    (field_match("day"), {"day": "31.12.2024"}, "day: Input should be a valid date"),
    (exact_match(), {"mode": "plane"}, "mode: Input should be 'train' or 'bus'"),
    (set_f1("tags"), {"tags": ["a", "c"]}, "tags.1"),
    (ranked_list("tags"), {"tags": ["c"]}, "tags.0"),
    (numeric_tolerance("count", absolute=1), {"count": "many"}, "count: it is not a number"),
    (date_tolerance("day", days=1), {"day": "31.12.2024"}, "day: it is not an ISO 8601 date"),
    (field_match("home.city"), {"home": {"city": 7}}, "city: Input should be a valid string"),
    (exact_match(), {"home": {"city": "Bonn"}}, "home.street: Field required"),
    (field_match("mode"), {"mood": "bus"}, "the target has no field 'mode', but 'mood'"),
]


@pytest.mark.parametrize(("scorer", "target", "problem"), REFUSED)
async def test_a_target_that_no_answer_can_equal_is_refused_before_a_request(
    scorer: Any, target: Any, problem: str
) -> None:
    extract = FakeExtract()
    samples = [Sample("x", {}, id="fine"), Sample("x", target, id="wrong")]
    with pytest.raises(LLMEvaluationError, match=r"Sample 'wrong' has a target that no answer can equal") as caught:
        await run(sentiment_task(dataset=samples, output_type=Report, scorers=[scorer]), extract=extract)
    assert problem in str(caught.value)
    assert extract.calls == []


@pytest.mark.parametrize(
    ("scorer", "target"),
    [
        (numeric_tolerance("count", absolute=1), {"count": 2.5}),
        (numeric_tolerance("price", absolute=1), {"price": 2.5}),
        (date_tolerance("price", days=1), {"price": "2024-05-01"}),
        (set_f1("tags"), {"tags": None}),
        (ranked_list("tags"), {"tags": {"a": 3, "z": 0}}),
        (text_match("mode"), {"mode": ["train", "Train!"]}),
        (field_match("home.city"), {"home": {"city": "Bonn"}}),
        (field_match("mode"), {"mode": "bus", "day": "31.12.2024"}),
        (field_match("mode"), None),
        (field_match("mode"), {"count": 1}),
        (field_match("mode"), {"mode": "bus", "note": "checked"}),
    ],
)
def test_a_target_that_can_be_compared_is_not_refused(scorer: Any, target: Any) -> None:
    scorer.check_target(Report, Sample("x", target, id="s"))


async def test_samples_beyond_the_limit_are_not_checked() -> None:
    samples = [Sample("good", "positive"), Sample("bad", "sad")]
    report = await run(sentiment_task(dataset=samples), limit=1)
    assert report.counts["SUCCEEDED"] == 1


class TwoFields(BaseModel):
    a: str
    b: int = 0


@pytest.mark.parametrize(
    ("scorer", "target", "problem"),
    [
        (
            exact_match(),
            {"a": "x", "c": 3},
            "the target has a field 'c', which is none of the type's; its fields: a, b",
        ),
        (
            exact_match(),
            {"a": "x", "B": 3},
            "the target has a field 'B', which is none of the type's; did you mean 'b'?",
        ),
        (text_match("a"), {"A": "x"}, "the target has no field 'a', but 'A'"),
        (numeric_tolerance("b", absolute=1), {"c": 3}, "the target has no field 'b', but 'c'"),
        (field_match("a"), "x", "it is one value, and TwoFields has the fields a, b: give an object of them"),
        (text_match("a"), "x", "it is one value, and TwoFields has the fields a, b"),
    ],
)
def test_a_target_of_other_fields_is_refused(scorer, target, problem):
    with pytest.raises(LLMEvaluationError, match=re.escape(problem)):
        scorer.check_target(TwoFields, Sample("q", target, id="one"))


@pytest.mark.parametrize("scorer", [regex_match("x", "a"), contains("a", texts=["x"])])
def test_a_scorer_without_a_target_checks_none(scorer):
    scorer.check_target(TwoFields, Sample("q", {"A": "x"}, id="one"))


@pytest.mark.parametrize(
    ("kind", "given", "converted"),
    [
        (Literal["sports", "world"], "sports ", "sports"),
        (list[Literal["a", "b"]], ["a ", "b"], ["a", "b"]),
        (dt.date, " 2024-12-31", dt.date(2024, 12, 31)),
        (str, " a ", " a "),
    ],
)
def test_spaces_around_a_label_are_ignored(kind, given, converted):
    model = create_model("Model", value=(kind, ...))
    target = convert_target(model, Sample("q", {"value": given}))
    assert (target.values, target.problems) == ({"value": converted}, {})


@pytest.mark.parametrize(
    ("kind", "given", "remedy"),
    [(float, "1,080", "numbers are written as 1080.5"), (dt.date, "31.12.2024", "dates are written as 2024-12-31")],
)
def test_a_refused_target_says_how_it_is_written(kind, given, remedy):
    model = create_model("Model", value=(kind, ...))
    with pytest.raises(LLMEvaluationError, match=remedy):
        field_match().check_target(model, Sample("q", given, id="one"))


class Colour(Enum):
    """An enumeration whose values are not its names."""

    RED = "r"
    GREEN = "g"


@pytest.mark.parametrize(
    ("kind", "given", "converted"),
    [
        (list[str], '["a", "b"]', ["a", "b"]),
        (list[str], "['a', 'b']", ["a", "b"]),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (Colour, "RED", Colour.RED),
        (list[Colour] | None, "['RED', 'g']", [Colour.RED, Colour.GREEN]),
        (str, '["a"]', '["a"]'),
        (list[str], "['a' 'b c'\n 'd']", ["a", "b c", "d"]),
        (list[float], "[ 1.5 -2.  3. ]", [1.5, -2.0, 3.0]),
        (list[int], "[1 2]", [1, 2]),
        (list[list[str]], "[['a' 'b']\n ['c' 'd']]", [["a", "b"], ["c", "d"]]),
        (Literal[0, 1], "1", 1),
        (Literal["0", "1"], 1, "1"),
        (Literal[1, 2] | None, " 2", 2),
        (list[Literal[1, 2]], ["1", 2], [1, 2]),
    ],
)
def test_a_cell_of_text_may_be_a_list_or_the_name_of_a_member(kind, given, converted):
    whole, field = AnswerType.of(kind).view, create_model("Model", value=(kind, ...), other=(int, 0))
    assert convert_target(whole, Sample("a", given)) == Target({"root": converted})
    assert convert_target(field, Sample("a", {"value": given})) == Target({"value": converted})


def test_a_text_is_an_object_if_its_keys_are_those_of_the_type():
    model = create_model("Model", value=(str, ...))
    assert convert_target(model, Sample("a", '{"value": "b"}')).values == {"value": "b"}
    assert convert_target(model, Sample("a", '{"b": 1}')).values == {"value": '{"b": 1}'}


@pytest.mark.parametrize(
    ("kind", "given", "problem"),
    [
        (float, "NaN", "no answer has one"),
        (dt.date, 86_400, "a number is no date"),
        (dt.date, "0", "a number is no date"),
    ],
)
def test_a_target_that_pydantic_takes_may_still_be_refused(kind, given, problem):
    model = create_model("Model", value=(kind, ...))
    with pytest.raises(LLMEvaluationError, match=problem):
        exact_match().check_target(model, Sample("a", {"value": given}, id="s"))
