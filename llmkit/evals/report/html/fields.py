"""Targets and outputs by field, as texts that stand side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

__all__ = ["LONGEST_TEXT", "Fields", "by_field", "differs", "shown", "shown_fields"]

LONGEST_TEXT: Final = 20_000
FLOAT_TOLERANCE: Final = 1e-9

Fields: TypeAlias = dict[str, Any]


def by_field(value: Any, only_field: str | None = None) -> Fields:
    """The parts of a value by their paths, such as `delivery.city` and `lines[0].item`.

    Args:
        value: A target or an output as JSON-able data.
        only_field: Name of the single field of the output type, which a bare value belongs to.
    """
    if not isinstance(value, Mapping):
        return {only_field or "": value}
    return dict(_parts(value, ""))


def _parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _parts(part, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        for number, part in enumerate(value):
            yield from _parts(part, f"{path}[{number}]")
    else:
        yield path, value


def differs(target: Any, got: Any) -> bool:
    """Whether an output's part is written differently from the target's. What counts as right is a scorer's matter."""
    numbers = _number(target), _number(got)
    if numbers[0] is not None and numbers[1] is not None:
        return not math.isclose(numbers[0], numbers[1], rel_tol=FLOAT_TOLERANCE, abs_tol=FLOAT_TOLERANCE)
    return shown(target) != shown(got)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def shown(value: Any) -> str:
    """A text as it is, anything else as JSON; of a long one the beginning."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    left_out = len(text) - LONGEST_TEXT
    return text if left_out <= 0 else f"{text[:LONGEST_TEXT]}… {left_out:,} more characters"


def shown_fields(fields: Fields) -> dict[str, str]:
    """Every part as text."""
    return {path: shown(value) for path, value in fields.items()}
