"""Values whose JSON is still being written: no field is there before its value is certain."""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, RootModel
from typing_extensions import TypedDict

from llmkit.pydanticai.output_shape import OutputShape
from llmkit.pydanticai.partial_value import ABSENT, PartialReader


class Street(BaseModel):
    name: Annotated[str, Field(min_length=3)]
    lanes: int = 2


class Mayor(TypedDict):
    name: str
    since: datetime.date


@dataclass
class Point:
    x: float
    y: float


class Codes(RootModel[list[int]]):
    pass


class Town(BaseModel):
    title: str = Field(alias="name")
    people: int
    founded: datetime.date | None
    kind: Literal["port", "portal"]
    streets: list[Street]
    mayor: Mayor
    centre: Point
    codes: Codes
    twins: dict[str, Town | None]


TOWN = {
    "name": 'A "quoted" \\ name {[,:é\U0001f600',
    "people": 2_800_000,
    "founded": "0753-04-21",
    "kind": "portal",
    "streets": [{"name": "Via Appia", "lanes": 12}, {"name": "Corso"}],
    "mayor": {"name": "Ada", "since": "2020-01-31"},
    "centre": {"x": 41.9, "y": -12.5e1},
    "codes": [1, 23],
    "twins": {"Paris": None},
}


def fits(partial: Any, whole: Any) -> bool:
    """Whether every part of a partial value is the whole's, or the beginning of a text or list of it."""
    if isinstance(partial, str) and isinstance(whole, str):
        return whole.startswith(partial)
    if isinstance(partial, list):
        return len(partial) <= len(whole) and all(map(fits, partial, whole))
    if isinstance(partial, dict):
        return all(fits(each, whole[key]) for key, each in partial.items())
    if isinstance(partial, BaseModel) and not isinstance(partial, RootModel):
        return all(fits(getattr(partial, name), getattr(whole, name)) for name in partial.model_fields_set)
    return bool(partial == whole)


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("output_type", [Town, list[Town], dict[str, Town]])
def test_a_partial_value_is_a_beginning_of_the_whole(output_type: Any, escaped: bool, size: int) -> None:
    value = {Town: TOWN, list[Town]: {"response": [TOWN, TOWN]}, dict[str, Town]: {"response": {"a": TOWN}}}[
        output_type
    ]
    text = "Here it is:\n```json\n" + json.dumps(value, ensure_ascii=escaped, indent=1)
    shape: OutputShape[Any] = OutputShape.of(output_type)
    whole = shape.read_json(json.dumps(value))
    reader, seen = PartialReader(shape), []
    for start in range(0, len(text), size):
        partial = reader.add(text[start : start + size])
        if partial is not ABSENT:
            assert fits(partial, whole)
            seen.append(partial)
    assert bool(seen) == (size < len(text))
    if output_type is Town and size == 1:
        assert seen[-1].model_fields_set == Town.model_fields.keys()
        assert seen[-1] == whole


def test_a_type_that_cannot_grow_is_there_at_the_end() -> None:
    assert PartialReader(OutputShape.of(int)).add('{"response": 12, ') is not ABSENT
    assert PartialReader(OutputShape.of(int)).add('{"response": 12') is ABSENT
    assert PartialReader(OutputShape.of(Point)).add('{"x": 1, ') is ABSENT
