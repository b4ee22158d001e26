"""Imports ahead of the first call, in a quiet moment (the setting `warm_up`)."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from llmkit.cleanup import is_exiting

__all__ = ["Preload"]

# Long enough for a first call to start: imports in parallel with it would slow it down.
QUIET_S = 1.0

_log = logging.getLogger("llmkit")


class Preload:
    """A function that runs once, in a daemon thread, after a second in which no call was in progress.

    It therefore never takes time from a call that came first. Once started it cannot be stopped, and the interpreter
    waits for it before it exits.

    Args:
        work: The function. An error in it is only logged: a call that needs its result repeats it and sees the error.
        quiet_s: How long no call may have been in progress, in seconds.
    """

    def __init__(self, work: Callable[[], None], quiet_s: float = QUIET_S) -> None:
        self._work = work
        self._quiet_s = quiet_s
        self._is_cancelled = threading.Event()
        # A list, because append and pop are atomic. A lock might be held by another thread while the process forks,
        # and would stay locked in the child.
        self._calls_in_progress: list[None] = []
        self._quiet_since_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="llmkit-preload", daemon=True)

    def start(self) -> None:
        """Start waiting for the quiet moment, unless no thread can be started: the first call then loads more."""
        if is_exiting():
            return
        with suppress(RuntimeError):
            self._thread.start()

    def cancel(self) -> None:
        """Prevent the start, if it has not happened yet. Idempotent."""
        self._is_cancelled.set()

    @contextmanager
    def mark_busy(self) -> Iterator[None]:
        """Count a call as in progress inside the block."""
        self._calls_in_progress.append(None)
        try:
            yield
        finally:
            self._calls_in_progress.pop()
            self._quiet_since_s = time.monotonic()

    def _run(self) -> None:
        while (wait_s := self._compute_wait_s()) > 0:
            if self._is_cancelled.wait(wait_s):
                return
        # If a daemon thread is stopped in the middle of an import, the import lock stays taken, and the interpreter's
        # exit could hang on it.
        atexit.register(self._thread.join)
        try:
            self._work()
        except Exception as error:  # noqa: BLE001
            _log.debug("preload failed: %s", type(error).__name__)
        finally:
            atexit.unregister(self._thread.join)

    def _compute_wait_s(self) -> float:
        if self._calls_in_progress:
            return self._quiet_s
        return self._quiet_since_s + self._quiet_s - time.monotonic()
