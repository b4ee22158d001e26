"""The repository of the session API and the evaluation runner: every operation is durable by itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from logging import getLogger
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

from llmkit.cleanup import close_when_dropped, start_reaper
from llmkit.errors import LLMStoreError
from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.compiled_statements import PreparedSelect, Statements, sqlite_statements
from llmkit.persistence.connections import ServerWriter, SqliteReader, SqliteWriter, WriteConnection, Writer
from llmkit.persistence.database_errors import patiently, store_error
from llmkit.persistence.fork_safety import ForkLock, pause_around_forks
from llmkit.persistence.operations import (
    AbandonRun,
    Annotate,
    Beat,
    Flush,
    InsertFinished,
    InsertStarted,
    InsertUnsent,
    MarkFailed,
    MarkSucceeded,
)
from llmkit.persistence.rows import make_stored_run
from llmkit.persistence.sqlite_driver import SQLITE_BUSY_TIMEOUT_S, open_sqlite
from llmkit.persistence.writer import GroupWriter, Operation
from llmkit.ports import RunFailure, RunStart, RunSuccess, StoredRun
from llmkit.types import utc_now

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

__all__ = ["Journal", "JournalLLMRunRepo"]

WRITE_PATIENCE_S: Final = 60.0

T = TypeVar("T")


class _Resources:
    """Resources of one process. A forked child opens its own: connections and threads do not survive a fork."""

    def __init__(self, address: DatabaseAddress, busy_timeout_s: float, patience_s: float) -> None:
        self.pid = os.getpid()
        self.fork_lock = ForkLock()
        self.open_in_child = False
        self._address = address
        self._busy_timeout_s = busy_timeout_s
        self._engine: Engine | None = None
        self._lock = Lock()
        self._is_closed = False
        self.statements = sqlite_statements() if address.is_sqlite else _compile_for(self.engine)
        self._connection = WriteConnection(self._open_writer, address.path, self.fork_lock)
        self.writer = GroupWriter(self._connection, self.statements, address, patience_s)
        self.reader = SqliteReader(address, busy_timeout_s) if address.is_sqlite else None
        if address.is_sqlite:
            pause_around_forks(self)

    @property
    def engine(self) -> Engine:
        """Made when it is first wanted: for keyed reads and for writes, an SQLite file needs none."""
        with self._lock:
            if self._engine is None:
                from llmkit.persistence.engines import make_engine

                self._engine = make_engine(self._address, busy_timeout_s=self._busy_timeout_s)
            return self._engine

    @contextmanager
    def lend_connection(self) -> Iterator[Connection]:
        """Return a connection for reading, at one moment in time. Everything may be closed meanwhile."""
        from llmkit.persistence.engines import snapshot

        try:
            with self.fork_lock, snapshot(self.engine) as connection:
                yield connection
        finally:
            if self._is_closed:
                self._close_pool()

    def _open_writer(self) -> Writer:
        if self._address.is_sqlite:
            return SqliteWriter(open_sqlite(self._address, self._busy_timeout_s))
        return ServerWriter(self.engine)

    # Around a fork: `pause` blocks new users, waits for the present ones and closes everything; the parent's `resume`
    # admits users again, who open what they need. The child never resumes: `Journal._here` gives it new resources.

    def pause(self, patience_s: float) -> None:
        """Close the SQLite file for a fork. What cannot be closed in time makes the database unusable in the child."""
        if self.pid != os.getpid():
            return
        is_idle = self.fork_lock.block(patience_s)
        if self.reader is not None:
            is_idle = self.reader.shut(patience_s) and is_idle
        self.open_in_child = not is_idle
        if self.open_in_child:
            return
        self._connection.discard()
        if self._engine is not None:
            # A connection that a caller has borrowed stays open, so the child may not use the file at all. Then the
            # pool is kept: what is returned to a pool that was disposed of is never closed.
            self.open_in_child = _is_lent(self._engine)
            if not self.open_in_child:
                self._engine.dispose()

    def resume(self) -> None:
        """Go on after a fork, in the parent."""
        if self.pid == os.getpid():
            self.fork_lock.unblock()
            if self.reader is not None:
                self.reader.reopen()

    def close(self) -> None:
        """Flush, then close everything. Only in the process that opened it."""
        if self.pid != os.getpid():
            return
        self.writer.close()
        if self.reader is not None:
            self.reader.close()
        self._is_closed = True
        self._close_pool()

    def _close_pool(self) -> None:
        # The pool itself, not the engine, which would go on with a new one: a connection that is lent at this moment
        # comes back to this pool, and its reader then finds that all is closed.
        if self._engine is not None:
            self._engine.pool.dispose()


def _compile_for(engine: Engine) -> Statements:
    from llmkit.persistence.statements import compile_all

    return Statements(compile_all(engine.dialect))


def _is_lent(engine: Engine) -> bool:
    from sqlalchemy.pool import QueuePool

    return isinstance(engine.pool, QueuePool) and engine.pool.checkedout() > 0


# Inherited over a fork and never touched: a server's connection is shared with the parent, and a lock may be held.
_INHERITED: list[_Resources] = []


def _close_at_exit(resources: _Resources) -> None:
    """Keep what was written behind, when the journal was forgotten or the interpreter ends."""
    resources.close()
    if resources.pid == os.getpid():
        try:
            resources.writer.raise_losses()
        except LLMStoreError as error:
            getLogger("llmkit.persistence").warning("%s", error)


class Journal:
    """An open database, for writes that are durable one by one and for reads.

    Used by any number of threads and event loops at once. Nothing is opened before the first use. In a forked child it
    works again, with connections and a writer of the child's own; a fork waits for the transaction that is under way.

    Args:
        database_url: As in `LLM_DATABASE_URL`; already brought to head by `migrate.upgrade`.
        busy_timeout_s: How long one attempt waits for another program that writes to the SQLite file, in seconds.
        write_patience_s: How long an operation is tried again while the database is locked or away, in seconds.

    Raises:
        LLMConfigurationError: The URL is wrong or its driver is missing.
    """

    def __init__(
        self,
        database_url: str,
        *,
        busy_timeout_s: float = SQLITE_BUSY_TIMEOUT_S,
        write_patience_s: float = WRITE_PATIENCE_S,
    ) -> None:
        self.address = DatabaseAddress.parse(database_url)
        self._limits = (busy_timeout_s, write_patience_s)
        self._resources = self._open()
        self._closed = False

    def _open(self) -> _Resources:
        resources = _Resources(self.address, *self._limits)
        start_reaper()
        close_when_dropped(self, partial(_close_at_exit, resources))
        return resources

    def _here(self) -> _Resources:
        resources = self._resources
        if resources.pid == os.getpid():
            return resources
        if resources.open_in_child:
            raise LLMStoreError(
                f"This process was forked while {self.address.label} was in use, which SQLite does not survive. "
                "Start it with multiprocessing's `spawn`, or fork when no call is under way."
            )
        # Kept, so that no finalizer closes in the child what belongs to the parent.
        _INHERITED.append(resources)
        self._resources = self._open()
        return self._resources

    @property
    def engine(self) -> Engine:
        """For reads of this process, and for what `retention` does."""
        return self._here().engine

    @property
    def statements(self) -> Statements:
        """The compiled statements of this database."""
        return self._resources.statements

    @property
    def write_transaction_open(self) -> bool:
        """Whether the writer has a transaction open at this moment: a hook for tests, as is `WriteTransactionWatch`."""
        return self._here().writer.in_transaction

    def perform(self, operation: Operation) -> Awaitable[Any]:
        """Make the change. It happens also when the caller is cancelled, or does not wait for it.

        Returns:
            A future, to be awaited: done when the change is durable. It raises `LLMStoreError` when the database
            failed or the journal is closed, and then nothing of the operation is stored, and `KeyTaken` when an insert
            met a key that is held.
        """
        return self._here().writer.perform(operation)

    def perform_later(self, operation: Operation) -> Awaitable[None]:
        """Queue a change that may be lost in a power cut.

        Returns:
            To be awaited: done when it is queued. It raises `LLMStoreError` when an earlier one of this kind failed.
        """
        return self._here().writer.perform_later(operation)

    @property
    def is_behind(self) -> bool:
        """Whether `flush` has something to wait for or to report."""
        return self._here().writer.is_behind

    async def flush(self) -> None:
        """Wait until all that was queued before is durable.

        Raises:
            LLMStoreError: Some of it was lost.
        """
        writer = self._here().writer
        try:
            await self.perform(Flush())
        except LLMStoreError:
            # What was lost says more than the failure to write nothing.
            writer.raise_losses()
            raise
        writer.raise_losses()

    async def find(self, select: PreparedSelect, *key: Any) -> list[Any] | None:
        """Return the first row of a query by key, as of now.

        Args:
            select: The query.
            *key: Its parameters, encoded, in the order of the columns that it was prepared with.

        Raises:
            LLMStoreError: The database cannot be read.
        """
        resources = self._here()
        self._refuse_when_closed()
        parameters = select.arrange(key)
        if resources.reader is not None:
            return resources.reader.one(select, parameters)
        return await self.read(lambda connection: _first(connection, select, parameters))

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Return the result of `work`, which reads only, run in a thread on a connection at one moment in time.

        Raises:
            LLMStoreError: The database cannot be read.
        """
        self._refuse_when_closed()
        return await asyncio.to_thread(self.read_here, work)

    def read_here(self, work: Callable[[Connection], T]) -> T:
        """Do the same as `read`, on the calling thread."""
        from llmkit.persistence.engines import DATABASE_ERRORS

        self._refuse_when_closed()

        def once() -> T:
            with self._here().lend_connection() as connection:
                return work(connection)

        try:
            return patiently(once, self._limits[1])
        except DATABASE_ERRORS as error:
            raise store_error(error, self.address.label, self.address.path) from None

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise LLMStoreError(f"The journal of {self.address.label} is closed. Open a new session.")

    def close(self) -> None:
        """Write what is queued and let go of the database. Idempotent.

        Raises:
            LLMStoreError: Answers that cost nothing could not be recorded; everything else is stored.
        """
        self._closed = True
        resources = self._resources
        resources.close()
        if resources.pid == os.getpid():
            resources.writer.raise_losses()


def _first(connection: Connection, select: PreparedSelect, parameters: Sequence[Any]) -> list[Any] | None:
    row = connection.exec_driver_sql(select.sql, tuple(parameters)).first()
    return None if row is None else select.values(row)


class JournalLLMRunRepo:
    """`LLMRunRepo` whose every operation is its own short, durable unit of work (spec 3.3).

    STARTED is durable before `create_started` returns, an outcome before `mark_succeeded` or `mark_failed` does. An
    operation that was begun is carried out, also when its caller is cancelled meanwhile; creating comes before marking
    even then, so that a cancelled call can always be marked.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def get_by_idempotency_key(self, workspace_id: str, idempotency_key: str) -> StoredRun | None:
        """See `LLMRunRepo`."""
        row = await self._journal.find(self._journal.statements.by_idempotency_key, workspace_id, idempotency_key)
        return None if row is None else make_stored_run(row)

    async def get_by_flight_key(self, workspace_id: str, flight_key: str) -> StoredRun | None:
        """See `LLMRunRepo`."""
        row = await self._journal.find(self._journal.statements.by_flight_key, workspace_id, flight_key)
        return None if row is None else make_stored_run(row)

    async def get_run(self, workspace_id: str, run_id: UUID) -> StoredRun | None:
        """See `LLMRunRepo`."""
        statements = self._journal.statements
        row = await self._journal.find(statements.by_id, workspace_id, statements.codec.uuid(run_id))
        return None if row is None else make_stored_run(row)

    def create_started(self, start: RunStart) -> Awaitable[None]:
        """See `LLMRunRepo`."""
        return self._journal.perform(InsertStarted(start))

    def mark_succeeded(self, success: RunSuccess) -> Awaitable[bool]:
        """See `LLMRunRepo`. A run that was erased meanwhile stays so: False, and nothing is written."""
        return self._journal.perform(MarkSucceeded(success))

    def mark_failed(self, failure: RunFailure) -> Awaitable[bool]:
        """See `LLMRunRepo`."""
        return self._journal.perform(MarkFailed(failure))

    def record_unsent(self, start: RunStart, failure: RunFailure) -> Awaitable[None]:
        """See `LLMRunRepo`."""
        return self._journal.perform(InsertUnsent(start, failure))

    async def mark_abandoned(self, run: StoredRun) -> bool:
        """See `LLMRunRepo`."""
        changed: bool = await self._journal.perform(AbandonRun(run, utc_now()))
        return changed

    async def save_result_for_idempotency_key(self, start: RunStart, success: RunSuccess) -> None:
        """See `LLMRunRepo`."""
        await self._journal.perform(InsertFinished(start, success))

    async def record_served(self, start: RunStart, success: RunSuccess) -> None:
        """See `LLMRunRepo`. Written within moments; `Journal.flush()` waits for it, and a failure is reported later."""
        await self._journal.perform_later(InsertFinished(start, success))

    async def annotate(self, workspace_id: str, run_id: UUID, metadata: Mapping[str, Any]) -> None:
        """See `LLMRunRepo`."""
        await self._journal.perform(Annotate(workspace_id, run_id, metadata))

    async def heartbeat(self, run_ids: Sequence[UUID]) -> None:
        """See `LLMRunRepo`."""
        if run_ids:
            await self._journal.perform(Beat(run_ids))
