"""The door: in order, and no place lost."""

from __future__ import annotations

import asyncio
import random

from llmkit.transport.limits.resizable_semaphore import Gate


async def _settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_first_come_first_served():
    gate, order = Gate(lambda: 2), []

    async def visit(number: int) -> None:
        await gate.enter()
        order.append(number)
        await asyncio.sleep(0)
        gate.leave()

    await asyncio.gather(*(visit(number) for number in range(20)))
    assert order == list(range(20))
    assert (gate.inside, gate.waiting) == (0, 0)


async def test_a_newcomer_does_not_overtake_those_who_wait():
    limit = [1]
    gate = Gate(lambda: limit[0])
    await gate.enter()
    waiting = asyncio.create_task(gate.enter())
    await _settle()
    limit[0] = 2  # nobody was told yet
    newcomer = asyncio.create_task(gate.enter())
    await _settle()
    assert waiting.done()
    assert not newcomer.done()
    gate.leave()
    await newcomer
    assert gate.inside == 2


async def test_who_is_to_be_first_is_next():
    gate, order = Gate(lambda: 1), []

    async def visit(name: str, *, first: bool) -> None:
        await gate.enter(first=first)
        order.append(name)
        gate.leave()

    await gate.enter()
    tasks = [asyncio.create_task(visit(name, first=name == "c")) for name in "abc"]
    await _settle()
    gate.leave()
    await asyncio.gather(*tasks)
    assert order == ["c", "a", "b"]


async def test_a_lower_limit_lets_those_inside_finish():
    limit = [3]
    gate = Gate(lambda: limit[0])
    for _ in range(3):
        await gate.enter()
    limit[0] = 1
    waiting = asyncio.create_task(gate.enter())
    for expected in (2, 1):
        gate.leave()
        await _settle()
        assert (gate.inside, waiting.done()) == (expected, False)
    gate.leave()
    await waiting
    assert gate.inside == 1


async def test_cancelled_at_any_moment_nobody_loses_a_place():
    rng, gate = random.Random(7), Gate(lambda: 3)
    most = 0

    async def visit() -> None:
        nonlocal most
        await gate.enter()
        try:
            most = max(most, gate.inside)
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
        finally:
            gate.leave()

    tasks: list[asyncio.Task[None]] = []
    for _ in range(600):
        tasks.append(asyncio.create_task(visit()))
        if rng.random() < 0.6:
            rng.choice(tasks).cancel()
        if rng.random() < 0.4:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    assert (gate.inside, gate.waiting) == (0, 0)
    async with asyncio.timeout(60):
        await gate.enter()


async def test_cancelled_waiters_do_not_stand_in_the_way_of_the_next():
    gate = Gate(lambda: 1)
    await gate.enter()
    waiting = [asyncio.create_task(gate.enter()) for _ in range(5)]
    await _settle()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    gate.leave()
    async with asyncio.timeout(60):
        await gate.enter()
    assert gate.inside == 1
