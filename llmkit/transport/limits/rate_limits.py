"""Limits per minute of one provider: requests and tokens, first come, first served."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from llmkit.transport.limits.sliding_window import Pass, SlidingWindow

__all__ = ["Leave", "Rates"]


@dataclass(frozen=True, slots=True)
class _Granted:
    window: SlidingWindow
    leave: Pass


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

    async def wait(self, tokens: Callable[[], int]) -> Leave:
        """Leave to send one request of so many tokens, once that is allowed."""
        if self._requests is None and self.tokens is None:
            return Leave(self, ())
        wanted = [(self._requests, 1)] if self._requests is not None else []
        if self.tokens is not None:
            wanted.append((self.tokens, max(tokens(), 1)))
        async with self._turn:
            while wait_s := max(window.wait_s(self._clock(), amount) for window, amount in wanted):
                await self._wait(wait_s)
            return Leave(self, tuple(_Granted(window, window.take(amount)) for window, amount in wanted))

    async def _wait(self, seconds: float) -> None:
        """Until so much time has passed, or room was made sooner: an answer may be shorter than was reckoned with."""
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

    def note_change(self) -> None:
        """Note that a reservation was used, returned or corrected."""
        self._changed.set()


class Leave:
    """Leave to send one request."""

    def __init__(self, rates: Rates, granted: tuple[_Granted, ...]) -> None:
        self._rates = rates
        self._granted = granted

    def use(self) -> None:
        """Mark the reservation as used: the request leaves now."""
        for each in self._granted:
            each.window.use(each.leave, self._rates.now_s())
        self._rates.note_change()

    def give_back(self) -> None:
        """Nothing will be sent. Idempotent; nothing happens after `use`."""
        for each in self._granted:
            each.window.give_back(each.leave)
        self._rates.note_change()

    def correct(self, tokens: int | None) -> None:
        """So many tokens it really was; None when that is not known."""
        for each in self._granted:
            if each.window is self._rates.tokens and tokens is not None:
                each.window.correct(each.leave, tokens)
                self._rates.note_change()
