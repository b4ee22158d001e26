"""A streamed call in progress: its task in the session's loop, its unread pieces, and how it ended."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, Generic, TypeVar

from llmkit.errors import LLMBadRequest, LLMError
from llmkit.notebook.core import SessionCore
from llmkit.notebook.event_loop import (
    CANCEL_GRACE_S,
    CLOSED,
    INTERRUPTED,
    TICK_S,
    Interrupted,
    LoopJob,
    keep_awake,
    shorten_traceback,
    strip_traceback,
)
from llmkit.notebook.piece_feed import AnswerPieces, PieceFeed
from llmkit.notebook.status_line import StatusLine
from llmkit.ports import AnswerSink

__all__ = ["OpenSink", "StreamedCall", "leave_when_dropped"]

UNFINISHED = "The answer is still arriving: read the stream to its end, or call its finish()"
LEFT = "This stream was left before its end, which cancels the call: call stream() again for the whole answer"
READ_ONCE = "A stream is read once: call stream() again, or use what it has kept, such as its text and response"
FORKED = "This stream belongs to the parent process: call stream() in this one"

R = TypeVar("R")
OpenSink = Callable[[], AnswerSink]


class StreamedCall(Generic[R]):
    """The call behind a stream, for one reader in a thread or in an event loop.

    It does not refer to the stream: a stream to which nothing refers any more can be collected, which cancels the call.

    Args:
        core: The session.
        send: Makes the call. Each answer goes into a sink of its own, for a reask starts another.

    Attributes:
        is_over: Whether the reader has reached the end.
        is_left: Whether the reader left before it.
    """

    def __init__(self, core: SessionCore, send: Callable[[OpenSink], Coroutine[Any, Any, R]]) -> None:
        self._core = core
        self._send = send
        self._feed = PieceFeed()
        self._job: LoopJob[R] | None = None
        self._ahead: list[AnswerPieces] = []
        self._is_opening = False
        self._is_claimed = False
        self.is_over = False
        self.is_left = False

    @property
    def state(self) -> str:
        """How far the reader is, in words."""
        if self.is_left:
            return "cancelled"
        if not self.is_over or self._job is None:
            return "in progress"
        outcome = self._job.outcome
        return "failed" if outcome.cancelled() or outcome.exception() is not None else "complete"

    def open(self) -> None:
        """Start the call, and wait for its first piece.

        Raises:
            LLMError: As the call.
        """
        try:
            with self._core.runtime.mark_busy():
                self._core.loop.refuse_waiting()
                self._core.runtime.open()
                self._core.settle()
                self._start()
                line = StatusLine()
                try:
                    while not self._ahead and not self.is_over:
                        self._keep(self._take(TICK_S))
                        line.draw()
                finally:
                    line.close()
            if self.is_over and not self._ahead:
                self._end()
        except BaseException as error:
            self.break_off(error)
            raise

    async def open_async(self) -> None:
        """Start the call if it is not, and await its first piece; raises as `open`."""
        if self._job is not None:
            return
        if self._is_opening:
            raise LLMBadRequest(READ_ONCE)
        self._is_opening = True
        try:
            with self._core.runtime.mark_busy():
                await self._core.runtime.open_async()
                await self._core.settle_async()
                self._start()
                self._keep(await self._take_async())
        except BaseException:
            self.leave()
            raise
        finally:
            self._is_opening = False
        if self.is_over and not self._ahead:
            self._end()

    def claim(self) -> None:
        """Let one loop read the stream.

        Raises:
            LLMBadRequest: Another one has, or does.
        """
        if self._is_claimed:
            raise LLMBadRequest(READ_ONCE)
        self._is_claimed = True

    def read(self) -> list[AnswerPieces] | None:
        """Wait for pieces, and return all that are there; None at the end.

        Raises:
            LLMError: The call failed, or the session was closed meanwhile.
            Interrupted: The reader was interrupted, which cancels the call.
        """
        try:
            if not self._ahead and not self.is_over:
                self._keep(self._take(None))
                if self.is_over:
                    self._core.finish_call()
            return self._hand_out()
        except BaseException as error:
            self.break_off(error)
            raise

    async def read_async(self) -> list[AnswerPieces] | None:
        """Await pieces in the running loop; as `read`."""
        await self.open_async()
        if not self._ahead and not self.is_over:
            self._keep(await self._take_async())
            if self.is_over:
                self._core.fallback_warner.warn()
        return self._hand_out()

    def read_result(self) -> R:
        """Return the result of a call that was read to its end.

        Raises:
            LLMBadRequest: It was not.
            LLMError: It failed, or was left.
        """
        if self.is_left:
            raise LLMError(LEFT)
        if not self.is_over or self._job is None:
            raise LLMBadRequest(UNFINISHED)
        return self._end()

    def leave(self) -> None:
        """Cancel the call unless the reader has reached its end. It neither waits nor takes a lock."""
        if self.is_over or self._job is None:
            return
        self.is_left = True
        self._ahead = []
        self._job.cancel()
        self._core.left.append(self._job)

    def break_off(self, error: BaseException) -> None:
        """Cancel the call because its reader got an exception, and wait a moment for what it still records.

        The exception may be anything that a signal handler raises. Its traceback refers to the stream, so that nothing
        else would end the call. An LLMError is the end of the call, or leaves it to other readers.

        Raises:
            Interrupted: The exception is an interrupt, which shows one line in a notebook.
        """
        try:
            if not isinstance(error, LLMError):
                self.leave_and_wait()
        finally:  # also when the next interrupt comes while it waits
            if isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted):
                raise Interrupted(INTERRUPTED) from None

    def leave_and_wait(self) -> None:
        """Cancel the call, and wait a moment for what it still records."""
        self.leave()
        if self.is_left and self._job is not None and not self._core.loop.is_current_thread:
            self._job.cancel_and_wait()

    async def leave_and_wait_async(self) -> None:
        """Cancel the call, and await for a moment what it still records."""
        self.leave()
        if self.is_left and self._job is not None and self._job.is_own_process:
            await asyncio.wait((asyncio.wrap_future(self._job.outcome),), timeout=CANCEL_GRACE_S)

    def _take(self, timeout_s: float | None) -> list[AnswerPieces] | None:
        self._check_job()
        self._core.loop.refuse_waiting()
        return self._feed.take(timeout_s)

    async def _take_async(self) -> list[AnswerPieces] | None:
        self._check_job()
        try:
            with keep_awake():
                return await self._feed.take_async()
        except BaseException as error:
            self.leave()
            if isinstance(error, asyncio.CancelledError):
                shorten_traceback(error, INTERRUPTED)
            raise

    def _start(self) -> None:
        # The loop hands the job over before it begins: an interrupt between the two would lose a call that runs.
        self._core.loop.start(self._send(self._feed.open_sink), self._feed.end, self._keep_job)

    def _keep_job(self, job: LoopJob[R]) -> None:
        self._job = job

    def _check_job(self) -> LoopJob[R]:
        if self._job is None or not self._job.is_own_process:
            raise LLMError(FORKED)
        return self._job

    def _keep(self, taken: list[AnswerPieces] | None) -> None:
        if taken is None:
            self.is_over = True
        else:
            self._ahead += taken

    def _hand_out(self) -> list[AnswerPieces] | None:
        if self._ahead:
            taken, self._ahead = self._ahead, []
            return taken
        if not self.is_left:  # its reader cancelled it, and expects no more
            self._end()
        return None

    def _end(self) -> R:
        assert self._job is not None
        try:
            return self._job.outcome.result()
        except LLMError as error:
            raise strip_traceback(error) from error.__cause__
        except CancelledError:
            raise LLMError(CLOSED) from None


def leave_when_dropped(owner: object, call: StreamedCall[Any]) -> None:
    """Cancel the call once nothing refers to the owner, a stream or a loop over one, any more."""
    # At the exit the session is closed, which cancels all of its calls.
    weakref.finalize(owner, call.leave).atexit = False
