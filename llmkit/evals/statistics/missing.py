"""What a mean or a difference could be, given that some scores are missing."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from llmkit.evals.statistics.intervals import DEFAULT_LEVEL, Estimate, Numbers, as_array, average, estimate_mean
from llmkit.evals.statistics.paired import PairedDifference, compare_pairs

__all__ = ["MissingDifference", "MissingMean", "difference_with_missing", "mean_with_missing"]


@dataclass(frozen=True, slots=True)
class MissingMean:
    """A mean in three views of what is missing.

    Attributes:
        excluded: Over what is there: right only if scores are missing by chance.
        as_failures: What is missing counts as the worst score: the lowest, or the highest where less is better.
        worst: The mean if every missing score were the worst.
        best: The mean if every missing score were the best. The true mean of these samples is between the two.
        n: How many values, missing ones included.
        missing: How many of them are missing.
    """

    excluded: Estimate
    as_failures: Estimate
    worst: float
    best: float
    n: int
    missing: int


@dataclass(frozen=True, slots=True)
class MissingDifference:
    """A paired difference in three views of what is missing; the attributes mean what those of `MissingMean` mean.

    In `worst` every missing score of `a` is the lowest and every missing score of `b` the highest; in `best` the
    reverse.
    """

    excluded: PairedDifference
    as_failures: PairedDifference
    worst: float
    best: float
    n: int
    missing: int


def bound_mean(
    values: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    level: float = DEFAULT_LEVEL,
    lower_is_better: bool = False,
) -> MissingMean:
    """The mean of values of which some are NaN, in three views; intervals as `estimate_mean` makes them.

    Source: the bounds are those of C. F. Manski, "Nonparametric Bounds on Treatment Effects", American Economic Review
    80 (1990), 319-323: they assume nothing of why a value is missing.

    Args:
        values: Scores; NaN for a missing one.
        clusters: Cluster of each value.
        low: The lowest score there can be.
        high: The highest.
        level: Of the intervals.
        lower_is_better: Whether the highest score is the worst one.

    Raises:
        ValueError: A score is outside of `low` and `high`.
    """
    worst, best = (high, low) if lower_is_better else (low, high)
    x = _bounded(values, low, high)
    absent = np.isnan(x)
    there = None if clusters is None else [each for each, gone in zip(clusters, absent, strict=True) if not gone]
    return MissingMean(
        excluded=estimate_mean(x[~absent], there, level),
        as_failures=estimate_mean(_filled(x, worst), clusters, level),
        worst=average(_filled(x, worst)),
        best=average(_filled(x, best)),
        n=len(x),
        missing=int(absent.sum()),
    )


def bound_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    level: float = DEFAULT_LEVEL,
) -> MissingDifference:
    """Mean of `a - b` over the same samples, of which some have NaN on one side or both, in three views.

    Source: as `bound_mean`; the comparisons as `compare_pairs`.

    Args:
        a: Scores of one route; NaN for a missing one.
        b: Scores of the other on the same samples.
        clusters: Cluster of each pair.
        low: The lowest score there can be.
        high: The highest.
        level: Of the intervals.

    Raises:
        ValueError: A score is outside of `low` and `high`, or `a` and `b` differ in length.
    """
    x, y = _bounded(a, low, high), _bounded(b, low, high)
    if len(x) != len(y):
        raise ValueError(f"pairs need two values each; got {len(x)} and {len(y)}")
    whole = ~(np.isnan(x) | np.isnan(y))
    there = None if clusters is None else [each for each, kept in zip(clusters, whole, strict=True) if kept]
    return MissingDifference(
        excluded=compare_pairs(x[whole], y[whole], there, level),
        as_failures=compare_pairs(_filled(x, low), _filled(y, low), clusters, level),
        worst=average(_filled(x, low) - _filled(y, high)),
        best=average(_filled(x, high) - _filled(y, low)),
        n=len(x),
        missing=int((~whole).sum()),
    )


def _bounded(values: ArrayLike, low: float, high: float) -> Numbers:
    x = as_array(values)
    if (x < low).any() or (x > high).any():
        raise ValueError(f"a score is outside of {low:g} and {high:g}")
    return x


def _filled(x: Numbers, value: float) -> Numbers:
    return np.where(np.isnan(x), value, x)
