"""Load model of a stand-in server: slots, time per request, and a bounded queue."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from llmkit.testing.replies import Fault

__all__ = ["Load", "Overloaded", "Slots"]


@dataclass(frozen=True, slots=True)
class Load:
    """Capacity of a server.

    Attributes:
        latency_s: Seconds that each call of the model takes once it has a slot.
        capacity: Calls served at once, the others wait in order of arrival; None for any number.
        max_queue: Calls that may wait; one more is refused with `overload_status`. None for any number.
        overload_status: 503 as Ollama does, 429 as Gemini does, or another.
        retry_after_s: Wait that the refusal asks of the client, in seconds; None for none.
    """

    latency_s: float = 0.0
    capacity: int | None = None
    max_queue: int | None = None
    overload_status: int = 503
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        if self.capacity is not None and self.capacity < 1:
            raise ValueError(f"capacity={self.capacity}: a server needs at least one slot")


class Overloaded(Exception):
    """The queue is full. `fault` is what the client gets."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class Slots:
    """The slots of a server, for use within its event loop; only `load` may be replaced from any thread."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, hold it for the latency and the body of the `with`.

        Raises:
            Overloaded: The queue is full.
        """
        await self._acquire()
        try:
            if self.load.latency_s:
                await asyncio.sleep(self.load.latency_s)
            yield
        finally:
            self._busy -= 1
            self._wake()

    async def _acquire(self) -> None:
        load = self.load
        if not self._waiting and self._has_free_slot():
            self._busy += 1
            return
        if load.max_queue is not None and len(self._waiting) >= load.max_queue:
            message = "server busy, please try again.  maximum pending requests exceeded"
            raise Overloaded(Fault.status(load.overload_status, message, retry_after_s=load.retry_after_s))
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            self._give_up(turn)
            raise

    def _has_free_slot(self) -> bool:
        return self.load.capacity is None or self._busy < self.load.capacity

    def _give_up(self, turn: "asyncio.Future[None]") -> None:
        if turn in self._waiting:
            self._waiting.remove(turn)
        elif not turn.cancelled():  # it had its turn and left in the same moment
            self._busy -= 1
            self._wake()

    def _wake(self) -> None:
        while self._waiting and self._has_free_slot():
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._busy += 1
