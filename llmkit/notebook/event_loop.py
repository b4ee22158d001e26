"""One event loop in a daemon thread: the only door between people's sync code and our async code."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from llmkit.errors import LLMConfigurationError, LLMError

__all__ = ["Interrupted", "LoopThread", "aside"]

# A cancelled call still records what it had sent; a person who pressed Ctrl-C waits no longer than this, in seconds.
CANCEL_GRACE_S = 2.0
STOP_GRACE_S = 5.0
# Between two calls of a waiting caller's `tick`, in seconds.
TICK_S = 0.1

# Between two turns of a loop in which somebody waits, in seconds.
BEAT_S = 0.5
_AWAITED: WeakKeyDictionary[asyncio.AbstractEventLoop, int] = WeakKeyDictionary()
_BEATS: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.TimerHandle] = WeakKeyDictionary()

# What a forked child has of its parent's. Finalising any of it would touch descriptors that both share, the parent's
# epoll among them, and the parent would wait for ever: so the child keeps it.
INHERITED: list[object] = []

CLOSED = "The session was closed while this call was under way; it is recorded as cancelled"

T = TypeVar("T")


class Interrupted(KeyboardInterrupt):
    """An interruption; the message says what became of the work."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of a traceback through our rooms."""
        return [f"Interrupted: {self}"]


def aside(work: Callable[[], T]) -> Future[T]:
    """Do work in a thread of its own, where no interruption reaches it.

    For what imports: an import that Ctrl-C breaks off leaves parts of packages behind, with which no later call works
    until the kernel is restarted. The end of the interpreter waits for it.
    """
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()

    def do() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            outcome.set_exception(error)

    threading.Thread(target=do, name="llmkit-aside").start()
    return outcome


class LoopThread:
    """Runs coroutines for callers in any thread, with or without a running loop of their own.

    Starts with the first call, again after a fork, and costs about 0.2 ms a call.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def run(self, work: Coroutine[Any, Any, T], tick: Callable[[], None] | None = None) -> T:
        """Run to the end and return the result.

        An interruption of the waiting caller (Ctrl-C, a kernel's interrupt) cancels the work before it is raised.

        Args:
            work: What to run.
            tick: Called by the waiting thread several times a second, for what must be drawn there.

        Raises:
            LLMConfigurationError: Called from the loop's own thread, where waiting would never end.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise LLMConfigurationError("A sync call inside llmkit's own event loop would wait for itself; use await")
        job: _Job[T] = _Job(work)
        loop: asyncio.AbstractEventLoop | None = None
        try:
            with self._running_loop() as loop:
                loop.call_soon_threadsafe(job.start)
            while tick is not None and not job.ended.wait(TICK_S):
                tick()
            return job.outcome.result()
        except LLMError as error:
            raise _bare(error) from error.__cause__
        except CancelledError:
            raise LLMError(CLOSED) from None
        except BaseException as error:
            if loop is not None and not job.outcome.done():
                loop.call_soon_threadsafe(job.cancel)
                job.ended.wait(CANCEL_GRACE_S)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(
                    "what was under way is cancelled, and recorded so; the same call asks again"
                ) from None
            raise

    async def hop(self, work: Coroutine[Any, Any, T], tick: Callable[[], None] | None = None) -> T:
        """The same for a caller in another event loop; cancelling the caller cancels the work."""
        if threading.current_thread() is self._thread:
            return await work
        with self._running_loop() as loop:
            future = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))
        try:
            with _awake():
                while tick is not None and not (await asyncio.wait((future,), timeout=TICK_S))[0]:
                    tick()
                return await future
        except LLMError as error:
            raise _bare(error) from error.__cause__
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            # Nobody cancelled the caller, and a task that ends so would be taken for one that somebody did.
            raise LLMError(CLOSED) from None
        finally:
            future.cancel()  # no effect when it is done

    def stop(self) -> None:
        """Cancel what still runs and end the thread. Idempotent; nothing happens in a forked child."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            if loop is None or thread is None or self._pid != os.getpid():
                return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(STOP_GRACE_S)

    @contextmanager
    def _running_loop(self) -> Iterator[asyncio.AbstractEventLoop]:
        """The loop, which is not stopped inside the block: what came behind its end, nobody would ever do."""
        with self._lock:
            if self._loop is not None and self._pid != os.getpid():
                INHERITED.append(self._loop)
                self._loop = None
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_serve, args=(loop,), name="llmkit-loop", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # there may be no more threads, for now
                    loop.close()
                    raise
                self._loop, self._thread, self._pid = loop, thread, os.getpid()
            yield self._loop


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _bare(error: LLMError) -> LLMError:
    """The error without the frames of the other thread, which are other libraries' too: its message says all."""
    return error.with_traceback(None)


@contextmanager
def _awake() -> Iterator[None]:
    """Make the running loop turn now and then while somebody waits in it.

    The handler of an interrupt runs there at once, but what ipykernel's puts on the loop is done when the loop turns:
    an interrupted cell that awaits nothing but us would go on to its end. One timer for all who wait in a loop.
    """
    if threading.current_thread() is not threading.main_thread():  # signals come there only
        yield
        return
    loop = asyncio.get_running_loop()
    _AWAITED[loop] = _AWAITED.get(loop, 0) + 1
    if _AWAITED[loop] == 1:
        _beat(loop)
    try:
        yield
    finally:
        _AWAITED[loop] -= 1
        if not _AWAITED[loop]:
            _BEATS.pop(loop).cancel()


def _beat(loop: asyncio.AbstractEventLoop) -> None:
    _BEATS[loop] = loop.call_later(BEAT_S, _beat, loop)


class _Job(Generic[T]):
    """Work on its way through the loop. Unlike a cancelled future, it knows when the work has really ended."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work
        self._task: asyncio.Task[T] | None = None
        self.outcome: Future[T] = Future()
        self.ended = threading.Event()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._work)
        self._task.add_done_callback(self._end)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.outcome.cancel()
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())
        self.ended.set()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        _run_until_stopped(loop)
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _run_until_stopped(loop: asyncio.AbstractEventLoop) -> None:
    """What raises SystemExit ends its own caller, not the thread in which all others wait."""
    while True:
        with suppress(SystemExit, KeyboardInterrupt):
            return loop.run_forever()
