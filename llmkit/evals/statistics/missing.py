"""Bounds of means and differences when some scores are missing."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from llmkit.evals.statistics.intervals import DEFAULT_LEVEL, Estimate, Numbers, as_array, average, estimate_mean
from llmkit.evals.statistics.paired import PairedDifference, compare_pairs

__all__ = ["MissingDifference", "MissingMean", "bound_difference", "bound_mean"]


@dataclass(frozen=True, slots=True)
class MissingMean:
    """A mean under three assumptions on missing scores.

    Attributes:
        excluded: Mean of the present scores: unbiased only if scores are missing by chance.
        as_failures: Missing scores count as the worst: the lowest, or the highest where less is better.
        worst: The mean if every missing score were the worst.
        best: The mean if every missing score were the best. The true mean of these samples is between the two.
        n: Number of values, missing ones included.
        missing: Number of missing values.
    """

    excluded: Estimate
    as_failures: Estimate
    worst: float
    best: float
    n: int
    missing: int


@dataclass(frozen=True, slots=True)
class MissingDifference:
    """A paired difference under three assumptions on missing scores. Attributes as in `MissingMean`.

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
    """Bound the mean of values of which some are NaN; intervals as in `estimate_mean`.

    Source: the bounds are those of C. F. Manski, "Nonparametric Bounds on Treatment Effects", American Economic Review
    80 (1990), 319-323: they assume nothing about why a value is missing.

    Args:
        values: Scores; NaN for a missing one.
        clusters: Cluster of each value.
        low: Lowest possible score.
        high: Highest possible score.
        level: Confidence of the intervals.
        lower_is_better: Whether the highest score is the worst one.

    Raises:
        ValueError: A score is outside of `low` and `high`.
    """
    worst, best = (high, low) if lower_is_better else (low, high)
    x = _require_bounds(values, low, high)
    absent = np.isnan(x)
    there = None if clusters is None else [each for each, gone in zip(clusters, absent, strict=True) if not gone]
    return MissingMean(
        excluded=estimate_mean(x[~absent], there, level),
        as_failures=estimate_mean(_fill_missing(x, worst), clusters, level),
        worst=average(_fill_missing(x, worst)),
        best=average(_fill_missing(x, best)),
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
    """Bound the mean of `a - b` over the same samples, of which some are NaN on one side or both.

    Source: as `bound_mean`; the comparisons as `compare_pairs`.

    Args:
        a: Scores of one variant; NaN for a missing one.
        b: Scores of the other variant on the same samples.
        clusters: Cluster of each pair.
        low: Lowest possible score.
        high: Highest possible score.
        level: Confidence of the intervals.

    Raises:
        ValueError: A score is outside of `low` and `high`, or `a` and `b` differ in length.
    """
    x, y = _require_bounds(a, low, high), _require_bounds(b, low, high)
    if len(x) != len(y):
        raise ValueError(f"pairs need two values each; got {len(x)} and {len(y)}")
    whole = ~(np.isnan(x) | np.isnan(y))
    there = None if clusters is None else [each for each, kept in zip(clusters, whole, strict=True) if kept]
    return MissingDifference(
        excluded=compare_pairs(x[whole], y[whole], there, level),
        as_failures=compare_pairs(_fill_missing(x, low), _fill_missing(y, low), clusters, level),
        worst=average(_fill_missing(x, low) - _fill_missing(y, high)),
        best=average(_fill_missing(x, high) - _fill_missing(y, low)),
        n=len(x),
        missing=int((~whole).sum()),
    )


def _require_bounds(values: ArrayLike, low: float, high: float) -> Numbers:
    x = as_array(values)
    if (x < low).any() or (x > high).any():
        raise ValueError(f"a score is outside of {low:g} and {high:g}")
    return x


def _fill_missing(x: Numbers, value: float) -> Numbers:
    return np.where(np.isnan(x), value, x)
