"""Validity by a JSON schema: as the engine judges it, and without its searches, which have no time limit."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import jsonschema._keywords
import jsonschema._utils
import pytest
from jsonschema import Draft202012Validator
from pydantic import RootModel

from llmkit.evals import Sample, json_schema_valid
from llmkit.evals.scorers import apply_scorers, patterns

ENDLESS = r"(.*a){20}(b)\2(.*a){20}x"
ADVERSARY = "ba" * 30 + "bb" + "ab" * 30
X, INTEGER = {"patternProperties": {"^x-": {"type": "string"}}}, {"type": "integer"}
A = {"properties": {"a": INTEGER}}
B = {"properties": {"b": INTEGER}, "required": ["b"]}

SCHEMAS: list[dict[str, Any]] = [
    X,
    X | {"additionalProperties": False},
    X | A | {"additionalProperties": INTEGER},
    X | {"unevaluatedProperties": False},
    {"unevaluatedProperties": False},
    {"unevaluatedProperties": INTEGER},
    A | {"allOf": [X], "unevaluatedProperties": False},
    A | {"anyOf": [X, B], "unevaluatedProperties": False},
    A | {"oneOf": [{"required": ["x-1"], **X}, B], "unevaluatedProperties": INTEGER},
    {"$defs": {"x": X}, "$ref": "#/$defs/x", "unevaluatedProperties": False},
    {"$defs": {"x": {"$anchor": "here", **X}}, "$ref": "#here", "unevaluatedProperties": False},
    {"if": A | {"required": ["a"]}, "then": X, "else": B, "unevaluatedProperties": False},
    {"if": A | {"required": ["a"]}, "unevaluatedProperties": False},
    {"dependentSchemas": {"a": X}, **A, "unevaluatedProperties": False},
    {"allOf": [A | {"additionalProperties": True}], "unevaluatedProperties": False},
    {"allOf": [A | {"unevaluatedProperties": INTEGER}], "unevaluatedProperties": False},
    {"propertyNames": {"pattern": "^[a-z]"}},
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "properties": {"child": {"$ref": "#"}}, **X},
    {"properties": {"$schema": {"const": {"$schema": "s"}}}},
]
DOCUMENTS: list[Any] = [
    {},
    {"a": 1},
    {"a": "1"},
    {"b": 2},
    {"a": 1, "b": 2},
    {"x-1": "s"},
    {"x-1": 1},
    {"a": 1, "x-1": "s"},
    {"b": 1, "x-1": "s", "c": 3},
    {"a": 1, "c": "other"},
    {"child": {"x-1": 1}},
    {"$schema": {"$schema": "s"}},
    {"$schema": {}},
    "no object",
]


class Document(RootModel[Any]):
    pass


async def judge(schema: Any, document: Any) -> tuple[Any, Any]:
    scores = await apply_scorers([json_schema_valid(schema)], Document(document), Sample("x", id="s"))
    return scores.values, scores.errors


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
async def test_documents_are_judged_as_the_engine_judges_them(schema: dict[str, Any]) -> None:
    engine = Draft202012Validator(schema)
    # A string is read as JSON by the scorer, so it stands in a list here.
    expected = [float(engine.is_valid(document)) for document in DOCUMENTS[:-1]]
    found = [(await judge(schema, document))[0].get("json_schema_valid") for document in DOCUMENTS[:-1]]
    assert found == expected


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
async def test_no_search_of_the_engine_is_used(monkeypatch: pytest.MonkeyPatch, schema: dict[str, Any]) -> None:
    json_schema_valid(schema)  # the schema itself is checked by the engine, and is not foreign
    banned = Mock(search=Mock(side_effect=AssertionError("a search without a time limit")))
    monkeypatch.setattr(jsonschema._keywords, "re", banned)
    monkeypatch.setattr(jsonschema._utils, "re", banned)
    for document in DOCUMENTS:
        assert (await judge(schema, document))[1] == {}


HANGING: list[dict[str, Any]] = [
    {"patternProperties": {ENDLESS: True}},
    {"patternProperties": {ENDLESS: True}, "additionalProperties": False},
    {"allOf": [{"patternProperties": {ENDLESS: True}}], "unevaluatedProperties": False},
    {"propertyNames": {"pattern": ENDLESS}},
    {"additionalProperties": {"pattern": ENDLESS}},
    {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "properties": {"child": {"$ref": "#"}},
        "patternProperties": {ENDLESS: True},
    },
]


@pytest.mark.parametrize("schema", HANGING, ids=range(len(HANGING)))
async def test_a_pattern_without_end_is_given_up_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, schema: dict[str, Any]
) -> None:
    monkeypatch.setattr(patterns, "PATTERN_TIMEOUT_S", 0.01)
    values, errors = await judge(schema, {"child": {ADVERSARY: ADVERSARY}, ADVERSARY: ADVERSARY})
    assert values == {}
    assert "backtracked" in errors["json_schema_valid"]


async def test_all_searches_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "ALL_PATTERNS_TIMEOUT_S", 0.01)
    _, errors = await judge({"pattern": ENDLESS}, {"a": ADVERSARY})
    assert errors == {}
    _, errors = await judge({"additionalProperties": {"pattern": ENDLESS}}, {"a": ADVERSARY})
    assert "backtracked" in errors["json_schema_valid"]


async def test_a_key_of_a_megabyte_is_searched() -> None:
    schema = {"patternProperties": {"^x-": {"type": "string"}}, "additionalProperties": False}
    values, errors = await judge(schema, {"y" * 1_000_000: 1})
    assert (values, errors) == ({"json_schema_valid": 0.0}, {})
