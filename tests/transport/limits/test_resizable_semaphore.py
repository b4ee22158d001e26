"""The door: in order, and no place lost."""

from __future__ import annotations

import asyncio
import random

from llmkit.transport.limits.resizable_semaphore import ResizableSemaphore


async def _settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_first_come_first_served():
    semaphore, order = ResizableSemaphore(lambda: 2), []

    async def visit(number: int) -> None:
        await semaphore.enter()
        order.append(number)
        await asyncio.sleep(0)
        semaphore.leave()

    await asyncio.gather(*(visit(number) for number in range(20)))
    assert order == list(range(20))
    assert (semaphore.inside, semaphore.waiting) == (0, 0)


async def test_a_newcomer_does_not_overtake_those_who_wait():
    limit = [1]
    semaphore = ResizableSemaphore(lambda: limit[0])
    await semaphore.enter()
    waiting = asyncio.create_task(semaphore.enter())
    await _settle()
    limit[0] = 2  # nobody was told yet
    newcomer = asyncio.create_task(semaphore.enter())
    await _settle()
    assert waiting.done()
    assert not newcomer.done()
    semaphore.leave()
    await newcomer
    assert semaphore.inside == 2


async def test_who_is_to_be_first_is_next():
    semaphore, order = ResizableSemaphore(lambda: 1), []

    async def visit(name: str, *, first: bool) -> None:
        await semaphore.enter(first=first)
        order.append(name)
        semaphore.leave()

    await semaphore.enter()
    tasks = [asyncio.create_task(visit(name, first=name == "c")) for name in "abc"]
    await _settle()
    semaphore.leave()
    await asyncio.gather(*tasks)
    assert order == ["c", "a", "b"]


async def test_a_lower_limit_lets_those_inside_finish():
    limit = [3]
    semaphore = ResizableSemaphore(lambda: limit[0])
    for _ in range(3):
        await semaphore.enter()
    limit[0] = 1
    waiting = asyncio.create_task(semaphore.enter())
    for expected in (2, 1):
        semaphore.leave()
        await _settle()
        assert (semaphore.inside, waiting.done()) == (expected, False)
    semaphore.leave()
    await waiting
    assert semaphore.inside == 1


async def test_cancelled_at_any_moment_nobody_loses_a_place():
    rng, semaphore = random.Random(7), ResizableSemaphore(lambda: 3)
    most = 0

    async def visit() -> None:
        nonlocal most
        await semaphore.enter()
        try:
            most = max(most, semaphore.inside)
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
        finally:
            semaphore.leave()

    tasks: list[asyncio.Task[None]] = []
    for _ in range(600):
        tasks.append(asyncio.create_task(visit()))
        if rng.random() < 0.6:
            rng.choice(tasks).cancel()
        if rng.random() < 0.4:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    assert (semaphore.inside, semaphore.waiting) == (0, 0)
    async with asyncio.timeout(60):
        await semaphore.enter()


async def test_cancelled_waiters_do_not_stand_in_the_way_of_the_next():
    semaphore = ResizableSemaphore(lambda: 1)
    await semaphore.enter()
    waiting = [asyncio.create_task(semaphore.enter()) for _ in range(5)]
    await _settle()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    semaphore.leave()
    async with asyncio.timeout(60):
        await semaphore.enter()
    assert semaphore.inside == 1
