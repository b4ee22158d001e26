"""The canonical schema: golden files of it, and of what each provider received.

Write the golden files anew after a wanted change, and read the difference before it is committed:

    LLMKIT_WRITE_GOLDEN=1 python -m pytest tests/pydanticai/test_schema.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llmkit.canonical_json import sha256_of
from llmkit.pydanticai import SchemaError, canonical
from llmkit.pydanticai.output_shape import OutputShape
from llmkit.router import PROVIDER_CAPABILITIES
from llmkit.testing import GeminiServer, OllamaServer, minimal_instance
from llmkit.types import LLMProvider
from tests.support.golden_types import TYPES
from tests.support.scripted_services import opened_wire

GOLDEN = Path(__file__).parent / "golden"


def _same_as_golden(name: str, value: Any) -> None:
    path = GOLDEN / f"{name}.json"
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    if os.environ.get("LLMKIT_WRITE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, "see the top of this file for how to write it anew"


def _canonical(output_type: Any) -> Any:
    return canonical(OutputShape.of(output_type).adapter.json_schema())


@pytest.mark.parametrize("name", TYPES)
def test_the_canonical_schema_is_as_it_was(name: str) -> None:
    found = _canonical(TYPES[name])
    left_out = {
        "validated_only": list(found.validated_only),
        **{
            f"not enforced by {provider}": list(found.list_unenforced(PROVIDER_CAPABILITIES[provider]))
            for provider in LLMProvider
        },
    }
    _same_as_golden(f"canonical_{name}", {"schema": found.json_schema, **left_out})


@pytest.mark.parametrize("name", TYPES)
def test_canonical_schema_is_a_fixed_point(name: str) -> None:
    """Its values are of the type."""
    schema = _canonical(TYPES[name]).json_schema
    assert canonical(schema).json_schema == schema
    assert schema["type"] == "object"
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize("provider", ["ollama", "gemini"])
async def test_each_provider_receives_the_canonical_schema_unchanged(provider: str) -> None:
    received: dict[str, Any] = {}
    async with opened_wire(provider) as wire:
        for name, output_type in TYPES.items():
            schema = _canonical(output_type)
            wire.server.script([json.dumps(_value(name, schema.json_schema))])
            found = await wire.extract(output_type, "x")
            received[name] = _received(wire.server)
            assert received[name] == schema.json_schema
            assert list(received[name].get("properties", {})) == list(schema.json_schema.get("properties", {}))
            assert found.schema_sha256 == schema.sha256 == found.responses[0].attempts[0].schema_sha256
    _same_as_golden(f"received_by_{provider}", received)


# What the smallest instance of the wire's schema lacks, because only validation enforces it.
_BETTER: dict[str, dict[str, Any]] = {
    "choices": {"confirmed": True},
    "constrained": {"share": 0.5, "even": 2, "code": "AB-1", "few": [1], "unique": []},
    "times": {"lasted": "PT1H"},
    "money": {"id": "00000000-0000-4000-8000-000000000000", "amount": 1},
    "tree": {"children": []},
    "scalar_decimal": {"response": 1.5},
}


def _value(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {**minimal_instance(schema), **_BETTER.get(name, {})}


def _received(server: OllamaServer | GeminiServer) -> Any:
    body = server.calls[-1].json
    if isinstance(server, OllamaServer):
        return body["format"]
    config = body["generationConfig"]
    return config.get("responseJsonSchema") or config["response_json_schema"]


def test_schema_hash_does_not_depend_on_order() -> None:
    assert _canonical(int | str).json_schema != _canonical(str | int).json_schema
    assert _canonical(int | str).sha256 == sha256_of(_canonical(int | str).json_schema)


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return {"type": "object", "properties": {"x": schema}}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "tuple"}, "type of the value is 'tuple'"),
        ({"type": 5}, "type of the value is 5"),
        ([], r"the value is not a schema but \[\]"),
        (False, "not a schema but False"),
        ({"type": "object", "properties": []}, "properties of the value"),
        ({"type": "object", "properties": {"x": {"enum": []}}}, "enum of x"),
        ({"type": "object", "properties": {"x": {"anyOf": {}}}}, "anyOf of x"),
        ({"type": "object", "properties": {"x": {"$ref": "#/$defs/Gone"}}}, "points to 'Gone'"),
        ({"type": "object", "properties": {"x": {"$ref": "https://example.com/x.json"}}}, "does not point into"),
        ({"type": "object", "properties": {"x": {"type": "string", "minLength": -1}}}, "minLength of x"),
        ({"type": "object", "properties": {"x": {"type": "integer", "minimum": "1"}}}, "minimum of x"),
        ({"type": "object", "properties": {"x": {}}, "required": "x"}, "required of the value"),
        ({"type": "object", "properties": {"x": {"type": "array", "prefixItems": 1}}}, "prefixItems of x"),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}, "refers to itself"),
        ({"$ref": "#/$defs/A", "$defs": 5}, r"\$defs must be"),
        (_nested(60), "too deep"),
        (_nested(20_000), "too deep"),
        ({"type": "object", "properties": {f"x{n}": {"type": "string"} for n in range(6_000)}}, "too large"),
    ],
)
def test_a_malformed_schema_is_refused_with_the_place(schema: Any, said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        canonical(schema)


def test_keywords_that_no_provider_takes_are_left_out_and_listed() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "object", "patternProperties": {"^x": {}}, "minProperties": 1},
            "b": {"allOf": [{"type": "string"}, {"minLength": 1}], "type": "string"},
            "c": {"type": ["string", "null"], "not": {"const": "x"}},
            "d": {"allOf": [{"type": "integer"}], "description": "one"},
            "e": {"const": {"x": 1}},
            "f": {"type": "array", "items": False, "contains": {"type": "string"}},
        },
    }
    found = canonical(schema)
    assert set(found.validated_only) == {
        "a: patternProperties",
        "a: minProperties",
        "b: allOf",
        "c: not",
        "e: enum",
        "f: contains",
    }
    assert found.json_schema["properties"]["c"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert found.json_schema["properties"]["d"] == {"type": "integer", "description": "one"}
