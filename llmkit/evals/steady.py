"""What of a report is the same whenever the answers are the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["steady"]

# Another machine may add up in another order.
DIGITS: Final = 12


def steady(document: Mapping[str, Any]) -> dict[str, Any]:
    """`EvalReport.to_json()` without ids, clock times and latencies, its numbers rounded to twelve digits."""
    kept = _without(document, ("work", "in_doubt"))
    kept["run"] = _without(document["run"], ("id", "created_at_utc"))
    kept["summary"] = [_without(row, ("latency_p50_ms", "latency_p95_ms")) for row in document["summary"]]
    return {name: _rounded(part) for name, part in kept.items()}


def _without(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
