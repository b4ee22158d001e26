"""The minimal instance of a schema is valid, for schemas as Pydantic writes them."""

from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Literal
from uuid import UUID

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, Field, TypeAdapter

from llmkit.testing import minimal_instance


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Node(BaseModel):
    name: Annotated[str, Field(min_length=3)]
    parent: "Node | None"
    children: list["Node"]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(gt=2, le=9, multiple_of=3)]


class Dog(BaseModel):
    kind: Literal["dog"]


class Everything(BaseModel):
    colour: Colour
    node: Node
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    on: date
    at: datetime
    id: UUID
    price: Decimal
    url: AnyUrl
    share: Annotated[float, Field(gt=0, lt=1)]
    code: Annotated[str, Field(pattern=r"^[A-Z]{2}\d{4}$")]
    pair: tuple[int, str]
    scores: dict[str, float]
    tags: Annotated[list[Literal["a", "b"]], Field(min_length=2)]
    flag: bool
    note: str = "not required"


@pytest.mark.parametrize("model", [Everything, Node, Cat])
def test_pydantic_accepts_the_instance(model):
    schema = model.model_json_schema()
    instance = minimal_instance(schema)
    jsonschema.validate(instance, schema)
    made = model.model_validate_json(TypeAdapter(object).dump_json(instance))
    assert "note" not in made.model_fields_set


@given(
    kind=st.sampled_from(["integer", "number"]),
    low=st.integers(-1000, 1000),
    width=st.integers(2, 100),
    ends=st.tuples(st.sampled_from(["minimum", "exclusiveMinimum"]), st.sampled_from(["maximum", "exclusiveMaximum"])),
)
def test_numbers_within_bounds(kind, low, width, ends):
    schema = {"type": kind, ends[0]: low, ends[1]: low + width}
    jsonschema.validate(minimal_instance(schema), schema)


@given(low=st.integers(0, 40), extra=st.integers(0, 5))
def test_strings_and_lists_of_a_size(low, extra):
    for schema in (
        {"type": "string", "minLength": low, "maxLength": low + extra},
        {"type": "array", "minItems": low, "maxItems": low + extra, "items": {"type": "boolean"}},
    ):
        jsonschema.validate(minimal_instance(schema), schema)


def test_the_dialect_of_gemini():
    schema = {
        "type": "OBJECT",
        "properties": {
            "name": {"type": "STRING", "minLength": "2"},
            "maybe": {"type": "INTEGER", "nullable": True},
            "list": {"type": "ARRAY", "items": {"type": "NUMBER"}, "minItems": "1"},
        },
        "required": ["name", "maybe", "list"],
    }
    assert minimal_instance(schema) == {"name": "aa", "maybe": None, "list": [0]}


@pytest.mark.parametrize(
    "schema",
    [
        {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#/$defs/a"}}}},
        },
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/missing"},
        {"type": "string", "pattern": "^quite special$"},
        {"type": "integer", "minimum": 5, "maximum": 4},
    ],
)
def test_what_cannot_be_done_is_said(schema):
    with pytest.raises(ValueError, match=r"schema|string|number"):
        minimal_instance(schema)
