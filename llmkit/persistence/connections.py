"""The two connections that the journal keeps open: one that writes, and for SQLite one for keyed reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar

from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.compiled_statements import PreparedSelect
from llmkit.persistence.database_errors import database_gone, store_error
from llmkit.persistence.fork_safety import ForkLock
from llmkit.persistence.sqlite_driver import open_sqlite
from llmkit.persistence.transaction_watch import write_began, write_ended

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["ServerWriter", "SqliteReader", "SqliteWriter", "WriteConnection", "Writer", "with_quick_nulls"]

# How long a reader may go on with a file that was deleted: looking costs as much as a third of a read.
LOOK_AGAIN_S: Final = 0.1

T = TypeVar("T")


class FileGuard:
    """Notices that a file is no longer the one that was opened: SQLite itself would go on writing to a deleted one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._open_connection = self._identity()
        self._checked_s = monotonic()

    def check(self, *, at_most_old_s: float = 0.0) -> None:
        """Compare, unless that was done within `at_most_old_s` seconds.

        Raises:
            LLMStoreError: The file was deleted, moved or replaced.
        """
        if self._path is None or (now_s := monotonic()) < self._checked_s + at_most_old_s:
            return
        if self._identity() != self._open_connection:
            raise database_gone(self._path)
        self._checked_s = now_s

    def _identity(self) -> tuple[int, int] | None:
        if self._path is None:
            return None
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


Row: TypeAlias = tuple[Any, ...]


# SQLite stores it as NULL (https://www.sqlite.org/floatingpoint.html), and Python's driver binds it at once. For None
# that first looks for an adapter: for ten of them that takes as long as all the rest of binding a row.
_NULL: Final = float("nan")


def with_quick_nulls(row: Row) -> Row:
    """Return parameters for SQLite that are stored as these are, and bound sooner."""
    return tuple([_NULL if value is None else value for value in row])


class Writer(Protocol):
    """A connection that writes, one transaction at a time."""

    def begin(self) -> None:
        """Begin a transaction; SQLite's has the write lock from its beginning."""
        ...

    def commit(self) -> None:
        """Make it durable."""
        ...

    def execute_many(self, sql: str, rows: Sequence[Row]) -> int:
        """Return how many rows the statement changed, over all the given parameters."""
        ...

    def first(self, sql: str, parameters: Row) -> Row | None:
        """Return the first row of a query."""
        ...

    def all(self, sql: str, parameters: Row) -> Sequence[Row]:
        """Return all rows of a query."""
        ...

    def close(self) -> None:
        """Give it up, whatever state it is in; what is not committed is rolled back."""
        ...


class SqliteWriter:
    """A `Writer` on an SQLite file. SQLAlchemy would take as long as SQLite itself for a batch of one."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def begin(self) -> None:
        """See `Writer`."""
        self._connection.execute("BEGIN IMMEDIATE")
        write_began(self, "BEGIN IMMEDIATE")

    def commit(self) -> None:
        """See `Writer`."""
        self._connection.execute("COMMIT")
        write_ended(self)

    def execute_many(self, sql: str, rows: Sequence[Row]) -> int:
        """See `Writer`."""
        return self._connection.executemany(sql, map(with_quick_nulls, rows)).rowcount

    def first(self, sql: str, parameters: Row) -> Row | None:
        """See `Writer`."""
        rows = self.all(sql, parameters)
        return rows[0] if rows else None

    def all(self, sql: str, parameters: Row) -> list[Row]:
        """See `Writer`."""
        rows: list[Row] = self._connection.execute(sql, parameters).fetchall()
        return rows

    def close(self) -> None:
        """See `Writer`."""
        self._connection.close()
        write_ended(self)


class ServerWriter:
    """A `Writer` on a PostgreSQL server."""

    def __init__(self, engine: Engine) -> None:
        self._connection = engine.connect()

    def begin(self) -> None:
        """See `Writer`."""
        self._connection.begin()

    def commit(self) -> None:
        """See `Writer`."""
        self._connection.commit()

    def execute_many(self, sql: str, rows: Sequence[Row]) -> int:
        """See `Writer`."""
        return self._connection.exec_driver_sql(sql, list(rows)).rowcount

    def first(self, sql: str, parameters: Row) -> Row | None:
        """See `Writer`."""
        row = self._connection.exec_driver_sql(sql, parameters).first()
        return None if row is None else tuple(row)

    def all(self, sql: str, parameters: Row) -> list[Row]:
        """See `Writer`."""
        return [tuple(row) for row in self._connection.exec_driver_sql(sql, parameters)]

    def close(self) -> None:
        """See `Writer`."""
        try:
            self._connection.invalidate()
        finally:
            self._connection.close()


class WriteConnection:
    """A connection for one thread, opened on first use and again after any failure.

    Args:
        opener: Opens it.
        path: The file, for SQLite.
        fork_lock: Blocked while the process forks.
    """

    def __init__(self, opener: Callable[[], Writer], path: Path | None, fork_lock: ForkLock) -> None:
        self._opener = opener
        self._path = path
        self._fork_lock = fork_lock
        self._open: tuple[Writer, FileGuard] | None = None

    def transact(self, work: Callable[[Writer], T]) -> T:
        """Run `work` in one transaction of its own, durable on return.

        Raises:
            LLMStoreError: The database file is gone.
            Exception: What `work` or the driver raises; then nothing of it is stored, unless the connection broke
                while committing, which cannot be determined.
        """
        with self._fork_lock:
            try:
                return self._run_transaction(work)
            except BaseException:
                # A connection that failed may still have a transaction open, or be half dead. Opening another takes
                # less than a millisecond, and is right in every such state.
                self.discard()
                raise

    def _run_transaction(self, work: Callable[[Writer], T]) -> T:
        writer, guard = self._open_connection()
        guard.check()
        writer.begin()
        result = work(writer)
        writer.commit()
        # Checked again: a file that was deleted during the transaction took the commit with it.
        guard.check()
        return result

    def _open_connection(self) -> tuple[Writer, FileGuard]:
        if self._open is None:
            self._open = self._opener(), FileGuard(self._path)
        return self._open

    def close(self) -> None:
        """Give the connection up, whatever state it is in. The next use opens another."""
        with self._fork_lock:
            self.discard()

    def discard(self) -> None:
        """Do the same as `close`, for a caller that has blocked the fork lock."""
        if self._open is not None:
            writer, self._open = self._open[0], None
            writer.close()


class SqliteReader:
    """Keyed reads on the calling thread: 11 us, where a hop to another thread costs 75.

    Each statement is read to its end, so that no read transaction stays open and the next one sees the newest commit.
    """

    def __init__(self, address: DatabaseAddress, busy_timeout_s: float) -> None:
        self._address = address
        self._busy_timeout_s = busy_timeout_s
        self._lock = Lock()
        self._is_shut = False
        self._open: tuple[sqlite3.Connection, FileGuard] | None = None

    def one(self, select: PreparedSelect, parameters: Sequence[Any]) -> list[Any] | None:
        """Return the values of the first row, or None.

        Raises:
            LLMStoreError: The database cannot be read.
        """
        with self._lock:
            try:
                row = self._first(select.sql, parameters)
            except BaseException as error:
                self._discard()
                if not isinstance(error, Exception):
                    raise
                raise store_error(error, self._address.label, self._address.path) from None
        return None if row is None else select.values(row)

    def _first(self, sql: str, parameters: Sequence[Any]) -> Row | None:
        connection, guard = self._open or self._open_connection()
        guard.check(at_most_old_s=LOOK_AGAIN_S)
        rows: list[Row] = connection.execute(sql, parameters).fetchall()
        return rows[0] if rows else None

    def _open_connection(self) -> tuple[sqlite3.Connection, FileGuard]:
        self._open = open_sqlite(self._address, self._busy_timeout_s), FileGuard(self._address.path)
        return self._open

    def close(self) -> None:
        """Close the file. The next use opens it again."""
        with self._lock:
            self._discard()

    def shut(self, patience_s: float) -> bool:
        """Close the file and refuse readers until `reopen`; False when the reader inside did not leave in time."""
        self._is_shut = self._lock.acquire(timeout=patience_s)
        if self._is_shut:
            self._discard()
        return self._is_shut

    def reopen(self) -> None:
        """Let in those who wait, if it is shut."""
        if self._is_shut:
            self._is_shut = False
            self._lock.release()

    def _discard(self) -> None:
        if self._open is not None:
            connection, self._open = self._open[0], None
            connection.close()
