"""Work that is done beforehand, in a quiet moment, and that nobody waits for."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["WarmUp"]

# Long enough for a first call that is already on its way: an import beside it would make it wait.
QUIET_S = 1.0

_log = logging.getLogger("llmkit")


class WarmUp:
    """Does the work once, in a daemon thread, as soon as nothing else was going on for a second.

    It begins only then, and so never takes time from a call that came first; once begun it cannot be stopped, and the
    end of the interpreter waits for it.

    Args:
        work: What to do. An error in it is only logged: whoever needs the work does it again, and sees the error.
        quiet_s: How long nothing may have been going on, in seconds.
    """

    def __init__(self, work: Callable[[], None], quiet_s: float = QUIET_S) -> None:
        self._work = work
        self._quiet_s = quiet_s
        self._is_cancelled = threading.Event()
        # A list, whose ends are safe to use from any thread: a lock could be held by another when a process is forked.
        self._going_on: list[None] = []
        self._quiet_since_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="llmkit-warm-up", daemon=True)

    def start(self) -> None:
        """Begin to wait for the quiet moment."""
        self._thread.start()

    def cancel(self) -> None:
        """Do not begin any more. Idempotent."""
        self._is_cancelled.set()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Something is going on meanwhile."""
        self._going_on.append(None)
        try:
            yield
        finally:
            self._going_on.pop()
            self._quiet_since_s = time.monotonic()

    def _run(self) -> None:
        while (wait_s := self._still_to_wait_s()) > 0:
            if self._is_cancelled.wait(wait_s):
                return
        # A daemon that is stopped in the middle of an import leaves its locks behind, and the end could hang on them.
        atexit.register(self._thread.join)
        try:
            self._work()
        except Exception as error:  # noqa: BLE001
            _log.debug("warm-up failed: %s", type(error).__name__)
        finally:
            atexit.unregister(self._thread.join)

    def _still_to_wait_s(self) -> float:
        if self._going_on:
            return self._quiet_s
        return self._quiet_since_s + self._quiet_s - time.monotonic()
