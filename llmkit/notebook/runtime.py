"""What a session holds open, and what every part of its face rests on."""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmkit.notebook.event_loop import CANCEL_GRACE_S, INHERITED, Interrupted, LoopThread, aside
from llmkit.notebook.preload import WarmUp
from llmkit.settings import LLMSettings

if TYPE_CHECKING:
    import pandas as pd

    from llmkit.bootstrap import Runtime
    from llmkit.evals import EvalReport

__all__ = ["Face", "Opened"]

T = TypeVar("T")


class Opened:
    """What a session holds open; apart from it, so that it can be closed when the session is forgotten."""

    def __init__(self, settings: LLMSettings, replay: Path | None = None) -> None:
        self._settings = settings
        self._replay = replay
        self._lock = threading.Lock()
        self._loop = LoopThread()
        self._opening: Future[Runtime] | None = None
        self._pid = os.getpid()
        self._warm_up = WarmUp(partial(_warm_up, settings))
        if settings.warm_up and replay is None:
            self._warm_up.start()

    def run(self, work: Coroutine[Any, Any, T], tick: Callable[[], None] | None = None) -> T:
        """Run work to its end, from sync code; `tick` draws while it waits."""
        with self._warm_up.busy():
            try:
                self.runtime()
            except BaseException:
                work.close()
                raise
            return self._loop.run(work, tick)

    async def hop(self, work: Coroutine[Any, Any, T], tick: Callable[[], None] | None = None) -> T:
        """The same from async code."""
        with self._warm_up.busy():
            opening = self._opened()
            try:
                await asyncio.wrap_future(opening)
            except BaseException:
                work.close()
                self._forget_failed(opening)
                raise
            return await self._loop.hop(work, tick)

    def runtime(self) -> Runtime:
        """The parts, opened with the first call."""
        opening = self._opened()
        try:
            return opening.result()
        except KeyboardInterrupt:
            raise Interrupted("nothing was sent; llmkit goes on opening in the background") from None
        except Exception:
            self._forget_failed(opening)
            raise

    def _opened(self) -> Future[Runtime]:
        """The opening, under way or done. It reads files, which no event loop should wait for."""
        with self._lock:
            if self._pid != os.getpid():  # a forked child opens its own
                INHERITED.append(self._opening)
                self._opening, self._pid = None, os.getpid()
            if self._opening is None:
                self._opening = aside(partial(_opened, self._settings, self._replay))
            return self._opening

    def _forget_failed(self, opening: Future[Runtime]) -> None:
        """So that the next call tries again."""
        with self._lock:
            if self._opening is opening and opening.done() and opening.exception() is not None:
                self._opening = None

    def close(self) -> None:
        """Finish what is written and release everything. Idempotent."""
        self._warm_up.cancel()
        with self._lock:
            opening, self._opening = self._opening, None
        if self._pid != os.getpid():
            return
        if opening is not None and opening.exception() is None:
            self._loop.run(_end(opening.result()))
        self._loop.stop()


def _opened(settings: LLMSettings, replay: Path | None) -> Runtime:
    from llmkit.bootstrap import open_runtime

    return open_runtime(settings, replay)


def _warm_up(settings: LLMSettings) -> None:
    from llmkit.bootstrap import warm_up

    warm_up(settings)


async def _end(runtime: Runtime) -> None:
    """Cancel the calls in flight, which still records what they had sent, and only then close what they record in."""
    calls = asyncio.all_tasks() - {asyncio.current_task()}
    for call in calls:
        call.cancel()
    if calls:
        await asyncio.wait(calls, timeout=CANCEL_GRACE_S)
    await runtime.close()


class Face(ABC):
    """What every part of a session rests on."""

    _open: Opened
    _settings: LLMSettings
    _partial: pd.DataFrame | EvalReport | None = None

    @property
    @abstractmethod
    def workspace(self) -> str:
        """Name of the workspace."""

    @property
    def partial(self) -> pd.DataFrame | EvalReport | None:
        """What the last `map` or `evaluate` had done when it was interrupted; None when it was not."""
        return self._partial
