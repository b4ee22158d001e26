"""Forecasts of policies as rows: score against a reference, cost, latency and tokens; the frontier; ranks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmkit.evals.decide.fitting import cross_fit, fit_policy, measure_policy
from llmkit.evals.decide.simulation import Measure, Outcome, RecordedResults, SampleKey
from llmkit.evals.policies import Policy, describe_policy, needs_fit, require_policy
from llmkit.evals.statistics import compare_pairs, estimate_mean

__all__ = [
    "CHECK_COLUMNS",
    "FRONTIER_COLUMNS",
    "RANK_COLUMNS",
    "WHAT_IF_COLUMNS",
    "Against",
    "Forecast",
    "build_check_rows",
    "build_frontier_rows",
    "build_rank_rows",
    "build_what_if_rows",
    "forecast_policy",
]

Against: TypeAlias = Literal["cost", "latency", "tokens"]
Numbers: TypeAlias = NDArray[np.float64]

RANK_SEED = 20_261_129
RANK_DRAWS = 10_000
Z_95 = 1.96

WHAT_IF_COLUMNS: Mapping[str, str] = {
    "policy": "str",
    "metric": "str",
    "n": "int64",
    "scored": "int64",
    "missing": "int64",
    "why_missing": "str",
    "mean": "float64",
    "ci_low": "float64",
    "ci_high": "float64",
    "reference": "str",
    "pairs": "int64",
    "difference": "float64",
    "difference_low": "float64",
    "difference_high": "float64",
    "mean_in_sample": "float64",
    "difference_in_sample": "float64",
    "cost_usd": "float64",
    "input_tokens": "float64",
    "output_tokens": "float64",
    "latency_p50_ms": "float64",
    "latency_p95_ms": "float64",
    "calls": "float64",
    "escalated": "float64",
    "fitted": "str",
    "lower_is_better": "bool",
}

FRONTIER_COLUMNS: Mapping[str, str] = {
    "policy": "str",
    "metric": "str",
    "scored": "int64",
    "mean": "float64",
    "ci_low": "float64",
    "ci_high": "float64",
    "against": "str",
    "value": "float64",
    "on_frontier": "bool",
    "dominated_by": "str",
    "lower_is_better": "bool",
}

CHECK_COLUMNS: Mapping[str, str] = {
    "policy": "str",
    "measure": "str",
    "pairs": "int64",
    "forecast": "float64",
    "forecast_low": "float64",
    "forecast_high": "float64",
    "outcome": "float64",
    "contained": "boolean",
    "difference": "float64",
    "difference_low": "float64",
    "difference_high": "float64",
}

RANK_COLUMNS: Mapping[str, str] = {
    "variant": "str",
    "metric": "str",
    "n": "int64",
    "mean": "float64",
    "p_best": "float64",
    "rank": "int64",
    "rank_low": "int64",
    "rank_high": "int64",
    "lower_is_better": "bool",
}


@dataclass(frozen=True, slots=True)
class Forecast:
    """The outcomes of one policy on all samples.

    Attributes:
        name: Name of the policy.
        outcomes: The outcome for each sample and epoch; of a policy with open choices the cross-fitted one.
        in_sample: The outcomes with the choices made on the same samples; None for a policy without open choices.
        fitted: The policy with the choices made on all samples, in words; None likewise.
    """

    name: str
    outcomes: Sequence[Outcome]
    in_sample: Sequence[Outcome] | None = None
    fitted: str | None = None

    @property
    def scores(self) -> Numbers:
        """The score of each sample and epoch; NaN where it is missing."""
        return np.array([outcome.score for outcome in self.outcomes], dtype=float)


def forecast_policy(
    name: str,
    policy: Policy,
    recorded: RecordedResults,
    keys: Sequence[SampleKey],
    clusters: Mapping[str, Hashable],
    measure: Measure,
    *,
    lower: bool,
) -> Forecast:
    """Return the forecast of a policy; open thresholds and choices are cross-fitted by cluster.

    Raises:
        LLMEvaluationError: It is no policy, or names a variant without results.
    """
    require_policy(policy)
    recorded.require_variants(policy)
    if not needs_fit(policy):
        return Forecast(name, measure_policy(policy, recorded, keys, measure))
    fitted = fit_policy(policy, recorded, keys, measure, lower=lower)
    return Forecast(
        name,
        cross_fit(policy, recorded, keys, clusters, measure, lower=lower),
        measure_policy(fitted, recorded, keys, measure),
        describe_policy(fitted),
    )


def build_what_if_rows(
    forecasts: Sequence[Forecast],
    reference: Forecast,
    keys: Sequence[SampleKey],
    clusters: Mapping[str, Hashable],
    metric: str,
    *,
    lower: bool,
) -> Iterable[dict[str, Any]]:
    """Build a row for each policy, with the paired difference from the reference on the samples that both know."""
    units = [clusters[sample_id] for sample_id, _epoch in keys]
    for forecast in forecasts:
        yield {
            "policy": forecast.name,
            "metric": metric,
            **_estimate(forecast.scores, units),
            **_explain_missing(forecast.outcomes),
            **_compare(forecast, reference, units),
            **_sum_up(forecast.outcomes),
            "fitted": forecast.fitted,
            "lower_is_better": lower,
        }


def _estimate(scores: Numbers, units: Sequence[Hashable]) -> dict[str, Any]:
    known = ~np.isnan(scores)
    found = estimate_mean(scores[known], _select(units, known))
    return {
        "n": len(scores),
        "scored": int(known.sum()),
        "mean": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
    }


def _explain_missing(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    reasons = Counter(outcome.missing for outcome in outcomes if outcome.missing)
    return {"missing": reasons.total(), "why_missing": max(reasons, key=lambda why: reasons[why], default=None)}


def _compare(forecast: Forecast, reference: Forecast, units: Sequence[Hashable]) -> dict[str, Any]:
    scores, others = forecast.scores, reference.scores
    known = ~np.isnan(scores) & ~np.isnan(others)
    row: dict[str, Any] = {"reference": reference.name, "pairs": int(known.sum())}
    if forecast is not reference:
        found = compare_pairs(scores[known], others[known], _select(units, known))
        row |= {"difference": found.difference, "difference_low": found.low, "difference_high": found.high}
    if forecast.in_sample is not None:
        naive = np.array([outcome.score for outcome in forecast.in_sample], dtype=float)
        both = ~np.isnan(naive) & ~np.isnan(others)
        row["mean_in_sample"] = _average(naive[~np.isnan(naive)])
        row["difference_in_sample"] = _average(naive[both] - others[both])
    return row


def _sum_up(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return means per sample over the outcomes that are known, and percentiles of the latency."""
    known = [outcome for outcome in outcomes if not outcome.missing]
    courses = [course for outcome in known for course in outcome.latencies if not math.isnan(course[1])]
    middle, high = (math.nan, math.nan)
    if courses:
        weights, latencies = np.array(courses).T
        middle, high = _find_percentiles(latencies, weights)
    return {
        "cost_usd": _average_known([outcome.cost_usd for outcome in known]),
        "input_tokens": _average_known([outcome.input_tokens for outcome in known]),
        "output_tokens": _average_known([outcome.output_tokens for outcome in known]),
        "latency_p50_ms": middle,
        "latency_p95_ms": high,
        "calls": _average_known([outcome.calls for outcome in known]),
        "escalated": _average_known([outcome.escalated for outcome in known]),
    }


def _find_percentiles(latencies: Numbers, weights: Numbers) -> tuple[float, float]:
    if np.all(weights == 1):
        # The same interpolation as in the summary, so that a single variant has the same figures in both.
        middle, high = np.percentile(latencies, [50, 95])
    else:
        middle, high = np.quantile(latencies, [0.5, 0.95], weights=weights, method="inverted_cdf")
    return float(middle), float(high)


def build_check_rows(
    forecast: Forecast,
    outcomes: Sequence[Outcome],
    keys: Sequence[SampleKey],
    clusters: Mapping[str, Hashable],
    metric: str,
) -> Iterable[dict[str, Any]]:
    """Build a row for each measure of a policy that ran: its forecast, and what came of it on the same samples.

    The forecast's interval is one for the mean of another run. Two runs that draw their answers independently differ by
    the noise of both, so that it reaches √2 times as far as the interval of the mean, and farther for a `Mix`, whose
    forecast is an expectation without the noise of the draw. It holds for new samples of the same kind; on the same
    samples it is wider than need be, the more so the more samples differ and the less answers do. The interval of the
    paired difference, which the second run makes possible, is the sharper check. `scripts/simulate_decisions.py`
    measures how often both hold.
    """
    units = [clusters[sample_id] for sample_id, _epoch in keys]
    measures: dict[str, Callable[[Outcome], float]] = {
        "score": lambda outcome: outcome.score,
        "cost_usd": lambda outcome: outcome.cost_usd,
        "input_tokens": lambda outcome: outcome.input_tokens,
        "output_tokens": lambda outcome: outcome.output_tokens,
        "latency_ms": _expect_latency,
    }
    for name, read in measures.items():
        expected = np.array([read(outcome) for outcome in forecast.outcomes], dtype=float)
        found = np.array([read(outcome) for outcome in outcomes], dtype=float)
        drawn = np.array([outcome.variances.get(name, 0.0) for outcome in forecast.outcomes])
        known = ~np.isnan(expected) & ~np.isnan(found)
        row = {"policy": forecast.name, "measure": metric if name == "score" else name, "pairs": int(known.sum())}
        yield row | _check_mean(expected[known], found[known], drawn[known], _select(units, known), name)


def _check_mean(
    expected: Numbers, found: Numbers, drawn: Numbers, units: Sequence[Hashable], name: str
) -> dict[str, Any]:
    """Return forecast, interval, outcome and paired difference of one measure.

    Args:
        expected: The forecast of each sample.
        found: The outcome of each.
        drawn: The variance of each that the draws of a `Mix` add.
        units: Cluster of each.
        name: The measure: `score`, or one that is never below 0.
    """
    if not len(expected):
        return {}
    scale = 1.0
    if name != "score":
        # The methods for scores would take dollars between 0 and 1 for shares; far above 1 they are what they are.
        scale = 1000.0 / (float(max(expected.max(), found.max())) or 1.0)
        expected, found, drawn = expected * scale, found * scale, drawn * scale**2
    mean, outcome = estimate_mean(expected, units), float(found.mean())
    # Draws are independent of each other, also within a cluster, and add to the square of what the answers make of it.
    draws = Z_95**2 * float(drawn.mean()) / len(drawn)
    low = mean.value - math.sqrt(2 * (mean.value - mean.low) ** 2 + draws)
    high = mean.value + math.sqrt(2 * (mean.high - mean.value) ** 2 + draws)
    if name != "score":
        low = max(low, 0.0)
    elif min(expected.min(), found.min()) >= 0 and max(expected.max(), found.max()) <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    if math.isnan(low) and np.array_equal(expected, found):
        low = high = outcome  # all alike in both runs, such as a cost of 0
    pairs = compare_pairs(found, expected, units)
    figures = {
        "forecast": mean.value,
        "forecast_low": low,
        "forecast_high": high,
        "outcome": outcome,
        "difference": pairs.difference,
        "difference_low": pairs.low,
        "difference_high": pairs.high,
    }
    contained = None if math.isnan(low) else low - 1e-9 <= outcome <= high + 1e-9
    return {"contained": contained, **{figure: value / scale for figure, value in figures.items()}}


def _expect_latency(outcome: Outcome) -> float:
    return math.fsum(weight * ms for weight, ms in outcome.latencies) if outcome.latencies else math.nan


def build_frontier_rows(
    forecasts: Sequence[Forecast],
    keys: Sequence[SampleKey],
    clusters: Mapping[str, Hashable],
    metric: str,
    against: Against,
    *,
    lower: bool,
) -> list[dict[str, Any]]:
    """Build a row for each policy, the cheapest first, with the policies that dominate it.

    One policy dominates another when it does not need more on these samples, and the 95 % interval of the paired
    difference of their scores shows that it is better; or when both have the same score on every sample and it needs
    less.
    """
    units = [clusters[sample_id] for sample_id, _epoch in keys]
    rows = []
    for forecast in forecasts:
        dominating = [
            other.name
            for other in forecasts
            if other is not forecast and _dominates(other, forecast, units, against, lower=lower)
        ]
        scores = _estimate(forecast.scores, units)
        scores.pop("n")
        rows.append(
            {
                "policy": forecast.name,
                "metric": metric,
                **scores,
                "against": against,
                "value": _average_known(_needs(forecast, against)),
                "on_frontier": not dominating and bool(scores["scored"]),
                "dominated_by": ", ".join(dominating) or None,
                "lower_is_better": lower,
            }
        )
    return sorted(rows, key=lambda row: (math.isnan(row["value"]), row["value"]))


def _dominates(
    other: Forecast, forecast: Forecast, units: Sequence[Hashable], against: Against, *, lower: bool
) -> bool:
    more, less = np.array(_needs(other, against)), np.array(_needs(forecast, against))
    known = ~np.isnan(other.scores) & ~np.isnan(forecast.scores) & ~np.isnan(more) & ~np.isnan(less)
    if not known.any():
        return False
    saved = math.fsum(less[known] - more[known])
    if saved < 0:
        return False
    better, worse = other.scores[known], forecast.scores[known]
    if np.array_equal(better, worse):
        return saved > 0
    if lower:
        better, worse = worse, better
    return compare_pairs(better, worse, _select(units, known)).low > 0


def _needs(forecast: Forecast, against: Against) -> list[float]:
    """Return the cost, time or tokens of each sample."""
    match against:
        case "cost":
            return [outcome.cost_usd for outcome in forecast.outcomes]
        case "tokens":
            return [outcome.input_tokens + outcome.output_tokens for outcome in forecast.outcomes]
        case "latency":
            return [_expect_latency(outcome) for outcome in forecast.outcomes]


def build_rank_rows(
    scores: Mapping[str, Numbers], units: Sequence[Hashable], metric: str, *, lower: bool
) -> list[dict[str, Any]]:
    """Build a row for each variant, the best first: the probability of being the best, and a 95 % interval of its rank.

    Bootstrap over clusters of the samples that all variants have a score for: 10,000 seeded draws. Variants that are
    equal in a draw share its first place. The rank intervals hold for all variants at once.

    Source: M. Mogstad, J. P. Romano, A. M. Shaikh and D. Wilhelm, "Inference for Ranks with Applications to Mobility
    across Neighbourhoods and Academic Achievement across Countries", Review of Economic Studies 91 (2024); clusters as
    in A. C. Cameron, J. B. Gelbach and D. L. Miller, "Bootstrap-Based Improvements for Inference with Clustered
    Errors", Review of Economics and Statistics 90 (2008).
    """
    if not scores:
        return []
    table = np.array(list(scores.values()), dtype=float).reshape(len(scores), len(units))
    known = ~np.isnan(table).any(axis=0)
    signed = -table[:, known] if lower else table[:, known]
    count = int(known.sum())
    means = signed.mean(axis=1) if count else np.full(len(scores), math.nan)
    order = np.argsort(-means, kind="stable") if count else np.arange(len(scores))
    draws = _draw_means(signed, _select(units, known)) if count else np.full((1, len(scores)), math.nan)
    p_best = _share_first_places(draws)
    best, worst = _bound_ranks(means, draws)
    return [
        {
            "variant": list(scores)[place],
            "metric": metric,
            "n": count,
            "mean": float(-means[place] if lower else means[place]),
            "p_best": float(p_best[place]),
            "rank": position,
            "rank_low": int(best[place]),
            "rank_high": int(worst[place]),
            "lower_is_better": lower,
        }
        for position, place in enumerate(order.tolist(), 1)
    ]


def _draw_means(table: Numbers, units: Sequence[Hashable]) -> Numbers:
    """Return the mean of each row in each draw of clusters with replacement."""
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    places = np.array([numbers[unit] for unit in units])
    sums = np.array([np.bincount(places, weights=row, minlength=len(numbers)) for row in table])
    sizes = np.bincount(places, minlength=len(numbers)).astype(float)
    drawn = np.random.default_rng(RANK_SEED).multinomial(
        len(numbers), np.full(len(numbers), 1 / len(numbers)), size=RANK_DRAWS
    )
    means: Numbers = (drawn @ sums.T) / (drawn @ sizes)[:, None]
    return means.round(12)


def _share_first_places(draws: Numbers) -> Numbers:
    """Return how often each column is the largest; equal ones share the place. NaN where nothing is known."""
    is_best = draws == draws.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shares: Numbers = (is_best / is_best.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares


def _bound_ranks(means: Numbers, draws: Numbers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the best and the worst rank of each column that the simultaneous intervals of all differences leave.

    A difference is shown when it is farther from 0 than the 95 % quantile, over the draws, of the largest studentised
    deviation of any difference. The quantiles of drawn ranks would be too narrow where variants are nearly equal.
    """
    differences = means[:, None] - means[None, :]
    deviations = draws[:, :, None] - draws[:, None, :] - differences
    errors = deviations.std(axis=0)
    has_spread = errors > 1e-12
    ratios = np.abs(deviations[:, has_spread]) / errors[has_spread]
    reach = float(np.quantile(ratios.max(axis=1), 0.95)) if has_spread.any() else math.nan
    # A difference without spread is not shown: all clusters agree, but the next one may not.
    is_shown = has_spread & (np.abs(differences) > reach * errors)
    better = (is_shown & (differences < 0)).sum(axis=1)
    worse = (is_shown & (differences > 0)).sum(axis=1)
    return 1 + better, len(means) - worse


def _select(units: Sequence[Hashable], known: NDArray[np.bool_]) -> list[Hashable]:
    return [unit for unit, is_known in zip(units, known.tolist(), strict=True) if is_known]


def _average(values: Numbers) -> float:
    return float(values.mean()) if len(values) else math.nan


def _average_known(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
