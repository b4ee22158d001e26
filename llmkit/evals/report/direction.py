"""Which way a metric is better, and what follows: the score of a failure, and when an answer is right."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["RIGHT", "RIGHT_LOWER", "choose_worst_score", "is_right"]

# A score is right from here on, or, where less is better, down from there.
RIGHT, RIGHT_LOWER = 1.0, 0.0


def is_right(score: float, *, lower_is_better: bool, limit: float | None = None) -> bool:
    """Whether a score is as good as can be, or as good as `limit`."""
    if lower_is_better:
        return score <= (RIGHT_LOWER if limit is None else limit)
    return score >= (RIGHT if limit is None else limit)


def choose_worst_score(scores: Iterable[float], *, lower_is_better: bool) -> float:
    """What an answer that FAILED counts as: 0; where less is better 1, if all scores are within 0 and 1, else NaN.

    Nobody knows the worst of a score that has no bound on that side.
    """
    if not lower_is_better:
        return 0.0
    return 1.0 if all(0 <= score <= 1 for score in scores) else math.nan
