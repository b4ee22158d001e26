"""A thread that closes objects which the garbage collector has found.

The collector calls finalizers in whatever thread it happens to run: inside a lock that this thread has taken, or in
the middle of its database transaction. A finalizer that waited or took a lock there could stop the whole process, so it
only puts the work into a queue. `SimpleQueue.put` is the one queue operation that may be interrupted by itself
(https://docs.python.org/3/library/queue.html#queue.SimpleQueue.put).
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable
from itertools import count
from logging import getLogger
from queue import SimpleQueue
from typing import Any, Final

from llmkit.errors import LLMError

__all__ = ["close_when_dropped", "closes_at_exit", "is_exiting", "start_reaper"]

# Closing writes pending rows, and a journal tries a locked database for 60 s.
EXIT_WAIT_S: Final = 90.0

_log = getLogger("llmkit")


def is_exiting() -> bool:
    """Return whether the interpreter has begun to exit.

    From then on Python 3.12 and later start no thread; once `sys.is_finalizing()`, the existing ones stand still too.
    """
    return sys.is_finalizing() or not threading.main_thread().is_alive()


class Reaper:
    """A queue of things to close, and the daemon thread that closes them."""

    def __init__(self) -> None:
        self._numbers = count()
        self._watched: dict[int, tuple[weakref.ref[Any], Callable[[], None]]] = {}
        # A hook that is registered while the interpreter exits is not called.
        self.closes_at_exit = not is_exiting()
        self.reset()

    def reset(self) -> None:
        """Start again in a forked child, where the thread does not exist."""
        self._queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        # Popping from a list is atomic. A lock could be held by the very code that a signal handler interrupts.
        self._permissions_to_start: list[None] = [None]

    def watch(self, owner: object, close: Callable[[], None]) -> None:
        """Close when the owner is collected, and at the latest when the interpreter exits."""
        number = next(self._numbers)

        def enqueue(_: object) -> None:
            watched = self._watched.pop(number, None)
            if watched is not None:
                self._queue.put(watched[1])

        self._watched[number] = weakref.ref(owner, enqueue), close

    def start(self) -> None:
        """Start the thread, unless it runs. Without a thread the work waits for the next start or for the exit."""
        # While the interpreter exits, `close_all` does the work; later still, `Thread.start` would wait for ever.
        if self._thread is not None or is_exiting():
            return
        try:
            self._permissions_to_start.pop()
        except IndexError:  # another caller is starting it
            return
        thread = threading.Thread(target=self._run, name="llmkit-reaper", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system is out of threads for the moment
            self._permissions_to_start.append(None)
        else:
            self._thread = thread

    def close_all(self) -> None:
        """Close what is still watched in the calling thread, and wait for the work in the queue."""
        self.closes_at_exit = False
        # Oldest first: a session is older than its journal, in which calls that it cancels are still recorded.
        for number in list(self._watched):
            watched = self._watched.pop(number, None)
            if watched is not None:
                _close_quietly(watched[1])
        if self._thread is None:
            while not self._queue.empty():
                _close_quietly(self._queue.get())
            return
        is_done = threading.Event()
        self._queue.put(is_done.set)
        is_done.wait(EXIT_WAIT_S)

    def _run(self) -> None:
        queue = self._queue
        while True:
            # A nested call, because a variable here would keep the last object alive until the next one comes.
            _close_quietly(queue.get())


def _close_quietly(close: Callable[[], None]) -> None:
    """Close something whose user is gone: only the log can report a failure."""
    try:
        close()
    except LLMError as error:
        _log.warning("%s", error)
    except Exception as error:  # noqa: BLE001 - other objects are still to be closed
        _log.warning("closing failed: %s", type(error).__name__)


_REAPER: Final = Reaper()
atexit.register(_REAPER.close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_REAPER.reset)


def close_when_dropped(owner: object, close: Callable[[], None]) -> None:
    """Close something in the reaper's thread once its owner is garbage-collected, or when the interpreter exits.

    Args:
        owner: The object whose end is awaited.
        close: Must not refer to the owner, and must be idempotent.
    """
    _REAPER.watch(owner, close)


def start_reaper() -> None:
    """Start the reaper's thread in this process, unless it runs. Never raises."""
    _REAPER.start()


def closes_at_exit() -> bool:
    """Return whether the hook that closes everything at the exit is still to come."""
    return _REAPER.closes_at_exit
