"""Conversion of targets: each value goes through the aliases and validators of its field, as an answer does."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from functools import lru_cache
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import AliasChoices, AliasPath, BaseModel, RootModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, SchemaValidator, core_schema

from llmkit.errors import LLMEvaluationError, describe_validation
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.dataset.literals import read_literal
from llmkit.evals.scorers.values import get_at_path

__all__ = [
    "Target",
    "convert_target",
    "convert_value",
    "find_problem",
    "find_target",
    "get_only_field",
    "refuse_target",
]

ROOT = "root"
MISSING = object()
NO_NUMBER = "NaN and infinities are no JSON, so no answer has one"
NO_DATE = "a number is no date"
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*")
# How a value is written, by what pydantic says of one that is written in another way.
REMEDIES = {
    "valid string": "; a list of accepted strings is for text_match or contains",
    "valid number": "; numbers are written as 1080.5, without separators or units",
    "valid integer, unable": "; whole numbers are written as 1080, without separators or units",
    "valid decimal": "; numbers are written as 1080.5, without separators or units",
    "not a number": "; numbers are written as 1080.5, without separators or units",
    "valid date": "; dates are written as 2024-12-31",
    "ISO 8601 date": "; dates are written as 2024-12-31",
    "exact dates": "; dates are written as 2024-12-31",
    NO_DATE: "; dates are written as 2024-12-31",
    "valid boolean": "; write true or false",
}

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A target by the names of its fields.

    Attributes:
        values: Converted values; a value that does not fit its field stays as it is.
        problems: Reasons why values do not fit, by field name.
    """

    values: Mapping[str, Any]
    problems: Mapping[str, str] = field(default_factory=dict)


def get_only_field(output_type: type[BaseModel]) -> str:
    """Return the field of a type that has only one.

    Raises:
        ValueError: It has several or none.
    """
    names = list(output_type.model_fields)
    if len(names) != 1:
        raise ValueError(f"name the field to compare; {output_type.__name__} has {', '.join(names) or 'none'}")
    return names[0]


def convert_target(output_type: type[BaseModel], sample: Sample) -> Target:
    """Return the target of a sample, each value converted as its field converts an answer.

    Raises:
        ValueError: The sample has no target, or a bare value where the type has several fields.
    """
    if sample.target is None:
        raise ValueError("the sample has no target to compare with")
    target: Any = sample.target
    if issubclass(output_type, RootModel):
        given = target if isinstance(target, dict) and target.keys() == {ROOT} else {ROOT: target}
        return _convert(output_type, given)
    if isinstance(target, str) and isinstance(written := read_literal(target), dict):
        # A cell of a CSV file, which contains only text. Not for any object: the text itself may be what is wanted.
        target = written if written and _list_names(output_type).issuperset(written) else target
    if not isinstance(target, dict):
        return _convert(output_type, {get_only_field(output_type): target})
    if len(output_type.model_fields) == 1 and not any(key in _list_names(output_type) for key in target):
        # It may be the value of the only field, such as a dictionary of counts.
        bare = _convert(output_type, {get_only_field(output_type): target})
        if not bare.problems:
            return bare
    return _convert(output_type, target)


def find_target(output_type: type[BaseModel], target: Target, path: str) -> Any:
    """Return the converted value of a target at a dotted path.

    Raises:
        ValueError: The target has nothing there.
    """
    target, path = _descend(output_type, target, path)
    return get_at_path(target.values, path)


def find_problem(output_type: type[BaseModel], target: Target, path: str) -> str | None:
    """Return why the value of a target does not fit the field at a dotted path; None when it does."""
    target, path = _descend(output_type, target, path)
    # What is left is a path into an object of several possible types, or of none.
    return None if "." in path else target.problems.get(path)


def convert_value(output_type: type[BaseModel], name: str, value: Any) -> Any:
    """Return a value as a field converts it, or unchanged where it does not fit or there is no such field."""
    return _convert(output_type, {name: value}).values.get(name, value)


def _descend(model: type[BaseModel], target: Target, path: str) -> tuple[Target, str]:
    """Return the innermost part of a target that must be converted alone, and the path inside it.

    A target may give a part of an object only. The object does not fit its field then, and its parts may fit theirs.
    """
    while True:
        name, _, rest = path.partition(".")
        value = target.values.get(name)
        if not rest or name not in target.problems or not isinstance(value, dict):
            return target, path
        inner = _find_model(model.model_fields[name].annotation)
        if inner is None:
            return target, path
        model, target, path = inner, _convert(inner, value), rest


def refuse_target(sample: Sample, problem: str) -> NoReturn:
    """Refuse a target before anything is paid for.

    Args:
        sample: The sample.
        problem: The field and what is wrong with its value.

    Raises:
        LLMEvaluationError: In any case; the message names sample and field.
    """
    remedy = next((text for sign, text in REMEDIES.items() if sign in problem), "")
    end = "" if problem.endswith("?") else "."
    raise LLMEvaluationError(
        f"Sample {sample.key!r} has a target that no answer can equal: {problem.removeprefix(f'{ROOT}: ')}{end} "
        f"Correct it, or the type of the field{remedy}."
    )


def _convert(model: type[BaseModel], given: dict[str, Any]) -> Target:
    values, problems = _validate_target(model, given)
    for rewrite in (_tidy, _read_written, _name_members):
        if not problems:
            break
        # The values of fields that fit are left alone: a text may be wanted with its spaces, or as JSON.
        kinds = {
            path[0]: model.model_fields[name].annotation
            for name in problems
            for path in _list_paths(name, model.model_fields[name])
        }
        rewritten = {key: rewrite(value, kinds[key]) if key in kinds else value for key, value in given.items()}
        if rewritten != given:
            given = rewritten
            other_values, other_problems = _validate_target(model, given)
            solved = problems.keys() - other_problems.keys()
            values = {**values, **{name: other_values[name] for name in solved if name in other_values}}
            problems = {name: problem for name, problem in problems.items() if name not in solved}
    problems |= _find_impossible(model, given, values)
    validators = model.__pydantic_decorators__.model_validators.values()
    if not problems and any(each.info.mode in ("before", "wrap") for each in validators):
        # Such a validator may give meaning to keys that are no fields.
        return Target(values)
    others = {key: value for key, value in given.items() if key not in _list_names(model)}
    return Target({**others, **values}, problems)


def _validate_target(model: type[BaseModel], given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of the fields, and the reasons why some do not fit."""
    try:
        text = json.dumps(given[ROOT] if issubclass(model, RootModel) else given)
        whole = model.model_validate_json(text, by_alias=True, by_name=True)
        # In the order of the type: that of a set differs between processes.
        return {name: getattr(whole, name) for name in model.model_fields if name in whole.model_fields_set}, {}
    except Exception as error:  # noqa: BLE001 (a validator may raise anything; a target may lack fields that an answer needs)
        if issubclass(model, RootModel):
            reason = "; ".join(describe_validation(error)) if isinstance(error, ValidationError) else str(error)
            return given, {ROOT: reason}
        return _convert_each(model, given)


# Ways to write a value that mean one thing only. Each is tried on values that do not fit as they are.


def _tidy(value: Any, kind: Any) -> Any:
    """Return a value without spaces around its strings, which a person would not see."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return [_tidy(item, kind) for item in value]
    if isinstance(value, dict):
        return {key: _tidy(item, kind) for key, item in value.items()}
    return value


def _read_written(value: Any, _kind: Any) -> Any:
    """Return the list or object that a text is, as in a cell of a CSV file."""
    return read_literal(value) if isinstance(value, str) else value


def _name_members(value: Any, kind: Any) -> Any:
    """Return the choice that a value stands for, also in a list: a member by its name, 3 by "3", and "3" by 3."""
    if isinstance(value, list):
        return [_name_members(item, kind) for item in value]
    members = {name: member.value for each in _find_enums(kind) for name, member in each.__members__.items()}
    choices = [*members.values(), *_find_literals(kind)]
    if not isinstance(value, str | int) or isinstance(value, bool) or value in choices:
        return value
    # Codes of classes: files have them as text or as numbers, whatever the type says.
    same = [each for each in choices if type(each) in (str, int) and str(each) == str(value)]
    return members.get(value, value) if value in members else same[0] if same else value


def _find_enums(kind: Any) -> list[type[Enum]]:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [kind]
    return [found for part in get_args(kind) for found in _find_enums(part)]


def _find_literals(kind: Any) -> list[Any]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [found for part in get_args(kind) for found in _find_literals(part)]


def _find_impossible(model: type[BaseModel], given: dict[str, Any], values: Mapping[str, Any]) -> dict[str, str]:
    """Return the reasons why values that Pydantic takes can be no answer, or are not what was meant."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            found[name] = NO_NUMBER if name == ROOT else f"{name}: {NO_NUMBER}"
        elif type(value) is date and name in model.model_fields:
            # Pydantic takes a number for seconds since 1970. In data it is a year, a day of Excel's, or 20241231.
            raw = _look_up(given, _list_paths(name, model.model_fields[name]))
            if isinstance(raw, int | float) or (isinstance(raw, str) and _NUMBER.fullmatch(raw)):
                found[name] = NO_DATE if name == ROOT else f"{name}: {NO_DATE}"
    return found


def _convert_each(model: type[BaseModel], given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Convert the values of some fields; a value that does not fit is kept, with the reason."""
    problems: dict[str, str] = {}
    text = json.dumps(given)
    # One error names all fields that do not fit, so this takes two rounds, or a few more where fields depend on others.
    while True:
        try:
            values = _build_validator(model, frozenset(problems)).validate_json(text, by_alias=True, by_name=True)
            break
        except ValidationError as error:
            found = dict(_assign_problems(model, error))
            if not found.keys() - problems.keys():
                return _convert_by_annotation(model, given)
            problems = {**found, **problems}
        except Exception:  # noqa: BLE001 (a validator of the user's type that needs the other fields, for example)
            return _convert_by_annotation(model, given)
    kept = {name: _look_up(given, _list_paths(name, model.model_fields[name])) for name in problems}
    return {**values, **{name: value for name, value in kept.items() if value is not MISSING}}, problems


def _assign_problems(model: type[BaseModel], error: ValidationError) -> Iterator[tuple[str, str]]:
    for problem, line in zip(error.errors(include_url=False), describe_validation(error), strict=True):
        for name, info in model.model_fields.items():
            if any(problem["loc"][: len(path)] == path for path in _list_paths(name, info)):
                yield name, line


def _convert_by_annotation(model: type[BaseModel], given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Convert by the types of the fields alone, without validators that the model adds to them."""
    values: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        value = _look_up(given, _list_paths(name, info))
        if value is MISSING:
            continue
        kind: Any = info.annotation
        try:
            values[name] = TypeAdapter(kind).validate_json(json.dumps(value))
        except Exception:  # noqa: BLE001 (see `_convert_each`)
            values[name] = value
    return values, {}


@lru_cache(maxsize=1024)
def _build_validator(model: type[BaseModel], without: frozenset[str]) -> SchemaValidator:
    """Return a validator of the model's fields that needs none of them, and knows nothing of some.

    Made of the model's schema, so that the fields have their aliases and validators, and the validators see the values
    of earlier fields. Validators of the model as a whole are left out: a target may be a part of an answer.
    """
    model.model_rebuild()
    schema: Any = model.__pydantic_core_schema__
    definitions: list[CoreSchema] = []
    config = None
    while schema["type"] != "model-fields":
        if schema["type"] == "definitions":
            definitions += schema["definitions"]
        if schema["type"] == "definition-ref":
            schema = next(each for each in definitions if each.get("ref") == schema["schema_ref"])
            continue
        config = schema.get("config", config)
        schema = schema["schema"]
    fields = {
        name: core_schema.typed_dict_field(
            # The default is outermost. Without it, a field that is not given stays out.
            each["schema"]["schema"] if each["schema"]["type"] == "default" else each["schema"],
            required=False,
            validation_alias=each.get("validation_alias"),
        )
        for name, each in schema["fields"].items()
        if name not in without
    }
    partial = core_schema.typed_dict_schema(fields, extra_behavior="ignore", config=config)
    return SchemaValidator(core_schema.definitions_schema(partial, definitions) if definitions else partial)


def _find_model(annotation: Any) -> type[BaseModel] | None:
    """Return the only model in an annotation; None where there are several or none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [model for model in map(_find_model, get_args(annotation)) if model is not None]
    return found[0] if len(found) == 1 else None


@lru_cache(maxsize=1024)
def _list_names(model: type[BaseModel]) -> frozenset[str]:
    """Return the keys that an object of the model may have."""
    return frozenset(str(path[0]) for name, info in model.model_fields.items() for path in _list_paths(name, info))


def _list_paths(name: str, info: FieldInfo) -> list[Path]:
    """Return the places at which a field is looked for."""
    alias = info.validation_alias
    if isinstance(alias, AliasPath):
        paths = [alias.convert_to_aliases()]
    elif isinstance(alias, AliasChoices):
        paths = alias.convert_to_aliases()
    else:
        paths = [] if alias is None else [[alias]]
    return [*(tuple(path) for path in paths), (name,)]


def _look_up(given: Any, paths: list[Path]) -> Any:
    for path in paths:
        value = given
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                break
        else:
            return value
    return MISSING
