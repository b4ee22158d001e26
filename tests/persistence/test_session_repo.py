"""The session-bound repository inside a transaction that belongs to somebody else."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from llmkit.errors import LLMStoreError
from llmkit.persistence.addresses import DatabaseAddress, create_database_file
from llmkit.persistence.repo import SqlLLMRunRepo
from llmkit.persistence.unit_of_work import SqlUnitOfWork
from llmkit.ports import KeyTaken
from tests.support.repositories import JournalHome, async_engine
from tests.support.run_values import a_start, a_success, new_id, served


async def test_nothing_is_kept_without_a_commit(database_url: str) -> None:
    async with async_engine(database_url) as engine, SqlUnitOfWork(engine) as unit:
        start = a_start(idempotency_key="k")
        await unit.runs.create_started(start)
        await unit.runs.mark_succeeded(a_success(start.id))
    with JournalHome(database_url) as home:
        assert home.runs() == []
        assert home.attempts() == []


async def test_everything_is_kept_with_one(database_url: str) -> None:
    async with async_engine(database_url) as engine, SqlUnitOfWork(engine) as unit:
        start = a_start(idempotency_key="k", flight_key="f")
        await unit.runs.create_started(start)
        await unit.runs.mark_succeeded(a_success(start.id))
        await unit.commit()
    with JournalHome(database_url) as home:
        (run,) = home.runs()
        assert (run["id"], run["status"], run["flight_key"]) == (start.id, "SUCCEEDED", None)
        assert [attempt["run_id"] for attempt in home.attempts()] == [start.id]


async def test_a_lost_race_leaves_the_callers_own_writes_standing(database_url: str) -> None:
    with JournalHome(database_url) as home:
        await home.repo.create_started(a_start(idempotency_key="k"))
    mine, own = a_start(idempotency_key="k"), a_start()
    async with async_engine(database_url) as engine, SqlUnitOfWork(engine) as unit:
        await unit.runs.create_started(own)
        with pytest.raises(KeyTaken):
            await unit.runs.create_started(mine)
        with pytest.raises(KeyTaken):
            await unit.runs.save_result_for_idempotency_key(mine, served(mine.id))
        await unit.runs.mark_succeeded(a_success(own.id))
        await unit.commit()
    with JournalHome(database_url) as home:
        assert [run["status"] for run in home.runs()] == ["STARTED", "SUCCEEDED"]


async def test_a_refused_value_leaves_the_transaction_usable(database_url: str) -> None:
    async with async_engine(database_url) as engine, SqlUnitOfWork(engine) as unit:
        await unit.runs.create_started(a_start())
        with pytest.raises(LLMStoreError):
            await unit.runs.create_started(a_start(epoch=2**70))
        await unit.runs.create_started(a_start())
        await unit.commit()


async def test_flights_are_not_shared_from_inside_a_transaction(database_url: str) -> None:
    with JournalHome(database_url) as home:
        await home.repo.create_started(a_start(flight_key="f"))
    async with async_engine(database_url) as engine, SqlUnitOfWork(engine) as unit:
        assert await unit.runs.get_by_flight_key("lab", "f") is None
        await unit.runs.create_started(a_start(flight_key="f"))
        await unit.runs.heartbeat([new_id()])


async def test_a_session_of_the_callers_own_engine_keeps_its_transaction(sqlite_url: str) -> None:
    """The driver begins transactions late there; a savepoint would have committed."""
    engine = create_async_engine(sqlite_url.replace("sqlite:", "sqlite+aiosqlite:"))
    async with AsyncSession(engine) as db:
        repo = SqlLLMRunRepo(db)
        start = a_start(idempotency_key="k")
        await repo.create_started(start)
        with pytest.raises(KeyTaken):
            await repo.create_started(a_start(idempotency_key="k"))
        await db.rollback()
        assert await repo.get_run("lab", start.id) is None
    await engine.dispose()


async def test_the_unit_of_work_shares_its_session(sqlite_url: str) -> None:
    async with async_engine(sqlite_url) as engine, SqlUnitOfWork(engine) as unit:
        await unit.runs.create_started(a_start())
        assert (await unit.db.execute(text("SELECT count(*) FROM llm_runs"))).scalar_one() == 1


async def test_a_unit_of_work_is_used_inside_its_block(sqlite_url: str) -> None:
    async with async_engine(sqlite_url) as engine:
        unit = SqlUnitOfWork(engine)
        with pytest.raises(LLMStoreError, match="inside its `async with` block"):
            _ = unit.runs


async def test_a_missing_database_is_one_clear_error(new_sqlite_url: str) -> None:
    async with async_engine(new_sqlite_url) as engine:
        with pytest.raises(LLMStoreError, match="does not exist"):
            async with SqlUnitOfWork(engine):
                pass


async def test_a_database_without_tables_is_one_clear_error(new_database_url: str) -> None:
    address = DatabaseAddress.parse(new_database_url)
    if address.path is not None:
        create_database_file(address.path)
    async with async_engine(new_database_url) as engine, SqlUnitOfWork(engine) as unit:
        with pytest.raises(LLMStoreError, match="llmkit db upgrade"):
            await unit.runs.create_started(a_start())
