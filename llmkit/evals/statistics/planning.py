"""Sample sizes for detecting a difference."""

from __future__ import annotations

import numpy as np
import scipy
from scipy import special

__all__ = ["count_pairs_needed"]

DEFAULT_POWER = 0.8


def count_pairs_needed(difference: float, spread: float, *, power: float = DEFAULT_POWER, level: float = 0.95) -> int:
    """Count the independent pairs that a two-sided paired t test needs to detect a true difference.

    With epochs, a pair is a sample with all its repeats, and the spread is that of the means over them.

    Source: J. Cohen, Statistical Power Analysis for the Behavioral Sciences (1988), chapter 2; the power by the
    noncentral t distribution.

    Args:
        difference: True mean difference.
        spread: Standard deviation of the differences of pairs.
        power: Chance of detecting it.
        level: Confidence of the test.

    Raises:
        ValueError: The difference is 0, the spread is not above 0, or power and level are not between 0.5 and 1.
    """
    if difference == 0 or not np.isfinite(difference) or not 0 < spread < np.inf:
        raise ValueError(f"difference must not be 0 and spread must be above 0; got {difference} and {spread}")
    if not 0.5 <= power < 1 or not 0.5 <= level < 1:
        raise ValueError(f"power and level must be at least 0.5 and below 1; got {power} and {level}")
    effect = abs(difference) / spread
    quantiles = special.ndtri((1 + level) / 2) + special.ndtri(power)
    # The normal distribution's answer is a little too small, by the tails of Student's.
    n = max(2, int(np.floor((quantiles / effect) ** 2)))
    while _compute_power(effect, n, level) < power:
        n += 1
    return n


def _compute_power(effect: float, n: int, level: float) -> float:
    critical = special.stdtrit(n - 1, (1 + level) / 2)
    shift = effect * np.sqrt(n)
    return float(scipy.stats.nct.sf(critical, n - 1, shift) + scipy.stats.nct.cdf(-critical, n - 1, shift))
