"""Every adapter of the ports behind one face, so that one suite of tests runs on all of them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, select
from sqlalchemy.ext.asyncio import AsyncEngine

from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.engines import make_async_engine
from llmkit.persistence.journal import Journal, JournalLLMRunRepo
from llmkit.persistence.models import LLMAttemptRow, LLMRunRow, table_of
from llmkit.persistence.unit_of_work import SqlUnitOfWork
from tests.support.run_values import a_start

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from llmkit.persistence.repo import SqlLLMRunRepo

RUNS = table_of(LLMRunRow)
ATTEMPTS = table_of(LLMAttemptRow)


def runs_in(connection: Connection) -> list[dict[str, Any]]:
    """All runs, oldest first."""
    return [row._asdict() for row in connection.execute(select(RUNS).order_by(RUNS.c.created_at_utc, RUNS.c.id))]


def attempts_in(connection: Connection) -> list[dict[str, Any]]:
    """All attempts by run and number."""
    query = select(ATTEMPTS).order_by(ATTEMPTS.c.run_id, ATTEMPTS.c.number)
    return [row._asdict() for row in connection.execute(query)]


class JournalHome:
    """A journal with both views of it."""

    def __init__(self, url: str, **limits: float) -> None:
        self.journal = Journal(url, **limits)
        self.repo = JournalLLMRunRepo(self.journal)

    def start(self, **fields: Any) -> None:
        """Write a new run as STARTED, from code that runs no event loop."""

        async def started() -> None:
            await self.repo.create_started(a_start(**fields))

        asyncio.run(started())

    def runs(self) -> list[dict[str, Any]]:
        return self.journal.read_here(runs_in)

    def attempts(self) -> list[dict[str, Any]]:
        return self.journal.read_here(attempts_in)

    def __enter__(self) -> JournalHome:
        return self

    def __exit__(self, *_error: object) -> None:
        self.journal.close()


@asynccontextmanager
async def async_engine(url: str) -> AsyncIterator[AsyncEngine]:
    engine = make_async_engine(DatabaseAddress.parse(url))
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def session_repo(url: str) -> AsyncIterator[SqlLLMRunRepo]:
    """A repository inside one open transaction, committed at the end."""
    async with async_engine(url) as engine, SqlUnitOfWork(engine) as unit:
        yield unit.runs
        await unit.commit()


def journal_home(url: str) -> Iterator[JournalHome]:
    with JournalHome(url) as home:
        yield home
