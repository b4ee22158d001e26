"""Further views of a report: repeats, the effect of missing scores, and all requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from datetime import datetime
from functools import partial
from typing import Any, TypedDict

from llmkit.eval_ports import EvalResult, RecordedCall
from llmkit.evals.direction import is_right
from llmkit.evals.report.frames import derive_columns
from llmkit.evals.results import FAILED
from llmkit.types import Attempt

__all__ = [
    "ATTEMPT_COLUMNS",
    "MISSING_COLUMNS",
    "REPEAT_COLUMNS",
    "build_attempt_rows",
    "build_missing_rows",
    "build_repeat_rows",
]


class RepeatRow(TypedDict, total=False):
    """One variant and metric of `Analysis.repeats`."""

    variant: str
    metric: str
    k: int
    samples: int
    left_out: int
    pass_at_k: float
    pass_at_k_low: float
    pass_at_k_high: float
    pass_hat_k: float
    pass_hat_k_low: float
    pass_hat_k_high: float


REPEAT_COLUMNS: Mapping[str, str] = derive_columns(RepeatRow)


class MissingRow(TypedDict, total=False):
    """One variant and metric of `Analysis.missing`."""

    variant: str
    metric: str
    n: int
    missing: int
    mean_excluded: float
    excluded_low: float
    excluded_high: float
    mean_as_failures: float
    as_failures_low: float
    as_failures_high: float
    worst: float
    best: float


MISSING_COLUMNS: Mapping[str, str] = derive_columns(MissingRow)


class AttemptRow(TypedDict, total=False):
    """One request of `Analysis.attempts`."""

    sample_id: str
    variant: str
    epoch: int
    stage: str
    step: str
    sent_to: str
    number: int
    status: str
    started_at_utc: datetime
    latency_ms: float
    input_tokens: int | None
    output_tokens: int | None
    finish_reason: str
    response_model: str
    model_digest: str
    cost_usd: float
    status_code: int | None
    error_code: str
    error_message: str
    sample_status: str
    sample_error_code: str
    pipeline_run_id: str


ATTEMPT_COLUMNS: Mapping[str, str] = derive_columns(AttemptRow)


def build_repeat_rows(
    groups: Mapping[str, Sequence[EvalResult]],
    metrics: Sequence[str],
    clusters: Mapping[str, Hashable],
    k: int,
    right_from: float | None = None,
    lower: Set[str] = frozenset(),
) -> Iterator[dict[str, Any]]:
    """Build one row for each variant and metric: mean chances over samples with at least `k` repeats."""
    for label, results in groups.items():
        for metric in metrics:
            verdict = partial(is_right, lower_is_better=metric in lower, limit=right_from)
            yield {
                "variant": label,
                "metric": metric,
                "k": k,
                **_estimate_chances(results, metric, clusters, k, verdict),
            }


def _estimate_chances(
    results: Sequence[EvalResult],
    metric: str,
    clusters: Mapping[str, Hashable],
    k: int,
    verdict: Callable[[float], bool],
) -> dict[str, Any]:
    from llmkit.evals.statistics import estimate_mean, estimate_pass_at_k, estimate_pass_hat_k

    counts: dict[str, list[bool]] = {}
    for result in results:
        if metric in result.scores or result.status == FAILED:
            # An answer that cannot be used counts as wrong.
            is_right_now = metric in result.scores and verdict(result.scores[metric])
            counts.setdefault(result.sample_id, []).append(is_right_now)
    enough = {sample: tries for sample, tries in counts.items() if len(tries) >= k}
    present_clusters = [clusters[sample] for sample in enough]
    some = estimate_mean([estimate_pass_at_k(len(tries), sum(tries), k) for tries in enough.values()], present_clusters)
    every = estimate_mean(
        [estimate_pass_hat_k(len(tries), sum(tries), k) for tries in enough.values()], present_clusters
    )
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


def build_missing_rows(
    groups: Mapping[str, Sequence[EvalResult]],
    metrics: Sequence[str],
    clusters: Mapping[str, Hashable],
    lower: Set[str],
    totals: Mapping[str, int],
) -> Iterator[dict[str, Any]]:
    """Build one row for each variant and metric: the mean under three assumptions on results without a score.

    Results that a variant lacks of its total did not run, and count as missing.
    """
    for label, results in groups.items():
        for metric in metrics:
            yield {
                "variant": label,
                "metric": metric,
                **_estimate_views(results, metric, clusters, totals[label] - len(results), is_lower=metric in lower),
            }


def _estimate_views(
    results: Sequence[EvalResult], metric: str, clusters: Mapping[str, Hashable], absent: int, *, is_lower: bool
) -> dict[str, Any]:
    from llmkit.evals.statistics import bound_mean, estimate_mean

    values = [result.scores.get(metric, math.nan) for result in results]
    all_clusters = [clusters[result.sample_id] for result in results]
    # The samples behind absent results are unknown in a report from the store, so each is a cluster of its own.
    values += [math.nan] * absent
    all_clusters += [("absent", number) for number in range(absent)]
    present = [number for number, value in enumerate(values) if not math.isnan(value)]
    counts = {"n": len(values), "missing": len(values) - len(present)}
    if any(not 0 <= values[number] <= 1 for number in present):
        # A score without bounds has no worst value, so only the first view exists.
        scored = estimate_mean([values[number] for number in present], [all_clusters[number] for number in present])
        return counts | {"mean_excluded": scored.value, "excluded_low": scored.low, "excluded_high": scored.high}
    views = bound_mean(values, all_clusters, lower_is_better=is_lower)
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


def build_attempt_rows(results: Iterable[EvalResult], calls: Iterable[RecordedCall]) -> Iterator[dict[str, Any]]:
    """Build one row for each request sent for the results, in the order of the calls."""
    by_name = {result.pipeline_run_id: result for result in results}
    for call in calls:
        result = by_name.get(call.pipeline_run_id)
        if result is not None:
            yield from (_build_attempt_row(result, call, attempt) for attempt in call.attempts)


def _build_attempt_row(result: EvalResult, call: RecordedCall, attempt: Attempt) -> dict[str, Any]:
    known = {name: getattr(attempt, name) for name in ATTEMPT_COLUMNS if hasattr(attempt, name)}
    sample = {name: getattr(result, name) for name in ("sample_id", "epoch", "pipeline_run_id")}
    sample |= {"variant": result.route, "sample_status": result.status, "sample_error_code": result.error_code}
    tokens = {"input_tokens": attempt.usage.input_tokens, "output_tokens": attempt.usage.output_tokens}
    call_facts = {"stage": call.stage, "step": call.step, "sent_to": str(attempt.route), "status": str(attempt.status)}
    return known | sample | tokens | call_facts
