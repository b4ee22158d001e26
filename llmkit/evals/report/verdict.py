"""The verdict of a report in words: which variant is better and by how much, or how many samples would decide it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llmkit.evals.report.aggregate import ScorePairs, collect_scores, index_by_sample, pair_scores
from llmkit.evals.report.frames import to_plain_rows

if TYPE_CHECKING:
    from llmkit.evals.report.analysis import Analysis

__all__ = ["SIGNIFICANT", "describe_verdict", "get_main_metrics"]

SIGNIFICANT: Final = 0.05
MAX_METRICS: Final = 3
# A plan for more samples than this is no plan.
MANY_SAMPLES: Final = 100_000
# Fewer significant digits say that the number is an estimate.
PLAN_DIGITS: Final = 2

Row = Mapping[str, Any]


def get_main_metrics(report: Analysis) -> tuple[str, ...]:
    """Return the verdicts of the scorers without their parts, or all metrics if there are only parts."""
    scorers = report.run.spec.get("scorers", ())
    return tuple(metric for metric in report.metrics if metric in scorers) or report.metrics


def describe_verdict(report: Analysis, comparisons: Sequence[Row] | None = None) -> tuple[str, ...]:
    """Return a sentence or two for each of the first three metrics.

    A variant is called better only if the p-value, adjusted for all pairs and metrics, is below 0.05. A partial run
    says "so far", and samples that one side has no score for are counted.

    Args:
        report: The evaluation.
        comparisons: Rows of `compare(metric=get_main_metrics(report))`, if they were computed already.
    """
    metrics = get_main_metrics(report)
    if comparisons is None:
        comparisons = to_plain_rows(report.compare(metric=metrics)) if len(report.variants) > 1 and metrics else ()
    summary = to_plain_rows(report.summary())
    return tuple(
        f"{metric}: {sentence}" if len(metrics) > 1 else sentence
        for metric in metrics[:MAX_METRICS]
        for sentence in _describe_metric(report, metric, summary, comparisons)
    )


def _describe_metric(
    report: Analysis, metric: str, summary: Sequence[Row], comparisons: Sequence[Row]
) -> Iterator[str]:
    is_lower = metric in report.lower_is_better
    scored = [row for row in summary if row["metric"] == metric and row["mean"] is not None]
    if not scored:
        yield "No sample has a score yet."
        return
    scored.sort(key=lambda row: row["mean"] if is_lower else -row["mean"])
    leader = scored[0]["variant"]
    if len(scored) == 1:
        yield _describe_single(report, scored[0])
        return
    pairs = [_make_pair(report, metric, leader, row["variant"], comparisons) for row in scored[1:]]
    better = [pair for pair in pairs if pair.is_decided]
    open_pairs = [pair for pair in pairs if not pair.is_decided]
    if open_pairs:
        yield _describe_open(open_pairs)
    for pair in better[:MAX_METRICS]:
        yield _describe_better(pair)
    if len(better) > MAX_METRICS:
        yield f"{leader} is also better than {len(better) - MAX_METRICS} others."


@dataclass(frozen=True, slots=True)
class _Pair:
    """The variant with the best mean, compared with another; `gain` is positive where the first is better."""

    first: str
    second: str
    gain: float | None
    low: float | None
    high: float | None
    is_decided: bool
    samples: int
    where: str
    caveat: str
    is_unit: bool
    is_partial: bool
    scores: ScorePairs
    row: Row
    comparisons: int

    def format_range(self, *, signed: bool) -> str:
        """Return the interval in points, or in the unit of the score."""
        low, high = (_format_gain(end, is_unit=self.is_unit, signed=signed) for end in (self.low, self.high))
        return f"{low} to {high}{' points' if self.is_unit else ''}"


def _make_pair(report: Analysis, metric: str, first: str, second: str, comparisons: Sequence[Row]) -> _Pair:
    row = next(each for each in comparisons if each["metric"] == metric and {each["a"], each["b"]} == {first, second})
    # Turned so that it is first minus second, and again where less is better.
    sign = (1 if row["a"] == first else -1) * (-1 if row["lower_is_better"] else 1)
    gain, low, high = (None if row[name] is None else sign * row[name] for name in ("difference", "ci_low", "ci_high"))
    if sign < 0:
        low, high = high, low
    ours, theirs = (collect_scores(index_by_sample(report.of(label)), metric) for label in (first, second))
    samples = len({sample for sample, _epoch in ours.keys() & theirs.keys()})
    pairs = pair_scores(ours, theirs, report.clusters)
    is_decided = row["p_holm"] is not None and row["p_holm"] < SIGNIFICANT and bool(gain)
    coverage = [report.coverage[label] for label in (first, second)]
    is_partial = any(each.is_partial for each in coverage)
    return _Pair(
        first,
        second,
        gain,
        low,
        high,
        is_decided,
        samples,
        _describe_place(report, row, samples, is_partial=is_partial),
        _describe_caveat(row, first, second, sign, is_partial=is_partial) if is_decided else "",
        all(0 <= score <= 1 for score in (*pairs.a, *pairs.b)),
        is_partial,
        pairs,
        row,
        len(comparisons),
    )


def _describe_place(report: Analysis, row: Row, samples: int, *, is_partial: bool) -> str:
    groups = {cluster for cluster in report.clusters.values() if cluster[0] == "group"}
    within = f" in {row['clusters']:,} groups" if groups and row["clusters"] < samples else ""
    if not is_partial:
        return f"on {'this' if samples == 1 else 'these'} {_count_samples(samples)}{within}"
    total = max(report.run.spec.get("samples", 0), len({result.sample_id for result in report.results}))
    return f"on {samples:,} of {_count_samples(total)}{within}"


def _describe_caveat(row: Row, first: str, second: str, sign: int, *, is_partial: bool) -> str:
    """Return what the samples that one side has no score for could change."""
    lenient = row["difference_failures_as_zero"]
    if lenient is not None and sign * lenient < 0:
        return f" But with failures counted as the worst score, {second} is ahead of {first}."
    if row["left_out"] and not is_partial:
        number = f"{row['left_out']:,} {'result is' if row['left_out'] == 1 else 'results are'}"
        return f" {number} left out, because one of the two has no score."
    return ""


def _describe_single(report: Analysis, row: Row) -> str:
    coverage = report.coverage[row["variant"]]
    scored = (
        f"{row['scored']:,} of {_count_samples(row['n'])}" if coverage.is_partial else _count_samples(row["scored"])
    )
    interval = "" if row["ci_low"] is None else f" (95 % interval {row['ci_low']:.2f} to {row['ci_high']:.2f})"
    begin = "So far " if coverage.is_partial else ""
    return f"{begin}{row['variant']} scores {row['mean']:.2f} on average{interval} on {scored}."


def _describe_better(pair: _Pair) -> str:
    begin = "So far " if pair.is_partial else ""
    gain = pair.format_range(signed=False)
    return f"{begin}{pair.first} is better than {pair.second} by {gain} {pair.where}.{pair.caveat}"


def _describe_open(pairs: Sequence[_Pair]) -> str:
    """Describe the comparison of the best variant with the next one, from which it cannot be told apart."""
    pair = pairs[0]
    others = [each.second for each in pairs]
    begin = "Not decided yet" if pair.is_partial else "Not decided"
    if len(others) == 1:
        question = f"{begin} whether {pair.first} or {others[0]} is better"
    else:
        question = f"{begin} which of {', '.join([pair.first, *others[:-1]])} and {others[-1]} is best"
    if not pair.samples:
        return f"{question}: {pair.first} and {pair.second} have no scored sample in common."
    if pair.low is None:
        return f"{question}: {_count_samples(pair.samples)} {'is' if pair.samples == 1 else 'are'} too few to compare."
    if not pair.gain:
        return (
            f"{question}: there is no difference between {pair.first} and {pair.second} {pair.where}, and the true one "
            f"is plausibly within {pair.format_range(signed=True)}."
        )
    return (
        f"{question}: the difference between {pair.first} and {pair.second} is plausibly "
        f"{pair.format_range(signed=True)} {pair.where}.{_describe_plan(pair)}"
    )


def _describe_plan(pair: _Pair) -> str:
    needed = _count_samples_needed(pair)
    more = "" if needed is None else _format_estimate(needed - pair.samples)
    if needed is None or needed > MANY_SAMPLES:
        return f" Even {MANY_SAMPLES:,} samples would hardly do, if it is as small as it looks."
    return f" About {more} more samples would do, if it is as large as it looks."


def _count_samples_needed(pair: _Pair) -> int | None:
    """Count the samples that detect the observed difference with a power of 80 %; None if there is no such number."""
    from llmkit.evals.statistics import compute_clustered_freedom, count_pairs_needed, count_share_pairs_needed

    gain, level = abs(pair.gain or 0.0), 1 - SIGNIFICANT / max(1, pair.comparisons)
    # Hundreds of thousands of samples take seconds to plan, and no study collects them.
    error = pair.row["standard_error"]
    if not gain or not error or (error / gain) ** 2 * pair.samples > MANY_SAMPLES:
        return None
    if pair.row["method"] == "mcnemar":
        disagreement = sum(a != b for a, b in zip(pair.scores.a, pair.scores.b, strict=True)) / len(pair.scores.a)
        needed = count_share_pairs_needed(gain, max(gain, disagreement), level=level)
    else:
        # Groups and epochs are in the standard error, so the spread is that of a sample with all its relatives.
        freedom = compute_clustered_freedom(pair.scores.clusters)
        needed = count_pairs_needed(
            gain,
            error * math.sqrt(pair.samples),
            level=level,
            clusters_per_pair=min(1.0, (freedom + 1) / pair.samples),
        )
    return max(needed, pair.samples + 1)


def _format_estimate(number: int) -> str:
    digits = len(str(number)) - PLAN_DIGITS
    return f"{round(number, -digits) if digits > 0 else number:,}"


def _format_gain(value: float | None, *, is_unit: bool, signed: bool) -> str:
    if value is None:
        return "?"
    number = 100 * value if is_unit else value
    sign = "+" if signed and number > 0 else ""
    text = f"{number:.0f}" if is_unit and abs(number) >= 10 else f"{number:.2g}"
    return f"{sign}{'0' if text == '-0' else text}"


def _count_samples(count: int) -> str:
    return f"{count:,} {'sample' if count == 1 else 'samples'}"
