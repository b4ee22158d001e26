"""Estimate of an evaluation before it is paid for, from what an earlier run used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pydantic import ValidationError

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalResult
from llmkit.evals.budget import Budget
from llmkit.evals.decide.stopping import Decided
from llmkit.evals.report.report import EvalReport
from llmkit.evals.results import FAILED, FINAL_CODES, SCORER_FAILED, SUCCEEDED
from llmkit.evals.tasks.task import Task
from llmkit.prices.price_list import PriceList
from llmkit.pricing import FREE, is_free, list_price
from llmkit.providers import BUILT_IN, ProviderSpec, load_endpoints
from llmkit.settings import LLMSettings
from llmkit.types import LLMProvider, Route

__all__ = [
    "EarlyStop",
    "Forecast",
    "MarginSize",
    "Outlook",
    "SampleSize",
    "early_stop",
    "forecast",
    "margin_size",
    "outlook",
    "sample_size",
]

# Standard deviation of the difference of two independent fair coins: other pairs of zeros and ones have a smaller one.
WIDEST_SPREAD = math.sqrt(0.5)
STOP_RUNS = 400
STOP_SEED = 20_261_129


@dataclass(frozen=True, slots=True)
class Forecast:
    """Estimate for one route.

    Attributes:
        route: Label of the route.
        results: Samples times epochs.
        done: Number of stored results, which are not called again.
        calls: Number of results that are called; each may take a reask or a retry more.
        known_from: Number of earlier results that the estimate is from; 0 when there are none.
        input_tokens: Input tokens of all calls; None when unknown.
        output_tokens: Output tokens of all calls; None when unknown.
        time_s: Seconds that this route takes at this concurrency and, if settings were given, within the limits per
            minute of its provider; None when unknown.
        cost_usd: US dollars, by list prices and by the routes that answered before; 0 for a route without charge, None
            when unknown.
    """

    route: str
    results: int
    done: int
    calls: int
    known_from: int
    input_tokens: int | None
    output_tokens: int | None
    time_s: float | None
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Outlook:
    """Comparison of one budget limit with a plan.

    Attributes:
        limit: `max_tokens`, `max_cost_usd` or `max_time_s`.
        allowed: The limit itself.
        spent: What the run that will be continued has spent of it.
        planned: What the rest will take; None when it is not known for some route.
        suffices: Whether spent and planned stay within what is allowed; None when that is unknown.
    """

    limit: str
    allowed: float
    spent: float
    planned: float | None
    suffices: bool | None


@dataclass(frozen=True, slots=True)
class SampleSize:
    """Number of samples that a difference needs.

    Attributes:
        metric: Metric to compare.
        difference: Difference to detect.
        spread: Standard deviation of the differences of samples.
        known_from: Number of pairs of an earlier run that the spread is from; 0 when it is the widest that two
            independent routes can have.
        samples: Fewest samples that detect the difference with this power.
        power: Chance of detecting it.
        test: Test of the comparison: `mcnemar`, `paired t` or `clustered paired t`.
        clusters: Number of groups that these samples are in, at the sizes of the plan; None without groups.
    """

    metric: str
    difference: float
    spread: float
    known_from: int
    samples: int
    power: float
    test: str = "paired t"
    clusters: int | None = None


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """Estimate of what a stop rule saves, by simulation.

    Attributes:
        metric: Metric of the rule.
        margin: Its margin; None for a difference.
        alpha: Its chance of a false decision.
        difference: True difference that was assumed; None for that of the earlier run.
        known_from: Number of samples or groups of an earlier run that the simulation draws from; 0 for zeros and ones
            of two independent routes.
        units: Samples, or groups of samples, of the plan.
        expected_units: How many of them run, on average.
        saving: The share that does not.
        decided: Share of simulated runs that ended with a decision.
        runs: Number of simulated runs.
    """

    metric: str
    margin: float | None
    alpha: float
    difference: float | None
    known_from: int
    units: int
    expected_units: float
    saving: float
    decided: float
    runs: int


@dataclass(frozen=True, slots=True)
class MarginSize:
    """Number of samples that a gate with a margin needs.

    Attributes:
        metric: Metric of the gate.
        margin: Largest accepted loss.
        minimum: With fewer samples (with groups: fewer groups) the gate fails even if all answers are identical.
        samples: Fewest samples with which variants that are equally good pass with this power.
        known_from: Number of pairs of an earlier run that the spread is from; 0 when it is the widest.
        power: Chance of passing.
        alpha: Chance of passing a loss beyond the margin.
        clusters: Number of groups that these samples are in; None without groups.
    """

    metric: str
    margin: float
    minimum: int
    samples: int
    known_from: int
    power: float
    alpha: float
    clusters: int | None = None


def forecast(  # noqa: PLR0913 - what a plan depends on, by name
    task: Task,
    routes: Sequence[str],
    *,
    run: EvalReport | None = None,
    history: EvalReport | None = None,
    epochs: int = 1,
    limit: int | None = None,
    concurrency: int = 8,
    settings: LLMSettings | None = None,
    prices: PriceList | None = None,
) -> tuple[Forecast, ...]:
    """Estimate an evaluation of these routes. Calls nothing; loads litellm, for prices, if a route is not free.

    Judges, reasks and retries are not included.

    Args:
        task: Task to estimate.
        routes: Labels of the routes.
        run: The stored run of that name, which will be continued; None for a new one.
        history: An earlier run, or a short pilot, to take tokens and times from; `run` when None.
        epochs: Repeats of every sample.
        limit: Only the first N samples.
        concurrency: Calls in progress at once.
        settings: Settings with the limits per minute; None for no limits.
        prices: Your own prices, which win over the list's.

    Raises:
        LLMEvaluationError: The run of that name was made with another task, or epochs or concurrency are below 1.
        LLMDatasetError: The dataset cannot be read.
    """
    if epochs < 1 or concurrency < 1:
        raise LLMEvaluationError("epochs and concurrency must be at least 1.")
    if run is not None and run.run.task_sha256 != task.task_sha256:
        raise LLMEvaluationError(f"Evaluation {run.run.name!r} was made with another task; plan under another name.")
    ids = {sample.key for sample in task.load(limit)}
    earlier = run if history is None else history
    stored = () if run is None else run.results
    known = () if earlier is None else earlier.results
    endpoints = BUILT_IN if settings is None else load_endpoints(settings)
    rows = (_estimate_route(route, ids, epochs, stored, known, concurrency, endpoints, prices) for route in routes)
    return tuple(rows if settings is None else (_apply_limits(row, settings, endpoints) for row in rows))


def _apply_limits(row: Forecast, settings: LLMSettings, endpoints: Mapping[LLMProvider, ProviderSpec]) -> Forecast:
    """Return the estimate with the time that it takes within the limits per minute of the provider."""
    route = _parse_route(row.route)
    spec = None if route is None else endpoints.get(route.provider)
    if spec is None or row.time_s is None:
        return row
    requests, tokens = spec.per_minute(settings)
    counted = _add_known(row.input_tokens, row.output_tokens) if spec.answers_count else row.input_tokens
    slowest_s = max(row.time_s, _estimate_wait_s(row.calls, requests), _estimate_wait_s(counted, tokens))
    return replace(row, time_s=slowest_s)


def _estimate_wait_s(amount: int | None, per_minute: int | None) -> float:
    """Estimate the seconds before the last of this amount may begin: each minute's allowance is used at its start."""
    return 0.0 if not amount or per_minute is None else 60.0 * ((amount - 1) // per_minute)


def _estimate_route(
    route: str,
    ids: set[str],
    epochs: int,
    stored: Iterable[EvalResult],
    known: Iterable[EvalResult],
    concurrency: int,
    endpoints: Mapping[LLMProvider, ProviderSpec],
    own: PriceList | None = None,
) -> Forecast:
    done = sum(
        result.route == route and result.sample_id in ids and result.epoch < epochs and _is_kept(result)
        for result in stored
    )
    answered = [result for result in known if result.route == route and result.status in (SUCCEEDED, SCORER_FAILED)]
    calls = len(ids) * epochs - done
    latency = _average_known(result.latency_ms for result in answered)
    tokens = [
        _average_known(getattr(result, name) for result in answered) for name in ("input_tokens", "output_tokens")
    ]
    input_tokens, output_tokens = (None if each is None else round(each * calls) for each in tokens)
    return Forecast(
        route=route,
        results=len(ids) * epochs,
        done=done,
        calls=calls,
        known_from=len(answered),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        time_s=None if latency is None else latency / 1_000 * calls / concurrency,
        cost_usd=_estimate_cost_usd(route, answered, calls, endpoints, own),
    )


def _estimate_cost_usd(
    label: str,
    answered: Sequence[EvalResult],
    calls: int,
    endpoints: Mapping[LLMProvider, ProviderSpec],
    own: PriceList | None,
) -> float | None:
    route = _parse_route(label)
    if not calls or (route is not None and is_free(route, endpoints) and list_price(route, endpoints, own) == FREE):
        return 0.0
    each = [_compute_cost_usd(result, endpoints, own) for result in answered]
    # One unknown price makes the sum unknown: leaving it out would promise too little.
    mean = None if None in each else _average_known(each)
    return None if mean is None else mean * calls


def _parse_route(label: str) -> Route | None:
    try:
        return Route.parse(label.partition("@")[0])
    except ValidationError:  # a policy, or a custom label
        return None


def _compute_cost_usd(
    result: EvalResult, endpoints: Mapping[LLMProvider, ProviderSpec], own: PriceList | None
) -> float | None:
    price = None if result.served_route is None else list_price(Route.parse(result.served_route), endpoints, own)
    if price is None or result.input_tokens is None or result.output_tokens is None:
        return None
    return price.usual(result.input_tokens, result.output_tokens)


def outlook(rows: Sequence[Forecast], budget: Budget, run: EvalReport | None = None) -> tuple[Outlook, ...]:
    """Compare a budget with a plan, limit by limit.

    Args:
        rows: Result of `forecast`.
        budget: The limits.
        run: The stored run that will be continued; its spending counts.
    """
    spent = () if run is None else run.spent
    tokens = sum(each.input_tokens + each.output_tokens for each in spent)
    counts = [_add_known(row.input_tokens, row.output_tokens) for row in rows]
    found = (
        ("max_tokens", budget.max_tokens, tokens, _sum_known(counts)),
        (
            "max_cost_usd",
            budget.max_cost_usd,
            math.fsum(e.cost_usd for e in spent),
            _sum_known(r.cost_usd for r in rows),
        ),
        ("max_time_s", budget.max_time_s, 0.0, _sum_known(row.time_s for row in rows)),
    )
    return tuple(
        Outlook(limit, allowed, used, planned, None if planned is None else used + planned <= allowed)
        for limit, allowed, used, planned in found
        if allowed is not None
    )


def _add_known(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _sum_known(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def _is_kept(result: EvalResult) -> bool:
    return result.status in (SUCCEEDED, SCORER_FAILED) or (result.status == FAILED and result.error_code in FINAL_CODES)


def _average_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def sample_size(
    metric: str,
    difference: float,
    *,
    history: EvalReport | None = None,
    groups: Sequence[str | None] = (),
    power: float = 0.8,
) -> SampleSize:
    """Return how many samples `compare` needs to detect a difference with this power.

    The plan is made with the test that `compare` will use: McNemar's exact test for zeros and ones, a paired t test
    for other scores, for epochs, and for groups the clustered one. The spread is that of the first two routes of the
    earlier run, by sample; without two routes the widest that independent zeros and ones can have, which asks for too
    many samples rather than too few. How alike the samples of a group are is also taken from that run; without it a
    group counts once.

    Args:
        metric: Metric to compare.
        difference: Difference to detect.
        history: An earlier run or a pilot.
        groups: Group of each sample of the dataset; None for a sample that is in none.
        power: Chance of detecting the difference.

    Raises:
        LLMEvaluationError: The earlier run has no such metric, or the numbers are out of range.
    """
    from llmkit.evals.statistics import count_pairs_needed, count_share_pairs_needed

    pilot = _measure_pilot(metric, history, groups)
    try:
        if pilot.is_binary:
            # The share of pairs that disagree stays what it is, unless the difference alone is larger.
            disagreement = max(abs(difference), pilot.disagreement)
            samples, test = count_share_pairs_needed(difference, disagreement, power=power), "mcnemar"
        else:
            test = "paired t" if pilot.clusters_per_sample is None else "clustered paired t"
            samples = count_pairs_needed(
                difference,
                pilot.spread,
                power=power,
                design_effect=pilot.design_effect,
                clusters_per_pair=pilot.clusters_per_sample or 1.0,
            )
    except ValueError as error:
        raise LLMEvaluationError(f"No sample size: {error}.") from None
    clusters = pilot.count_clusters(samples)
    return SampleSize(metric, difference, pilot.spread, pilot.known_from, samples, power, test, clusters)


def early_stop(
    rule: Decided, *, difference: float | None, history: EvalReport | None, groups: Sequence[str | None]
) -> EarlyStop | None:
    """Estimate how many samples a stop rule saves, from simulated runs with a fixed seed.

    The differences of an earlier run of two routes are drawn with replacement, by group, and shifted to the assumed
    difference. Without an earlier run they are those of independent zeros and ones, of which half of the pairs differ;
    a group then counts as one sample.

    Args:
        rule: The rule.
        difference: The true difference of the first route from the second one, as the scores have it; None for that of
            the earlier run.
        history: An earlier run or a pilot.
        groups: Group of each sample of the plan.

    Returns:
        None when neither a difference nor a run of two routes is known: then there is no estimate.

    Raises:
        LLMEvaluationError: The earlier run has no such metric, its scores are not within 0 and 1, or the difference is
            not between -1 and 1.
    """
    import numpy as np

    from llmkit.evals.statistics.sequences import find_decision

    if difference is not None and not -1 < difference < 1:
        raise LLMEvaluationError(f"The difference must lie between -1 and 1; got {difference:g}.")
    if history is not None and rule.metric not in history.metrics:
        raise LLMEvaluationError(
            f"There is no metric {rule.metric!r}; there are: {', '.join(history.metrics) or 'none'}."
        )
    by_unit: dict[Hashable, list[float]] = {}
    for pair in () if history is None else _pair_samples(history, rule.metric):
        by_unit.setdefault(history.clusters[pair.sample_id], []).append(pair.difference)  # type: ignore[union-attr]
    known = np.array([math.fsum(unit) / len(unit) for unit in by_unit.values()])
    if len(known) < 2 and difference is None:
        return None
    if len(known) and np.abs(known).max() > 1:
        raise LLMEvaluationError(f"A stop rule needs scores within 0 and 1; {rule.metric} has others.")
    sign = -1 if history is not None and rule.metric in history.lower_is_better else 1
    units = len({("group", group) if group is not None else ("sample", place) for place, group in enumerate(groups)})
    rng = np.random.default_rng(STOP_SEED)
    found = []
    for _ in range(STOP_RUNS):
        if len(known) < 2 or (difference is not None and np.isin(known, (-1, 0, 1)).all()):
            share = float((known**2).mean()) if len(known) >= 2 else WIDEST_SPREAD**2
            mean = float(difference or 0.0)
            differ = max(share, abs(mean))
            chances = [(differ - mean) / 2, 1 - differ, (differ + mean) / 2]
            values = rng.choice([-1.0, 0.0, 1.0], size=units, p=chances)
        else:
            values = rng.choice(known, size=units)
            if difference is not None:
                values = np.clip(values + difference - known.mean(), -1, 1)
        found.append(find_decision(sign * values, rule.tested_mean, alpha=rule.alpha))
    used = [units if decision is None else decision[0] for decision in found]
    expected = math.fsum(used) / len(used)
    return EarlyStop(
        metric=rule.metric,
        margin=rule.margin,
        alpha=rule.alpha,
        difference=difference,
        known_from=len(known) if len(known) >= 2 else 0,
        units=units,
        expected_units=expected,
        saving=1 - expected / units if units else 0.0,
        decided=sum(decision is not None for decision in found) / len(found),
        runs=STOP_RUNS,
    )


def margin_size(
    metric: str,
    margin: float,
    *,
    history: EvalReport | None = None,
    groups: Sequence[str | None] = (),
    power: float = 0.8,
    alpha: float = 0.05,
) -> MarginSize:
    """Return how many samples a gate with this margin needs: at least, and to pass with this power.

    The arguments are those of `sample_size`; `alpha` is that of the gate.

    Raises:
        LLMEvaluationError: The earlier run has no such metric, or the numbers are out of range.
    """
    from llmkit.evals.statistics import count_equal_pairs_for_margin, count_pairs_for_margin

    pilot = _measure_pilot(metric, history, groups)
    variance = pilot.disagreement if pilot.is_binary else pilot.spread**2 * pilot.design_effect
    try:
        minimum = count_equal_pairs_for_margin(margin, alpha=alpha, is_binary=pilot.is_binary)
        samples = count_pairs_for_margin(margin, variance, power=power, alpha=alpha, is_binary=pilot.is_binary)
    except ValueError as error:
        raise LLMEvaluationError(f"No sample size: {error}.") from None
    if pilot.clusters_per_sample is not None:
        samples = max(samples, math.ceil(minimum / pilot.clusters_per_sample))
    return MarginSize(metric, margin, minimum, samples, pilot.known_from, power, alpha, pilot.count_clusters(samples))


@dataclass(frozen=True, slots=True)
class _Pilot:
    """The spread of the differences of samples, as far as an earlier run shows it.

    Attributes:
        disagreement: Mean squared difference; for zeros and ones the share of samples on which the two differ.
        spread: Standard deviation of the differences of samples.
        known_from: Number of pairs; 0 when the spread is an assumption.
        is_binary: Whether `compare` uses the test for zeros and ones on independent samples.
        design_effect: Variance of the mean, as a multiple of that of independent samples.
        clusters_per_sample: Degrees of freedom plus one, as a share of the samples; None without groups.
        groups_per_sample: Number of groups, as a share of the samples.
    """

    disagreement: float
    spread: float
    known_from: int
    is_binary: bool
    design_effect: float = 1.0
    clusters_per_sample: float | None = None
    groups_per_sample: float = 1.0

    def count_clusters(self, samples: int) -> int | None:
        return None if self.clusters_per_sample is None else math.ceil(samples * self.groups_per_sample)


def _measure_pilot(metric: str, history: EvalReport | None, groups: Sequence[str | None]) -> _Pilot:
    if history is not None and metric not in history.metrics:
        raise LLMEvaluationError(f"There is no metric {metric!r}; there are: {', '.join(history.metrics) or 'none'}.")
    pairs = [] if history is None else list(_pair_samples(history, metric))
    differences = [pair.difference for pair in pairs]
    spread = _measure_spread(differences)
    if spread is None or history is None:
        return _assume_widest(groups)
    disagreement = math.fsum(difference**2 for difference in differences) / len(differences)
    clusters = [history.clusters[pair.sample_id] for pair in pairs]
    # As in `compare_pairs`: one epoch of zeros and ones, and no two samples in one group.
    if len(set(clusters)) == len(clusters):
        is_binary = all(pair.is_binary for pair in pairs)
        return _Pilot(disagreement, spread, len(pairs), is_binary)
    from llmkit.evals.statistics import compute_clustered_error, compute_clustered_freedom

    error, number = compute_clustered_error(differences, clusters), len(pairs)
    effect = 1.0 if math.isnan(error) else max(1.0, error**2 * number / spread**2)
    freedom = compute_clustered_freedom(clusters)
    share = len(set(clusters)) / number
    return _Pilot(
        disagreement,
        spread,
        number,
        is_binary=False,
        design_effect=effect,
        clusters_per_sample=(freedom + 1) / number,
        groups_per_sample=share,
    )


def _assume_widest(groups: Sequence[str | None]) -> _Pilot:
    """Return the widest spread of independent zeros and ones, and groups of samples that are all alike."""
    from llmkit.evals.statistics import compute_clustered_freedom

    clusters = [("sample", str(place)) if group is None else ("group", group) for place, group in enumerate(groups)]
    sizes = Counter(clusters).values()
    if not sizes or max(sizes) == 1:
        return _Pilot(WIDEST_SPREAD**2, WIDEST_SPREAD, 0, is_binary=True)
    number = len(clusters)
    effect = sum(size**2 for size in sizes) / number
    freedom = compute_clustered_freedom(clusters)
    return _Pilot(
        WIDEST_SPREAD**2,
        WIDEST_SPREAD,
        0,
        is_binary=False,
        design_effect=effect,
        clusters_per_sample=(freedom + 1) / number,
        groups_per_sample=len(sizes) / number,
    )


class _SamplePair(NamedTuple):
    """Difference of two routes on one sample, averaged over its epochs."""

    sample_id: str
    difference: float
    is_binary: bool


def _pair_samples(history: EvalReport, metric: str) -> Iterator[_SamplePair]:
    if len(history.variants) < 2:
        return
    a, b = (_group_by_sample(history.of(route), metric) for route in history.variants[:2])
    for sample in a:
        if sample in b:
            scores = (*a[sample], *b[sample])
            difference = sum(a[sample]) / len(a[sample]) - sum(b[sample]) / len(b[sample])
            yield _SamplePair(sample, difference, len(scores) == 2 and all(score in (0, 1) for score in scores))


def _group_by_sample(results: Sequence[EvalResult], metric: str) -> Mapping[str, list[float]]:
    scores: dict[str, list[float]] = {}
    for result in results:
        if metric in result.scores:
            scores.setdefault(result.sample_id, []).append(result.scores[metric])
    return scores


def _measure_spread(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)) or None
