"""Limits per minute that several processes share: in simulated time, with deaths, outages and clocks that differ."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from llmkit.errors import LLMStoreError
from llmkit.ports import WindowReply
from llmkit.transport.limits import leased_rates
from llmkit.transport.limits.leased_rates import LeasedRates
from llmkit.transport.limits.shared_pauses import SharedPauses
from llmkit.types import Route
from scripts.simulate_many_machines import Shape, simulate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmkit.ports import SpentBlock, WindowShare

ROUTE = Route.parse("gemini/x")


@pytest.mark.parametrize("seed", range(5))
def test_no_minute_has_more_than_the_limit(seed: int) -> None:
    shape = Shape()
    outcome = simulate(seed, shape)
    assert outcome.most_requests <= shape.limit
    # Of a whole minute too few are lost with those who die, and at the edges of blocks, to matter.
    assert outcome.requests > 0.85 * shape.limit * shape.seconds / 60


@pytest.mark.parametrize("seed", range(2))
def test_no_minute_has_more_tokens_than_the_limit(seed: int) -> None:
    outcome = simulate(seed, Shape(tokens=5_000))
    assert outcome.most_tokens <= 5_000
    assert outcome.requests > 100


class _ScriptedLeases:
    """Grants what is asked, until the store is away."""

    def __init__(self) -> None:
        self.is_away = False
        self.blocks: list[Sequence[WindowShare]] = []
        self.spent: list[SpentBlock] = []
        self.pause_s = 0.0
        self.reads = 0

    async def take_window(
        self, shares: Sequence[WindowShare], spent: Sequence[SpentBlock], valid_s: float
    ) -> WindowReply:
        del valid_s
        await asyncio.sleep(0)
        if self.is_away:
            raise LLMStoreError("away")
        self.spent.extend(spent)
        if not any(share.most for share in shares):
            return WindowReply(None, 0.0, 1)
        self.blocks.append(shares)
        return WindowReply(tuple(share.most for share in shares), 0.0, 1)

    async def read_pause_s(self, route: Route) -> float:
        assert route == ROUTE
        self.reads += 1
        return self.pause_s

    async def pause(self, route: Route, seconds: float) -> None:
        assert route == ROUTE
        self.pause_s = seconds


async def test_a_block_held_is_spent_while_the_store_is_away() -> None:
    leases = _ScriptedLeases()
    rates = LeasedRates(leases, "rate/x", 100, None, asyncio.get_running_loop().time)  # type: ignore[arg-type]
    waiting = [asyncio.create_task(rates.reserve(lambda: 0)) for _ in range(5)]
    for reservation in await asyncio.gather(*waiting[:4]):
        await reservation.confirm()
    leases.is_away = True
    await (await waiting[4]).confirm()
    with pytest.raises(LLMStoreError, match="away"):
        await asyncio.gather(*(rates.reserve(lambda: 0) for _ in range(3)))
    assert [share.most for share in leases.blocks[0]] == [5]


async def test_what_is_not_used_is_returned_at_the_end() -> None:
    leases = _ScriptedLeases()
    rates = LeasedRates(leases, "rate/x", 100, 1_000, asyncio.get_running_loop().time)  # type: ignore[arg-type]
    sent = await rates.reserve(lambda: 90)
    await sent.confirm()
    sent.settle(40)
    sent.release()
    given_up = await rates.reserve(lambda: 90)
    given_up.release()
    await rates.close()
    assert sorted(block.used for block in leases.spent) == [(0, 0), (1, 40)]


async def test_waiting_for_the_store_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leases, is_back = _ScriptedLeases(), asyncio.Event()
    take = leases.take_window

    async def wait(*wish: object) -> WindowReply:
        await is_back.wait()
        return await take(*wish)  # type: ignore[arg-type]

    monkeypatch.setattr(leases, "take_window", wait)
    monkeypatch.setattr(leased_rates, "WARN_AFTER_S", 0.0)
    rates = LeasedRates(leases, "rate/x", 100, None, asyncio.get_running_loop().time)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "llmkit.limits"):
        waiting = [asyncio.create_task(rates.reserve(lambda: 0)) for _ in range(3)]
        await asyncio.sleep(0.01)
        is_back.set()
        await asyncio.gather(*waiting)
    assert len(caplog.records) == 1


async def test_a_pause_of_another_process_is_waited_for_and_a_long_one_told() -> None:
    leases, slept, now_s = _ScriptedLeases(), [], [0.0]

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now_s[0] += seconds
        leases.pause_s = 0.0

    pauses = SharedPauses(leases, lambda: now_s[0], 60.0, sleep)  # type: ignore[arg-type]
    assert await pauses.wait(ROUTE) == 0.0
    assert await pauses.wait(ROUTE) == 0.0
    assert leases.reads == 1, "it is read once a second"
    now_s[0], leases.pause_s = 2.0, 10.0
    assert await pauses.wait(ROUTE) == 0.0
    assert 10 <= slept[0] <= 10.5
    pauses.begin(ROUTE, 3_600.0)
    assert await pauses.wait(ROUTE) == pytest.approx(3_600.0)
    await pauses.close()
    assert leases.pause_s == 3_600.0
