"""Means with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray
from scipy import special

__all__ = [
    "DEFAULT_LEVEL",
    "NO_SPREAD",
    "Estimate",
    "Numbers",
    "as_array",
    "average",
    "bootstrap_mean",
    "compute_bounded_interval",
    "compute_clustered_error",
    "compute_clustered_freedom",
    "estimate_clustered_mean",
    "estimate_clustered_share",
    "estimate_mean",
    "estimate_share",
    "estimate_t_mean",
    "is_binary",
    "make_t_estimate",
]

DEFAULT_LEVEL = 0.95
BOOTSTRAP_SEED = 20_240_601
BOOTSTRAP_RESAMPLES = 9_999
# A standard error below this is zero but for rounding.
NO_SPREAD = 1e-12

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its uncertainty.

    Attributes:
        value: The mean.
        standard_error: Its standard error; NaN when unknown.
        low: Lower end of the interval; NaN when there is none.
        high: Upper end.
        n: Number of values.
        method: Method of the interval: `wilson`, `gaffke`, `t`, each also with `clustered`, `bca`, or `no spread seen`.
    """

    value: float
    standard_error: float
    low: float
    high: float
    n: int
    method: str


def estimate_t_mean(values: ArrayLike, level: float = DEFAULT_LEVEL) -> Estimate:
    """Estimate a mean with Student's t interval: `mean ± t(n-1) s/√n`.

    Source: Student, "The Probable Error of a Mean", Biometrika 6 (1908).
    """
    x = as_array(values)
    error = float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else np.nan
    return make_t_estimate(average(x), error, len(x) - 1, len(x), level, "t")


def estimate_share(successes: int, n: int, level: float = DEFAULT_LEVEL) -> Estimate:
    """Estimate a share of successes with Wilson's score interval, which stays within 0 and 1.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927).
    """
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, np.nan, 0, "wilson")
    share = successes / n
    low, high = _compute_score_interval(share, n, float(special.ndtri((1 + level) / 2)))
    return Estimate(share, float(np.sqrt(share * (1 - share) / n)), low, high, n, "wilson")


def bootstrap_mean(
    values: ArrayLike,
    level: float = DEFAULT_LEVEL,
    *,
    seed: int = BOOTSTRAP_SEED,
    resamples: int = BOOTSTRAP_RESAMPLES,
) -> Estimate:
    """Estimate a mean with the bias-corrected and accelerated bootstrap interval; deterministic for a seed.

    Source: B. Efron, "Better Bootstrap Confidence Intervals", JASA 82 (1987), 171-185.
    """
    x = as_array(values)
    if len(x) < 2 or np.ptp(x) == 0:
        only = average(x)
        return Estimate(only, np.nan if len(x) < 2 else 0.0, only, only, len(x), "bca")
    found = scipy.stats.bootstrap(
        (x,), np.mean, confidence_level=level, n_resamples=resamples, method="BCa", rng=np.random.default_rng(seed)
    )
    low, high = found.confidence_interval
    return Estimate(average(x), float(found.standard_error), float(low), float(high), len(x), "bca")


def compute_clustered_error(values: ArrayLike, clusters: Sequence[Hashable]) -> float:
    """Compute the standard error of a mean with correlated values in clusters: `√(Σ_c (Σ_i r_ci)² / (1 - n_c/n)) / n`.

    `r` are the distances from the mean and `n_c` is the size of a cluster. With G clusters of one size the divisor is
    the usual factor G/(G-1), and with one value in each cluster the error is `s/√n`. NaN for fewer than two clusters.

    Source: the adjustment CR2 of R. M. Bell and D. F. McCaffrey, "Bias Reduction in Standard Errors for Linear
    Regression with Multi-Stage Samples", Survey Methodology 28 (2002), in its closed form for a mean; for evaluations:
    E. Miller, "Adding Error Bars to Evals" (2024), arXiv:2411.00640.
    """
    x, codes, count = _index_clusters(values, clusters)
    if count < 2:
        return np.nan
    sums = np.bincount(codes, weights=x - x.mean(), minlength=count)
    sizes = np.bincount(codes, minlength=count)
    if _are_equal(sizes):
        return float(np.sqrt(count / (count - 1) * np.sum(sums**2)) / len(x))
    return float(np.sqrt(np.sum(sums**2 / (1 - sizes / len(x)))) / len(x))


def compute_clustered_freedom(clusters: Sequence[Hashable]) -> float:
    """Compute the degrees of freedom of `compute_clustered_error`: G - 1 for G clusters of one size, else fewer.

    With the shares `p` of the clusters it is `1 / (Σ_c p_c² + Σ_{c≠d} p_c² p_d² / ((1 - p_c)(1 - p_d)))`. That is
    Satterthwaite's `tr(M)² / tr(M²)`, where M has the covariances of the adjusted cluster sums of independent values.
    A cluster that dominates leaves few degrees of freedom, however many small ones there are. 0 for one cluster.

    Source: Bell and McCaffrey (2002), see `compute_clustered_error`; F. E. Satterthwaite, "An Approximate Distribution
    of Estimates of Variance Components", Biometrics Bulletin 2 (1946); J. E. Pustejovsky and E. Tipton, "Small-Sample
    Methods for Cluster-Robust Variance Estimation", Journal of Business & Economic Statistics 36 (2018).
    """
    sizes = np.array(list(Counter(clusters).values()), dtype=np.float64)
    if len(sizes) < 2 or _are_equal(sizes):
        return max(0.0, len(sizes) - 1.0)
    squares = (sizes / sizes.sum()) ** 2
    adjusted = squares / (1 - sizes / sizes.sum())
    off_diagonal = adjusted.sum() ** 2 - np.sum(adjusted**2)
    # Exactly 1 for two clusters but for rounding, and never less.
    return max(1.0, float(1 / (squares.sum() + off_diagonal)))


def _are_equal(sizes: NDArray[Any]) -> bool:
    return bool((sizes == sizes[0]).all())


def estimate_clustered_mean(values: ArrayLike, clusters: Sequence[Hashable], level: float = DEFAULT_LEVEL) -> Estimate:
    """Estimate a mean with a t interval from `compute_clustered_error` and `compute_clustered_freedom`."""
    x = as_array(values)
    error = compute_clustered_error(x, clusters)
    return make_t_estimate(average(x), error, compute_clustered_freedom(clusters), len(x), level, "clustered t")


def estimate_clustered_share(values: ArrayLike, clusters: Sequence[Hashable], level: float = DEFAULT_LEVEL) -> Estimate:
    """Estimate a share of ones with Wilson's interval at the effective sample size `p(1-p) / SE²`.

    Without visible spread between clusters, as at shares of 0 and 1, each cluster counts once. The quantile is
    Student's with the degrees of freedom of `compute_clustered_freedom`.

    Source: N. Dean and M. Pagano, "Evaluating Confidence Interval Methods for Binomial Proportions in Clustered
    Surveys", Journal of Survey Statistics and Methodology 3 (2015).
    """
    x, _codes, count = _index_clusters(values, clusters)
    error, share = compute_clustered_error(x, clusters), average(x)
    if count < 2:
        return Estimate(share, error, np.nan, np.nan, len(x), "clustered wilson")
    variance = share * (1 - share)
    seen = error > NO_SPREAD and variance > 0
    effective = min(len(x), variance / error**2) if seen else float(count)
    quantile = float(special.stdtrit(compute_clustered_freedom(clusters), (1 + level) / 2))
    low, high = _compute_score_interval(share, effective, quantile)
    return Estimate(share, error, low, high, len(x), "clustered wilson")


def _compute_score_interval(share: float, n: float, quantile: float) -> tuple[float, float]:
    """Compute Wilson's interval for a sample size that need not be an integer."""
    square = quantile**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = quantile / (1 + square / n) * np.sqrt(share * (1 - share) / n + square / (4 * n**2))
    # At shares of 0 and 1 one end is known exactly, and must not differ from it by rounding.
    low = 0.0 if share == 0 else max(0.0, float(middle - half))
    return low, 1.0 if share == 1 else min(1.0, float(middle + half))


def estimate_mean(
    values: ArrayLike, clusters: Sequence[Hashable] | None = None, level: float = DEFAULT_LEVEL
) -> Estimate:
    """Estimate a mean with the suitable interval, clustered where clusters repeat.

    Zeros and ones get Wilson's interval, other scores within 0 and 1 that of `compute_bounded_interval`, and all others
    Student's t. Scores outside 0 and 1 that are all equal get none, because t would be certain whatever their number.
    """
    x = as_array(values)
    has_clusters = clusters is not None and len(set(clusters)) < len(x)
    names: Sequence[Hashable] = clusters if clusters is not None and has_clusters else range(len(x))
    if is_binary(x):
        return (
            estimate_clustered_share(x, names, level) if has_clusters else estimate_share(int(x.sum()), len(x), level)
        )
    found = estimate_clustered_mean(x, names, level) if has_clusters else estimate_t_mean(x, level)
    freedom = compute_clustered_freedom(names)
    if freedom < 1:
        return found
    if x.min() >= 0 and x.max() <= 1:
        low, high = compute_bounded_interval(x, found.standard_error, freedom, level)
        return replace(found, low=low, high=high, method="clustered gaffke" if has_clusters else "gaffke")
    if found.standard_error <= NO_SPREAD:
        return replace(found, low=np.nan, high=np.nan, method="no spread seen")
    return found


def compute_bounded_interval(x: Numbers, error: float, freedom: float, level: float) -> tuple[float, float]:
    """Compute an interval for the mean of scores within 0 and 1, from its standard error and degrees of freedom.

    The upper end is Gaffke's bound: the quantile of `Σ D_i y_i`, where y are the scores and one more of 1, and D has
    the flat Dirichlet distribution; the lower end has one more of 0. So a rare score that was not seen yet is taken
    into account, which Student's t, a few scores from an end of the range, does not do. For zeros and ones it is the
    interval of Clopper and Pearson.

    The distribution of the sum is approximated by the Beta distribution with its mean, variance and range, which is
    exact for scores of two values. Clusters count as `freedom + 1` independent scores. That the bound holds for all
    distributions is a conjecture, which no simulation has contradicted; in simulations the
    intervals cover 96 % or more.

    Source: N. Gaffke, "Three Test Statistics for a Nonparametric One-Sided Hypothesis on the Mean of a Nonnegative
    Variable", Mathematical Methods of Statistics 14 (2005); E. Learned-Miller and P. S. Thomas, "A New Confidence
    Interval for the Mean of a Bounded Random Variable" (2019), arXiv:1905.06208.
    """
    quantile = (1 + level) / 2
    # The lower end is the upper one of the scores seen from 1.
    low = 1 - _compute_upper_bound(1 - x, error, freedom + 1, quantile)
    return max(0.0, low), min(1.0, _compute_upper_bound(x, error, freedom + 1, quantile))


def _compute_upper_bound(x: Numbers, error: float, n: float, quantile: float) -> float:
    value, least = average(x), float(x.min())
    if least == 1:
        return 1.0
    # Mean and variance of the sum: those of the n scores and the additional one under flat Dirichlet weights.
    mean = (n * value + 1) / (n + 1)
    spread = (n * (n - 1) * error**2 + n * (1 - value) ** 2 / (n + 1)) / (n + 1)
    share, variance = (mean - least) / (1 - least), spread / (n + 2) / (1 - least) ** 2
    size = share * (1 - share) / variance - 1
    return least + (1 - least) * float(special.betaincinv(share * size, (1 - share) * size, quantile))


def is_binary(values: ArrayLike) -> bool:
    """Return whether every value is 0 or 1."""
    return bool(np.isin(as_array(values), (0.0, 1.0)).all())


def as_array(values: ArrayLike) -> Numbers:
    """Convert values to a flat array of floats."""
    return np.asarray(values, dtype=np.float64).ravel()


def average(x: Numbers) -> float:
    """Average an array; NaN when it is empty."""
    return float(x.mean()) if len(x) else np.nan


def _index_clusters(values: ArrayLike, clusters: Sequence[Hashable]) -> tuple[Numbers, NDArray[np.intp], int]:
    """Return the values, the index of each one's cluster, and the number of clusters."""
    x = as_array(values)
    numbers: dict[Any, int] = {}
    codes = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.intp)
    if len(codes) != len(x):
        raise ValueError(f"every value needs a cluster; got {len(x)} values and {len(codes)} clusters")
    return x, codes, len(numbers)


def make_t_estimate(value: float, error: float, freedom: float, n: int, level: float, method: str) -> Estimate:
    """Return a value with the t interval of its standard error; no interval below one degree of freedom."""
    if freedom < 1 or np.isnan(error):
        return Estimate(value, np.nan, np.nan, np.nan, n, method)
    reach = float(special.stdtrit(freedom, (1 + level) / 2)) * error
    return Estimate(value, error, value - reach, value + reach, n, method)
