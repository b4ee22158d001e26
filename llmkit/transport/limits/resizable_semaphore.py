"""A door that so many may pass at once, in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["ResizableSemaphore"]


class ResizableSemaphore:
    """Like `asyncio.Semaphore`, for a number that changes. Belongs to one event loop.

    Args:
        limit: How many may be inside now. Call `open` when it has grown.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._inside = 0
        self._turns: deque[asyncio.Future[None]] = deque()

    @property
    def inside(self) -> int:
        """How many are inside."""
        return self._inside

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return sum(not turn.done() for turn in self._turns)

    async def enter(self, *, first: bool = False) -> None:
        """Wait for a place and take it, with `first` before all who wait. A cancelled caller has none."""
        if not self._turns and self._inside < self._limit():
            self._inside += 1
            return
        turn = asyncio.get_running_loop().create_future()
        if first:
            self._turns.appendleft(turn)
        else:
            self._turns.append(turn)
        self.open()
        if turn.done():
            return
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had its turn and was cancelled in the same moment
                self.leave()
            raise

    def leave(self) -> None:
        """Give the place back."""
        self._inside -= 1
        self.open()

    def open(self) -> None:
        """Let in as many as there are places for."""
        while self._turns and (self._turns[0].done() or self._inside < self._limit()):
            turn = self._turns.popleft()
            if not turn.done():  # else its caller was cancelled
                turn.set_result(None)
                self._inside += 1
