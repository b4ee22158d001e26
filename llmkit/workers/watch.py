"""The driver's loop: it starts the jobs, follows the store until all is done, and stops the jobs when it is stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from llmkit.errors import LLMError, LLMStoreError
from llmkit.workers.contribution import STOPPED_CODE, Contribution
from llmkit.workers.engine import Engine, JobEnd, JobFunction

__all__ = ["Standing", "Watched", "watch_jobs"]

# Seconds between two looks at the jobs, and at least between two looks at the store, of which each reads more rows the
# further the work is: at most this share of the time goes into it.
POLL_S = 0.1
LOOK_S = 0.5
SHARE_OF_LOOKING = 0.02
# Longest time between two looks, as a share of the time since the beginning.
MOST_BLIND = 0.1
# A store may be away for so long, for example while its server is started again.
MOST_AWAY_S = 300.0
RESTART_PAUSE_S = 2.0
# Jobs see that all is done within seconds of each other; one that has not begun never needs to.
FINISH_WAIT_S = 10.0
STOP_WAIT_S = 5.0


class Standing(NamedTuple):
    """How far the work is: a number that grows with it, and whether all of it is done."""

    progress: int
    is_complete: bool


@dataclass(slots=True)
class Watched:
    """How the jobs ended.

    Attributes:
        contributions: Of the jobs that returned.
        losses: Why other jobs did not, in words.
    """

    contributions: list[Contribution] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)

    @property
    def joined(self) -> list[Contribution]:
        """Those that took part: to the end, or until they were asked to stop."""
        return [each for each in self.contributions if each.error is None or each.has_called]

    @property
    def idle(self) -> int:
        """Number of jobs that were asked to stop before they had done anything."""
        stopped = [each for each in self.contributions if each.error is not None and each.error[0] == STOPPED_CODE]
        return sum(not each.has_called for each in stopped)

    @property
    def refusals(self) -> list[str]:
        """Messages of the others, each once. One that was asked to stop, as all is done, has refused nothing."""
        errors = [each.error for each in self.contributions if each.error is not None]
        return list(dict.fromkeys(message for code, message in errors if code != STOPPED_CODE))

    def note(self, end: JobEnd) -> Contribution | None:
        """Take note of the end of a job; return its contribution, None for a job that was lost."""
        if end.result is None:
            self.losses.append(end.reason)
            return None
        try:
            contribution = Contribution.read(end.result)
        except ValueError:
            self.losses.append("its engine returned something else than its job")
            return None
        self.contributions.append(contribution)
        return contribution


async def watch_jobs(
    engine: Engine,
    function: JobFunction,
    parcel: bytes,
    *,
    look: Callable[[], Awaitable[Standing]],
    mark_stopped: Callable[[], Awaitable[None]],
) -> Watched:
    """Start a job on each worker and wait until all work is done, or no job is left.

    Args:
        engine: Starts the jobs. It is closed at the end.
        function: The job.
        parcel: Its argument.
        look: Reads from the store how far the work is.
        mark_stopped: Tells the workers through the store that this call was stopped.

    Raises:
        LLMConfigurationError: The engine takes no jobs.
        LLMStoreError: The store was away for too long.
    """
    watch = _Watch(engine, look)
    is_finished = False
    try:
        await asyncio.to_thread(engine.start, function, parcel)
        await watch.run()
        is_finished = True
    finally:
        if not is_finished:
            # First the mark, which reaches all workers; an engine may be unable to cancel.
            await asyncio.shield(_try_to(mark_stopped))
        wait_s = FINISH_WAIT_S if is_finished else STOP_WAIT_S
        closing = asyncio.to_thread(engine.close, wait_s=wait_s, is_finished=is_finished)
        for end in await asyncio.shield(closing):
            if end.result is not None:
                watch.watched.note(end)
        if is_finished:
            # A job that an engine starts only now has no caller any more.
            await _try_to(mark_stopped)
    return watch.watched


async def _try_to(mark_stopped: Callable[[], Awaitable[None]]) -> None:
    try:
        await mark_stopped()
    except LLMError:  # without the store no worker can go on for long either
        return


class _Watch:
    """The state of the loop."""

    def __init__(self, engine: Engine, look: Callable[[], Awaitable[Standing]]) -> None:
        self.watched = Watched()
        self._engine = engine
        self._look = look
        self._standing = Standing(0, is_complete=False)
        self._began_s = time.monotonic()
        self._look_at_s = 0.0
        self._heard_s = time.monotonic()
        self._restarts: list[float] = []

    async def run(self) -> None:
        while True:
            is_complete = False
            for end in await asyncio.to_thread(self._engine.poll, self._standing.progress):
                contribution = self.watched.note(end)
                is_complete |= contribution is not None and contribution.is_complete
                if contribution is not None and contribution.error is not None:
                    self._plan_restart(contribution.error[0])
            await self._look_at_store()
            if is_complete or self._standing.is_complete or not (self._engine.running or self._restarts):
                return
            if self._restarts:
                await asyncio.to_thread(self._restart_due)
            await asyncio.sleep(POLL_S)

    def _plan_restart(self, code: str) -> None:
        # A worker whose store was away ends; when the store is back, another job takes its place.
        if code == LLMStoreError.code and time.monotonic() - self._heard_s < MOST_AWAY_S:
            self._restarts.append(time.monotonic() + RESTART_PAUSE_S)

    def _restart_due(self) -> None:
        now_s = time.monotonic()
        due = [at_s for at_s in self._restarts if at_s <= now_s]
        self._restarts = [at_s for at_s in self._restarts if at_s > now_s]
        for _ in due:
            self._engine.restart()

    async def _look_at_store(self) -> None:
        began_s = time.monotonic()
        if began_s < self._look_at_s:
            return
        try:
            self._standing = await self._look()
            self._heard_s = time.monotonic()
        except LLMStoreError:
            if time.monotonic() - self._heard_s > MOST_AWAY_S:
                raise
        now_s = time.monotonic()
        # One look is slow while workers start or the store is busy; it must not hide the beginning.
        longest_s = (now_s - self._began_s) * MOST_BLIND
        self._look_at_s = now_s + max(LOOK_S, min((now_s - began_s) / SHARE_OF_LOOKING, longest_s))
