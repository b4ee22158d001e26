"""The door between sync and async."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest

from llmkit.errors import LLMConfigurationError
from llmkit.loop_thread import Interrupted, LoopThread, aside


@pytest.fixture
def loop() -> LoopThread:
    thread = LoopThread()
    yield thread
    thread.stop()


async def _value(value: object) -> object:
    await asyncio.sleep(0)
    return value


def test_runs_from_a_script(loop: LoopThread) -> None:
    assert loop.run(_value(3)) == 3


async def test_runs_inside_a_running_loop_both_ways(loop: LoopThread) -> None:
    assert loop.run(_value(3)) == 3
    assert await loop.hop(_value(4)) == 4


def test_runs_from_many_threads_on_one_loop(loop: LoopThread) -> None:
    loops: list[object] = []

    async def where() -> None:
        loops.append(asyncio.get_running_loop())

    threads = [threading.Thread(target=lambda: loop.run(where())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loops) == 8
    assert len(set(map(id, loops))) == 1


def test_an_error_comes_out_as_it_is(loop: LoopThread) -> None:
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        loop.run(fail())


def test_an_interrupt_cancels_the_work_and_waits_for_its_record(loop: LoopThread) -> None:
    seen: list[str] = []

    async def work() -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            seen.append("recorded")
            raise

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        loop.run(work())
    assert seen == ["recorded"]
    assert time.monotonic() - started < 25


async def test_a_waiting_loop_turns_so_that_what_a_signal_puts_on_it_is_done(loop: LoopThread) -> None:
    # As ipykernel does: the handler only puts something on the loop, which wakes nobody.
    waiting = asyncio.create_task(loop.hop(asyncio.sleep(60)))
    mine = asyncio.get_running_loop()
    before = signal.signal(signal.SIGUSR1, lambda *_: mine.call_soon(waiting.cancel))
    started = time.monotonic()
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert time.monotonic() - started < 50


async def test_waiting_again_and_again_leaves_no_timers_behind(loop: LoopThread) -> None:
    mine = asyncio.get_running_loop()
    for _ in range(20):
        await asyncio.gather(*(loop.hop(_value(1)) for _ in range(3)))
    assert [each for each in mine._scheduled if "_beat" in repr(each) and not each.cancelled()] == []


def test_work_aside_is_not_interrupted_with_its_caller() -> None:
    goes_on, ended = threading.Event(), threading.Event()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        goes_on.wait(60)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        aside(work).result()
    goes_on.set()
    assert ended.wait(60)


def test_an_interrupted_caller_is_told_what_became_of_the_work(loop: LoopThread) -> None:
    async def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)

    with pytest.raises(Interrupted, match="cancelled"):
        loop.run(work())


async def test_cancelling_an_async_caller_cancels_the_work(loop: LoopThread) -> None:
    ended = threading.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    task = asyncio.create_task(loop.hop(work()))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.wait(60)


def test_a_sync_call_inside_the_loop_is_refused_instead_of_hanging(loop: LoopThread) -> None:
    async def inside() -> None:
        loop.run(_value(1))

    with pytest.raises(LLMConfigurationError, match="await"):
        loop.run(inside())


def test_starts_again_after_stop_and_stop_is_idempotent(loop: LoopThread) -> None:
    loop.run(_value(1))
    loop.stop()
    loop.stop()
    assert loop.run(_value(2)) == 2


def test_works_in_a_forked_child(loop: LoopThread) -> None:
    loop.run(_value(1))
    pid = os.fork()
    if pid == 0:
        os._exit(loop.run(_value(7)))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
