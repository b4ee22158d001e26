"""Comparison of values."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from decimal import Decimal
from enum import Enum
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from llmkit.canonical_json import sha256_of
from llmkit.evals.answer_type import vars_of

__all__ = [
    "compose_text",
    "find_at_path",
    "fold_text",
    "get_at_path",
    "hash_item",
    "hash_items",
    "is_default",
    "is_equal",
    "to_number",
]

FLOAT_TOLERANCE = 1e-9


def find_at_path(output: Any, path: str) -> Any:
    """Return the value of an output at a dotted path; None where it ends before: a missing part is just wrong."""
    try:
        return get_at_path(output, path)
    except ValueError:
        return None


def get_at_path(value: Any, path: str) -> Any:
    """Return the value of a target at a dotted path.

    Raises:
        ValueError: There is no such field.
    """
    for name in path.split("."):
        known = _to_plain(value) if _has_fields(value) else {}
        if name not in known:
            raise ValueError(f"the target has no field {path!r}")
        value = known[name]
    return value


def is_default(output: BaseModel, name: str) -> bool:
    """Return whether a field has its default value."""
    info = type(output).model_fields[name]
    default = None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
    return not info.is_required() and is_equal(getattr(output, name), default, normalise=False)


def is_equal(got: Any, wanted: Any, *, normalise: bool) -> bool:
    """Return whether two values are equal: numbers within 1e-9, sets in any order, lists and objects by part."""
    got, wanted = _to_plain(got), _to_plain(wanted)
    if isinstance(got, str) and isinstance(wanted, str):
        return fold_text(got) == fold_text(wanted) if normalise else got == wanted
    if isinstance(got, dict) and isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(is_equal(got[key], wanted[key], normalise=normalise) for key in got)
    if isinstance(got, list) and isinstance(wanted, list):
        return len(got) == len(wanted) and all(
            is_equal(*pair, normalise=normalise) for pair in zip(got, wanted, strict=True)
        )
    if isinstance(got, frozenset) and isinstance(wanted, frozenset):
        return set(hash_items(got, normalise)) == set(hash_items(wanted, normalise))
    if _is_number(got) and _is_number(wanted):
        numbers = to_number(got), to_number(wanted)
        # A target of NaN is an answer like any other, although no NaN equals another.
        return got == wanted or math.isclose(*numbers, rel_tol=FLOAT_TOLERANCE) or all(map(math.isnan, numbers))
    return type(got) is type(wanted) and bool(got == wanted)


def _to_plain(value: Any) -> Any:
    """Convert objects with fields to dict, sequences to list, sets to frozenset, and enums to their value."""
    if _has_fields(value):
        return dict(value) if isinstance(value, BaseModel | Mapping) else vars_of(value)
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, set | frozenset):
        return frozenset(value)
    return value.value if isinstance(value, Enum) else value


def _has_fields(value: Any) -> bool:
    return isinstance(value, BaseModel | Mapping) or (is_dataclass(value) and not isinstance(value, type))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def to_number(value: Any) -> float:
    """Convert a value to float, infinite where it is too large.

    Raises:
        ValueError: It is not a number.
    """
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except TypeError:
        raise ValueError(f"{value!r} is not a number") from None


def fold_text(text: str) -> str:
    """Normalise case, width of characters and runs of spaces."""
    return " ".join(compose_text(text, "NFKC").casefold().split())


def compose_text(text: str, form: Literal["NFC", "NFKC"]) -> str:
    """Return a Unicode normal form in linear time.

    Python sorts each run of combining marks by insertion: a megabyte of them would take minutes. Text in the
    Stream-Safe Text Format has no such run: Unicode Standard Annex #15, section 13.
    """
    if text.isascii():
        return text
    import regex

    return unicodedata.normalize(form, regex.sub(r"\p{M}{30}", "\\g<0>\u034f", text))


def hash_items(values: Iterable[Any], normalise: bool) -> list[str]:
    """Hash each item of a collection, in order; equal items have the same hash.

    Raises:
        TypeError: It is not a collection.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"this scorer compares collections; got {type(values).__name__}")
    return [hash_item(value, normalise) for value in values]


def hash_item(value: Any, normalise: bool) -> str:
    """Hash a value; equal values have the same hash."""
    plain = TypeAdapter(Any).dump_python(value, mode="json")
    return sha256_of(fold_text(plain) if normalise and isinstance(plain, str) else plain)
