"""Group commit: batches, waiters on several loops, cancellation, a dying writer, and closing."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from llmkit.errors import LLMStoreError
from llmkit.persistence import writer as writer_module
from llmkit.persistence.operations import Flush, InsertFinished, InsertStarted, MarkSucceeded
from llmkit.persistence.transaction_watch import WriteTransactionWatch
from llmkit.ports import KeyTaken
from tests.support.reaping import wait_for_reaper
from tests.support.repositories import JournalHome, journal_home
from tests.support.run_values import a_failure, a_start, a_success, new_id, served

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def home(sqlite_url: str) -> Iterator[JournalHome]:
    yield from journal_home(sqlite_url)


async def pair(home: JournalHome, **changes: Any) -> None:
    start = a_start(**changes)
    await home.repo.create_started(start)
    assert await home.repo.mark_succeeded(a_success(start.id))


async def test_concurrent_operations_share_transactions(home: JournalHome) -> None:
    with WriteTransactionWatch() as watch:
        await asyncio.gather(*[pair(home) for _ in range(100)])
    assert len(home.runs()) == len(home.attempts()) == 100
    assert watch.count < 50


async def test_each_operation_learns_its_own_outcome(database_url: str) -> None:
    with JournalHome(database_url) as home:
        starts = [a_start(idempotency_key=f"k{number % 7}") for number in range(60)]
        outcomes = await asyncio.gather(
            *[home.repo.create_started(start) for start in starts],
            home.repo.mark_succeeded(a_success(new_id())),
            return_exceptions=True,
        )
        stored = {run["id"] for run in home.runs()}
    assert len(stored) == 7
    for start, outcome in zip(starts, outcomes, strict=False):
        assert outcome is None if start.id in stored else isinstance(outcome, KeyTaken)
    assert outcomes[-1] is False


async def test_an_operation_that_the_database_refuses_fails_alone(database_url: str) -> None:
    bad = a_start(epoch=2**70)
    with JournalHome(database_url) as home:
        good = [a_start() for _ in range(5)]
        outcomes = await asyncio.gather(
            *[home.repo.create_started(start) for start in (*good, bad)], return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [type(None)] * 5 + [LLMStoreError]
        assert {run["id"] for run in home.runs()} == {start.id for start in good}


async def test_an_operation_that_cannot_be_written_down_fails_alone(home: JournalHome) -> None:
    good, bad = [a_start() for _ in range(5)], a_start(idempotency_key="half a \ud800 pair")
    outcomes = await asyncio.gather(
        *[home.repo.create_started(start) for start in (*good, bad)], return_exceptions=True
    )
    assert outcomes[:5] == [None] * 5
    with pytest.raises(LLMStoreError, match="idempotency_key contains a character that cannot be stored"):
        raise outcomes[5]
    assert {run["id"] for run in home.runs()} == {start.id for start in good}


def test_threads_with_loops_of_their_own(database_url: str) -> None:
    with JournalHome(database_url) as home:

        async def many() -> None:
            await asyncio.gather(*[pair(home) for _ in range(20)])

        threads = [threading.Thread(target=lambda: asyncio.run(many())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [run["status"] for run in home.runs()] == ["SUCCEEDED"] * 80


def test_one_loop_after_another(home: JournalHome) -> None:
    for _ in range(3):
        asyncio.run(pair(home))
    assert len(home.runs()) == 3


async def test_one_key_is_taken_once_whoever_races(database_url: str) -> None:
    with JournalHome(database_url) as first, JournalHome(database_url) as second:
        starts = [a_start(idempotency_key="k") for _ in range(20)]
        homes = [first, second] * 10
        outcomes = await asyncio.gather(
            *[home.repo.create_started(start) for home, start in zip(homes, starts, strict=True)],
            return_exceptions=True,
        )
        assert sum(outcome is None for outcome in outcomes) == 1
        assert sum(isinstance(outcome, KeyTaken) for outcome in outcomes) == 19


async def test_a_cancelled_callers_operation_happens(home: JournalHome) -> None:
    start = a_start()
    task = asyncio.ensure_future(home.repo.create_started(start))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # Handed over after it, so applied after it: the cancelled call can always be marked.
    assert await home.repo.mark_failed(a_failure(start.id, error_code="cancelled"))


async def test_creating_comes_before_marking_inside_a_batch(home: JournalHome) -> None:
    start = a_start()
    marked, created = await asyncio.gather(
        home.repo.mark_succeeded(a_success(start.id)), home.repo.create_started(start), return_exceptions=True
    )
    assert (marked, created) == (True, None)


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `Flush` that kills the writer's thread, as a bug would."""

    def die(*_args: object) -> list[Any]:
        raise SystemExit("a bug")

    monkeypatch.setattr(Flush, "apply_all", die)


@pytest.mark.usefixtures("dying")
async def test_a_dying_writer_tells_everybody_and_a_new_one_starts(home: JournalHome) -> None:
    starts = [a_start() for _ in range(5)]
    outcomes = await asyncio.gather(
        home.journal.flush(), *[home.repo.create_started(start) for start in starts], return_exceptions=True
    )
    flushed, *created = outcomes
    assert isinstance(flushed, LLMStoreError)
    assert "writer died of SystemExit" in str(flushed)
    # Those that it died with were taken back and told so; later ones found a new writer.
    assert {type(outcome) for outcome in created} <= {LLMStoreError, type(None)}
    kept = {start.id for start, outcome in zip(starts, created, strict=True) if outcome is None}
    assert {run["id"] for run in home.runs()} == kept
    dead = home.journal._here().writer._thread
    if dead is not None and not any(outcome is None for outcome in created):
        dead.join(60)
    await pair(home)
    assert len(home.runs()) == len(kept) + 1


async def test_a_writer_that_finds_no_thread_says_so_and_starts_with_the_next_call(
    home: JournalHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", no_more)
        with pytest.raises(LLMStoreError, match="can't start new thread"):
            await home.repo.create_started(a_start())
    async with asyncio.timeout(60):
        await pair(home)
    assert len(home.runs()) == 1


async def test_a_late_batch_is_told_too(home: JournalHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "MAX_BATCH", 1)
    monkeypatch.setattr(Flush, "apply_all", lambda *_args: (_ for _ in ()).throw(SystemExit))
    outcomes = await asyncio.gather(*[home.journal.flush() for _ in range(5)], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LLMStoreError] * 5


def test_closing_flushes_what_was_written_behind(sqlite_url: str) -> None:
    with JournalHome(sqlite_url) as home:

        async def serve() -> None:
            for _ in range(300):
                start = a_start()
                await home.repo.record_served(start, served(start.id))

        asyncio.run(serve())
    with JournalHome(sqlite_url) as again:
        assert len(again.runs()) == 300


def test_closing_twice_and_unused(sqlite_url: str) -> None:
    home = JournalHome(sqlite_url)
    home.journal.close()
    home.journal.close()


def test_closing_from_several_threads(home: JournalHome) -> None:
    asyncio.run(pair(home))
    threads = [threading.Thread(target=home.journal.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


async def test_a_closed_journal_says_so(home: JournalHome) -> None:
    home.journal.close()
    for use in (home.repo.create_started(a_start()), home.repo.get_run("lab", new_id()), home.journal.flush()):
        with pytest.raises(LLMStoreError, match="is closed"):
            await use
    with pytest.raises(LLMStoreError, match="is closed"):
        home.runs()


async def test_what_was_lost_behind_is_reported_once(home: JournalHome) -> None:
    start = a_start(epoch=2**70)
    await home.repo.record_served(start, served(start.id))
    await home.repo.record_served(start, served(start.id))
    with pytest.raises(LLMStoreError, match=r"2 answers that cost nothing could not be recorded"):
        await home.journal.flush()
    await home.journal.flush()


async def test_an_answer_that_cannot_be_recorded_behind_takes_no_other_with_it(home: JournalHome) -> None:
    bad, good = a_start(stage="half \ud800"), a_start()
    await home.repo.record_served(bad, served(bad.id))
    await home.repo.record_served(good, served(good.id))
    with pytest.raises(LLMStoreError, match=r"1 answers that cost nothing.*stage contains a character"):
        await home.journal.flush()
    assert [run["id"] for run in home.runs()] == [good.id]


async def test_what_was_lost_behind_is_reported_at_closing(home: JournalHome) -> None:
    start = a_start(epoch=2**70)
    await home.repo.record_served(start, served(start.id))
    with pytest.raises(LLMStoreError, match="1 answers"):
        home.journal.close()
    home.journal.close()


async def test_writing_behind_waits_when_too_much_is_outstanding(
    home: JournalHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "MAX_BEHIND", 3)
    for _ in range(20):
        start = a_start()
        await home.repo.record_served(start, served(start.id))
        assert home.journal._here().writer._behind <= 3
    await home.journal.flush()
    assert len(home.runs()) == 20


@pytest.mark.slow
async def test_a_forgotten_journal_is_closed(sqlite_url: str) -> None:
    home = JournalHome(sqlite_url)
    start = a_start()
    await home.repo.record_served(start, served(start.id))
    del home
    wait_for_reaper()
    with JournalHome(sqlite_url) as again:
        assert len(again.runs()) == 1


@pytest.mark.parametrize("times", [2, 3])
async def test_applying_a_batch_again_changes_nothing(database_url: str, times: int) -> None:
    """As after a connection that was lost while it committed: nobody can tell whether it did."""
    with JournalHome(database_url) as home:
        journal = home.journal
        running, done = a_start(), a_start(idempotency_key="done")
        await home.repo.create_started(running)
        seen_start = a_start()
        await home.repo.create_started(seen_start)
        seen = await home.repo.get_run("lab", seen_start.id)
        assert seen is not None
        from llmkit.persistence.operations import AbandonRun
        from llmkit.types import utc_now

        operations = [
            InsertStarted(a_start(idempotency_key="k", flight_key="f")),
            InsertFinished(done, served(done.id)),
            MarkSucceeded(a_success(running.id)),
            AbandonRun(seen, utc_now()),
        ]
        outcomes = [[await journal.perform(operation) for operation in operations] for _ in range(times)]
        assert outcomes == [[None, None, True, True]] * times
        assert (len(home.runs()), len(home.attempts())) == (4, 1)


async def test_a_transaction_is_seen_from_outside(home: JournalHome, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    original = Flush.apply_all

    def look(*args: Any) -> list[Any]:
        seen.append(home.journal.write_transaction_open)
        return original(*args)

    monkeypatch.setattr(Flush, "apply_all", look)
    assert not home.journal.write_transaction_open
    await home.journal.flush()
    assert seen == [True]
    assert not home.journal.write_transaction_open
