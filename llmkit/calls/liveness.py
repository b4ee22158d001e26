"""Liveness of the process behind an unfinished call.

On the same machine and boot the process table knows, at once and for certain. For any other machine a call counts as
dead when its heartbeat has been silent for the configured time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from uuid import UUID

from llmkit.batch.task_guard import start_session_task

__all__ = ["Heartbeat", "Listener", "current_owner", "is_alive", "is_on_this_machine", "looks_abandoned"]

BEATS_PER_LIMIT = 4


def current_owner() -> str:
    """Name of this process that no other process has ever had: machine, boot and process namespace, id, start time."""
    return _owner(os.getpid())


@lru_cache(maxsize=4)
def _owner(pid: int) -> str:
    return f"{_world()}|{pid}|{_start_time(pid)}"


@lru_cache(maxsize=1)
def _world() -> str:
    """Return the scope in which a process id is unique: this boot of this machine, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}|{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        import psutil

        return f"{platform.node()}|{psutil.boot_time():.0f}"


def _start_time(pid: int) -> str | None:
    """Return the start of the process, in the kernel's own ticks where it has them: the wall clock may be set."""
    if not Path("/proc/self/stat").exists():
        return _start_time_without_proc(pid)
    try:
        found = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in the second field may contain anything, so counting begins behind it.
    state, *others = found.rpartition(")")[2].split()
    return None if state == "Z" else others[18]


def _start_time_without_proc(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def is_alive(owner: str) -> bool | None:
    """Return whether the owner's process lives; None when it cannot be known from here.

    That is so on another machine, after another boot, and where another user's processes are hidden.
    """
    world, _, process = owner.rpartition("|")[0].rpartition("|")
    started = owner.rpartition("|")[2]
    if world != _world() or not process.isdigit():
        return None
    found = _start_time(int(process))
    return None if found is None and _is_hidden(int(process)) else found == started


def is_on_this_machine(owner: str) -> bool:
    """Return whether the owner is, or was, a process of this machine since it was booted."""
    return owner.rpartition("|")[0].rpartition("|")[0] == _world()


def _is_hidden(pid: int) -> bool:
    """Return whether the process exists as another user's although /proc hides it (`hidepid`)."""
    if os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def looks_abandoned(owner: str, heartbeat_at_utc: datetime, limit_s: float, now_utc: datetime) -> bool:
    """Return whether an unfinished call has no process behind it any more.

    Args:
        owner: Who carries the call, from `current_owner()`.
        heartbeat_at_utc: Last sign of life.
        limit_s: Longest silence of a live process that cannot be looked up, in seconds.
        now_utc: The present, by the clock that `heartbeat_at_utc` is of: that of the database, never this machine's.
    """
    alive = is_alive(owner)
    if alive is not None:
        return not alive
    return (now_utc - heartbeat_at_utc).total_seconds() > limit_s


class Listener:
    """Observer of the heartbeat of a run that a caller waits for.

    By the steady clock of the waiting process: a clock that was set back, or that differs, makes none wait longer.

    Args:
        limit_s: Longest silence, in seconds.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._heard: tuple[UUID, datetime] | None = None
        self._heard_s = 0.0

    def is_silent(self, run_id: UUID, heartbeat_at_utc: datetime) -> bool:
        """Return whether the run's last sign of life has been the same one for too long."""
        now_s = time.monotonic()
        if self._heard != (run_id, heartbeat_at_utc):
            self._heard, self._heard_s = (run_id, heartbeat_at_utc), now_s
        return now_s - self._heard_s > self._limit_s


class Heartbeat:
    """Tells the store now and then that the calls in flight are alive. Short calls cost nothing.

    Each event loop beats for its own calls, so one that ends, or stays behind in a fork, silences no other.

    Args:
        beat: Called with the ids in flight.
        interval_s: Seconds between two beats.
    """

    def __init__(self, beat: Callable[[Sequence[UUID]], Awaitable[None]], interval_s: float) -> None:
        self._beat = beat
        self._interval_s = interval_s
        self._pulses: dict[asyncio.AbstractEventLoop, _Pulse] = {}

    def begin(self, run_id: UUID) -> None:
        """Keep the run's heart beating from now on."""
        loop = asyncio.get_running_loop()
        pulse = self._pulses.get(loop)
        if pulse is None:
            pulse = self._pulses[loop] = _Pulse(loop, self._beat, self._interval_s)
        pulse.in_flight.add(run_id)

    def end(self, run_id: UUID) -> None:
        """Let it rest, if it beats."""
        loop = asyncio.get_running_loop()
        pulse = self._pulses.get(loop)
        if pulse is None:
            return
        pulse.in_flight.discard(run_id)
        if not pulse.in_flight:
            self._pulses.pop(loop).stop()


class _Pulse:
    """The heartbeat of one event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        beat: Callable[[Sequence[UUID]], Awaitable[None]],
        interval_s: float,
    ) -> None:
        self.in_flight: set[UUID] = set()
        self._loop = loop
        self._beat = beat
        self._interval_s = interval_s
        self._beating: asyncio.Task[None] | None = None
        self._timer = loop.call_later(interval_s, self._tick)

    def stop(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._interval_s, self._tick)
        if self._beating is None or self._beating.done():
            self._beating = start_session_task(self._send(), self._loop)

    async def _send(self) -> None:
        # A missed beat is no reason to disturb a call; the next one may get through.
        from llmkit.errors import LLMStoreError

        with contextlib.suppress(LLMStoreError):
            await self._beat(tuple(self.in_flight))
