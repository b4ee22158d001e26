"""Limits per minute of one provider: requests and tokens, first come, first served."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from llmkit.transport.limits.sliding_window import Reservation, SlidingWindow

__all__ = ["RateReservation", "Rates"]


@dataclass(frozen=True, slots=True)
class _Granted:
    window: SlidingWindow
    reservation: Reservation


class Rates:
    """Waits until one more request fits into the minute. Belongs to one event loop.

    Args:
        requests: Window over requests; None for no limit.
        tokens: Window over tokens, prompt and answer; None for no limit.
        clock: Seconds on a clock that never goes back.
        sleep: How to wait, in seconds.
    """

    def __init__(
        self,
        requests: SlidingWindow | None,
        tokens: SlidingWindow | None,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._requests = requests
        self.tokens = tokens
        self._clock = clock
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    async def reserve(self, tokens: Callable[[], int]) -> RateReservation:
        """Wait until one request with this many tokens is allowed, and reserve it."""
        if self._requests is None and self.tokens is None:
            return RateReservation(self, ())
        wanted = [(self._requests, 1)] if self._requests is not None else []
        if self.tokens is not None:
            wanted.append((self.tokens, max(tokens(), 1)))
        # One caller at a time looks for room, so a small request cannot overtake a large one for ever.
        async with self._turn:
            while wait_s := max(window.wait_s(self._clock(), amount) for window, amount in wanted):
                await self._wait(wait_s)
            return RateReservation(self, tuple(_Granted(window, window.reserve(amount)) for window, amount in wanted))

    async def _wait(self, seconds: float) -> None:
        """Wait, but no longer than until a reservation changes: an answer may be shorter than estimated."""
        self._changed.clear()
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._changed.wait())]
        if math.isfinite(seconds):
            waits.append(asyncio.ensure_future(self._sleep(seconds)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    def now_s(self) -> float:
        """Return the time."""
        return self._clock()

    async def close(self) -> None:
        """Do nothing: nothing is shared."""

    def note_change(self) -> None:
        """Note that a reservation was used, returned or corrected."""
        self._changed.set()


class RateReservation:
    """A reservation for one request in every window that applies."""

    def __init__(self, rates: Rates, granted: tuple[_Granted, ...]) -> None:
        self._rates = rates
        self._granted = granted

    def use(self) -> None:
        """Mark the reservation as used: the request leaves now."""
        for each in self._granted:
            each.window.use(each.reservation, self._rates.now_s())
        self._rates.note_change()

    async def confirm(self) -> None:
        """Do the same as `use`, as `LeasedReservation` has it."""
        self.use()

    def release(self) -> None:
        """Release the reservation of a request that will not be sent. Idempotent; no effect after `use`."""
        for each in self._granted:
            each.window.release(each.reservation)
        self._rates.note_change()

    def settle(self, tokens: int | None) -> None:
        """Replace the estimate by the tokens that were really used; None when that is unknown."""
        for each in self._granted:
            if each.window is self._rates.tokens and tokens is not None:
                each.window.settle(each.reservation, tokens)
                self._rates.note_change()
