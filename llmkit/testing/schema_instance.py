"""The smallest value that a JSON Schema allows, so that structured output works without a script."""

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, TypeAlias

__all__ = ["minimal_instance"]

_MAX_DEPTH = 64
_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "email": "a@example.com",
    "uri": "http://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
}
_BOUNDS: Mapping[str, Callable[[float, float], bool]] = {
    "minimum": operator.ge,
    "exclusiveMinimum": operator.gt,
    "maximum": operator.le,
    "exclusiveMaximum": operator.lt,
}
_MAX_REPEATS = 33
_STEMS = (
    "a",
    "A",
    "0",
    "1",
    "aA0",
    "Aa",
    "a-a",
    "a_a",
    "a a",
    "0.0",
    "+1",
    "2000-01-01",
    "a@example.com",
    "http://a.co/",
    "#",
)
_STEM_PAIRS = (("A", "0"), ("a", "0"), ("A", "a"), ("A-", "0"), ("a-", "0"), ("0", "A"), ("#", "0"), ("A", "-0"))

Schema: TypeAlias = Mapping[str, Any]


def minimal_instance(schema: Schema) -> Any:
    """Return a small value that is valid under `schema`.

    Optional properties are left out, null is preferred where it is allowed, lists are as short as they may be,
    numbers as near to 0. Understands JSON Schema as Pydantic writes it (`$ref`, `anyOf`, `allOf`, `enum`, bounds,
    formats) and Gemini's OpenAPI dialect (`STRING`, `nullable`, bounds as strings). `uniqueItems` beyond one item is
    not looked after.

    Raises:
        ValueError: No value could be found: an endless recursion, a dangling reference, or a `pattern` that none of
            a few dozen candidate strings matches. Script the reply instead.
    """
    return _build_instance(schema, schema, 0)


def _build_instance(schema: Any, root: Schema, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError("the schema never comes to an end: a required property contains itself")
    if not isinstance(schema, Mapping):  # `true` and `{}` allow anything
        return ""
    schema = _flatten(schema, root, depth)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for choices in ("anyOf", "oneOf"):
        if schema.get(choices):
            return _pick_possible(schema[choices], root, depth)
    return _build_of_type(_get_type(schema), schema, root, depth)


def _flatten(schema: Schema, root: Schema, depth: int) -> dict[str, Any]:
    merged = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
    parts = list(schema.get("allOf", ()))
    if "$ref" in schema:
        parts.append(_resolve(schema["$ref"], root))
    if depth + len(parts) > _MAX_DEPTH:
        raise ValueError("the schema refers to itself without end")
    for part in parts:
        flat = _flatten(part, root, depth + 1)
        for key, value in flat.items():
            merged[key] = _join_values(key, merged[key], value) if key in merged else value
    return merged


def _join_values(key: str, first: Any, second: Any) -> Any:
    if key == "properties":
        return {**second, **first}
    if key == "required":
        return [*first, *(name for name in second if name not in first)]
    return first


def _resolve(reference: str, root: Schema) -> Schema:
    target: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        key = step.replace("~1", "/").replace("~0", "~")
        if key and (not isinstance(target, Mapping) or key not in target):
            raise ValueError(f"the schema refers to {reference}, which it does not define")
        target = target[key] if key else target
    if not isinstance(target, Mapping):
        raise ValueError(f"the schema refers to {reference}, which is not a schema")
    return target


def _pick_possible(choices: list[Any], root: Schema, depth: int) -> Any:
    nulls_first = sorted(choices, key=lambda choice: _get_type(_flatten(choice, root, depth)) != "null")
    problem: ValueError | None = None
    for choice in nulls_first:
        try:
            return _build_instance(choice, root, depth + 1)
        except ValueError as error:
            problem = error
    raise problem or ValueError("the schema offers no choice")


def _get_type(schema: Schema) -> str:
    declared = schema.get("type")
    if schema.get("nullable"):
        return "null"
    if isinstance(declared, list):
        return "null" if "null" in declared else str(declared[0]).lower()
    if declared:
        return str(declared).lower()
    if "properties" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _build_of_type(kind: str, schema: Schema, root: Schema, depth: int) -> Any:
    if kind == "object":
        return _build_object(schema, root, depth)
    if kind == "array":
        return _build_array(schema, root, depth)
    if kind in ("integer", "number"):
        return _build_number(schema, whole=kind == "integer")
    if kind == "boolean":
        return False
    return None if kind == "null" else _build_string(schema)


def _build_object(schema: Schema, root: Schema, depth: int) -> dict[str, Any]:
    properties = schema.get("properties", {})
    made = {name: _build_instance(properties.get(name, {}), root, depth + 1) for name in schema.get("required", ())}
    extra = schema.get("additionalProperties", {})
    for number in range(int(schema.get("minProperties", 0)) - len(made)):
        made[f"key{number}"] = _build_instance(extra, root, depth + 1)
    return made


def _build_array(schema: Schema, root: Schema, depth: int) -> list[Any]:
    prefix = list(schema.get("prefixItems", ()))
    size = int(schema.get("minItems", 0))
    items = (prefix + [schema.get("items", {})] * size)[:size]
    return [_build_instance(item, root, depth + 1) for item in items]


def _build_number(schema: Schema, *, whole: bool) -> int | float:
    bounds = {key: float(schema[key]) for key in _BOUNDS if schema.get(key) is not None}
    step = float(schema.get("multipleOf") or (1 if whole else 0))
    for value in _list_number_candidates(sorted(bounds.values()), step):
        if all(_BOUNDS[key](value, bound) for key, bound in bounds.items()):
            return int(value) if whole or value.is_integer() else value
    raise ValueError(f"no number found within {bounds} in steps of {step or 'any size'}")


def _list_number_candidates(edges: list[float], step: float) -> Iterator[float]:
    yield 0.0
    for edge in edges:
        if step:
            nearest = math.floor(edge / step)
            yield from (multiple * step for multiple in (nearest, nearest + 1, nearest - 1))
        else:
            yield from (edge, edge + 1, edge - 1)
    yield from ((low + high) / 2 for low, high in pairwise(edges) if not step)


def _build_string(schema: Schema) -> str:
    shortest, longest = int(schema.get("minLength", 0)), int(schema.get("maxLength", 10**9))
    pattern = re.compile(schema.get("pattern", ""))
    for text in _list_string_candidates(schema, shortest):
        if shortest <= len(text) <= longest and pattern.search(text):
            return text
    raise ValueError(f"no string found for the pattern {pattern.pattern!r}: script the reply instead")


def _list_string_candidates(schema: Schema, shortest: int) -> Iterator[str]:
    if schema.get("format") in _FORMATS:
        yield _FORMATS[schema["format"]]
    yield "a" * shortest
    for times in range(1, _MAX_REPEATS):
        yield from (stem * times for stem in _STEMS)
    yield from (head * i + tail * j for head, tail in _STEM_PAIRS for i in range(1, 9) for j in range(1, 9))
