"""Pauses that a provider asked for, shared by all processes of a store."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Final

from llmkit.batch.task_guard import start_session_task
from llmkit.errors import LLMStoreError
from llmkit.ports import Leases
from llmkit.types import Route

__all__ = ["SharedPauses"]

# How old the knowledge of a route may be, in seconds: a request within this time after a refusal elsewhere may leave.
READ_EVERY_S: Final = 1.0
# Calls of all processes wait for the same moment, and must not all leave at once.
JITTER_S: Final = 0.5


class SharedPauses:
    """Routes that a provider asked to leave alone. Belongs to one event loop.

    Args:
        leases: Where pauses are kept.
        clock: Seconds on a clock that never goes back.
        longest_wait_s: The longest pause that a call waits for.
        sleep: How to wait, in seconds.
    """

    def __init__(
        self,
        leases: Leases,
        clock: Callable[[], float],
        longest_wait_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._leases = leases
        self._clock = clock
        self._longest_wait_s = longest_wait_s
        self._sleep = sleep
        self._read_s: dict[Route, float] = {}
        self._until_s: dict[Route, float] = {}
        self._writing: set[asyncio.Task[None]] = set()

    async def wait(self, route: Route) -> float:
        """Wait while the route is to be left alone.

        Returns:
            0, or the seconds that remain of a pause that is too long to wait for.
        """
        while (remaining_s := await self._find_remaining_s(route)) > 0:
            if remaining_s > self._longest_wait_s:
                return remaining_s
            await self._sleep(remaining_s + random.uniform(0, JITTER_S))  # noqa: S311
        return 0.0

    async def _find_remaining_s(self, route: Route) -> float:
        now_s = self._clock()
        if now_s - self._read_s.get(route, -READ_EVERY_S) >= READ_EVERY_S:
            # Set first, so that of many calls one reads. A store that is away stops calls at their own record.
            self._read_s[route] = now_s
            with contextlib.suppress(LLMStoreError):
                self._until_s[route] = now_s + await self._leases.read_pause_s(route)
        return self._until_s.get(route, now_s) - self._clock()

    def begin(self, route: Route, seconds: float) -> None:
        """Let this process leave the route alone now, and the others as soon as the store has it."""
        self._until_s[route] = max(self._until_s.get(route, 0.0), self._clock() + seconds)
        self._read_s[route] = self._clock()
        writing = start_session_task(self._write(route, seconds))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)

    async def _write(self, route: Route, seconds: float) -> None:
        # The call that was refused fails or is repeated whether or not others hear of it.
        with contextlib.suppress(LLMStoreError):
            await self._leases.pause(route, seconds)

    async def close(self) -> None:
        """Wait until the store has all pauses of this process."""
        if self._writing:
            await asyncio.wait(self._writing)
