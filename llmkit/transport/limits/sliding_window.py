"""A sliding window that limits an amount per minute. Pure: the time is an argument.

A strict window over what was sent, not a bucket that fills evenly: a bucket of a hundred a minute lets nearly two
hundred pass in its first minute, and a provider that counts by the minute refuses the second hundred.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

__all__ = ["Reservation", "SlidingWindow"]

MINUTE_S = 60.0


@dataclass(eq=False, slots=True)
class Reservation:
    """A reserved amount. `sent_s` is None until its request is sent."""

    amount: int
    sent_s: float | None = None
    is_counted: bool = True


class SlidingWindow:
    """At most `limit` in any stretch of `per_s` seconds.

    A reservation counts from the moment it is made until `per_s` after its request was sent, however long that took. So
    the limit applies to what is sent, at the times when it is sent.

    Args:
        limit: Requests, or tokens; at least 1.
        per_s: Length of the window, in seconds.
    """

    def __init__(self, limit: int, per_s: float = MINUTE_S) -> None:
        if limit < 1:
            raise ValueError(f"limit={limit}: a limit below 1 lets nothing through")
        self._limit = limit
        self._per_s = per_s
        self._unused: set[Reservation] = set()
        self._used: deque[Reservation] = deque()
        self._counted = 0

    def wait_s(self, now_s: float, amount: int = 1) -> float:
        """Return the seconds until `reserve` may be called, as far as is known now.

        Infinite while only unsent reservations could make room. An amount above the limit counts as the limit: it waits
        for an empty window, not for ever.
        """
        self._forget(now_s)
        excess = min(amount, self._limit) - (self._limit - self._counted)
        if excess <= 0:
            return 0.0
        # Reservations leave the window in the order in which they were sent.
        for used in self._used:
            excess -= used.amount
            if excess <= 0:
                return self._leaves_s(used) - now_s
        return math.inf

    def reserve(self, amount: int = 1) -> Reservation:
        """Reserve the amount, even if `wait_s` is not over yet."""
        given = Reservation(amount)
        self._unused.add(given)
        self._counted += amount
        return given

    def use(self, given: Reservation, now_s: float) -> None:
        """Mark the reservation as used: its request is sent now."""
        self._unused.remove(given)
        given.sent_s = now_s
        self._used.append(given)

    def release(self, given: Reservation) -> None:
        """Return an unused reservation. Idempotent; has no effect on a used one."""
        if given in self._unused:
            self._unused.remove(given)
            self._counted -= given.amount

    def settle(self, given: Reservation, amount: int) -> None:
        """Replace the estimate by the amount that was really sent."""
        if given.is_counted:
            self._counted += amount - given.amount
            given.amount = amount

    def _forget(self, now_s: float) -> None:
        while self._used and self._leaves_s(self._used[0]) <= now_s:
            old = self._used.popleft()
            old.is_counted = False
            self._counted -= old.amount

    def _leaves_s(self, used: Reservation) -> float:
        assert used.sent_s is not None
        return used.sent_s + self._per_s
