"""One key, many callers: in threads, processes and database sessions (spec 8)."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import text

from llmkit.errors import LLMInProgress
from llmkit.persistence.content_cache import DiskContentCache
from llmkit.persistence.repo import SqlLLMRunRepo
from llmkit.persistence.unit_of_work import SqlUnitOfWork
from llmkit.ports import LLMRunRepo, StoredRun
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing import OllamaServer
from llmkit.testing.scripted_client import ScriptedClient
from llmkit.testing.server_load import Load
from tests.support.gated_client import GatedClient
from tests.support.repositories import JournalHome, async_engine
from tests.support.workers import HERE, Nest, ask

PROCESSES, THREADS, TASKS, SESSIONS = 3, 2, 4, 2


def _service(client: ScriptedClient, runs: LLMRunRepo) -> LLMService:
    settings = load_settings(cache_enabled=False)
    return LLMService(router=LLMRouter(settings, client), settings=settings, runs=runs)


def _make_notes(url: str) -> None:
    with JournalHome(url) as home, home.journal.engine.begin() as connection:
        connection.execute(text("CREATE TABLE notes (note TEXT PRIMARY KEY)"))


def _notes(home: JournalHome) -> list[str]:
    query = text("SELECT note FROM notes ORDER BY note")
    return home.journal.read_here(lambda connection: list(connection.execute(query).scalars()))


def test_racing_threads_processes_and_sessions_make_one_request(database_url: str) -> None:
    _make_notes(database_url)
    with OllamaServer("the answer", load=Load(latency_s=0.1)) as server, ExitStack() as stack:
        arguments = {"database": database_url, "url": server.url, "key": "k"}
        crowd = {"threads": THREADS, "tasks": TASKS, "sessions": SESSIONS}
        nest = stack.enter_context(Nest())
        workers = [stack.enter_context(nest.hatch("race", **arguments, **crowd)) for _ in range(PROCESSES)]
        for worker in workers:
            worker.wait_until_ready()
        for worker in workers:
            worker.tell()
        outcomes = Counter(outcome for worker in workers for outcome in worker.result())
        assert server.call_count == 1
    assert outcomes["provider"] == 1
    assert set(outcomes) <= {"provider", "replay", "in_progress"}
    assert outcomes.total() == PROCESSES * THREADS * (TASKS + SESSIONS)
    with JournalHome(database_url) as home:
        (holder,) = [run for run in home.runs() if run["idempotency_key"]]
        assert (holder["status"], holder["served_from"]) == ("SUCCEEDED", "provider")
        assert len(home.attempts()) == 1
        # Every session that lost still committed what it wrote before and after.
        assert len(_notes(home)) == 2 * PROCESSES * THREADS * SESSIONS


class LooksTooEarly(SqlLLMRunRepo):
    """Finds no holder of a key at first, as a caller does that looks just before another one claims it."""

    looked = False

    async def get_by_idempotency_key(self, workspace_id: str, idempotency_key: str) -> StoredRun | None:
        looked, self.looked = self.looked, True
        return await super().get_by_idempotency_key(workspace_id, idempotency_key) if looked else None


async def test_a_race_lost_inside_a_session_leaves_its_other_writes(database_url: str) -> None:
    _make_notes(database_url)
    client = ScriptedClient()
    with JournalHome(database_url) as home:
        won = await _service(client, home.repo).chat(ask("q", idempotency_key="k"), HERE)
        async with async_engine(database_url) as engine, SqlUnitOfWork(engine) as unit:
            await unit.db.execute(text("INSERT INTO notes (note) VALUES ('before')"))
            lost = await _service(client, LooksTooEarly(unit.db)).chat(ask("q", idempotency_key="k"), HERE)
            await unit.db.execute(text("INSERT INTO notes (note) VALUES ('after')"))
            await unit.commit()
        assert (lost.served_from, lost.source_run_id) == ("replay", won.run_id)
        assert _notes(home) == ["after", "before"]
        assert [run["served_from"] for run in home.runs()] == ["provider", "replay"]
    assert len(client.calls) == 1


async def test_a_key_in_progress_leaves_the_callers_session_usable(database_url: str) -> None:
    _make_notes(database_url)
    client = GatedClient()
    with JournalHome(database_url) as home:
        leader = asyncio.create_task(_service(client, home.repo).chat(ask("q", idempotency_key="k"), HERE))
        await client.arrived.wait()
        async with async_engine(database_url) as engine, SqlUnitOfWork(engine) as unit:
            await unit.db.execute(text("INSERT INTO notes (note) VALUES ('before')"))
            with pytest.raises(LLMInProgress):
                await _service(client, unit.runs).chat(ask("q", idempotency_key="k"), HERE)
            await unit.db.execute(text("INSERT INTO notes (note) VALUES ('after')"))
            await unit.commit()
        client.gate.set()
        assert (await leader).billed
        assert _notes(home) == ["after", "before"]
    assert len(client.calls) == 1


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_the_row_of_a_call_in_a_session_stands_or_falls_with_it(database_url: str, end: str) -> None:
    async with async_engine(database_url) as engine, SqlUnitOfWork(engine) as unit:
        service = _service(ScriptedClient(), unit.runs)
        assert (await service.chat(ask("q", idempotency_key="k"), HERE)).billed
        assert (await service.chat(ask("q", idempotency_key="k"), HERE)).served_from == "replay"
        assert unit.db.in_transaction()
        with JournalHome(database_url) as home:
            assert home.runs() == []
        await getattr(unit.db, end)()
    with JournalHome(database_url) as home:
        kept = [(run["status"], run["served_from"]) for run in home.runs()]
        assert kept == ([] if end == "rollback" else [("SUCCEEDED", "provider"), ("SUCCEEDED", "replay")])
        assert len(home.attempts()) == (end == "commit")


def test_event_loops_in_threads_share_one_service(database_url: str, tmp_path: Path) -> None:
    """A future of one loop wakes nobody in another: between loops the store tells of equal calls in flight."""
    loops, tasks = 4, 8
    settings = load_settings()
    client = ScriptedClient(latency_s=0.1)
    cache = DiskContentCache(tmp_path / "cache", ttl_s=60, size_limit_bytes=10**8)
    begin = threading.Barrier(loops)
    with JournalHome(database_url) as home, ThreadPoolExecutor(loops) as pool:
        service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=home.repo, cache=cache)

        async def crowd() -> list[str]:
            begin.wait()
            answers = await asyncio.gather(*(service.chat(ask("the same question"), HERE) for _ in range(tasks)))
            cache.close()
            return [str(answer.served_from) for answer in answers]

        # Without a timer in any loop: it would wake one that was forgotten.
        crowds = list(pool.map(lambda _: asyncio.run(crowd()), range(loops)))
    cache.close()
    outcomes = Counter(outcome for crowd in crowds for outcome in crowd)
    assert len(client.calls) == 1
    assert (outcomes["provider"], outcomes.total()) == (1, loops * tasks)
