"""Rows of numbers from results: means with intervals by variant and metric, and paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from llmkit.eval_ports import EvalResult
from llmkit.evals.direction import choose_worst_score
from llmkit.evals.report.frames import derive_columns
from llmkit.evals.results import FAILED, IN_PROGRESS, NOT_RUN, SCORER_FAILED, SUCCEEDED, fell_back

if TYPE_CHECKING:
    pass

__all__ = [
    "COMPARISON_COLUMNS",
    "SUMMARY_COLUMNS",
    "Cluster",
    "ScorePairs",
    "build_comparison_rows",
    "build_summary_rows",
    "collect_scores",
    "find_worst_score",
    "index_by_sample",
    "pair_scores",
]

# Results of one cluster are not independent: those of one group, or of one sample over its epochs.
Cluster: TypeAlias = tuple[str, str]
ClusterOf: TypeAlias = Mapping[str, Cluster]
PairKey: TypeAlias = tuple[str, int]

OUTCOMES = ("first_try", "repaired", "reasked")


class SummaryRow(TypedDict, total=False):
    """One variant and metric of `Analysis.summary`."""

    variant: str
    metric: str
    n: int
    scored: int
    failed: int
    scorer_failed: int
    not_run: int
    in_progress: int
    mean: float
    ci_low: float
    ci_high: float
    standard_error: float
    interval: str
    mean_failures_as_zero: float
    valid_first_try: float
    first_try: float
    repaired: float
    reasked: float
    fallbacks: int
    requests: int
    input_tokens: int | None
    output_tokens: int | None
    latency_p50_ms: float
    latency_p95_ms: float
    lower_is_better: bool


SUMMARY_COLUMNS: Mapping[str, str] = derive_columns(SummaryRow)


class ComparisonRow(TypedDict, total=False):
    """One pair and metric of `Analysis.compare`."""

    metric: str
    a: str
    b: str
    pairs: int
    left_out: int
    mean_a: float
    mean_b: float
    difference: float
    ci_low: float
    ci_high: float
    standard_error: float
    p_value: float
    p_holm: float
    effect: float
    method: str
    clusters: int
    difference_failures_as_zero: float
    lower_is_better: bool


COMPARISON_COLUMNS: Mapping[str, str] = derive_columns(ComparisonRow)


def build_summary_rows(
    groups: Mapping[str, Sequence[EvalResult]],
    metrics: Sequence[str],
    clusters: ClusterOf,
    lower: Set[str],
    totals: Mapping[str, int],
    of_all: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Build one row for each label and metric, or one per label without a metric for a task without scorers.

    Args:
        groups: Results by label.
        metrics: Names in the order of the rows.
        clusters: Cluster of each sample.
        lower: Metrics of which less is better.
        totals: Number of results of each label when it is complete.
        of_all: Rows of the metrics over all answers of each label, without what the rows of a label share.
    """
    worst = {metric: find_worst_score(groups.values(), metric, lower) for metric in metrics}
    for label, results in groups.items():
        shared = {"variant": label, **_count_statuses(results, totals.get(label, 0)), **_sum_costs(results)}
        further = (of_all or {}).get(label, ())
        for metric in metrics or (() if further else (None,)):
            scores = _estimate_score(results, metric, clusters, worst.get(metric or "", math.nan))
            yield {**shared, "metric": metric, **scores, "lower_is_better": metric in lower}
        for row in further:
            yield {**shared, **row}


def find_worst_score(groups: Iterable[Iterable[EvalResult]], metric: str, lower: Set[str]) -> float:
    """Return the score that a FAILED answer counts as; NaN where the metric has no known worst score."""
    scores = (result.scores[metric] for results in groups for result in results if metric in result.scores)
    return choose_worst_score(scores, lower_is_better=metric in lower)


def _count_statuses(results: Sequence[EvalResult], total: int) -> dict[str, Any]:
    statuses = [result.status for result in results]
    # Samples that did not run have no result in a report from the store.
    absent = max(0, total - len(results))
    answered = [result.valid_first_try for result in results if result.valid_first_try is not None]
    return {
        "n": len(results) + absent,
        "failed": statuses.count(FAILED),
        "not_run": statuses.count(NOT_RUN) + absent,
        "in_progress": statuses.count(IN_PROGRESS),
        "valid_first_try": sum(answered) / len(answered) if answered else math.nan,
        **_share_outcomes(results),
        "fallbacks": sum(fell_back(result) for result in results),
    }


def _share_outcomes(results: Sequence[EvalResult]) -> dict[str, float]:
    """Count outcomes as shares of the answered samples, without valid outputs whose outcome was not stored."""
    answered = [r for r in results if r.outcome is not None or (r.status == FAILED and r.valid_first_try is not None)]
    outcomes = [result.outcome for result in answered]
    return {name: outcomes.count(name) / len(outcomes) if outcomes else math.nan for name in OUTCOMES}


def _sum_costs(results: Sequence[EvalResult]) -> dict[str, Any]:
    import numpy as np

    latencies = [r.latency_ms for r in results if r.status in (SUCCEEDED, SCORER_FAILED) and r.latency_ms is not None]
    middle, high = np.percentile(latencies, [50, 95]) if latencies else (math.nan, math.nan)
    return {
        "requests": sum(result.requests for result in results),
        "input_tokens": _sum_known(result.input_tokens for result in results),
        "output_tokens": _sum_known(result.output_tokens for result in results),
        "latency_p50_ms": float(middle),
        "latency_p95_ms": float(high),
    }


def _sum_known(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _estimate_score(
    results: Sequence[EvalResult], metric: str | None, clusters: ClusterOf, worst: float
) -> dict[str, Any]:
    from llmkit.evals.statistics import estimate_mean

    if metric is None:
        return {"scored": 0, "scorer_failed": sum(result.status == SCORER_FAILED for result in results)}
    scored = [result for result in results if metric in result.scores]
    values = [result.scores[metric] for result in scored]
    found = estimate_mean(values, [clusters[result.sample_id] for result in scored])
    failed = [worst for result in results if result.status == FAILED]
    return {
        "scored": len(values),
        "scorer_failed": sum(_has_scorer_failed(result, metric) for result in results),
        "mean": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
        "standard_error": found.standard_error,
        "interval": found.method,
        "mean_failures_as_zero": _average([*values, *failed]),
    }


def _has_scorer_failed(result: EvalResult, metric: str) -> bool:
    return metric not in result.scores and any(
        metric == name or metric.startswith(f"{name}.") for name in result.scorer_errors
    )


@dataclass(frozen=True, slots=True)
class ScorePairs:
    """Scores of two variants on the samples and epochs where both have one."""

    a: list[float]
    b: list[float]
    clusters: list[Cluster]


def build_comparison_rows(
    a: Sequence[EvalResult], b: Sequence[EvalResult], metrics: Sequence[str], clusters: ClusterOf, lower: Set[str]
) -> list[dict[str, Any]]:
    """Build one row for each metric, `a` minus `b`."""
    worst = {metric: find_worst_score((a, b), metric, lower) for metric in metrics}
    return [
        _compare(index_by_sample(a), index_by_sample(b), metric, clusters, worst[metric])
        | {"lower_is_better": metric in lower}
        for metric in metrics
    ]


def index_by_sample(results: Sequence[EvalResult]) -> dict[PairKey, EvalResult]:
    """Index the results of one variant by sample and epoch."""
    return {(result.sample_id, result.epoch): result for result in results}


def _compare(
    a: Mapping[PairKey, EvalResult],
    b: Mapping[PairKey, EvalResult],
    metric: str,
    clusters: ClusterOf,
    worst: float,
) -> dict[str, Any]:
    from llmkit.evals.statistics import compare_pairs

    strict = pair_scores(collect_scores(a, metric), collect_scores(b, metric), clusters)
    lenient = pair_scores(collect_scores(a, metric, failed=worst), collect_scores(b, metric, failed=worst), clusters)
    found = compare_pairs(strict.a, strict.b, strict.clusters)
    return {
        "metric": metric,
        "pairs": found.n,
        "left_out": len(a.keys() | b.keys()) - found.n,
        "mean_a": _average(strict.a),
        "mean_b": _average(strict.b),
        "difference": found.difference,
        "ci_low": found.low,
        "ci_high": found.high,
        "standard_error": found.standard_error,
        "p_value": found.p_value,
        "effect": found.effect,
        "method": found.method,
        "clusters": found.clusters,
        "difference_failures_as_zero": _average(lenient.a) - _average(lenient.b),
    }


def collect_scores(
    results: Mapping[PairKey, EvalResult], metric: str, *, failed: float | None = None
) -> dict[PairKey, float]:
    """Collect the scores by sample and epoch, with `failed` (if given) for FAILED answers."""
    found = {key: result.scores[metric] for key, result in results.items() if metric in result.scores}
    if failed is not None:
        found |= {key: failed for key, result in results.items() if result.status == FAILED}
    return found


def pair_scores(a: Mapping[PairKey, float], b: Mapping[PairKey, float], clusters: ClusterOf) -> ScorePairs:
    """Pair the scores of the samples and epochs that both sides have."""
    keys = [key for key in a if key in b]
    return ScorePairs([a[key] for key in keys], [b[key] for key in keys], [clusters[sample] for sample, _epoch in keys])


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
