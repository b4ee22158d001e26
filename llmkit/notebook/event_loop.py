"""One event loop in a daemon thread, where sync callers run llmkit's async code."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from llmkit.batch.loading import note_loading
from llmkit.batch.task_guard import cancel_task, guard_loop
from llmkit.cleanup import is_exiting
from llmkit.errors import LLMConfigurationError, LLMError

__all__ = ["Interrupted", "InterruptedAwait", "LoopJob", "LoopThread", "keep_awake", "run_aside", "shorten_traceback"]

# A cancelled call still records what it had sent; after Ctrl-C no caller waits longer than this for it, in seconds.
CANCEL_GRACE_S = 2.0
STOP_GRACE_S = 5.0
# The names of threads whose progress a call needs. The garbage collector may run a finalizer in any of them.
OWN_THREADS = frozenset({"llmkit-journal", "llmkit-aside"})
# Time between two calls of a waiting caller's `tick`, in seconds.
TICK_S = 0.1

# Time between two wake-ups of a loop in which someone awaits us, in seconds. See `keep_awake`.
WAKE_UP_S = 0.5
_WAITING_COUNTS: WeakKeyDictionary[asyncio.AbstractEventLoop, int] = WeakKeyDictionary()
_WAKING: WeakSet[asyncio.AbstractEventLoop] = WeakSet()

# Objects that a forked child inherits. Finalising one would close descriptors that the parent still uses, its epoll
# among them, and the parent would hang: so the child keeps them for ever.
INHERITED: list[object] = []

CLOSED = "The session was closed during this call; it is recorded as cancelled"
INTERRUPTED = "calls in progress were cancelled and recorded; the same call retries"
TOO_LATE = "The program is ending, and Python can no longer run this call: make it before the end of the program"
IN_FINALIZER = (
    "A sync call in a finalizer (__del__) that runs in one of llmkit's threads would wait for itself: make it elsewhere"
)
STARTING = (
    "This call interrupts llmkit in the moment in which it starts its thread, as a signal handler can do: let the "
    "handler set a flag, and call when it has returned"
)

T = TypeVar("T")


class Interrupted(KeyboardInterrupt):
    """An interruption, with a message on the state of the work."""

    def _render_traceback_(self) -> list[str]:
        """Show one line in a notebook instead of a traceback through our code."""
        return [f"Interrupted: {self}"]


class InterruptedAwait(asyncio.CancelledError):
    """A cancellation, with a message on the state of the work: how a notebook interrupts a cell that awaits."""

    def _render_traceback_(self) -> list[str]:
        """Show one line in a notebook instead of a traceback through our code."""
        return [f"Interrupted: {self}"]


def shorten_traceback(error: asyncio.CancelledError, message: str) -> None:
    """Let a notebook show one line for this cancellation.

    Unlike `InterruptedAwait`, it remains the same error: `asyncio.timeout` of Python 3.11 ignores subclasses.
    """
    error._render_traceback_ = lambda: [f"Interrupted: {message}"]  # type: ignore[attr-defined]


def start_thread(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        LLMError: The interpreter is exiting, or the system has no more threads.
    """
    # In this last phase Python 3.11 starts a thread that never runs, and `start` waits for it for ever.
    if sys.is_finalizing():
        raise LLMError(TOO_LATE)
    try:
        thread.start()
    except RuntimeError as error:
        if is_exiting():
            raise LLMError(TOO_LATE) from None
        raise LLMError(f"The system cannot start a thread ({error}): close other work, then try again") from None


def run_aside(work: Callable[[], T]) -> Future[T]:
    """Run a function in its own thread, where no interruption reaches it.

    This is for imports: if Ctrl-C interrupts one, half-loaded packages stay behind, and no later call works until the
    kernel is restarted. The interpreter waits for the thread before it exits.

    Raises:
        LLMError: No thread can be started.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            with note_loading("llmkit"):
                result = work()
        except BaseException as error:  # noqa: BLE001 - the caller that waits gets it
            future.set_exception(error)
        else:
            future.set_result(result)

    start_thread(threading.Thread(target=run, name="llmkit-aside"))
    return future


class LoopThread:
    """An event loop that runs coroutines for callers in any thread, with or without a running loop of their own.

    It starts with the first call, and again after a fork. It costs about 0.2 ms per call.
    """

    def __init__(self) -> None:
        # Reentrant, because a signal handler that makes a call may interrupt the holder in the same thread.
        self._lock = threading.RLock()
        self._is_starting = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()
        self._pid = 0

    @property
    def is_running(self) -> bool:
        """Whether the thread runs in this process."""
        return self._loop is not None and self._pid == os.getpid()

    @property
    def is_current_thread(self) -> bool:
        """Whether this code runs in the loop's thread."""
        return threading.current_thread() is self._thread

    def run(self, work: Coroutine[Any, Any, T], tick: Callable[[], None] | None = None) -> T:
        """Run a coroutine to its end and return its result.

        If the waiting caller is interrupted (Ctrl-C, a kernel's interrupt), the work is cancelled first.

        Args:
            work: The coroutine.
            tick: Called several times a second in the waiting thread, to draw progress there.

        Raises:
            LLMConfigurationError: Called from the loop's own thread, where waiting would never end.
            LLMError: The interpreter is exiting, or no thread can be started.
        """
        try:
            self.refuse_waiting()
        except LLMError:
            work.close()
            raise
        job: LoopJob[T] | None = None
        try:
            job = self.start(work)
            while tick is not None and not job.ended.wait(TICK_S):
                tick()
            return job.outcome.result()
        except LLMError as error:
            raise strip_traceback(error) from error.__cause__
        except CancelledError:
            raise LLMError(CLOSED) from None
        except BaseException as error:
            if job is not None and not job.outcome.done():
                # Wait until the work has really ended: it still records what it had sent.
                job.cancel_and_wait()
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(INTERRUPTED) from None
            raise

    def start(
        self,
        work: Coroutine[Any, Any, T],
        on_end: Callable[[], None] | None = None,
        keep: Callable[[LoopJob[T]], None] | None = None,
    ) -> LoopJob[T]:
        """Start a coroutine in the loop, and do not wait for it.

        Args:
            work: The coroutine.
            on_end: Called in the loop's thread when the work has ended, in whatever way.
            keep: Called with the job before it begins.

        Raises:
            LLMError: The interpreter is exiting, or no thread can be started.
        """
        job: LoopJob[T] | None = None
        try:
            with self._running_loop() as loop:
                job = LoopJob(work, loop, on_end)
                if keep is not None:
                    keep(job)
                loop.call_soon_threadsafe(job.begin)
        except BaseException:
            if job is None:
                work.close()
            else:  # Ctrl-C came just after the work was handed over, and no caller would know of it.
                job.cancel()
            raise
        return job

    async def run_async(self, work: Coroutine[Any, Any, T], tick: Callable[[], None] | None = None) -> T:
        """Run a coroutine for a caller in another event loop; cancelling the caller cancels the work."""
        if self.is_current_thread:
            return await work
        try:
            with self._running_loop() as loop:
                future = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))
        except LLMError:
            work.close()
            raise
        try:
            with keep_awake():
                while tick is not None and not (await asyncio.wait((future,), timeout=TICK_S))[0]:
                    tick()
                return await future
        except LLMError as error:
            raise strip_traceback(error) from error.__cause__
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The caller was not cancelled, but our loop was stopped. Raising CancelledError would end the caller's task
            # as if someone had cancelled it.
            raise LLMError(CLOSED) from None
        finally:
            future.cancel()  # has no effect when it is done

    def stop(self) -> None:
        """Cancel what still runs and end the thread. Idempotent; does nothing in a forked child.

        Called in the loop's own thread, it returns at once, and the thread ends when its current callback returns.
        """
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            if loop is None or thread is None or self._pid != os.getpid():
                return
            self._is_over.set()
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(STOP_GRACE_S)

    def refuse_waiting(self) -> None:
        """Refuse to wait where waiting would never end.

        Raises:
            LLMConfigurationError: In the loop's thread.
            LLMError: In the last phase of the interpreter, in which other threads stand still, or in a finalizer that
                the garbage collector runs inside the transaction that the call would wait for.
        """
        if self.is_current_thread:
            raise LLMConfigurationError("A sync call inside llmkit's own event loop would wait for itself; use await")
        if sys.is_finalizing():
            raise LLMError(TOO_LATE)
        if threading.current_thread().name in OWN_THREADS:
            raise LLMError(IN_FINALIZER)

    @contextmanager
    def _running_loop(self) -> Iterator[asyncio.AbstractEventLoop]:
        """Provide the loop, and keep it from being stopped inside the block: a job queued after the stop never runs."""
        with self._lock:
            if self._loop is not None and self._pid != os.getpid():
                INHERITED.append(self._loop)
                self._loop = None
            if self._loop is None:
                if self._is_starting:
                    raise LLMError(STARTING)
                self._is_starting = True
                try:
                    self._start()
                finally:
                    self._is_starting = False
            assert self._loop is not None
            yield self._loop

    def _start(self) -> None:
        loop, self._is_over = asyncio.new_event_loop(), threading.Event()
        thread = threading.Thread(target=_serve, args=(loop, self._is_over), name="llmkit-loop", daemon=True)
        try:
            start_thread(thread)
        except LLMError:
            loop.close()
            raise
        self._loop, self._thread, self._pid = loop, thread, os.getpid()


def strip_traceback(error: LLMError) -> LLMError:
    """Drop the frames of the other thread, most of them other libraries': the error's message is complete."""
    return error.with_traceback(None)


@contextmanager
def keep_awake() -> Iterator[None]:
    """Wake the running loop up regularly while someone awaits us in it.

    A signal handler runs at once, but ipykernel's handler only schedules the interrupt on the loop, and a loop acts on
    that when it wakes up. A cell that awaits nothing but us would otherwise run to its end. All callers in one loop
    share a timer, which ends by itself: a reader of a stream waits hundreds of times in a second.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    loop = asyncio.get_running_loop()
    _WAITING_COUNTS[loop] = _WAITING_COUNTS.get(loop, 0) + 1
    if loop not in _WAKING:
        _WAKING.add(loop)
        loop.call_later(WAKE_UP_S, _wake_up, loop)
    try:
        yield
    finally:
        _WAITING_COUNTS[loop] -= 1


def _wake_up(loop: asyncio.AbstractEventLoop) -> None:
    if _WAITING_COUNTS[loop]:
        loop.call_later(WAKE_UP_S, _wake_up, loop)
    else:
        _WAKING.discard(loop)


class _LastingExecutor(ThreadPoolExecutor):
    """Threads for blocking functions, which are called in the loop's thread once the interpreter exits.

    An exiting interpreter refuses new work for any pool (`cannot schedule new futures after interpreter shutdown`), and
    calls in an `atexit` hook need some: to resolve a host's name, for example.
    """

    def submit(self, function: Callable[..., T], /, *arguments: Any, **options: Any) -> Future[T]:
        """Schedule a call of the function."""
        if not is_exiting():
            return super().submit(function, *arguments, **options)
        future: Future[T] = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:  # noqa: BLE001 - the caller that waits gets it
            future.set_exception(error)
        return future


class LoopJob(Generic[T]):
    """A coroutine on its way through the loop.

    Its `outcome` alone does not tell when the work has ended: a cancelled future is done before its task is.

    Args:
        work: The coroutine.
        loop: Where it runs.
        on_end: Called in the loop's thread when the work has ended, in whatever way.
    """

    def __init__(
        self, work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop, on_end: Callable[[], None] | None = None
    ) -> None:
        self._work = work
        self._loop = loop
        self._on_end = on_end
        self._pid = os.getpid()
        self._task: asyncio.Task[T] | None = None
        self.outcome: Future[T] = Future()
        self.ended = threading.Event()

    @property
    def is_own_process(self) -> bool:
        """Whether this process started the work, and not its parent before a fork."""
        return self._pid == os.getpid()

    def begin(self) -> None:
        """Make the task. Called in the loop's thread."""
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(self._finish)

    def cancel(self) -> None:
        """Cancel the work, from any thread. It neither waits nor takes a lock, so a finalizer may call it."""
        if self.ended.is_set() or not self.is_own_process:
            return
        with suppress(RuntimeError):  # The loop is closed, and has cancelled everything before.
            self._loop.call_soon_threadsafe(self._cancel_task)

    def cancel_and_wait(self) -> None:
        """Cancel the work, and wait a moment for what it still records."""
        self.cancel()
        if self.is_own_process:
            self.ended.wait(CANCEL_GRACE_S)

    def _cancel_task(self) -> None:
        if self._task is None:  # An interrupt came before the work was handed over.
            self._work.close()
            self.outcome.cancel()
            self._end()
        elif not self._task.cancelling():  # Once only: the second time would cancel the recording of the first.
            cancel_task(self._task)

    def _finish(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.outcome.cancel()
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())
        self._end()

    def _end(self) -> None:
        self.ended.set()
        if self._on_end is not None:
            self._on_end()


def _serve(loop: asyncio.AbstractEventLoop, is_over: threading.Event) -> None:
    asyncio.set_event_loop(loop)
    guard_loop(loop)
    executor = _LastingExecutor()
    loop.set_default_executor(executor)
    try:
        _run_until_over(loop, is_over)
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(type(loop).shutdown_asyncgens(loop))
        # Without waiting: its threads may be in the middle of an import, and the closing thread may be about to end.
        executor.shutdown(wait=False, cancel_futures=True)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _run_until_over(loop: asyncio.AbstractEventLoop, is_over: threading.Event) -> None:
    # A scorer or validator of the user's may stop the loop that it runs in, and SystemExit in one task leaves
    # `run_forever`. Either belongs to that task alone; all others, and all later calls, still need the loop.
    while not is_over.is_set():
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()
