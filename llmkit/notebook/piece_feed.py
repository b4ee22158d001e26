"""A feed of pieces, from the session's event loop to one reader in any thread or event loop.

The two sides share no lock: the reader may be a finalizer, or code that a signal handler interrupts anywhere, and the
loop must never wait for it. `SimpleQueue` is safe for both (https://docs.python.org/3/library/queue.html).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from typing import NamedTuple

from llmkit.ports import AnswerSink, StreamPiece

__all__ = ["AnswerPieces", "PieceFeed"]


class AnswerPieces(NamedTuple):
    """Pieces that arrived together, all of one answer.

    Attributes:
        number: Which answer of the call, from 0: a reask starts another.
        pieces: At least one.
    """

    number: int
    pieces: Sequence[StreamPiece]


class PieceFeed:
    """Pieces of a call that have arrived and were not read yet.

    It keeps all that the reader leaves there, at most an answer of `max_reply_mb`, and the call goes on without it. A
    call that waited for its reader would keep its place under the limits, and equal calls would wait for it: a loop
    over a stream that makes another call, or a cell that does while a stream is open, would wait for itself.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[AnswerPieces | None] = SimpleQueue()
        self._numbers = count()
        self._reader: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
        self._is_over = False

    # --- the loop's side ----------------------------------------------------------------------------------------

    def open_sink(self) -> AnswerSink:
        """Return the sink of the next answer of the call."""
        return AnswerSink(partial(self._put, next(self._numbers)))

    async def _put(self, number: int, pieces: Sequence[StreamPiece]) -> None:
        self._queue.put(AnswerPieces(number, pieces))
        self._wake_reader()

    def end(self) -> None:
        """Tell the reader that nothing follows."""
        self._queue.put(None)
        self._wake_reader()

    def _wake_reader(self) -> None:
        reader = self._reader
        if reader is not None:
            loop, future = reader
            with suppress(RuntimeError):  # The reader's loop is closed: its reader is gone, and cancels the call.
                loop.call_soon_threadsafe(_finish, future)

    # --- the reader's side --------------------------------------------------------------------------------------

    def take(self, timeout_s: float | None = None) -> list[AnswerPieces] | None:
        """Wait until something is there, and return all of it; None at the end, [] after a timeout."""
        if self._is_over:
            return None
        try:
            first = self._queue.get(timeout=timeout_s)
        except Empty:
            return []
        return self._take_rest(first)

    async def take_async(self) -> list[AnswerPieces] | None:
        """Await something in the running loop, and return all that is there; None at the end."""
        if self._is_over:
            return None
        loop = asyncio.get_running_loop()
        try:
            while True:
                # Registered first, then looked: a piece that comes between the two wakes the reader for nothing.
                arrival = loop.create_future()
                self._reader = loop, arrival
                if not self._queue.empty():
                    return self._take_rest(self._queue.get())
                await arrival
        finally:
            self._reader = None

    def _take_rest(self, first: AnswerPieces | None) -> list[AnswerPieces] | None:
        taken: list[AnswerPieces] = []
        with suppress(Empty):
            while first is not None:
                taken.append(first)
                first = self._queue.get_nowait()
            self._is_over = True
            self._queue.put(None)  # for a second reader, in another thread, that waits already
        return taken or None


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
