"""Targets and outputs by field, as text for a side-by-side view."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

__all__ = ["LONGEST_TEXT", "Fields", "is_different", "split_by_field", "to_display_text"]

LONGEST_TEXT: Final = 20_000
FLOAT_TOLERANCE: Final = 1e-9

Fields: TypeAlias = dict[str, Any]


def split_by_field(value: Any, only_field: str | None = None) -> Fields:
    """Split a value into its parts by path, such as `delivery.city` and `lines[0].item`.

    Args:
        value: A target or an output as JSON-able data.
        only_field: Name of the only field of the output type; a bare value belongs to it.
    """
    if not isinstance(value, Mapping):
        return {only_field or "": value}
    return dict(_split(value, ""))


def _split(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _split(part, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        for number, part in enumerate(value):
            yield from _split(part, f"{path}[{number}]")
    else:
        yield path, value


def is_different(target: Any, got: Any) -> bool:
    """Return whether a value is written differently from the target. Only scorers decide what is right."""
    numbers = _to_number(target), _to_number(got)
    if numbers[0] is not None and numbers[1] is not None:
        return not math.isclose(numbers[0], numbers[1], rel_tol=FLOAT_TOLERANCE, abs_tol=FLOAT_TOLERANCE)
    return to_display_text(target) != to_display_text(got)


def _to_number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def to_display_text(value: Any) -> str:
    """Return a string unchanged and anything else as JSON; long text is cut."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    left_out = len(text) - LONGEST_TEXT
    return text if left_out <= 0 else f"{text[:LONGEST_TEXT]}… {left_out:,} more characters"
