"""The event-loop thread between sync and async code."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from llmkit.errors import LLMConfigurationError, LLMError
from llmkit.notebook.event_loop import Interrupted, LoopThread, run_aside


@pytest.fixture
def loop() -> LoopThread:
    thread = LoopThread()
    yield thread
    thread.stop()


def _beside(work: Callable[[], object]) -> Future[object]:
    """Work in a thread that nobody waits for if it never ends."""
    outcome: Future[object] = Future()

    def do() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            outcome.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    return outcome


async def _value(value: object) -> object:
    await asyncio.sleep(0)
    return value


def test_runs_from_a_script(loop: LoopThread) -> None:
    assert loop.run(_value(3)) == 3


async def test_runs_inside_a_running_loop_both_ways(loop: LoopThread) -> None:
    assert loop.run(_value(3)) == 3
    assert await loop.run_async(_value(4)) == 4


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


def test_errors_are_raised_unchanged(loop: LoopThread) -> None:
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


async def test_a_waiting_loop_wakes_up_for_scheduled_callbacks(loop: LoopThread) -> None:
    # As ipykernel does: the handler only puts something on the loop, which wakes nobody.
    waiting = asyncio.create_task(loop.run_async(asyncio.sleep(60)))
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


async def test_repeated_waiting_leaves_no_timers(loop: LoopThread) -> None:
    mine = asyncio.get_running_loop()
    for _ in range(20):
        await asyncio.gather(*(loop.run_async(_value(1)) for _ in range(3)))
    assert [each for each in mine._scheduled if "_beat" in repr(each) and not each.cancelled()] == []


def test_run_aside_is_not_interrupted_with_its_caller() -> None:
    goes_on, ended = threading.Event(), threading.Event()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        goes_on.wait(60)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        run_aside(work).result()
    goes_on.set()
    assert ended.wait(60)


def test_an_interruption_describes_the_state_of_the_work(loop: LoopThread) -> None:
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

    task = asyncio.create_task(loop.run_async(work()))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.wait(60)


def test_a_sync_call_inside_the_loop_is_refused(loop: LoopThread) -> None:
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


def test_system_exit_reaches_only_its_own_caller(loop: LoopThread) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    async def another() -> object:
        begun.set()
        await asyncio.to_thread(goes_on.wait, 60)
        return 1

    async def leave() -> None:
        raise SystemExit(3)

    other = _beside(lambda: loop.run(another()))
    assert begun.wait(60)
    with pytest.raises(SystemExit):
        _beside(lambda: loop.run(leave())).result(60)
    goes_on.set()
    assert other.result(60) == 1
    assert loop.run(_value(2)) == 2


async def test_closing_raises_an_error_in_async_callers_and_does_not_cancel_them(loop: LoopThread) -> None:
    waiting = asyncio.create_task(loop.run_async(asyncio.sleep(60)))
    await loop.run_async(_value(1))
    await asyncio.to_thread(loop.stop)
    with pytest.raises(LLMError, match="closed during this call"):
        await waiting


def test_a_call_submitted_during_stop_ends(loop: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    handing_over, is_stopping = threading.Event(), threading.Event()

    class SlowToTake(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, callback, *args, **kwargs):
            if not handing_over.is_set():
                handing_over.set()
                is_stopping.wait(60)
                time.sleep(0.2)  # in which the loop would end, if it could
            return super().call_soon_threadsafe(callback, *args, **kwargs)

    monkeypatch.setattr(asyncio, "new_event_loop", SlowToTake)
    call = _beside(lambda: loop.run(asyncio.sleep(60)))
    assert handing_over.wait(60)
    is_stopping.set()
    loop.stop()
    with pytest.raises(LLMError, match="closed during this call"):
        call.result(60)


def test_a_failed_thread_start_is_retried_by_the_next_call(loop: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", no_more)
        with pytest.raises(LLMError, match="start new thread"):
            loop.run(_value(1))
    assert _beside(lambda: loop.run(_value(2))).result(60) == 2


@pytest.mark.parametrize("later", [False, True])
def test_work_that_stops_the_loop_ends_nothing(loop: LoopThread, later: bool) -> None:
    async def stop() -> str:
        running = asyncio.get_running_loop()
        if later:
            running.call_soon(running.stop)
        else:
            running.stop()
        await asyncio.sleep(0.01)
        return "done"

    assert _beside(lambda: loop.run(stop())).result(timeout=30) == "done"
    assert _beside(lambda: loop.run(_value(3))).result(timeout=30) == 3
