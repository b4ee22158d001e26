"""Comparisons of two variants on the same samples."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike
from scipy import special

from llmkit.evals.statistics.intervals import (
    DEFAULT_LEVEL,
    NO_SPREAD,
    Numbers,
    as_array,
    average,
    compute_clustered_error,
    compute_clustered_freedom,
    is_binary,
    make_t_estimate,
)

__all__ = [
    "NonInferiority",
    "PairedDifference",
    "adjust_holm",
    "check_non_inferiority",
    "compare_means",
    "compare_pairs",
    "compare_shares",
    "compute_mcnemar_p",
    "compute_sign_flip_p",
    "compute_wilcoxon_p",
]

DEFAULT_ALPHA = 0.05
FLIP_SEED = 20_240_602
FLIPS = 9_999
BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of `a - b` over the same samples.

    Attributes:
        difference: Mean difference.
        standard_error: Its standard error, clustered where clusters were given.
        low: Lower end of the interval.
        high: Upper end.
        p_value: Two-sided, for no difference.
        effect: Mean difference over the standard deviation of the differences (Cohen's d_z).
        n: Number of pairs.
        clusters: Number of independent clusters of pairs.
        method: `paired t`, `clustered paired t`, `mcnemar`, or `no spread seen`.
    """

    difference: float
    standard_error: float
    low: float
    high: float
    p_value: float
    effect: float
    n: int
    clusters: int
    method: str


@dataclass(frozen=True, slots=True)
class NonInferiority:
    """Whether `a` is shown to be at most a margin worse than `b`.

    Attributes:
        difference: Mean of `a - b`.
        low: One-sided lower bound, at confidence `1 - alpha`; NaN when unknown.
        margin: Largest accepted loss.
        alpha: Chance of passing an `a` that is worse than the margin allows.
        is_shown: Whether the bound is above `-margin`. Also False when the bound is unknown.
        n: Number of pairs.
        method: Method of the bound, as in `PairedDifference`.
    """

    difference: float
    low: float
    margin: float
    alpha: float
    is_shown: bool
    n: int
    method: str


def compare_pairs(
    a: ArrayLike, b: ArrayLike, clusters: Sequence[Hashable] | None = None, level: float = DEFAULT_LEVEL
) -> PairedDifference:
    """Compare pairs by the suitable method: McNemar for zeros and ones on independent samples, else paired t.

    Raises:
        ValueError: `a` and `b` differ in length.
    """
    first, second = as_array(a), as_array(b)
    independent = clusters is None or len(set(clusters)) == len(first)
    if independent and is_binary(np.concatenate([first, second])):
        return compare_shares(first, second, level)
    return compare_means(first, second, clusters, level)


def compare_means(
    a: ArrayLike, b: ArrayLike, clusters: Sequence[Hashable] | None = None, level: float = DEFAULT_LEVEL
) -> PairedDifference:
    """Compare means: `a - b` on the same samples, with t interval and t test.

    Clusters (samples repeated over epochs, or groups of samples) enter through the clustered standard error and its
    degrees of freedom. Where all clusters differ by the same, or by nothing, that would be certain whatever their
    number: there interval and p-value are both those of Gaffke's bounds, for differences within the range of the
    scores (at least 1) either way.

    Source: E. Miller, "Adding Error Bars to Evals" (2024), arXiv:2411.00640; the standard error as
    `compute_clustered_error`, the bounds as `compute_bounded_interval`.

    Raises:
        ValueError: `a` and `b` differ in length.
    """
    d = _subtract(a, b)
    names: Sequence[Hashable] = range(len(d)) if clusters is None else clusters
    count = len(set(names))
    error = compute_clustered_error(d, names)
    freedom = compute_clustered_freedom(names)
    if error <= NO_SPREAD:
        largest = max(1.0, float(np.ptp(np.concatenate([as_array(a), as_array(b)]))))
        low, high, p_value = _compare_without_spread(d, largest, freedom, level)
        method = "no spread seen"
    else:
        found = make_t_estimate(average(d), error, freedom, len(d), level, "t")
        low, high, p_value = found.low, found.high, _compute_t_p(average(d), error, freedom)
        method = "paired t" if count == len(d) else "clustered paired t"
    return PairedDifference(average(d), error, low, high, p_value, _compute_effect(d), len(d), count, method)


def compare_shares(a: ArrayLike, b: ArrayLike, level: float = DEFAULT_LEVEL) -> PairedDifference:
    """Compare two shares on the same independent samples: exact McNemar test, adjusted Wald interval.

    The interval adds one to each kind of disagreement, which keeps its coverage when there are few or none. It
    contains every difference that is not rejected: 0 by the exact test, which never rejects too often, and others by
    the interval's own. So where the exact test does not reject no difference, the interval is extended to 0, and the
    two never contradict each other. (The exact test never rejects where the interval contains 0.)

    Source: D. G. Bonett and R. M. Price, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions
    Based on Paired Data", Journal of Educational and Behavioral Statistics 37 (2012); the test as `compute_mcnemar_p`.

    Raises:
        ValueError: `a` and `b` differ in length.
    """
    d = _subtract(a, b)
    n = len(d)
    p_value = compute_mcnemar_p(a, b)
    if n == 0:
        return PairedDifference(np.nan, np.nan, np.nan, np.nan, p_value, np.nan, 0, 0, "mcnemar")
    up, down = (np.sum(d > 0) + 1) / (n + 2), (np.sum(d < 0) + 1) / (n + 2)
    error = float(np.sqrt((up + down - (up - down) ** 2) / (n + 2)))
    reach = float(special.ndtri((1 + level) / 2)) * error
    low, high = max(-1.0, float(up - down) - reach), min(1.0, float(up - down) + reach)
    # The exact test and the approximate interval may disagree in small samples; readers would see a difference in one
    # and none in the other, so the test decides.
    if p_value >= 1 - level:
        low, high = min(low, 0.0), max(high, 0.0)
    return PairedDifference(average(d), error, low, high, p_value, _compute_effect(d), n, n, "mcnemar")


def _compare_without_spread(d: Numbers, largest: float, freedom: float, level: float) -> tuple[float, float, float]:
    """Return both ends and the p-value for clusters that all differ equally, by at most `largest` either way.

    These are the bounds of `compute_bounded_interval` in closed form: with the difference as a share u of its range,
    the ends are `u q` and `1 - (1 - u) q` for `q = (alpha / 2) ** (1 / G)`. The p-value is the alpha at which an end
    reaches the middle, so both always agree; for whole differences it is that of flipped signs, `2 ** (1 - G)`.
    """
    count = freedom + 1
    share = min(1.0, max(0.0, (average(d) + largest) / (2 * largest)))
    root = ((1 - level) / 2) ** (1 / count)
    low, high = share * root, 1 - (1 - share) * root
    p_value = min(1.0, 2 * (0.5 / max(share, 1 - share)) ** count)
    return largest * (2 * low - 1), largest * (2 * high - 1), p_value


def compute_mcnemar_p(a: ArrayLike, b: ArrayLike) -> float:
    """Compute the exact two-sided p-value for zeros and ones on the same samples; 1 when they never disagree.

    NaN of no samples, and where a value is missing.

    Source: Q. McNemar, "Note on the Sampling Error of the Difference between Correlated Proportions or Percentages",
    Psychometrika 12 (1947); the disagreements follow a binomial distribution with p = 1/2.

    Raises:
        ValueError: `a` and `b` differ in length.
    """
    d = _subtract(a, b)
    if not len(d) or np.isnan(d).any():
        return np.nan
    up, down = int(np.sum(d > 0)), int(np.sum(d < 0))
    return float(scipy.stats.binomtest(up, up + down, 0.5).pvalue) if up + down else 1.0


def compute_wilcoxon_p(a: ArrayLike, b: ArrayLike) -> float:
    """Compute the two-sided p-value of the signed-rank test on independent samples; 1 when they never differ.

    For scores whose differences are far from normal. Exact for few pairs without ties or zeros, else the normal
    approximation; zeros are ranked and then left out.

    Source: F. Wilcoxon, "Individual Comparisons by Ranking Methods", Biometrics Bulletin 1 (1945); zeros as in J. W.
    Pratt, "Remarks on Zeros and Ties in the Wilcoxon Signed Rank Procedures", JASA 54 (1959).

    Raises:
        ValueError: `a` and `b` differ in length.
    """
    d = _subtract(a, b)
    if not d.any():
        return 1.0 if len(d) else np.nan
    return float(scipy.stats.wilcoxon(d, zero_method="pratt").pvalue)


def compute_sign_flip_p(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    flips: int = FLIPS,
    seed: int = FLIP_SEED,
) -> float:
    """Compute the two-sided p-value of the sign-flip permutation test; deterministic for a seed.

    Assumes only that the differences are symmetric around 0. The differences of one cluster flip together. All flips
    are tried where there are at most `flips` of them, else a random choice. NaN of no pairs, and where a value is
    missing.

    Source: R. A. Fisher, The Design of Experiments (1935), section 21; whole clusters as in A. M. Winkler et al.,
    "Multi-level Block Permutation", NeuroImage 123 (2015).

    Raises:
        ValueError: `a` and `b`, or the clusters, differ in length.
    """
    d = _subtract(a, b)
    if clusters is not None:
        d = _sum_clusters(d, clusters)
    if np.isnan(d).any():
        return np.nan
    if not d.any():
        return 1.0 if len(d) else np.nan
    if len(d) == 1:
        return 1.0  # both signs are as extreme
    found = scipy.stats.permutation_test(
        (d,), np.sum, permutation_type="samples", n_resamples=flips, vectorized=True, rng=np.random.default_rng(seed)
    )
    return min(1.0, float(found.pvalue))


def check_non_inferiority(
    a: ArrayLike,
    b: ArrayLike,
    margin: float,
    clusters: Sequence[Hashable] | None = None,
    alpha: float = DEFAULT_ALPHA,
) -> NonInferiority:
    """Check that `a` is at most `margin` worse than `b`: the one-sided lower bound exceeds `-margin`.

    Higher scores are better. The bound is the lower end of the two-sided interval at the level `1 - 2 alpha`: for zeros
    and ones on independent samples Tango's score interval, which keeps its level at the margin also where changes are
    rare and all of them losses; for other scores that of `compare_pairs`. Seeing no difference is no evidence for the
    absence of one.

    Source: E. Walker and A. S. Nowacki, "Understanding Equivalence and Noninferiority Testing", Journal of General
    Internal Medicine 26 (2011), 192-196; T. Tango, "Equivalence Test and Confidence Interval for the Difference in
    Proportions for the Paired-Sample Design", Statistics in Medicine 17 (1998), 891-908.

    Raises:
        ValueError: The margin is below 0, alpha is not between 0 and 0.5, or `a` and `b` differ in length.
    """
    if not margin >= 0 or not 0 < alpha < 0.5:
        raise ValueError(f"margin must be at least 0 and alpha between 0 and 0.5; got {margin} and {alpha}")
    found = compare_pairs(a, b, clusters, 1 - 2 * alpha)
    low, method = found.low, found.method
    if method == "mcnemar" and found.n:
        low, method = _compute_tango_bound(_subtract(a, b), float(special.ndtri(1 - alpha))), "tango"
    return NonInferiority(found.difference, low, margin, alpha, bool(low > -margin), found.n, method)


def _compute_tango_bound(d: Numbers, quantile: float) -> float:
    """Find the difference below the observed one at which Tango's score statistic equals the quantile.

    With b gains and c losses in n pairs the statistic for a true difference D is
    `(b - c - n D) / √(n (2 q + D (1 - D)))`. There q is the chance of a loss that maximises the likelihood given D: the
    larger root of `2n q² - (b + c - (2n - b + c) D) q - c D (1 - D) = 0`.
    """
    n, gains, losses = len(d), float(np.sum(d > 0)), float(np.sum(d < 0))
    if losses == n:
        return -1.0

    def is_rejected(difference: float) -> bool:
        linear = -gains - losses + (2 * n - gains + losses) * difference
        constant = -losses * difference * (1 - difference)
        chance = (np.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
        variance = n * (2 * chance + difference * (1 - difference))
        return bool(gains - losses - n * difference > quantile * np.sqrt(max(0.0, variance)))

    # The statistic falls from -1 to the observed difference, so halving the range 60 times finds its place exactly.
    low, high = -1.0, average(d)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_rejected(middle) else (low, middle)
    return low


def adjust_holm(p_values: ArrayLike) -> Numbers:
    """Adjust p-values to control the family-wise error rate. NaN stays NaN and does not count.

    Source: S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6
    (1979).
    """
    p = as_array(p_values)
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def _subtract(a: ArrayLike, b: ArrayLike) -> Numbers:
    first, second = as_array(a), as_array(b)
    if len(first) != len(second):
        raise ValueError(f"pairs need two values each; got {len(first)} and {len(second)}")
    return first - second


def _sum_clusters(d: Numbers, clusters: Sequence[Hashable]) -> Numbers:
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(d.tolist(), clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value
    return np.array(list(sums.values()))


def _compute_t_p(difference: float, error: float, freedom: float) -> float:
    if freedom < 1 or np.isnan(error):
        return np.nan
    return float(2 * special.stdtr(freedom, -abs(difference) / error))


def _compute_effect(d: Numbers) -> float:
    spread = float(d.std(ddof=1)) if len(d) > 1 else 0.0
    return average(d) / spread if spread > 0 else np.nan
