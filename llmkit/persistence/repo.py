"""The repository for callers that hold a database session of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from sqlalchemy import Select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from llmkit.persistence.addresses import label_of, path_of
from llmkit.persistence.database_errors import store_error
from llmkit.persistence.rows import (
    FINISHED_COLUMNS,
    STARTED_COLUMNS,
    SUCCESS_COLUMNS,
    annotation_values,
    attempt_values,
    failure_values,
    make_abandoned_values,
    make_finished_values,
    make_started_values,
    make_stored_run,
    success_values,
    unsent_values,
)
from llmkit.persistence.statements import (
    FAILURE_COLUMNS,
    RUNS,
    UNSENT_COLUMNS,
    abandon_run,
    annotate_run,
    finish_run,
    holds_idempotency_key,
    insert_attempt,
    insert_run,
    is_run,
    select_stored_run,
)
from llmkit.ports import KeyTaken, RunFailure, RunStart, RunSuccess, StoredRun
from llmkit.types import Attempt, utc_now

__all__ = ["SqlLLMRunRepo"]


class SqlLLMRunRepo:
    """`LLMRunRepo` inside the caller's transaction: it never commits and never rolls back.

    What it writes is durable, and seen by others, when the caller commits. So it takes no part in sharing calls that
    are in flight: flight keys are not stored and none is ever found, since waiting for a call inside an open
    transaction could wait for itself.

    On SQLite the transaction should begin with `BEGIN IMMEDIATE`, as `SqlUnitOfWork` does it.

    Args:
        db: A session of one task; its engine is one of llmkit's or the caller's own.
    """

    def __init__(self, db: AsyncSession) -> None:
        self._db = db

    async def get_by_idempotency_key(self, workspace_id: str, idempotency_key: str) -> StoredRun | None:
        """See `LLMRunRepo`."""
        values = {"workspace_id": workspace_id, "idempotency_key": idempotency_key}
        return await self._find(select_stored_run().where(holds_idempotency_key()), values)

    async def get_by_flight_key(self, workspace_id: str, flight_key: str) -> StoredRun | None:
        """Return None always: see the class."""
        del workspace_id, flight_key
        return None

    async def get_run(self, workspace_id: str, run_id: UUID) -> StoredRun | None:
        """See `LLMRunRepo`."""
        return await self._find(select_stored_run().where(is_run()), {"workspace_id": workspace_id, "run_id": run_id})

    async def create_started(self, start: RunStart) -> None:
        """See `LLMRunRepo`."""
        async with self._write() as connection:
            await self._insert(connection, STARTED_COLUMNS, make_started_values(start) | {"flight_key": None})

    async def mark_succeeded(self, success: RunSuccess) -> bool:
        """See `LLMRunRepo`."""
        values = success_values(success)
        return await self._finish(SUCCESS_COLUMNS, values, success.run_id, success.attempts)

    async def mark_failed(self, failure: RunFailure) -> bool:
        """See `LLMRunRepo`."""
        values = failure_values(failure)
        return await self._finish(FAILURE_COLUMNS, values, failure.run_id, failure.attempts)

    async def record_unsent(self, start: RunStart, failure: RunFailure) -> None:
        """See `LLMRunRepo`."""
        async with self._write() as connection:
            await self._insert(connection, UNSENT_COLUMNS, unsent_values(start, failure))

    async def mark_abandoned(self, run: StoredRun) -> bool:
        """See `LLMRunRepo`."""
        seen = {"run_id": run.id, "seen_at_utc": run.heartbeat_at_utc}
        async with self._write() as connection:
            result = await connection.execute(abandon_run(), make_abandoned_values(utc_now()) | seen)
            return result.rowcount == 1

    async def save_result_for_idempotency_key(self, start: RunStart, success: RunSuccess) -> None:
        """See `LLMRunRepo`."""
        async with self._write() as connection:
            await self._insert(connection, FINISHED_COLUMNS, make_finished_values(start, success))
            await self._insert_attempts(connection, start.id, success.attempts)

    async def record_served(self, start: RunStart, success: RunSuccess) -> None:
        """See `LLMRunRepo`. Written at once."""
        await self.save_result_for_idempotency_key(start, success)

    async def annotate(self, workspace_id: str, run_id: UUID, metadata: Mapping[str, Any]) -> None:
        """See `LLMRunRepo`."""
        async with self._write() as connection:
            await connection.execute(annotate_run(), annotation_values(workspace_id, run_id, metadata))

    async def heartbeat(self, run_ids: Sequence[UUID]) -> None:
        """Do nothing: no other connection sees these runs before the caller commits."""
        del run_ids

    async def _insert(self, connection: AsyncConnection, names: Sequence[str], values: Mapping[str, Any]) -> None:
        result = await connection.execute(insert_run(connection.dialect.name, names), values)
        if result.rowcount == 0:
            raise KeyTaken("another run of the workspace holds the key")

    async def _finish(
        self, names: Sequence[str], values: Mapping[str, Any], run_id: UUID, attempts: Sequence[Attempt]
    ) -> bool:
        async with self._write() as connection:
            result = await connection.execute(finish_run(names), {**values, "run_id": run_id})
            changed = result.rowcount == 1
            if changed or await self._exists(connection, run_id):
                await self._insert_attempts(connection, run_id, attempts)
            return changed

    async def _exists(self, connection: AsyncConnection, run_id: UUID) -> bool:
        found = await connection.execute(select_stored_run().where(RUNS.c.id == run_id))
        return found.first() is not None

    async def _insert_attempts(self, connection: AsyncConnection, run_id: UUID, attempts: Sequence[Attempt]) -> None:
        if attempts:
            rows = [attempt_values(run_id, attempt) | {"of_run": run_id} for attempt in attempts]
            await connection.execute(insert_attempt(connection.dialect.name), rows)

    async def _find(self, query: Select[Any], values: Mapping[str, Any]) -> StoredRun | None:
        async with self._translate_errors():
            connection = await self._db.connection()
            row = (await connection.execute(query, values)).first()
        return None if row is None else make_stored_run(tuple(row))

    @asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncConnection]:
        """Return a step inside the caller's transaction; when it fails, the transaction is as before it."""
        async with self._translate_errors():
            connection = await self._db.connection()
            if connection.dialect.name == "sqlite":
                # There a failed statement takes back itself alone. A savepoint would end the transaction of a session
                # whose engine leaves the beginning of transactions to the driver.
                yield connection
            else:
                async with connection.begin_nested():
                    yield connection

    @asynccontextmanager
    async def _translate_errors(self) -> AsyncIterator[None]:
        try:
            yield
        except (SQLAlchemyError, OSError, OverflowError) as error:
            url = self._db.get_bind().engine.url
            raise store_error(error, label_of(url), path_of(url)) from None
