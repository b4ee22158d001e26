"""Whether the process behind an unfinished call still lives.

On the same machine and boot the process table knows, at once and for certain. For any other machine a call counts as
dead when its heartbeat has been silent for the configured time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from uuid import UUID

from llmkit.types import utc_now

__all__ = ["Heartbeat", "current_owner", "is_alive", "looks_abandoned"]

BEATS_PER_LIMIT = 4


def current_owner() -> str:
    """Name of this process that no other process has ever had: machine, boot and process namespace, id, start time."""
    return _owner(os.getpid())


@lru_cache(maxsize=4)
def _owner(pid: int) -> str:
    return f"{_world()}|{pid}|{_start_time(pid)}"


@lru_cache(maxsize=1)
def _world() -> str:
    """Where a process id means something: this boot of this machine, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}|{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        import psutil

        return f"{platform.node()}|{psutil.boot_time():.0f}"


def _start_time(pid: int) -> str | None:
    """When the process started, in the kernel's own ticks where it has them: the wall clock may be set."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        ticks = Path(f"/proc/{pid}/stat")
        if ticks.exists():
            return ticks.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        return f"{process.create_time():.2f}"
    except (psutil.Error, OSError):
        return None


def is_alive(owner: str) -> bool | None:
    """Whether the owner's process lives; None when it cannot be known from here (another machine, an earlier boot)."""
    world, _, process = owner.rpartition("|")[0].rpartition("|")
    started = owner.rpartition("|")[2]
    if world != _world() or not process.isdigit():
        return None
    return _start_time(int(process)) == started


def looks_abandoned(owner: str, heartbeat_at_utc: datetime, limit_s: float, now_utc: datetime | None = None) -> bool:
    """Whether an unfinished call has no process behind it any more.

    Args:
        owner: Who carries the call, from `current_owner()`.
        heartbeat_at_utc: Last sign of life.
        limit_s: Longest silence of a live process that cannot be looked up, in seconds.
        now_utc: The present; for tests.
    """
    alive = is_alive(owner)
    if alive is not None:
        return not alive
    return ((now_utc or utc_now()) - heartbeat_at_utc).total_seconds() > limit_s


class Heartbeat:
    """Tells the store now and then that the calls in flight are alive. Short calls cost nothing.

    Args:
        beat: Called with the ids in flight and the time.
        interval_s: Seconds between two beats.
    """

    def __init__(self, beat: Callable[[Sequence[UUID], datetime], Awaitable[None]], interval_s: float) -> None:
        self._beat = beat
        self._interval_s = interval_s
        self._in_flight: set[UUID] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def alive(self, run_id: UUID) -> Iterator[None]:
        """Keep the run's heart beating inside the block."""
        self._in_flight.add(run_id)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._tick)
        try:
            yield
        finally:
            self._in_flight.discard(run_id)
            if not self._in_flight and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._interval_s, self._tick)
        if self._beating is None or self._beating.done():
            self._beating = loop.create_task(self._send())

    async def _send(self) -> None:
        # A missed beat is no reason to disturb a call; the next one may get through.
        from llmkit.errors import LLMStoreError

        with contextlib.suppress(LLMStoreError):
            await self._beat(tuple(self._in_flight), utc_now())
