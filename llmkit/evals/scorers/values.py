"""How values are compared: by the type of their field, which the target is converted to first."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from llmkit.canonical_json import sha256_of
from llmkit.evals.dataset.dataset import Sample

__all__ = ["at", "equal", "expected", "folded", "is_default", "item", "items", "number", "only_field", "reached"]

FLOAT_TOLERANCE = 1e-9


def only_field(output_type: type[BaseModel]) -> str:
    """The field of a type that has only one.

    Raises:
        ValueError: It has several, or none.
    """
    names = list(output_type.model_fields)
    if len(names) != 1:
        raise ValueError(f"name the field to compare; {output_type.__name__} has {', '.join(names) or 'none'}")
    return names[0]


def expected(output: BaseModel, sample: Sample) -> dict[str, Any]:
    """The target by field, each value converted to the type of its field where that is possible."""
    if sample.target is None:
        raise ValueError("the sample has no target to compare with")
    model = type(output)
    target = sample.target if isinstance(sample.target, dict) else {only_field(model): sample.target}
    names = _names(model)
    return {names.get(key, key): _converted(model, names.get(key, key), value) for key, value in target.items()}


@lru_cache(maxsize=1024)
def _names(model: type[BaseModel]) -> Mapping[str, str]:
    return {info.alias or name: name for name, info in model.model_fields.items()}


def _converted(model: type[BaseModel], name: str, value: Any) -> Any:
    if name not in model.model_fields:
        return value
    try:
        return _adapter(model, name).validate_python(value)
    except ValidationError:
        return value


@lru_cache(maxsize=1024)
def _adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    kind: Any = model.model_fields[name].annotation
    return TypeAdapter(kind)


def reached(output: Any, path: str) -> Any:
    """What an output has at a dotted path; None where it stops before: a model that leaves a part out is just wrong."""
    try:
        return at(output, path)
    except ValueError:
        return None


def at(value: Any, path: str) -> Any:
    """What a target has at a dotted path.

    Raises:
        ValueError: There is no such field.
    """
    for name in path.split("."):
        known = dict(value) if isinstance(value, BaseModel | Mapping) else {}
        if name not in known:
            raise ValueError(f"the target has no field {path!r}")
        value = known[name]
    return value


def is_default(output: BaseModel, name: str) -> bool:
    """Whether a field has the value that it has when nobody sets it."""
    info = type(output).model_fields[name]
    default = None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
    return not info.is_required() and equal(getattr(output, name), default, normalise=False)


def equal(got: Any, wanted: Any, *, normalise: bool) -> bool:
    """Whether two values mean the same: numbers within 1e-9, sets without order, lists and objects part by part."""
    got, wanted = _plain(got), _plain(wanted)
    if isinstance(got, str) and isinstance(wanted, str):
        return folded(got) == folded(wanted) if normalise else got == wanted
    if isinstance(got, dict) and isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(equal(got[key], wanted[key], normalise=normalise) for key in got)
    if isinstance(got, list) and isinstance(wanted, list):
        return len(got) == len(wanted) and all(
            equal(*pair, normalise=normalise) for pair in zip(got, wanted, strict=True)
        )
    if isinstance(got, frozenset) and isinstance(wanted, frozenset):
        return set(items(got, normalise)) == set(items(wanted, normalise))
    if _is_number(got) and _is_number(wanted):
        return got == wanted or math.isclose(number(got), number(wanted), rel_tol=FLOAT_TOLERANCE)
    return type(got) is type(wanted) and bool(got == wanted)


def _plain(value: Any) -> Any:
    """One kind for each shape: models and mappings as dict, sequences as list, sets as frozenset, enums by value."""
    if isinstance(value, BaseModel | Mapping):
        return dict(value)
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, set | frozenset):
        return frozenset(value)
    return value.value if isinstance(value, Enum) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def number(value: Any) -> float:
    """A value as a float, infinite where it is too large for one.

    Raises:
        ValueError: It is no number.
    """
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except TypeError:
        raise ValueError(f"{value!r} is no number") from None


def folded(text: str) -> str:
    """A text without regard to case, width of characters and runs of spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def items(values: Iterable[Any], normalise: bool) -> list[str]:
    """A name for each item of a collection, in order; equal items have one name.

    Raises:
        TypeError: It is no collection.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"this scorer compares collections; got {type(values).__name__}")
    return [item(value, normalise) for value in values]


def item(value: Any, normalise: bool) -> str:
    """A name that equal values share."""
    plain = TypeAdapter(Any).dump_python(value, mode="json")
    return sha256_of(folded(plain) if normalise and isinstance(plain, str) else plain)
