"""Killed at any moment and started again: nothing is paid twice, nothing is lost, what is in doubt is listed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from uuid import UUID

import pytest
from sqlalchemy import Connection, Row, select

from llmkit.persistence.eval_store import SqlEvalStore
from llmkit.testing import OllamaServer, Reply
from llmkit.testing.request_log import RecordedRequest
from llmkit.testing.server_load import Load
from tests.support.repositories import RUNS, JournalHome
from tests.support.workers import Nursery

CALLS, CONCURRENCY = 300, 16
LATENCY_S = 0.04
LONGEST_LIFE_S = 0.3


def _key_of(request: RecordedRequest) -> str:
    return str(request.json["messages"][0]["content"])


def _others_connected(connection: Connection) -> int:
    """PostgreSQL carries out what a client had sent before it died, and only then notices."""
    if connection.dialect.name == "sqlite":
        return 0
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    return int(connection.exec_driver_sql(others).scalar_one())


class Batch:
    """A batch of calls with keys, made by processes one after the other, and what the server and the store know."""

    def __init__(
        self, nursery: Nursery, server: OllamaServer, home: JournalHome, database: str, name: str = "batch"
    ) -> None:
        self._nursery = nursery
        self._server = server
        self._home = home
        self._arguments = {"database": database, "url": server.url, "concurrency": CONCURRENCY}
        self._name = name
        self.keys = [f"{name} {number}" for number in range(CALLS)]
        self._doubts: set[UUID] = set()

    @property
    def in_doubt(self) -> int:
        return len(self._doubts)

    def start(self) -> int:
        return self._nursery.bear("batch", keys=self.keys, **self._arguments)

    def kill(self, process: int) -> set[str]:
        """Which calls it had seen answered."""
        os.kill(process, signal.SIGKILL)
        answered = {answer["key"] for answer in self._nursery.reap()[1]}
        self._server.wait_until_idle()
        while self._home.journal.read_here(_others_connected):
            time.sleep(0.001)
        return answered

    def sent(self) -> Counter[str]:
        mine = set(self.keys)
        return Counter(key for key in map(_key_of, self._server.calls) if key in mine)

    def runs(self) -> list[Row]:
        """Those that hold, or failed under, a key: without replays, which are many."""
        columns = (
            RUNS.c.id,
            RUNS.c.idempotency_key,
            RUNS.c.status,
            RUNS.c.served_from,
            RUNS.c.error_code,
            RUNS.c.response_preview,
        )
        query = select(*columns).where(RUNS.c.idempotency_key.startswith(f"{self._name} "))
        return self._home.journal.read_here(lambda connection: list(connection.execute(query)))

    def live_and_die(self, seconds: float) -> bool:
        """Start a process and kill it some time after its first request; False when it was done before."""
        done = self._finished()
        before = self._server.call_count
        process = self.start()
        while self._server.call_count == before:
            time.sleep(0.001)
        time.sleep(seconds)
        answered = self.kill(process)
        # What its caller had seen is durable.
        assert answered <= self._finished()
        # Of what was finished before this life began nothing was sent again.
        resent = {_key_of(request) for request in self._server.calls[before:]} & done
        assert not resent
        started = [run for run in self.runs() if run.status == "STARTED"]
        assert len(started) <= CONCURRENCY
        # A process that dies early leaves what an earlier one had in flight.
        self._doubts |= {run.id for run in started}
        return len(self._finished()) < CALLS

    def _finished(self) -> set[str]:
        return {run.idempotency_key for run in self.runs() if run.status == "SUCCEEDED"}

    def finish(self) -> None:
        """Let a process come to the end; it finds done what was done."""
        done = self._finished()
        self.start()
        code, answers = self._nursery.reap()
        replayed = {answer["key"] for answer in answers if answer["served_from"] == "replay"}
        assert (code, replayed) == (0, done)

    def check(self) -> None:
        runs = self.runs()
        paid = [run for run in runs if run.status == "SUCCEEDED" and run.served_from == "provider"]
        doubtful = [run for run in runs if run.status == "FAILED"]
        # Nothing is lost: each call has one answer, its own.
        assert sorted(run.idempotency_key for run in paid) == sorted(self.keys)
        assert all(run.response_preview == f"answer to {run.idempotency_key}" for run in paid)
        # Whatever a process had in flight when it died is listed, and nothing else.
        assert len(runs) == len(paid) + len(doubtful)
        assert {run.error_code for run in doubtful} <= {"abandoned"}
        assert len(doubtful) == self.in_doubt
        # What was sent beyond one request a call is in doubt. (A process may die between the row and the request.)
        sent, doubts = self.sent(), Counter(run.idempotency_key for run in doubtful)
        assert all(1 <= sent[key] <= 1 + doubts[key] for key in self.keys)


def _answer(request: RecordedRequest) -> Reply:
    return Reply(f"answer to {_key_of(request)}")


def _kill(database: str, kills: int) -> int:
    """Kill so many processes in as many batches as that takes, and return how many calls were in doubt."""
    chance = random.Random(300)
    in_doubt = batches = 0
    with (
        OllamaServer(_answer, load=Load(latency_s=LATENCY_S)) as server,
        JournalHome(database) as home,
        Nursery() as nursery,
    ):
        while kills:
            batches += 1
            batch = Batch(nursery, server, home, database, f"batch {batches}")
            while kills and batch.live_and_die(chance.uniform(0, LONGEST_LIFE_S)):
                kills -= 1
            batch.finish()
            batch.check()
            in_doubt += batch.in_doubt
    return in_doubt


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fifty_kills_of_a_batch_on_sqlite(sqlite_url: str) -> None:
    assert 50 < _kill(sqlite_url, 50) <= 50 * CONCURRENCY


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_kills_of_a_batch_on_postgresql(postgres_url: str) -> None:
    assert 10 < _kill(postgres_url, 10) <= 10 * CONCURRENCY


async def test_what_was_in_flight_is_listed_as_in_doubt_until_and_after_it_is_asked_again(database_url: str) -> None:
    with (
        OllamaServer(_answer, load=Load(latency_s=60)) as server,
        JournalHome(database_url) as home,
        Nursery() as nursery,
    ):
        batch = Batch(nursery, server, home, database_url)
        process = batch.start()
        assert server.wait_until_in_flight(CONCURRENCY, 100)
        batch.kill(process)
        store = SqlEvalStore(home.journal)
        in_flight = {run.id for run in await store.list_calls_in_doubt("lab", "batch")}
        assert len(in_flight) == CONCURRENCY
        server.load = Load()
        batch.finish()
        assert {run.id for run in await store.list_calls_in_doubt("lab", "batch")} == in_flight
        assert server.call_count == CALLS + CONCURRENCY
