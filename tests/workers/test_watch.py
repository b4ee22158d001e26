"""The driver's loop: how often it looks into the store."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest

from llmkit.workers import watch
from llmkit.workers.engine import JobEnd, JobFunction
from llmkit.workers.watch import Standing, watch_jobs


class EndlessJob:
    """An `Engine` with a job that never ends; each poll takes a tenth of a second of a clock."""

    running = 1

    def __init__(self) -> None:
        self.now_s = 100.0

    def start(self, function: JobFunction, parcel: bytes) -> None: ...

    def restart(self) -> None: ...

    def poll(self, progress: int) -> list[JobEnd]:
        self.now_s += 0.1
        return []

    def close(self, *, wait_s: float, is_finished: bool) -> list[JobEnd]:
        return []


async def list_looks(monkeypatch: pytest.MonkeyPatch, took_s: dict[int, float], count: int) -> list[float]:
    """Return when the looks began, in seconds since the beginning; `took_s` has what some of them take."""
    engine, began_s = EndlessJob(), []
    monkeypatch.setattr(watch, "POLL_S", 0)
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: engine.now_s))

    async def look() -> Standing:
        began_s.append(engine.now_s - 100)
        engine.now_s += took_s.get(len(began_s), 0.001)
        return Standing(len(began_s), len(began_s) == count)

    async def mark_stopped() -> None: ...

    await watch_jobs(engine, bytes, b"", look=look, mark_stopped=mark_stopped)
    return began_s


async def test_one_slow_look_does_not_hide_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    looks_s = await list_looks(monkeypatch, {1: 0.3, 2: 0.2}, 8)
    assert max(b - a for a, b in pairwise(looks_s)) < 1.1


async def test_looks_of_a_long_run_take_a_small_share_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looks_s = await list_looks(monkeypatch, dict.fromkeys(range(1, 99), 0.3), 98)
    # In the last tenths of the run, one look of 0.3 s each 15 s.
    assert min(b - a for a, b in list(pairwise(looks_s))[-20:]) > 15
