"""The runtime of a session, opened in the background by the first call."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llmkit.cleanup import start_reaper
from llmkit.errors import LLMError
from llmkit.notebook.event_loop import INHERITED, STARTING, Interrupted, run_aside
from llmkit.notebook.preload import Preload
from llmkit.notebook.status_line import wait_aside
from llmkit.settings import LLMSettings

if TYPE_CHECKING:
    from llmkit.bootstrap import Runtime

__all__ = ["LazyRuntime"]


class LazyRuntime:
    """The runtime, opened by the first call and again after a fork or a failure.

    Opening reads files and imports much, so it runs in its own thread: no event loop waits for it, and Ctrl-C cannot
    break an import off. Litellm, which takes seconds, is loaded before, in a quiet moment (`LLM_WARM_UP`).

    Args:
        settings: Settings of every part.
        replay: A cassette that answers instead of providers.
    """

    def __init__(self, settings: LLMSettings, replay: Path | None = None) -> None:
        self._settings = settings
        self._replay = replay
        # Reentrant, because a signal handler that makes a call may interrupt the holder in the same thread.
        self._lock = threading.RLock()
        self._is_starting = False
        self._opening: Future[Runtime] | None = None
        self._pid = os.getpid()
        self._preload = Preload(partial(_load_client, settings))
        if settings.warm_up and replay is None:
            start_reaper()
            self._preload.start()

    def open(self) -> Runtime:
        """Return the open runtime; wait for it if it is not open yet.

        Raises:
            LLMError: It cannot be opened; the next call tries again.
            Interrupted: The caller was interrupted while it waited.
        """
        opening = self.start_opening()
        try:
            return wait_aside(opening)
        except KeyboardInterrupt:
            raise Interrupted("nothing was sent; llmkit goes on opening in the background") from None
        except Exception:
            self.forget_failed(opening)
            raise

    async def open_async(self) -> None:
        """Open the runtime without blocking the running loop; raises as `open`."""
        opening = self.start_opening()
        try:
            await asyncio.wrap_future(opening)
        except BaseException:
            self.forget_failed(opening)
            raise

    def start_opening(self) -> Future[Runtime]:
        """Return the opening, whether in progress or done; start it if needed.

        Raises:
            LLMError: No thread can be started, or a signal handler calls while its own thread is starting one.
        """
        with self._lock:
            if not self.is_own_process:
                # The parent's database connections must not be used here, nor be closed by the garbage collector.
                INHERITED.append(self._opening)
                self._opening, self._pid = None, os.getpid()
            if self._opening is None:
                if self._is_starting:
                    raise LLMError(STARTING)
                self._is_starting = True
                try:
                    start_reaper()
                    self._opening = run_aside(partial(_open_runtime, self._settings, self._replay))
                finally:
                    self._is_starting = False
            return self._opening

    def forget_failed(self, opening: Future[Runtime]) -> None:
        """Let the next call try again if this opening has failed."""
        with self._lock:
            if self._opening is opening and opening.done() and opening.exception() is not None:
                self._opening = None

    def mark_busy(self) -> AbstractContextManager[None]:
        """Keep the preload from starting while a call is in progress."""
        return self._preload.mark_busy()

    @property
    def is_open(self) -> bool:
        """Whether the runtime is open in this process."""
        opening = self._opening
        return self.is_own_process and opening is not None and opening.done() and opening.exception() is None

    @property
    def is_own_process(self) -> bool:
        """Whether this process is the one that opened the runtime, not a forked child of it."""
        return self._pid == os.getpid()

    def detach(self) -> Runtime | None:
        """Give up the runtime, for the caller to close; None when none is open.

        One that is still being opened closes itself when it is: no call has used it, and waiting could take seconds.
        """
        self._preload.cancel()
        with self._lock:
            opening, self._opening = self._opening, None
        if opening is None or not self.is_own_process:
            return None
        if not opening.done():
            opening.add_done_callback(_close_unused)
            return None
        return None if opening.exception() is not None else opening.result()


def _close_unused(opening: Future[Runtime]) -> None:
    if opening.exception() is None:
        asyncio.run(opening.result().close())


def _open_runtime(settings: LLMSettings, replay: Path | None) -> Runtime:
    from llmkit.bootstrap import open_runtime

    return open_runtime(settings, replay)


def _load_client(settings: LLMSettings) -> None:
    from llmkit.bootstrap import preload

    preload(settings)
