"""Metrics over a data set at work on a report: values with intervals, comparisons, confusion and reliability."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypedDict, cast

from llmkit.errors import LLMEvaluationError, describe_exception
from llmkit.eval_ports import EvalResult
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.report.frames import derive_columns
from llmkit.evals.results import FAILED
from llmkit.evals.scorers import Score
from llmkit.evals.scorers.base import Options
from llmkit.evals.scorers.dataset_metric import (
    FAILED_ANSWER,
    AdditiveMetric,
    Answered,
    Calibration,
    ClassMetric,
    DatasetMetric,
)
from llmkit.evals.tasks.task import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmkit.evals.statistics import Estimate
    from llmkit.evals.statistics.resampling import Evaluate

    Numbers = NDArray[np.float64]

__all__ = [
    "RELIABILITY_COLUMNS",
    "AnswerSet",
    "DatasetComparison",
    "build_confusion",
    "build_dataset_rows",
    "build_reliability_rows",
    "collect_answer_set",
    "compare_dataset_metric",
    "estimate_dataset_metric",
    "join_name",
    "score_all",
    "subtract_all",
]

# Draws of a bootstrap: of sums, thousands take a moment; a function is called again for each.
SUM_DRAWS: Final = 2_000
FUNCTION_DRAWS: Final = 400

Cluster = Hashable


class ReliabilityRow(TypedDict, total=False):
    """One bin of `EvalReport.reliability`."""

    variant: str
    bin_low: float
    bin_high: float
    n: int
    confidence: float
    accuracy: float
    ci_low: float
    ci_high: float


RELIABILITY_COLUMNS: Mapping[str, str] = derive_columns(ReliabilityRow)


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """The answers of one variant, and the cluster of each.

    Attributes:
        answers: The answers as the task declares them, for functions of the user's own.
        views: The same as instances of models, by whose fields built-in metrics compare.
        clusters: Cluster of each.
    """

    answers: tuple[Answered, ...]
    views: tuple[Answered, ...]
    clusters: tuple[Cluster, ...]

    def get_for(self, metric: DatasetMetric) -> tuple[Answered, ...]:
        """Return the answers in the form that a metric reads."""
        return self.views if isinstance(metric, Options) else self.answers

    def exclude_failed(self) -> AnswerSet:
        """Return the answers with a valid output."""
        return self.select([answer.output is not None for answer in self.answers])

    def select(self, keep: Sequence[bool]) -> AnswerSet:
        """Return some of the answers."""
        chosen = [number for number, is_kept in enumerate(keep) if is_kept]
        answers, views = (tuple(each[n] for n in chosen) for each in (self.answers, self.views))
        return AnswerSet(answers, views, tuple(self.clusters[n] for n in chosen))


def collect_answer_set(
    results: Sequence[EvalResult], dataset: Mapping[str, Sample], clusters: Mapping[str, Cluster], task: Task
) -> AnswerSet:
    """Return the answers of results: valid outputs as their type reads them, and None for FAILED ones."""
    answers, views, own = [], [], []
    for result in results:
        sample = dataset.get(result.sample_id)
        if sample is None or (result.output_json is None and result.status != FAILED):
            continue
        output = view = None
        if result.output_json is not None:
            try:
                output = task.answer.read_json(result.output_json)
                view = task.answer.view_of(output, sample.target)
            except Exception:  # noqa: BLE001 (a type that was edited since: the answer does not fit any more)
                output = view = None
        answers.append(Answered(sample, output, result.epoch, dict(result.scores)))
        views.append(Answered(sample, view, result.epoch, dict(result.scores)))
        own.append(clusters[result.sample_id])
    return AnswerSet(tuple(answers), tuple(views), tuple(own))


def build_dataset_rows(metric: DatasetMetric, own: AnswerSet) -> Iterator[dict[str, Any]]:
    """Build the rows of a metric and its parts, with what is particular to them; unknown where it raised something."""
    valid = own.exclude_failed()
    try:
        estimates = estimate_dataset_metric(metric, valid)
    except LLMEvaluationError:
        estimates = {}
    has_failed = len(valid.answers) < len(own.answers)
    everything = score_all(metric, own) if has_failed else {}
    for name, found in estimates.items():
        yield {
            "metric": name,
            "scored": len(valid.answers),
            "scorer_failed": 0,
            "mean": found.value,
            "ci_low": found.low,
            "ci_high": found.high,
            "standard_error": found.standard_error,
            "interval": found.method,
            "mean_failures_as_zero": everything.get(name, math.nan) if has_failed else found.value,
            "lower_is_better": metric.lower_is_better,
        }
    if not estimates:
        yield {"metric": metric.name, "scored": 0, "scorer_failed": 0, "lower_is_better": metric.lower_is_better}


def score_all(metric: DatasetMetric, own: AnswerSet) -> dict[str, float]:
    """Return a metric and its parts with FAILED answers as answers of None; empty where it cannot count them."""
    if not own.answers:
        return {}
    try:
        if metric.over == "samples":
            score = _call(metric, own.get_for(metric))
            return {join_name(metric, part): _get_part(score, part) for part in ("", *score.parts)}
        scores, _clusters = _score_samples(metric, own)
    except LLMEvaluationError:
        return {}
    names = dict.fromkeys(name for score in scores.values() for name in ("", *score.parts))
    return {
        join_name(metric, part): sum(_get_part(score, part) for score in scores.values()) / len(scores)
        for part in names
    }


def join_name(metric: DatasetMetric, part: str) -> str:
    """Return the name of a metric's value, or of one of its parts."""
    return f"{metric.name}.{part}" if part else metric.name


def estimate_dataset_metric(metric: DatasetMetric, own: AnswerSet) -> dict[str, Estimate]:
    """Estimate a metric and its parts, by name.

    Raises:
        LLMEvaluationError: The metric raised something; the message says what.
    """
    from llmkit.evals.statistics import estimate_mean
    from llmkit.evals.statistics.resampling import estimate_clusters

    if not own.answers:
        return {}
    if metric.over == "epochs":
        scores, clusters = _score_samples(metric, own)
        names = list(dict.fromkeys(name for score in scores.values() for name in ("", *score.parts)))
        return {
            join_name(metric, part): estimate_mean(
                [_get_part(score, part) for score in scores.values()],
                [clusters[sample_id] for sample_id in scores],
            )
            for part in names
        }
    found = estimate_clusters(_prepare(metric, own.get_for(metric)), own.clusters, resamples=_count_draws(metric))
    return {join_name(metric, part): estimate for part, estimate in found.items()}


@dataclass(frozen=True, slots=True)
class DatasetComparison:
    """A metric over the data set, compared between two variants.

    Attributes:
        row: The numbers, named as the columns of `COMPARISON_COLUMNS`.
        find_bound: Returns the lower end of the one-sided interval of the gain, from alpha and the margin.
    """

    row: Mapping[str, Any]
    find_bound: Callable[[float, float], float]


def compare_dataset_metric(metric: DatasetMetric, a: AnswerSet, b: AnswerSet) -> dict[str, DatasetComparison]:
    """Compare a metric and its parts between two variants on the samples and epochs of both, by name.

    Raises:
        LLMEvaluationError: The metric raised something; the message says what.
    """
    ours, others = _match_answers(a, b)
    if not ours.answers:
        return {}
    matched = len(ours.answers)
    pairs = {"pairs": matched, "left_out": len(a.answers) + len(b.answers) - 2 * matched}
    pairs |= {"lower_is_better": metric.lower_is_better}
    find = _compare_epochs if metric.over == "epochs" else _compare_samples
    return {
        join_name(metric, part): DatasetComparison(
            {"metric": join_name(metric, part), **pairs, **found.row}, found.find_bound
        )
        for part, found in find(metric, ours, others).items()
    }


def subtract_all(metric: DatasetMetric, a: AnswerSet, b: AnswerSet) -> dict[str, float]:
    """Return the differences of a metric and its parts, with FAILED answers as answers of None."""
    ours, theirs = (score_all(metric, each) for each in _match_answers(a, b))
    return {name: ours[name] - theirs[name] for name in ours if name in theirs}


def _match_answers(a: AnswerSet, b: AnswerSet) -> tuple[AnswerSet, AnswerSet]:
    """Return the answers to the samples and epochs of both, in one order."""
    theirs = {(answer.sample.key, answer.epoch): number for number, answer in enumerate(b.answers)}
    ours = a.select([(answer.sample.key, answer.epoch) in theirs for answer in a.answers])
    order = [theirs[answer.sample.key, answer.epoch] for answer in ours.answers]
    answers, views = (tuple(each[number] for number in order) for each in (b.answers, b.views))
    return ours, AnswerSet(answers, views, ours.clusters)


def _compare_samples(metric: DatasetMetric, a: AnswerSet, b: AnswerSet) -> dict[str, DatasetComparison]:
    import numpy as np

    from llmkit.evals.statistics.resampling import compare_clusters

    sign = -1 if metric.lower_is_better else 1
    resamples = _count_draws(metric)
    comparisons = {}
    drawn = compare_clusters(
        _prepare(metric, (*a.get_for(metric), *b.get_for(metric))), a.clusters, resamples=resamples
    )
    for part, found in drawn.items():
        error, low, high = found.compute_interval()
        row: dict[str, Any] = {"method": "cluster bootstrap"}
        row |= {"mean_a": found.a, "mean_b": found.b, "difference": found.a - found.b, "ci_low": low, "ci_high": high}
        row |= {"standard_error": error, "p_value": found.p_value, "effect": math.nan, "clusters": found.clusters}
        gains = sign * found.draws[~np.isnan(found.draws)]
        comparisons[part] = DatasetComparison(row, partial(_find_drawn_bound, gains))
    return comparisons


def _compare_epochs(metric: DatasetMetric, a: AnswerSet, b: AnswerSet) -> dict[str, DatasetComparison]:
    from llmkit.evals.statistics import compare_pairs

    (ours, clusters), (theirs, _clusters) = _score_samples(metric, a), _score_samples(metric, b)
    own = [clusters[sample_id] for sample_id in ours]
    comparisons = {}
    for part in dict.fromkeys(name for score in ours.values() for name in ("", *score.parts)):
        x, y = ([_get_part(scores[sample_id], part) for sample_id in ours] for scores in (ours, theirs))
        found = compare_pairs(x, y, own)
        row: dict[str, Any] = {"mean_a": sum(x) / len(x), "mean_b": sum(y) / len(y), "difference": found.difference}
        row |= {"ci_low": found.low, "ci_high": found.high, "standard_error": found.standard_error}
        row |= {"p_value": found.p_value, "effect": found.effect, "method": found.method, "clusters": found.clusters}
        better, worse = (y, x) if metric.lower_is_better else (x, y)
        comparisons[part] = DatasetComparison(row, partial(_find_mean_bound, better, worse, own))
    return comparisons


def _find_drawn_bound(gains: Numbers, alpha: float, _margin: float) -> float:
    import numpy as np

    return float(np.quantile(gains, alpha)) if len(gains) else math.nan


def _find_mean_bound(
    better: Sequence[float], worse: Sequence[float], clusters: Sequence[Cluster], alpha: float, margin: float
) -> float:
    from llmkit.evals.statistics import check_non_inferiority

    return float(check_non_inferiority(better, worse, margin, clusters, alpha).low)


def _get_part(score: Score, part: str) -> float:
    return score.parts.get(part, math.nan) if part else score.value


def _score_samples(metric: DatasetMetric, own: AnswerSet) -> tuple[dict[str, Score], dict[str, Cluster]]:
    by_sample: dict[str, list[Answered]] = {}
    clusters: dict[str, Cluster] = {}
    for answer, cluster in zip(own.get_for(metric), own.clusters, strict=True):
        by_sample.setdefault(answer.sample.key, []).append(answer)
        clusters[answer.sample.key] = cluster
    return {sample_id: _call(metric, answers) for sample_id, answers in by_sample.items()}, clusters


def _call(metric: DatasetMetric, answers: Sequence[Answered]) -> Score:
    try:
        found = metric(answers)
        score = found if isinstance(found, Score) else Score(float(found))
        return Score(float(score.value), score.detail, {name: float(value) for name, value in score.parts.items()})
    except Exception as error:
        raise LLMEvaluationError(f"The metric {metric.name} failed: {describe_exception(error)}") from error


def _count_draws(metric: DatasetMetric) -> int:
    return SUM_DRAWS if hasattr(metric, "count") else FUNCTION_DRAWS


def _prepare(metric: DatasetMetric, answers: Sequence[Answered]) -> Evaluate:
    """Return the function of weights that a bootstrap calls."""
    import numpy as np

    if hasattr(metric, "count"):
        try:
            counts = cast("AdditiveMetric", metric).count(answers)
        except Exception as error:
            raise LLMEvaluationError(f"The metric {metric.name} failed: {describe_exception(error)}") from error
        return lambda weights: counts.combine(weights @ counts.features)
    # The parts are those of all answers; a draw may lack some, and may be too odd for the function.
    whole = _call(metric, answers)

    def evaluate(weights: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
        values = {name: np.full(len(weights), np.nan) for name in ("", *whole.parts)}
        for number, row in enumerate(weights):
            if row.min() == 1 == row.max():
                score = whole
            else:
                try:
                    score = _call(metric, [answers[int(place)] for place in np.repeat(np.arange(len(row)), row)])
                except LLMEvaluationError:
                    continue
            values[""][number] = score.value
            for name in whole.parts:
                values[name][number] = score.parts.get(name, math.nan)
        return values

    return evaluate


def build_confusion(metric: ClassMetric, own: AnswerSet) -> tuple[list[str], list[str], list[list[int]]]:
    """Return the classes of the targets, those of the answers, and the counts: a row for each target."""
    pairs = [(target, got) for target, got in metric.read_pairs(own.views) if target is not None]
    classes = sorted({name for pair in pairs for name in pair} - {FAILED_ANSWER})
    columns = [*classes, *([FAILED_ANSWER] if any(got == FAILED_ANSWER for _target, got in pairs) else [])]
    places = {name: number for number, name in enumerate(columns)}
    rows = {name: [0] * len(columns) for name in classes}
    for target, got in pairs:
        rows[target][places[got]] += 1
    return classes, columns, list(rows.values())


def build_reliability_rows(metric: Calibration, variant: str, own: AnswerSet) -> Iterator[dict[str, Any]]:
    """Build a row for each bin of stated confidence, with the share of right answers and its interval."""
    from llmkit.evals.statistics import estimate_mean

    pairs = metric.read_pairs(own.views)
    for place in range(metric.bins):
        inside = [
            (pair, cluster)
            for pair, cluster in zip(pairs, own.clusters, strict=True)
            if pair is not None and metric.find_bin(pair[0]) == place
        ]
        row = {
            "variant": variant,
            "bin_low": place / metric.bins,
            "bin_high": (place + 1) / metric.bins,
            "n": len(inside),
        }
        if inside:
            found = estimate_mean([right for (_confidence, right), _ in inside], [cluster for _, cluster in inside])
            confidence = sum(pair[0] for pair, _ in inside) / len(inside)
            row |= {"confidence": confidence, "accuracy": found.value, "ci_low": found.low, "ci_high": found.high}
        yield row
