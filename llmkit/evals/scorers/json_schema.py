"""The scorer of outputs that must be valid by a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic_core import to_jsonable_python

from llmkit.canonical_json import canonical_json
from llmkit.errors import LLMEvaluationError
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.scorers.base import Options, Score, Scorer
from llmkit.evals.scorers.patterns import is_match, limit_all_searches
from llmkit.evals.scorers.values import find_at_path

if TYPE_CHECKING:
    from jsonschema import ValidationError

__all__ = ["json_schema_valid"]

MOST_PROBLEMS = 3
# The engine's own checks of these keywords search with `re`, which has no time limit and keeps the interpreter's lock.
# `unevaluatedProperties` depends on the keywords whose subschemas apply to the same object.
_ALL_OF_THESE = ("allOf", "anyOf", "oneOf")
# Keywords whose values are data, and no schemas.
_VALUES = frozenset({"const", "enum", "default", "examples"})


@dataclass(frozen=True, slots=True)
class _JsonSchemaValid(Options):
    is_quick: ClassVar[bool] = False
    reads_fields: ClassVar[bool] = False

    schema_json: str = field(default="{}")

    def __call__(self, output: Any, _sample: Sample, /) -> Score:
        value = find_at_path(output, self.fields[0]) if self.fields else output
        try:
            document = _parse_json(value) if isinstance(value, str) else to_jsonable_python(value, by_alias=True)
        except (ValueError, RecursionError) as error:
            return Score(0.0, f"not JSON: {error}")
        with limit_all_searches():
            problems = list(_find_problems(document, self.schema_json))
        return Score(float(not problems), "; ".join(problems))


def _parse_json(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not a JSON value")

    return json.loads(text, parse_constant=refuse)


def _find_problems(document: Any, schema_json: str) -> Iterator[str]:
    for number, error in enumerate(_build_validator(schema_json).iter_errors(document)):
        if number == MOST_PROBLEMS:
            yield "and more"
            return
        yield f"{error.json_path}: {error.message[:200]}"


@lru_cache(maxsize=64)
def _build_validator(schema_json: str) -> Any:
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema.validators import extend
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    schema = json.loads(schema_json)
    Draft202012Validator.check_schema(schema)
    schema = _drop_dialects(schema)
    # An empty registry: references to other documents are errors, and nothing is fetched.
    registry: Any = Registry()
    look_up = registry.with_resource("", DRAFT202012.create_resource(schema)).resolver().lookup
    guarded = extend(
        Draft202012Validator,
        {
            "pattern": _check_pattern,
            "patternProperties": _check_pattern_properties,
            "additionalProperties": _check_additional_properties,
            "unevaluatedProperties": partial(_check_unevaluated_properties, look_up),
        },
    )
    return guarded(schema, registry=registry, format_checker=FormatChecker())


def _drop_dialects(schema: Any) -> Any:
    """Return a schema without `$schema`: the engine checks a part that has one without the keywords below."""
    if isinstance(schema, list):
        return [_drop_dialects(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        keyword: part if keyword in _VALUES else _drop_dialects(part)
        for keyword, part in schema.items()
        if keyword != "$schema" or not isinstance(part, str)
    }


def _check_pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not is_match(pattern, instance):
        yield _problem(f"{instance!r:.200} does not match {pattern!r}")


def _check_pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: Any, _schema: Any
) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for pattern, subschema in patterns.items():
            for name, value in instance.items():
                if is_match(pattern, name):
                    yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _check_additional_properties(
    validator: Any, subschema: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        known = _list_own_names(schema, instance)
        yield from _check_others(validator, subschema, instance, known, "additional properties are not allowed")


def _check_unevaluated_properties(
    look_up: Any, validator: Any, subschema: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        others = {keyword: value for keyword, value in schema.items() if keyword != "unevaluatedProperties"}
        known = _list_evaluated(look_up, validator, others, instance)
        yield from _check_others(validator, subschema, instance, known, "unevaluated properties are not allowed")


def _check_others(
    validator: Any, subschema: Any, instance: dict[str, Any], known: set[str], message: str
) -> Iterator[ValidationError]:
    """Check the properties that no other keyword covers."""
    others = [name for name in instance if name not in known]
    if subschema is False and others:
        yield _problem(f"{message}: {', '.join(repr(name) for name in others[:10]):.200}")
    elif isinstance(subschema, dict):
        for name in others:
            yield from validator.descend(instance[name], subschema, path=name)


def _list_own_names(schema: Mapping[str, Any], instance: dict[str, Any]) -> set[str]:
    properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    return {name for name in instance if name in properties or any(is_match(pattern, name) for pattern in patterns)}


def _list_evaluated(look_up: Any, validator: Any, schema: Any, instance: dict[str, Any]) -> set[str]:
    """Return the properties that a schema covers, or one that applies to the same object and is met.

    Source: JSON Schema 2020-12, "A Vocabulary for Unevaluated Locations", section 11.3.
    """
    if not isinstance(schema, dict):
        return set()
    if "additionalProperties" in schema or "unevaluatedProperties" in schema:
        return set(instance)
    found = _list_own_names(schema, instance)
    for subschema in _list_applied(look_up, validator, schema, instance):
        found |= _list_evaluated(look_up, validator, subschema, instance)
    return found


def _list_applied(look_up: Any, validator: Any, schema: dict[str, Any], instance: dict[str, Any]) -> Iterator[Any]:
    """Return the subschemas that apply to the same object, as far as it meets them."""

    def is_met(subschema: Any) -> bool:
        return bool(validator.evolve(schema=subschema).is_valid(instance))

    for keyword in ("$ref", "$dynamicRef"):
        if keyword in schema:
            yield look_up(schema[keyword]).contents
    for keyword in _ALL_OF_THESE:
        yield from (subschema for subschema in schema.get(keyword, ()) if is_met(subschema))
    yield from (each for name, each in schema.get("dependentSchemas", {}).items() if name in instance)
    if "if" in schema:
        is_so = is_met(schema["if"])
        yield from [schema["if"]] if is_so else []
        yield schema.get("then" if is_so else "else", True)


def _problem(message: str) -> ValidationError:
    from jsonschema import ValidationError

    return ValidationError(message)


def json_schema_valid(
    schema: Mapping[str, Any], field: str | None = None, *, name: str = "json_schema_valid"
) -> Scorer:
    """Score 1 when the output is valid by a JSON schema (draft 2020-12 with formats), else 0. The target is not used.

    References to other documents are not followed. A pattern that takes longer than a second (possible with nested
    repeats) is a scorer error.

    Args:
        schema: The schema.
        field: Name or dotted path of a part of the output; a string in it is parsed as JSON. None for the whole output.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: The schema itself is not valid.
    """
    from jsonschema import SchemaError

    schema_json = canonical_json(dict(schema))
    try:
        _build_validator(schema_json)
    except SchemaError as error:
        raise LLMEvaluationError(f"{name}: the schema is not valid at {error.json_path}: {error.message}.") from None
    return _JsonSchemaValid(name, (field,) if field else (), schema_json=schema_json)
