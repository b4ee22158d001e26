"""So much in any minute. Pure: the time is an argument.

A strict window over what was sent, not a bucket that fills evenly: a bucket of a hundred a minute lets nearly two
hundred pass in its first minute, and a provider that counts by the minute refuses the second hundred.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

__all__ = ["Pass", "SlidingWindow"]

MINUTE_S = 60.0


@dataclass(eq=False, slots=True)
class Pass:
    """Leave to send something of this size. `sent_s` is None until it has been sent."""

    amount: int
    sent_s: float | None = None
    is_counted: bool = True


class SlidingWindow:
    """At most `limit` in any stretch of `per_s` seconds.

    A pass counts from the moment it is given until `per_s` after it was used, however long that took; so the limit
    holds for what is sent, at the times when it is sent.

    Args:
        limit: Requests, or tokens; at least 1.
        per_s: Length of the window, in seconds.
    """

    def __init__(self, limit: int, per_s: float = MINUTE_S) -> None:
        if limit < 1:
            raise ValueError(f"limit={limit}: a limit below 1 lets nothing through")
        self._limit = limit
        self._per_s = per_s
        self._unused: set[Pass] = set()
        self._used: deque[Pass] = deque()
        self._counted = 0

    def wait_s(self, now_s: float, amount: int = 1) -> float:
        """Seconds until `take` may be called, as far as is known now; infinite while all hangs on passes not yet used.

        More than the whole limit counts as the whole limit: it has to wait for an empty window, not for ever.
        """
        self._forget(now_s)
        excess = min(amount, self._limit) - (self._limit - self._counted)
        if excess <= 0:
            return 0.0
        for used in self._used:
            excess -= used.amount
            if excess <= 0:
                return self._leaves_s(used) - now_s
        return math.inf

    def take(self, amount: int = 1) -> Pass:
        """Return a pass, whatever `wait_s` says."""
        given = Pass(amount)
        self._unused.add(given)
        self._counted += amount
        return given

    def use(self, given: Pass, now_s: float) -> None:
        """Mark the reservation as used: its request is sent now."""
        self._unused.remove(given)
        given.sent_s = now_s
        self._used.append(given)

    def give_back(self, given: Pass) -> None:
        """Return an unused reservation. Idempotent; has no effect on a used one."""
        if given in self._unused:
            self._unused.remove(given)
            self._counted -= given.amount

    def correct(self, given: Pass, amount: int) -> None:
        """Replace the estimate by the amount that was really sent."""
        if given.is_counted:
            self._counted += amount - given.amount
            given.amount = amount

    def _forget(self, now_s: float) -> None:
        while self._used and self._leaves_s(self._used[0]) <= now_s:
            old = self._used.popleft()
            old.is_counted = False
            self._counted -= old.amount

    def _leaves_s(self, used: Pass) -> float:
        assert used.sent_s is not None
        return used.sent_s + self._per_s
