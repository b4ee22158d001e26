"""Two further views of a report: what repeats tell, and what missing scores could change."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from llmkit.evals.result import FAILED
from llmkit.ports import EvalResult

__all__ = ["MISSING_COLUMNS", "REPEAT_COLUMNS", "missing_rows", "repeat_rows"]

# A repeat is right from here on.
PERFECT = 1.0

REPEAT_COLUMNS: Mapping[str, str] = {
    "route": "str",
    "metric": "str",
    "k": "int64",
    "samples": "int64",
    "left_out": "int64",
    "pass_at_k": "float64",
    "pass_at_k_low": "float64",
    "pass_at_k_high": "float64",
    "pass_hat_k": "float64",
    "pass_hat_k_low": "float64",
    "pass_hat_k_high": "float64",
}

MISSING_COLUMNS: Mapping[str, str] = {
    "route": "str",
    "metric": "str",
    "n": "int64",
    "missing": "int64",
    "mean_excluded": "float64",
    "excluded_low": "float64",
    "excluded_high": "float64",
    "mean_as_failures": "float64",
    "as_failures_low": "float64",
    "as_failures_high": "float64",
    "worst": "float64",
    "best": "float64",
}


def repeat_rows(
    groups: Mapping[str, Sequence[EvalResult]],
    metrics: Sequence[str],
    clusters: Mapping[str, Hashable],
    k: int,
    right_from: float = PERFECT,
) -> Iterator[dict[str, Any]]:
    """One row for each route and metric: the mean chances over samples that have at least `k` repeats."""
    for label, results in groups.items():
        for metric in metrics:
            yield {"route": label, "metric": metric, "k": k, **_chances(results, metric, clusters, k, right_from)}


def _chances(
    results: Sequence[EvalResult], metric: str, clusters: Mapping[str, Hashable], k: int, right_from: float
) -> dict[str, Any]:
    from llmkit.evals.statistics import mean_of, pass_at_k, pass_hat_k

    counts: dict[str, list[bool]] = {}
    for result in results:
        if metric in result.scores or result.status == FAILED:
            # An answer that cannot be used is a wrong one here.
            counts.setdefault(result.sample_id, []).append(result.scores.get(metric, -math.inf) >= right_from)
    enough = {sample: tries for sample, tries in counts.items() if len(tries) >= k}
    among = [clusters[sample] for sample in enough]
    some = mean_of([pass_at_k(len(tries), sum(tries), k) for tries in enough.values()], among)
    every = mean_of([pass_hat_k(len(tries), sum(tries), k) for tries in enough.values()], among)
    return {
        "samples": len(enough),
        "left_out": len({result.sample_id for result in results}) - len(enough),
        "pass_at_k": some.value,
        "pass_at_k_low": some.low,
        "pass_at_k_high": some.high,
        "pass_hat_k": every.value,
        "pass_hat_k_low": every.low,
        "pass_hat_k_high": every.high,
    }


def missing_rows(
    groups: Mapping[str, Sequence[EvalResult]], metrics: Sequence[str], clusters: Mapping[str, Hashable]
) -> Iterator[dict[str, Any]]:
    """One row for each route and metric: the mean of all results in three views of those without a score."""
    for label, results in groups.items():
        for metric in metrics:
            yield {"route": label, "metric": metric, **_views(results, metric, clusters)}


def _views(results: Sequence[EvalResult], metric: str, clusters: Mapping[str, Hashable]) -> dict[str, Any]:
    from llmkit.evals.statistics import mean_of, mean_with_missing

    values = [result.scores.get(metric, math.nan) for result in results]
    among = [clusters[result.sample_id] for result in results]
    there = [number for number, value in enumerate(values) if not math.isnan(value)]
    counts = {"n": len(values), "missing": len(values) - len(there)}
    if any(not 0 <= values[number] <= 1 for number in there):
        # Nobody knows the worst of a score that has no bounds.
        found = mean_of([values[number] for number in there], [among[number] for number in there])
        return counts | {"mean_excluded": found.value, "excluded_low": found.low, "excluded_high": found.high}
    views = mean_with_missing(values, among)
    return counts | {
        "mean_excluded": views.excluded.value,
        "excluded_low": views.excluded.low,
        "excluded_high": views.excluded.high,
        "mean_as_failures": views.as_failures.value,
        "as_failures_low": views.as_failures.low,
        "as_failures_high": views.as_failures.high,
        "worst": views.worst,
        "best": views.best,
    }
