"""Sample sizes: for detecting a difference, and for showing that a loss stays within a margin."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special

from llmkit.evals.statistics.intervals import Numbers

__all__ = ["count_equal_pairs_for_margin", "count_pairs_for_margin", "count_pairs_needed", "count_share_pairs_needed"]

DEFAULT_POWER = 0.8
DEFAULT_ALPHA = 0.05
# The power of an exact test is a sawtooth in the number of pairs: this many more must have it too.
WINDOW = 12


def count_pairs_needed(
    difference: float,
    spread: float,
    *,
    power: float = DEFAULT_POWER,
    level: float = 0.95,
    design_effect: float = 1.0,
    clusters_per_pair: float = 1.0,
) -> int:
    """Count the pairs that a two-sided paired t test needs to detect a true difference.

    With epochs, a pair is a sample with all its repeats, and the spread is that of the means over them. For samples in
    groups the test is the clustered one, with more variance and fewer degrees of freedom.

    Source: J. Cohen, Statistical Power Analysis for the Behavioral Sciences (1988), chapter 2; the power by the
    noncentral t distribution. Design effect: L. Kish, Survey Sampling (1965), section 5.4.

    Args:
        difference: True mean difference.
        spread: Standard deviation of the differences of pairs.
        power: Chance of detecting it.
        level: Confidence of the test.
        design_effect: Variance of the mean difference, as a multiple of that of independent pairs.
        clusters_per_pair: Degrees of freedom plus one, as a share of the number of pairs.

    Raises:
        ValueError: The difference is 0, the spread is not above 0, power and level are not between 0.5 and 1, the
            design effect is below 1, or the clusters are not more than 0 and at most 1 per pair.
    """
    _require_numbers(difference, power, level)
    if not 0 < spread < math.inf:
        raise ValueError(f"spread must be above 0; got {spread}")
    if not 1 <= design_effect < math.inf or not 0 < clusters_per_pair <= 1:
        raise ValueError(
            f"design effect must be at least 1 and clusters per pair above 0 and at most 1; got {design_effect} and "
            f"{clusters_per_pair}"
        )
    effect = abs(difference) / spread / math.sqrt(design_effect)

    def compute_power(n: int) -> float:
        return _compute_t_power(effect, n, n * clusters_per_pair - 1, level)

    quantiles = special.ndtri((1 + level) / 2) + special.ndtri(power)
    # The normal distribution's answer is a little too small, by the tails of Student's.
    start = max(math.ceil(2 / clusters_per_pair), math.floor((quantiles / effect) ** 2))
    return _find_first(compute_power, power, start)


def count_share_pairs_needed(
    difference: float, disagreement: float, *, power: float = DEFAULT_POWER, level: float = 0.95
) -> int:
    """Count the independent pairs of zeros and ones that McNemar's exact test needs to detect a true difference.

    The power is exact: the number of pairs that disagree is binomial, and so is the number of gains among them. A t
    test would ask for too few pairs, because the exact test is the stricter one: planned by it, the power is 71-78 %
    instead of 80 %.

    Source: O. S. Miettinen, "The Matched Pairs Design in the Case of All-or-None Responses", Biometrics 24 (1968).

    Args:
        difference: True difference of the two shares.
        disagreement: Share of the pairs on which the two differ; at least the difference.
        power: Chance of detecting the difference.
        level: Confidence of the test.

    Raises:
        ValueError: The difference is 0, the disagreement is not between it and 1, or power and level are not between
            0.5 and 1.
    """
    _require_numbers(difference, power, level)
    if not abs(difference) <= disagreement <= 1:
        raise ValueError(f"disagreement must be at least the difference and at most 1; got {disagreement}")

    def compute_power(n: int) -> float:
        return _compute_share_power(abs(difference), disagreement, n, level)

    # Fewer than six pairs that disagree are never significant at 5 %.
    variance = max(disagreement - difference**2, 1e-9)
    quantiles = special.ndtri((1 + level) / 2) + special.ndtri(power)
    start = max(2, math.floor(0.8 * variance * (quantiles / difference) ** 2))
    return _find_first(compute_power, power, start)


def count_pairs_for_margin(
    margin: float,
    variance: float,
    *,
    power: float = DEFAULT_POWER,
    alpha: float = DEFAULT_ALPHA,
    is_binary: bool = True,
) -> int:
    """Count the pairs that show, with this power, a loss within a margin for variants that are equally good.

    By the normal approximation, and never fewer than `count_equal_pairs_for_margin`. For zeros and ones the variance
    at the margin is that of Tango's score test.

    Source: as `check_non_inferiority`.

    Args:
        margin: Largest accepted loss.
        variance: Variance of the differences of pairs; for zeros and ones the share of pairs that disagree.
        power: Chance of showing it.
        alpha: Chance of passing a loss beyond the margin.
        is_binary: Whether the scores are zeros and ones.

    Raises:
        ValueError: The margin is not above 0, the variance is below 0, or power and alpha are out of range.
    """
    least = count_equal_pairs_for_margin(margin, alpha=alpha, is_binary=is_binary)
    if not 0.5 <= power < 1 or not 0 <= variance < math.inf:
        raise ValueError(f"power must be at least 0.5 and below 1, and variance at least 0; got {power} and {variance}")
    at_margin = variance
    if is_binary:
        linear, constant = variance + 2 * margin, variance * margin * (1 + margin) / 2
        at_margin = (math.sqrt(linear**2 - 8 * constant) + linear) / 2 - margin * (1 + margin)
    reach = special.ndtri(1 - alpha) * math.sqrt(at_margin) + special.ndtri(power) * math.sqrt(variance)
    return max(least, math.ceil((reach / margin) ** 2))


def count_equal_pairs_for_margin(margin: float, *, alpha: float = DEFAULT_ALPHA, is_binary: bool = True) -> int:
    """Count the pairs that show a loss within a margin if no pair differs; fewer can show it only by a visible gain.

    For zeros and ones it is where Tango's bound of n equal pairs, `z² / (n + z²)`, falls below the margin; for other
    scores within 0 and 1, and for clusters, where Gaffke's bound, `1 - alpha ** (1 / n)`, does.

    Source: as `check_non_inferiority`.

    Raises:
        ValueError: The margin is not above 0, or alpha is not between 0 and 0.5.
    """
    if not 0 < margin < math.inf or not 0 < alpha < 0.5:
        raise ValueError(f"margin must be above 0 and alpha between 0 and 0.5; got {margin} and {alpha}")
    if margin >= 1:
        return 1
    square = float(special.ndtri(1 - alpha)) ** 2
    least = square * (1 / margin - 1) if is_binary else math.log(alpha) / math.log1p(-margin)
    return math.floor(least) + 1


def _require_numbers(difference: float, power: float, level: float) -> None:
    if difference == 0 or not math.isfinite(difference):
        raise ValueError(f"difference must not be 0; got {difference}")
    if not 0.5 <= power < 1 or not 0.5 <= level < 1:
        raise ValueError(f"power and level must be at least 0.5 and below 1; got {power} and {level}")


def _find_first(compute_power: Callable[[int], float], power: float, start: int) -> int:
    """Find the first number, from `start`, from which the power suffices, also for the next few."""
    low = high = start
    while compute_power(high) < power:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if compute_power(middle) >= power else (middle, high)
    n = high
    while True:
        short = [each for each in range(n, n + WINDOW) if compute_power(each) < power]
        if not short:
            return n
        n = short[-1] + 1


def _compute_t_power(effect: float, n: int, freedom: float, level: float) -> float:
    critical = special.stdtrit(freedom, (1 + level) / 2)
    shift = effect * math.sqrt(n)
    return float(1 - special.nctdtr(freedom, shift, critical) + special.nctdtr(freedom, shift, -critical))


def _compute_share_power(difference: float, disagreement: float, n: int, level: float) -> float:
    """Compute the power of the exact test over all numbers of pairs that disagree."""
    # Nine standard deviations around the mean: the rest is below 1e-18.
    reach = 9 * math.sqrt(n * disagreement * (1 - disagreement)) + 10
    mean = n * disagreement
    counts = np.arange(max(0, math.floor(mean - reach)), min(n, math.ceil(mean + reach)) + 1)
    gain = (disagreement + difference) / (2 * disagreement)
    limits = _find_critical_counts(counts, 1 - level)
    # As many gains, or as many losses, as the limit or fewer are significant.
    rejected = np.where(limits >= 0, special.bdtr(limits, counts, gain) + special.bdtr(limits, counts, 1 - gain), 0.0)
    return float(np.sum(_compute_binomial(counts, n, disagreement) * rejected))


def _find_critical_counts(counts: NDArray[np.int64], alpha: float) -> Numbers:
    """Find the largest number of gains at which the exact two-sided test rejects, for each number of pairs; else -1."""
    # The normal distribution is at most two off, so this starts above and steps down.
    limits = np.minimum(counts, np.floor((counts - special.ndtri(1 - alpha / 2) * np.sqrt(counts)) / 2) + 2)
    while (too_many := (limits >= 0) & (2 * special.bdtr(np.maximum(limits, 0), counts, 0.5) > alpha)).any():
        limits = limits - too_many
    return np.asarray(np.maximum(limits, -1), dtype=np.float64)


def _compute_binomial(counts: NDArray[np.int64], n: int, chance: float) -> Numbers:
    logs = special.gammaln(n + 1) - special.gammaln(counts + 1) - special.gammaln(n - counts + 1)
    logs = logs + special.xlogy(counts, chance) + special.xlog1py(n - counts, -chance)
    return np.asarray(np.exp(logs), dtype=np.float64)
