"""Intervals and tests for numbers of a whole data set: its clusters are drawn again, or change sides."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmkit.evals.statistics.intervals import BOOTSTRAP_SEED, DEFAULT_LEVEL, NO_SPREAD, Estimate, Numbers

__all__ = ["Evaluate", "PairedDraws", "compare_clusters", "estimate_clusters"]

# Draws at once: the weights of ten thousand clusters take 16 MB then.
_CHUNK = 200

# From the weight of each item, one row for each draw, to the numbers of each draw by name.
Evaluate: TypeAlias = Callable[[NDArray[Any]], Mapping[str, Numbers]]


@dataclass(frozen=True, slots=True)
class PairedDraws:
    """The difference of one number between two sides.

    Attributes:
        a: The number of the first side.
        b: That of the second.
        draws: Differences in the samples that were drawn; empty for fewer than two clusters.
        p_value: Of the null hypothesis that the sides can change places; NaN when unknown.
        clusters: Number of clusters.
    """

    a: float
    b: float
    draws: Numbers
    p_value: float
    clusters: int

    def compute_interval(self, level: float = DEFAULT_LEVEL) -> tuple[float, float, float]:
        """Return the standard error and the ends of the percentile interval; NaN where nothing varies."""
        return _find_interval(self.draws, level)


def estimate_clusters(
    evaluate: Evaluate,
    clusters: Sequence[Hashable],
    *,
    resamples: int,
    level: float = DEFAULT_LEVEL,
    seed: int = BOOTSTRAP_SEED,
) -> dict[str, Estimate]:
    """Estimate numbers of a data set with percentile intervals from a bootstrap over clusters.

    Whole clusters are drawn with replacement, so that what depends on each other stays together. Numbers that are the
    same in every draw get no interval, because it would be certain whatever the number of samples. Deterministic for a
    seed.

    Source: B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; for clusters
    C. A. Field and A. H. Welsh, "Bootstrapping Clustered Data", Journal of the Royal Statistical Society B 69 (2007).

    Args:
        evaluate: Returns the numbers for draws of weights of the items.
        clusters: Cluster of each item.
        resamples: Number of draws.
        level: Of the intervals.
        seed: Of the draws.
    """
    codes, count = _number_clusters(clusters)
    n = len(codes)
    whole = {name: float(value[0]) for name, value in evaluate(np.ones((1, n), dtype=np.int64)).items()}
    draws = _draw(evaluate, codes, count, resamples, seed) if count > 1 else {}
    found = {}
    for name, value in whole.items():
        error, low, high = _find_interval(draws.get(name, np.empty(0)), level)
        method = "cluster bootstrap" if not np.isnan(low) else "no spread seen" if count > 1 else "cluster bootstrap"
        found[name] = Estimate(value, error, low, high, n, method)
    return found


def compare_clusters(
    evaluate: Evaluate,
    clusters: Sequence[Hashable],
    *,
    resamples: int,
    seed: int = BOOTSTRAP_SEED,
) -> dict[str, PairedDraws]:
    """Compare numbers of two sides on the same items: bootstrap of the difference, and a randomisation test.

    The same clusters are drawn for both sides. Under the null hypothesis the sides of a cluster can change places:
    the p-value is the share of random exchanges with a difference at least as large, both counted with the one that was
    seen.

    Source: as for `estimate_clusters`; E. W. Noreen, Computer-Intensive Methods for Testing Hypotheses (1989);
    A. Yeh, "More Accurate Tests for the Statistical Significance of Result Differences", COLING 2000.

    Args:
        evaluate: Returns the numbers for weights of the items of both sides: all of the first, then all of the second.
        clusters: Cluster of each item of one side.
        resamples: Number of draws, and of exchanges.
        seed: Of both.
    """
    codes, count = _number_clusters(clusters)
    n = len(codes)
    ones, zeros = np.ones((1, n), dtype=np.int64), np.zeros((1, n), dtype=np.int64)
    a = evaluate(np.hstack([ones, zeros]))
    b = evaluate(np.hstack([zeros, ones]))
    names = [name for name in a if name in b]
    seen = {name: float(a[name][0] - b[name][0]) for name in names}
    if count < 2:
        empty = np.empty(0)
        return {name: PairedDraws(float(a[name][0]), float(b[name][0]), empty, np.nan, count) for name in names}
    generator = np.random.default_rng(seed)
    draws: dict[str, list[Numbers]] = {name: [] for name in names}
    extreme = dict.fromkeys(names, 0)
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        weights = generator.multinomial(count, np.full(count, 1 / count), size=size)[:, codes]
        none = np.zeros_like(weights)
        drawn_a, drawn_b = evaluate(np.hstack([weights, none])), evaluate(np.hstack([none, weights]))
        stays = generator.integers(0, 2, size=(size, count))[:, codes]
        one, other = evaluate(np.hstack([stays, 1 - stays])), evaluate(np.hstack([1 - stays, stays]))
        for name in names:
            draws[name].append(drawn_a[name] - drawn_b[name])
            changed = np.abs(one[name] - other[name])
            # An exchange for which the number does not exist counts against a difference.
            extreme[name] += int(np.sum(~(changed < abs(seen[name]) - NO_SPREAD)))
    return {
        name: PairedDraws(
            float(a[name][0]),
            float(b[name][0]),
            np.concatenate(draws[name]),
            np.nan if np.isnan(seen[name]) else (1 + extreme[name]) / (1 + resamples),
            count,
        )
        for name in names
    }


def _draw(evaluate: Evaluate, codes: NDArray[np.intp], count: int, resamples: int, seed: int) -> dict[str, Numbers]:
    generator = np.random.default_rng(seed)
    parts: dict[str, list[Numbers]] = {}
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        weights = generator.multinomial(count, np.full(count, 1 / count), size=size)[:, codes]
        for name, values in evaluate(weights).items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def _find_interval(draws: Numbers, level: float) -> tuple[float, float, float]:
    known = draws[~np.isnan(draws)]
    if len(known) < 2 or np.ptp(known) <= NO_SPREAD:
        return (0.0 if len(known) > 1 else np.nan), np.nan, np.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(known.std(ddof=1)), float(low), float(high)


def _number_clusters(clusters: Sequence[Hashable]) -> tuple[NDArray[np.intp], int]:
    numbers: dict[Any, int] = {}
    codes = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.intp)
    return codes, len(numbers)
