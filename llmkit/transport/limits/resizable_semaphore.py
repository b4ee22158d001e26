"""A FIFO semaphore whose limit can change."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

__all__ = ["ResizableSemaphore"]


class ResizableSemaphore:
    """Like `asyncio.Semaphore`, for a number that changes. Belongs to one event loop.

    Args:
        limit: Returns the most concurrent holders now. Call `admit_waiting` when it has grown.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._inside = 0
        self._turns: deque[asyncio.Future[None]] = deque()

    @property
    def inside(self) -> int:
        """Number of current holders."""
        return self._inside

    @property
    def waiting(self) -> int:
        """Number of waiting callers."""
        return sum(not turn.done() for turn in self._turns)

    async def enter(self, *, first: bool = False) -> None:
        """Acquire a place, with `first` ahead of all waiting callers. A cancelled caller has none."""
        if not self._turns and self._inside < self._limit():
            self._inside += 1
            return
        turn = asyncio.get_running_loop().create_future()
        if first:
            self._turns.appendleft(turn)
        else:
            self._turns.append(turn)
        # The queue may consist of cancelled callers alone, with places free: then no holder would admit this one.
        self.admit_waiting()
        if turn.done():
            return
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # admitted and cancelled in the same step of the loop: pass the place on
                self.leave()
            raise

    def leave(self) -> None:
        """Give the place back."""
        self._inside -= 1
        self.admit_waiting()

    def admit_waiting(self) -> None:
        """Admit waiting callers while there are free places."""
        while self._turns and (self._turns[0].done() or self._inside < self._limit()):
            turn = self._turns.popleft()
            if not turn.done():  # a cancelled caller stays in the queue until its turn
                turn.set_result(None)
                self._inside += 1
