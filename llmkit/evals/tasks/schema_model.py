"""Turns a JSON schema into the type that it describes.

What a type cannot enforce is refused by name, so that a schema never promises more than is checked.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model
from pydantic_core import SchemaError

__all__ = ["SchemaProblem", "build_output_type"]

Schema: TypeAlias = Mapping[str, Any]
Place: TypeAlias = tuple[str | int, ...]

SCALARS: Mapping[str, Any] = {"string": str, "integer": int, "number": float, "boolean": bool, "null": type(None)}
FORMATS: Mapping[str, Any] = {"date": date, "date-time": datetime, "time": time}
REMARKS = frozenset(
    {"$schema", "$id", "$defs", "$comment", "title", "description", "examples", "default", "deprecated"}
)
CONSTRAINTS: Mapping[str, str] = {
    "minLength": "min_length",
    "maxLength": "max_length",
    "pattern": "pattern",
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
    "minItems": "min_length",
    "maxItems": "max_length",
}
# Keywords by the type that they belong to.
KEYWORDS: Mapping[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "boolean": frozenset(),
    "null": frozenset(),
}


class SchemaProblem(ValueError):
    """A part of a schema cannot be used; `place` is the way to it."""

    def __init__(self, message: str, place: Place) -> None:
        super().__init__(message)
        self.place = place


def build_output_type(schema: Schema, name: str = "Output") -> Any:
    """Return the type that a JSON schema describes: a model for an object with properties, `str` for a string.

    A property that is not required and has no default may be left out, and is None then.

    Args:
        schema: Types, properties, items, enum, const, anyOf, local `$ref`s, formats `date`, `date-time` and `time`,
            and limits of length, size and range.
        name: Name of the model, unless the schema has a title.

    Raises:
        SchemaProblem: A part is not of these kinds; the message names it.
    """
    found = _Builder(schema.get("$defs", {})).type_of(schema, (), name)
    try:
        TypeAdapter(found)
    except (SchemaError, TypeError) as error:  # an object of properties was tried when its model was made
        raise SchemaProblem(f"answers cannot be checked: {_first_line(error)}", ()) from None
    return found


@dataclass(frozen=True, slots=True)
class _Builder:
    definitions: Mapping[str, Any]
    under_way: tuple[str, ...] = ()

    def type_of(self, schema: Any, place: Place, name: str) -> Any:
        """Return the annotation of a schema."""
        if not isinstance(schema, Mapping):
            raise SchemaProblem(f"a schema is an object; got {type(schema).__name__}", place)
        for word, build in (("$ref", self._reference), ("enum", self._choice), ("const", self._choice)):
            if word in schema:
                _only(schema, place, {word, "type"})
                return build(schema, place)
        if "anyOf" in schema:
            _only(schema, place, {"anyOf"})
            given = enumerate(_check_list(schema["anyOf"], (*place, "anyOf")))
            return reduce(or_, [self.type_of(each, (*place, "anyOf", n), name) for n, each in given])
        if isinstance(schema.get("type"), list):
            kinds = [self.type_of(_of_type(schema, kind), place, name) for kind in _check_list(schema["type"], place)]
            return reduce(or_, kinds)
        return self._make_type(schema, place, name)

    def _make_type(self, schema: Schema, place: Place, name: str) -> Any:
        if "type" not in schema and "properties" not in schema:
            # Without a type, the message names the keyword used instead, such as oneOf.
            _only(schema, place, set().union(*KEYWORDS.values()))
        kind = schema.get("type", "object" if "properties" in schema else None)
        if not isinstance(kind, str) or kind not in KEYWORDS:
            raise SchemaProblem(f"type is one of {', '.join(KEYWORDS)}; got {kind!r}", place)
        _only(schema, place, {"type", *KEYWORDS[kind]})
        if kind == "object":
            return self._object(schema, place, str(schema.get("title", name)))
        if kind == "array":
            return _apply_limits(list[self.type_of(schema.get("items"), (*place, "items"), f"{name}Item")], schema)  # type: ignore[misc]
        found = SCALARS[kind]
        if "format" in schema:
            found = FORMATS.get(str(schema["format"]))
            if found is None:
                known = ", ".join(FORMATS)
                raise SchemaProblem(f"unknown format {schema['format']!r}; known formats: {known}", (*place, "format"))
        return _apply_limits(found, schema)

    def _reference(self, schema: Schema, place: Place) -> Any:
        target = str(schema["$ref"]).removeprefix("#/$defs/")
        if target not in self.definitions:
            raise SchemaProblem(f"there is no definition {schema['$ref']!r}", (*place, "$ref"))
        if target in self.under_way:
            raise SchemaProblem(f"the definition {target!r} contains itself", (*place, "$ref"))
        inside = _Builder(self.definitions, (*self.under_way, target))
        return inside.type_of(self.definitions[target], ("$defs", target), target)

    def _choice(self, schema: Schema, place: Place) -> Any:
        values = _check_list(schema["enum"], (*place, "enum")) if "enum" in schema else [schema["const"]]
        if not all(value is None or isinstance(value, str | int | bool) for value in values):
            raise SchemaProblem("enum and const contain strings, whole numbers, true, false and null", place)
        return Literal[tuple(values)]

    def _object(self, schema: Schema, place: Place, name: str) -> Any:
        properties, others = schema.get("properties"), schema.get("additionalProperties", True)
        if properties is None and isinstance(others, Mapping):
            return dict[str, self.type_of(others, (*place, "additionalProperties"), f"{name}Value")]  # type: ignore[misc]
        if not isinstance(properties, Mapping) or not properties:
            raise SchemaProblem("an object needs properties", place)
        if not isinstance(others, bool):
            raise SchemaProblem("additionalProperties beside properties is true or false", place)
        required = schema.get("required", [])
        unknown = [each for each in _check_list(required, (*place, "required"), least=0) if each not in properties]
        if unknown:
            raise SchemaProblem(f"required names {unknown[0]!r}, which is no property", (*place, "required"))
        names = _name_fields(properties, place)
        fields: dict[str, Any] = {
            names[key]: self._field(
                value, (*place, "properties", key), key, alias=names[key] != key, is_required=key in required
            )
            for key, value in properties.items()
        }
        config = ConfigDict(extra="ignore" if others else "forbid")
        try:
            return create_model(name, __config__=config, __doc__=schema.get("description"), **fields)
        except (SchemaError, TypeError) as error:
            raise SchemaProblem(f"{name} cannot be checked: {_first_line(error)}", place) from None

    def _field(self, schema: Any, place: Place, key: str, *, alias: bool, is_required: bool) -> tuple[Any, Any]:
        kind = self.type_of(schema, place, key.title().replace("_", ""))
        described: dict[str, Any] = {"description": schema["description"]} if "description" in schema else {}
        if alias:
            described["alias"] = key
        if is_required:
            return kind, Field(**described)
        if "default" in schema:
            # JSON Schema does not check defaults, and an output must have the type of its field.
            return kind, Field(default=schema["default"], validate_default=True, **described)
        return kind | None, Field(default=None, **described)


def _name_fields(properties: Schema, place: Place) -> dict[str, str]:
    """Return the name of each property's field: its own, or another one where Python or Pydantic needs that word."""
    names: dict[str, str] = {}
    for key in properties:
        if not isinstance(key, str) or not key:
            raise SchemaProblem(
                "the name of a property must be a string that is not empty", (*place, "properties", key)
            )
        name = key
        if (
            not key.isidentifier()
            or keyword.iskeyword(key)
            or key.startswith(("_", "model_"))
            or hasattr(BaseModel, key)
        ):
            name = "field_" + re.sub(r"\W", "_", key).lstrip("_")
            while name in properties or name in names.values():
                name += "_"
        names[key] = name
    return names


def _of_type(schema: Schema, kind: Any) -> Schema:
    """Return one alternative of several types, with the keywords that belong to it."""
    every = {word for words in KEYWORDS.values() for word in words}
    mine = KEYWORDS.get(kind, frozenset()) if isinstance(kind, str) else frozenset()
    return {word: value for word, value in schema.items() if word not in every or word in mine} | {"type": kind}


def _apply_limits(kind: Any, schema: Schema) -> Any:
    limits = {CONSTRAINTS[word]: value for word, value in schema.items() if word in CONSTRAINTS}
    return Annotated[kind, Field(**limits)] if limits else kind


def _only(schema: Schema, place: Place, known: set[str]) -> None:
    for word in schema:
        if word not in known and word not in REMARKS:
            raise SchemaProblem(f"the keyword {word!r} cannot be enforced here", (*place, word))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _check_list(value: Any, place: Place, least: int = 1) -> list[Any]:
    if not isinstance(value, list) or len(value) < least:
        raise SchemaProblem("must be a list that is not empty" if least else "must be a list", place)
    return value
