"""What happens to an open database when its process forks."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from llmkit.errors import LLMStoreError
from llmkit.persistence import fork_safety as fork
from llmkit.persistence.fork_safety import ForkLock
from tests.support.forked import run_in_child
from tests.support.repositories import JournalHome, journal_home
from tests.support.run_values import a_start, a_success

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def home(sqlite_url: str) -> Iterator[JournalHome]:
    yield from journal_home(sqlite_url)


def write(home: JournalHome, key: str) -> None:
    home.start(idempotency_key=key)


def keys(home: JournalHome) -> set[str]:
    return {run["idempotency_key"] for run in home.runs()}


def test_parent_and_child_keep_each_others_rows(home: JournalHome) -> None:
    for number in range(5):
        write(home, f"before {number}")
        assert run_in_child(lambda each=number: write(home, f"child {each}")) == 0
        write(home, f"after {number}")
    home.journal.close()
    assert len(keys(JournalHome(f"sqlite:///{home.journal.address.path}"))) == 15


def test_nothing_is_open_at_the_moment_of_the_fork(home: JournalHome) -> None:
    write(home, "k")
    assert len(home.runs()) == 1
    path = str(home.journal.address.path)

    def nothing_open() -> None:
        assert not [file for file in psutil.Process().open_files() if file.path.startswith(path)]

    with pytest.raises(AssertionError):
        nothing_open()
    assert run_in_child(nothing_open) == 0
    assert asyncio.run(home.repo.get_by_idempotency_key("lab", "k")) is not None


@pytest.mark.slow
def test_forks_while_calls_are_under_way(home: JournalHome) -> None:
    stop = threading.Event()

    async def calls() -> None:
        async def one() -> None:
            while not stop.is_set():
                start = a_start()
                await home.repo.create_started(start)
                assert await home.repo.mark_succeeded(a_success(start.id))

        await asyncio.gather(*[one() for _ in range(8)])

    caller = threading.Thread(target=lambda: asyncio.run(calls()))
    caller.start()
    for number in range(5):
        assert run_in_child(lambda each=number: write(home, f"child {each}")) == 0
    stop.set()
    caller.join()
    found = home.runs()
    assert {run["idempotency_key"] for run in found} - {None} == {f"child {number}" for number in range(5)}
    assert {run["status"] for run in found if run["idempotency_key"] is None} == {"SUCCEEDED"}


def test_a_fork_in_the_middle_of_a_read_is_refused_in_the_child(
    home: JournalHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork, "PATIENCE_S", 0.05)
    write(home, "k")

    def refused() -> None:
        with pytest.raises(LLMStoreError, match="forked while"):
            write(home, "child")

    codes: list[int] = []
    home.journal.read_here(lambda _connection: codes.append(run_in_child(refused)))
    assert codes == [0]
    write(home, "parent")
    assert keys(home) == {"k", "parent"}


def test_a_fork_with_a_borrowed_connection_is_refused_in_the_child(home: JournalHome) -> None:
    def refused() -> None:
        with pytest.raises(LLMStoreError, match="forked while"):
            write(home, "child")

    with home.journal.engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        assert run_in_child(refused) == 0


def test_a_blocked_lock_lets_nobody_in() -> None:
    lock = ForkLock()
    with lock:
        assert not lock.block(0.01)
    assert lock.block(0.01)
    entered = threading.Event()

    def enter() -> None:
        with lock:
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    time.sleep(0.02)
    assert not entered.is_set()
    lock.unblock()
    thread.join(60)
    assert entered.is_set()
