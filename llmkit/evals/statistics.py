"""Intervals and tests for scores: pure functions on arrays of numbers.

scipy does the work where it can. A result that does not exist (the spread of one value) is NaN, never a guess.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

__all__ = [
    "Estimate",
    "PairedDifference",
    "bca_interval",
    "clustered_mean",
    "clustered_proportion",
    "clustered_standard_error",
    "holm",
    "mcnemar_exact",
    "mean",
    "mean_of",
    "paired_difference",
    "paired_proportions",
    "pass_at_k",
    "wilson",
]

DEFAULT_LEVEL = 0.95
BOOTSTRAP_SEED = 20_240_601
BOOTSTRAP_RESAMPLES = 9_999

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its uncertainty.

    Attributes:
        value: The mean.
        standard_error: Its standard error; NaN when it cannot be known.
        low: Lower end of the interval; NaN when there is none.
        high: Upper end.
        n: How many values.
        method: How the interval was made: `wilson`, `t`, `clustered wilson`, `clustered t` or `bca`.
    """

    value: float
    standard_error: float
    low: float
    high: float
    n: int
    method: str


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
        n: How many pairs.
        clusters: How many independent clusters of pairs.
        method: `paired t`, `clustered paired t` or `mcnemar`.
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


def mean(values: ArrayLike, level: float = DEFAULT_LEVEL) -> Estimate:
    """Mean with Student's t interval: `mean ± t(n-1) s/√n`.

    Source: Student, "The Probable Error of a Mean", Biometrika 6 (1908).
    """
    x = _array(values)
    error = float(stats.sem(x)) if len(x) > 1 else np.nan
    return _t_estimate(_average(x), error, len(x) - 1, len(x), level, "t")


def wilson(successes: int, n: int, level: float = DEFAULT_LEVEL) -> Estimate:
    """Share of successes with Wilson's score interval, which stays within 0 and 1 and is honest at both ends.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927).
    """
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, np.nan, 0, "wilson")
    share = successes / n
    interval = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return Estimate(
        share, float(np.sqrt(share * (1 - share) / n)), float(interval.low), float(interval.high), n, "wilson"
    )


def bca_interval(
    values: ArrayLike,
    level: float = DEFAULT_LEVEL,
    *,
    seed: int = BOOTSTRAP_SEED,
    resamples: int = BOOTSTRAP_RESAMPLES,
) -> Estimate:
    """Mean with the bias-corrected and accelerated bootstrap interval; the same for the same seed.

    Source: B. Efron, "Better Bootstrap Confidence Intervals", JASA 82 (1987), 171-185.
    """
    x = _array(values)
    if len(x) < 2 or np.ptp(x) == 0:
        only = _average(x)
        return Estimate(only, np.nan if len(x) < 2 else 0.0, only, only, len(x), "bca")
    found = stats.bootstrap(
        (x,), np.mean, confidence_level=level, n_resamples=resamples, method="BCa", rng=np.random.default_rng(seed)
    )
    low, high = found.confidence_interval
    return Estimate(_average(x), float(found.standard_error), float(low), float(high), len(x), "bca")


def clustered_standard_error(values: ArrayLike, clusters: Sequence[Hashable]) -> float:
    """Standard error of the mean when values of one cluster hang together: `√(G/(G-1) Σ_c (Σ_i r_ci)²) / n`.

    `r` are the distances from the mean and `G` is the number of clusters. With one value in each cluster it is `s/√n`.
    NaN for fewer than two clusters.

    Source: K.-Y. Liang and S. L. Zeger, "Longitudinal Data Analysis Using Generalized Linear Models", Biometrika 73
    (1986), with the usual small-sample factor (A. C. Cameron and D. L. Miller, "A Practitioner's Guide to
    Cluster-Robust Inference", Journal of Human Resources 50 (2015)); for evaluations: E. Miller, "Adding Error Bars to
    Evals" (2024), arXiv:2411.00640.
    """
    x, codes, count = _clustered(values, clusters)
    if count < 2:
        return np.nan
    sums = np.bincount(codes, weights=x - x.mean(), minlength=count)
    return float(np.sqrt(count / (count - 1) * np.sum(sums**2)) / len(x))


def clustered_mean(values: ArrayLike, clusters: Sequence[Hashable], level: float = DEFAULT_LEVEL) -> Estimate:
    """Mean with a t interval from the clustered standard error and `G - 1` degrees of freedom.

    Source: as `clustered_standard_error`; the degrees of freedom from Cameron and Miller (2015).
    """
    x, _codes, count = _clustered(values, clusters)
    error = clustered_standard_error(x, clusters)
    return _t_estimate(_average(x), error, count - 1, len(x), level, "clustered t")


def clustered_proportion(values: ArrayLike, clusters: Sequence[Hashable], level: float = DEFAULT_LEVEL) -> Estimate:
    """Share of ones with Wilson's interval at the effective sample size `p(1-p) / SE²`.

    At shares of 0 and 1, where no spread can be seen, each cluster counts once. The quantile is Student's with `G - 1`
    degrees of freedom.

    Source: N. Dean and M. Pagano, "Evaluating Confidence Interval Methods for Binomial Proportions in Clustered
    Surveys", Journal of Survey Statistics and Methodology 3 (2015).
    """
    x, _codes, count = _clustered(values, clusters)
    error, share = clustered_standard_error(x, clusters), _average(x)
    if count < 2:
        return Estimate(share, error, np.nan, np.nan, len(x), "clustered wilson")
    variance = share * (1 - share)
    effective = min(len(x), variance / error**2) if error > 0 and variance > 0 else float(count)
    low, high = _score_interval(share, effective, float(stats.t.ppf((1 + level) / 2, count - 1)))
    return Estimate(share, error, low, high, len(x), "clustered wilson")


def _score_interval(share: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval for a sample size that need not be whole."""
    square = quantile**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = quantile / (1 + square / n) * np.sqrt(share * (1 - share) / n + square / (4 * n**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def mean_of(values: ArrayLike, clusters: Sequence[Hashable] | None = None, level: float = DEFAULT_LEVEL) -> Estimate:
    """The mean with the interval that fits: Wilson for zeros and ones, else t; clustered where clusters repeat."""
    x = _array(values)
    binary = is_binary(x)
    if clusters is not None and len(set(clusters)) < len(x):
        return clustered_proportion(x, clusters, level) if binary else clustered_mean(x, clusters, level)
    return wilson(int(x.sum()), len(x), level) if binary else mean(x, level)


def is_binary(values: ArrayLike) -> bool:
    """Whether every value is 0 or 1."""
    return bool(np.isin(_array(values), (0.0, 1.0)).all())


def paired_difference(
    a: ArrayLike, b: ArrayLike, clusters: Sequence[Hashable] | None = None, level: float = DEFAULT_LEVEL
) -> PairedDifference:
    """Mean of `a - b` on the same samples, with its t interval and test.

    Clusters (samples repeated over epochs, or groups of samples) enter through the clustered standard error and `G - 1`
    degrees of freedom.

    Source: E. Miller, "Adding Error Bars to Evals" (2024), arXiv:2411.00640; the standard error as
    `clustered_standard_error`.

    Raises:
        ValueError: `a` and `b` differ in length.
    """
    d = _differences(a, b)
    count = len(d) if clusters is None else len(set(clusters))
    error = clustered_standard_error(d, range(len(d)) if clusters is None else clusters)
    found = _t_estimate(_average(d), error, count - 1, len(d), level, "t")
    p_value = _t_test(found.value, error, count - 1)
    method = "paired t" if count == len(d) else "clustered paired t"
    return PairedDifference(found.value, error, found.low, found.high, p_value, _effect(d), len(d), count, method)


def paired_proportions(a: ArrayLike, b: ArrayLike, level: float = DEFAULT_LEVEL) -> PairedDifference:
    """Difference of two shares on the same independent samples: exact McNemar test, adjusted Wald interval.

    The interval adds one to each kind of disagreement, so that it is honest when there are few or none.

    Source: D. G. Bonett and R. M. Price, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions
    Based on Paired Data", Journal of Educational and Behavioral Statistics 37 (2012); the test as `mcnemar_exact`.

    Raises:
        ValueError: `a` and `b` differ in length.
    """
    d = _differences(a, b)
    n = len(d)
    p_value = mcnemar_exact(a, b)
    if n == 0:
        return PairedDifference(np.nan, np.nan, np.nan, np.nan, p_value, np.nan, 0, 0, "mcnemar")
    up, down = (np.sum(d > 0) + 1) / (n + 2), (np.sum(d < 0) + 1) / (n + 2)
    error = float(np.sqrt((up + down - (up - down) ** 2) / (n + 2)))
    reach = float(stats.norm.ppf((1 + level) / 2)) * error
    low, high = max(-1.0, float(up - down) - reach), min(1.0, float(up - down) + reach)
    return PairedDifference(_average(d), error, low, high, p_value, _effect(d), n, n, "mcnemar")


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided exact p-value for two sets of zeros and ones on the same samples; 1 when they never disagree.

    Source: Q. McNemar, "Note on the Sampling Error of the Difference between Correlated Proportions or Percentages",
    Psychometrika 12 (1947); the disagreements follow a binomial distribution with p = 1/2.

    Raises:
        ValueError: `a` and `b` differ in length.
    """
    d = _differences(a, b)
    up, down = int(np.sum(d > 0)), int(np.sum(d < 0))
    return float(stats.binomtest(up, up + down, 0.5).pvalue) if up + down else 1.0


def holm(p_values: ArrayLike) -> Numbers:
    """Adjusted p-values that control the family-wise error rate. NaN stays NaN and does not count.

    Source: S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6
    (1979).
    """
    p = _array(p_values)
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased chance that at least one of `k` repeats is right, from `correct` of `n`: `1 - C(n-c, k) / C(n, k)`.

    Source: M. Chen et al., "Evaluating Large Language Models Trained on Code" (2021), arXiv:2107.03374, equation 1.

    Raises:
        ValueError: Not `0 <= correct <= n` and `1 <= k <= n`.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= correct <= n and 1 <= k <= n; got n={n}, correct={correct}, k={k}")
    return float(1 - special.comb(n - correct, k, exact=True) / special.comb(n, k, exact=True))


def _array(values: ArrayLike) -> Numbers:
    return np.asarray(values, dtype=np.float64).ravel()


def _average(x: Numbers) -> float:
    return float(x.mean()) if len(x) else np.nan


def _differences(a: ArrayLike, b: ArrayLike) -> Numbers:
    first, second = _array(a), _array(b)
    if len(first) != len(second):
        raise ValueError(f"pairs need two values each; got {len(first)} and {len(second)}")
    return first - second


def _clustered(values: ArrayLike, clusters: Sequence[Hashable]) -> tuple[Numbers, NDArray[np.intp], int]:
    """The values, the number of each one's cluster, and how many clusters there are."""
    x = _array(values)
    numbers: dict[Any, int] = {}
    codes = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.intp)
    if len(codes) != len(x):
        raise ValueError(f"every value needs its cluster; got {len(x)} values and {len(codes)} clusters")
    return x, codes, len(numbers)


def _t_estimate(value: float, error: float, freedom: int, n: int, level: float, method: str) -> Estimate:
    if freedom < 1 or np.isnan(error):
        return Estimate(value, np.nan, np.nan, np.nan, n, method)
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return Estimate(value, error, value - reach, value + reach, n, method)


def _t_test(difference: float, error: float, freedom: int) -> float:
    if freedom < 1 or np.isnan(error):
        return np.nan
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stats.t.sf(abs(difference) / error, freedom))


def _effect(d: Numbers) -> float:
    spread = float(d.std(ddof=1)) if len(d) > 1 else 0.0
    return _average(d) / spread if spread > 0 else np.nan
