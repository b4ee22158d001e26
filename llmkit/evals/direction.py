"""The direction of a metric, which decides the score of a failure and when an answer is right."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["RIGHT", "RIGHT_LOWER", "choose_worst_score", "is_right"]

# The scores from which an answer is right: at least RIGHT, or at most RIGHT_LOWER where less is better.
RIGHT, RIGHT_LOWER = 1.0, 0.0


def is_right(score: float, *, lower_is_better: bool, limit: float | None = None) -> bool:
    """Return whether a score is perfect, or at least as good as `limit`."""
    if lower_is_better:
        return score <= (RIGHT_LOWER if limit is None else limit)
    return score >= (RIGHT if limit is None else limit)


def choose_worst_score(scores: Iterable[float], *, lower_is_better: bool) -> float:
    """Return the score that a FAILED answer counts as: 0, or 1 where less is better.

    NaN where less is better and the scores are not all within 0 and 1: such a score has no known worst value.
    """
    if not lower_is_better:
        return 0.0
    return 1.0 if all(0 <= score <= 1 for score in scores) else math.nan
