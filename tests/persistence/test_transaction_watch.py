"""The hook that tells whether a write transaction is open across a call."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from llmkit.persistence.transaction_watch import WriteTransactionWatch
from llmkit.persistence.unit_of_work import SqlUnitOfWork
from tests.support.repositories import JournalHome, async_engine
from tests.support.run_values import a_start, a_success, new_id


async def test_a_session_that_wrote_is_noticed_until_it_ends(database_url: str) -> None:
    async with async_engine(database_url) as engine:
        with WriteTransactionWatch() as watch:
            async with SqlUnitOfWork(engine) as unit:
                await unit.runs.create_started(a_start())
                (held,) = watch.open_transactions
                assert held.statement.startswith(("BEGIN IMMEDIATE", "INSERT"))
                with pytest.raises(AssertionError, match="open across a call"):
                    await watch.assert_none_held(patience_s=0.05)
            await watch.assert_none_held()


async def test_a_session_that_only_read_is_not(postgres_url: str) -> None:
    async with async_engine(postgres_url) as engine:
        with WriteTransactionWatch() as watch:
            async with SqlUnitOfWork(engine) as unit:
                await unit.runs.get_run("lab", new_id())
                await watch.assert_none_held(patience_s=0.0)


async def test_the_journal_holds_none_between_its_operations(database_url: str) -> None:
    with JournalHome(database_url) as home, WriteTransactionWatch() as watch:

        async def call() -> None:
            start = a_start()
            await home.repo.create_started(start)
            await watch.assert_none_held()
            await home.repo.mark_succeeded(a_success(start.id))

        await asyncio.gather(*[call() for _ in range(50)])
        assert watch.open_transactions == ()
        assert watch.count > 0


async def test_outside_its_block_it_sees_nothing(sqlite_url: str) -> None:
    watch = WriteTransactionWatch()
    with watch:
        pass
    async with async_engine(sqlite_url) as engine, engine.begin() as connection:
        await connection.execute(text("DELETE FROM llm_runs"))
        assert watch.open_transactions == ()
