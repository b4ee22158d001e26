"""Frames for decisions: forecasts of policies, the frontier, and ranks of variants."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalResult, RecordedCall
from llmkit.evals.call_names import require_unedited
from llmkit.evals.decide.fitting import fit_policy, measure_policy
from llmkit.evals.decide.forecast import (
    CHECK_COLUMNS,
    FRONTIER_COLUMNS,
    RANK_COLUMNS,
    WHAT_IF_COLUMNS,
    Against,
    Forecast,
    build_check_rows,
    build_frontier_rows,
    build_rank_rows,
    build_what_if_rows,
    forecast_policy,
)
from llmkit.evals.decide.simulation import Measure, RecordedResults
from llmkit.evals.policies import Policy
from llmkit.evals.report.aggregate import find_worst_score, index_by_sample
from llmkit.evals.report.frames import build_frame
from llmkit.types import Attempt

if TYPE_CHECKING:
    import pandas as pd

    from llmkit.evals.report.aggregate import Cluster
    from llmkit.evals.report.analysis import Analysis
    from llmkit.evals.report.plots import Prices

__all__ = ["build_check_frame", "build_frontier_frame", "build_rank_frame", "build_what_if_frame", "fit_on_report"]

SAMPLE_STAGE = "sample"


def build_what_if_frame(
    report: Analysis,
    policies: Mapping[str, Policy],
    *,
    metric: str | None,
    reference: str | None,
    prices: Prices,
    runs: Sequence[Analysis],
) -> pd.DataFrame:
    """Build the frame of `EvalReport.what_if`."""
    study = _Study(report, tuple(runs), metric, prices)
    forecasts = study.forecast(policies)
    by_name = {forecast.name: forecast for forecast in forecasts}
    chosen = reference if reference is not None else next(iter(by_name), None)
    if chosen is None or chosen not in by_name:
        raise LLMEvaluationError(f"There is no policy {chosen!r}; there are: {', '.join(by_name) or 'none'}.")
    rows = build_what_if_rows(
        forecasts, by_name[chosen], study.recorded.keys, study.clusters, study.measure.metric, lower=study.lower
    )
    return build_frame(rows, WHAT_IF_COLUMNS)


def fit_on_report(
    report: Analysis, policy: Policy, *, metric: str | None, prices: Prices, runs: Sequence[Analysis]
) -> Policy:
    """Return the policy of `EvalReport.fit_policy`."""
    study = _Study(report, tuple(runs), metric, prices)
    study.recorded.require_variants(policy)
    return fit_policy(policy, study.recorded, study.recorded.keys, study.measure, lower=study.lower)


def build_check_frame(
    report: Analysis,
    policies: Mapping[str, Policy],
    outcome: Analysis,
    *,
    metric: str | None,
    prices: Prices,
    runs: Sequence[Analysis],
) -> pd.DataFrame:
    """Build the frame of `EvalReport.check_forecast`."""
    study = _Study(report, tuple(runs), metric, prices)
    require_unedited(report.results, outcome.results)
    absent = [name for name in policies if f"policy:{name}" not in outcome.variants]
    if absent or not policies:
        known = ", ".join(outcome.variants)
        raise LLMEvaluationError(
            f"{outcome.run.name!r} ran no policy:{absent[0] if absent else 'NAME'}; it ran: {known}."
        )
    costs = _sum_costs(outcome.load_calls(), prices)
    rows: list[dict[str, Any]] = []
    for name, policy in policies.items():
        forecast = study.forecast_one(name, policy)
        label = f"policy:{name}"
        ran = RecordedResults(
            {label: index_by_sample(outcome.of(label))}, study.recorded.samples, study.recorded.groups
        )
        found = measure_policy(label, ran, study.recorded.keys, study.measure._replace(costs=costs))
        rows += build_check_rows(forecast, found, study.recorded.keys, study.clusters, study.measure.metric)
    return build_frame(rows, CHECK_COLUMNS)


def build_frontier_frame(
    report: Analysis,
    policies: Mapping[str, Policy],
    *,
    metric: str | None,
    against: Against,
    prices: Prices,
    runs: Sequence[Analysis],
) -> pd.DataFrame:
    """Build the frame of `EvalReport.frontier`."""
    if against not in ("cost", "latency", "tokens"):
        raise LLMEvaluationError(f"against must be 'cost', 'latency' or 'tokens'; got {against!r}.")
    study = _Study(report, tuple(runs), metric, prices)
    rows = build_frontier_rows(
        study.forecast(policies), study.recorded.keys, study.clusters, study.measure.metric, against, lower=study.lower
    )
    return build_frame(rows, FRONTIER_COLUMNS)


def build_rank_frame(report: Analysis, metric: str | None) -> pd.DataFrame:
    """Build the frame of `EvalReport.ranks`."""
    study = _Study(report, (), metric, {})
    scores = {forecast.name: forecast.scores for forecast in study.forecast({})}
    units = [study.clusters[sample_id] for sample_id, _epoch in study.recorded.keys]
    return build_frame(build_rank_rows(scores, units, study.measure.metric, lower=study.lower), RANK_COLUMNS)


@dataclass(frozen=True)
class _Study:
    """The results of one or more runs of a dataset, and how they are measured."""

    report: Analysis
    runs: tuple[Analysis, ...]
    metric: str | None
    prices: Prices

    @cached_property
    def recorded(self) -> RecordedResults:
        by_variant = {label: index_by_sample(results) for label, results in self._named_results()}
        samples = {name: sample for run in reversed(self._all) for name, sample in run.dataset.items()}
        groups = {name: cluster[1] if cluster[0] == "group" else None for name, cluster in self.clusters.items()}
        return RecordedResults(by_variant, samples, groups)

    @cached_property
    def clusters(self) -> dict[str, Cluster]:
        return {name: cluster for run in reversed(self._all) for name, cluster in run.clusters.items()}

    @property
    def lower(self) -> bool:
        return self.measure.metric in self.report.lower_is_better

    @cached_property
    def measure(self) -> Measure:
        known = self.report.metrics
        metric = self.metric if self.metric is not None else next(iter(known), None)
        if metric is None or metric not in known:
            raise LLMEvaluationError(f"There is no metric {metric!r}; there are: {', '.join(known) or 'none'}.")
        results = [self.recorded.by_variant[label].values() for label in self.recorded.by_variant]
        worst = find_worst_score(results, metric, self.report.lower_is_better)
        return Measure(metric, worst, self._find_costs())

    @property
    def _all(self) -> tuple[Analysis, ...]:
        return (self.report, *self.runs)

    def forecast(self, policies: Mapping[str, Policy]) -> list[Forecast]:
        """Return the forecasts of all variants, then of the policies."""
        variants: dict[str, Policy] = {label: label for label in self.recorded.by_variant}
        taken = [name for name in policies if name in variants]
        if taken:
            raise LLMEvaluationError(f"{taken[0]!r} is a variant already; give the policy another name.")
        return [self.forecast_one(name, policy) for name, policy in {**variants, **policies}.items()]

    def forecast_one(self, name: str, policy: Policy) -> Forecast:
        """Return the forecast of one policy."""
        return forecast_policy(
            name, policy, self.recorded, self.recorded.keys, self.clusters, self.measure, lower=self.lower
        )

    def _named_results(self) -> Iterator[tuple[str, list[EvalResult]]]:
        """Yield the results of each variant under a label that no other variant has."""
        taken: set[str] = set()
        for run in self._all:
            if run is not self.report:
                require_unedited(self.report.results, run.results)
            for variant in run.variants:
                label = variant if variant not in taken else f"{variant} of {run.run.name}"
                if label in taken:
                    raise LLMEvaluationError(f"The run {run.run.name!r} is given twice.")
                taken.add(label)
                yield label, [replace(result, route=label) for result in run.of(variant)]

    def _find_costs(self) -> dict[str, float]:
        """Return the cost of each result whose calls, or whose variant, have a price."""
        unknown = [label for label in self.prices if label not in self.recorded.by_variant]
        if unknown:
            known = ", ".join(self.recorded.by_variant)
            raise LLMEvaluationError(f"There is no variant {unknown[0]!r} to price; there are: {known}.")
        costs = {} if self.prices else _sum_costs(call for run in self._all for call in run.load_calls())
        for label, (input_usd, output_usd) in self.prices.items():
            for result in self.recorded.by_variant[label].values():
                if result.input_tokens is not None and result.output_tokens is not None:
                    tokens_usd = result.input_tokens * input_usd + result.output_tokens * output_usd
                    costs[result.pipeline_run_id] = tokens_usd / 1e6
        return costs


def _sum_costs(calls: Iterable[RecordedCall], prices: Prices = MappingProxyType({})) -> dict[str, float]:
    """Sum the costs of the calls of each result; NaN where a request that was counted has no price.

    Args:
        calls: The calls, judges' included.
        prices: Route to USD per million input and output tokens; empty for the recorded costs.
    """
    costs: dict[str, float] = {}
    for call in calls:
        if call.stage not in (None, SAMPLE_STAGE):
            continue
        billed = [attempt for attempt in call.attempts if attempt.usage.output_tokens is not None]
        cost = math.fsum(_find_cost(attempt, prices) for attempt in billed)
        costs[call.pipeline_run_id] = costs.get(call.pipeline_run_id, 0.0) + (cost if call.attempts else 0.0)
    return costs


def _find_cost(attempt: Attempt, prices: Prices) -> float:
    if not prices:
        return math.nan if attempt.cost_usd is None else attempt.cost_usd
    usage, price = attempt.usage, prices.get(str(attempt.route))
    if price is None or usage.input_tokens is None or usage.output_tokens is None:
        return math.nan
    return (usage.input_tokens * price[0] + usage.output_tokens * price[1]) / 1e6
