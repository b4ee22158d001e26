"""The two connections that the journal keeps open: one that writes, and for SQLite one for keyed reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, PoolProxiedConnection

from llmkit.persistence.engines import DatabaseAddress, begin_immediate
from llmkit.persistence.faults import database_gone, store_error
from llmkit.persistence.fork import ForkGate
from llmkit.persistence.statements import PreparedSelect

__all__ = ["SqliteReader", "WriteConnection"]

# How long a reader may go on with a file that was deleted: looking costs as much as a third of a read.
LOOK_AGAIN_S: Final = 0.1

T = TypeVar("T")


class FileGuard:
    """Notices that a file is no longer the one that was opened: SQLite itself would go on writing to a deleted one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._opened = self._identity()
        self._checked_s = monotonic()

    def check(self, *, at_most_old_s: float = 0.0) -> None:
        """Compare, unless that was done within `at_most_old_s` seconds.

        Raises:
            LLMStoreError: The file was deleted, moved or replaced.
        """
        if self._path is None or (now_s := monotonic()) < self._checked_s + at_most_old_s:
            return
        if self._identity() != self._opened:
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


class WriteConnection:
    """A connection for one thread, opened on first use and anew after any failure.

    Args:
        engine: Where it comes from.
        address: Of the same database.
        gate: Shut while the process forks.
    """

    def __init__(self, engine: Engine, address: DatabaseAddress, gate: ForkGate) -> None:
        self._engine = engine
        self._address = address
        self._gate = gate
        self._open: tuple[Connection, FileGuard] | None = None

    def transact(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction of its own, durable on return.

        Raises:
            LLMStoreError: The database file is gone.
            Exception: What `work` or the driver raises; then nothing of it is stored, unless the connection broke
                while committing, which nobody can tell.
        """
        with self._gate:
            try:
                return self._transacted(work)
            except BaseException:
                self.discard()
                raise

    def _transacted(self, work: Callable[[Connection], T]) -> T:
        connection, guard = self._opened()
        guard.check()
        with connection.begin():
            result = work(connection)
        guard.check()
        return result

    def _opened(self) -> tuple[Connection, FileGuard]:
        if self._open is None:
            connection = begin_immediate(self._engine.connect())
            self._open = connection, FileGuard(self._address.path)
        return self._open

    def close(self) -> None:
        """Give the connection up, whatever state it is in. The next use opens another."""
        with self._gate:
            self.discard()

    def discard(self) -> None:
        """As `close`, for whoever has shut the gate."""
        if self._open is None:
            return
        connection, self._open = self._open[0], None
        try:
            connection.invalidate()
        finally:
            connection.close()


class SqliteReader:
    """Keyed reads on the calling thread: 11 us, where a hop to another thread costs 75.

    Each statement is read to its end, so that no read transaction stays open and the next one sees the newest commit.
    """

    def __init__(self, engine: Engine, address: DatabaseAddress, gate: ForkGate) -> None:
        self._engine = engine
        self._address = address
        self._gate = gate
        self._lock = Lock()
        self._open: tuple[PoolProxiedConnection, Any, FileGuard] | None = None

    def one(self, select: PreparedSelect, parameters: Sequence[Any]) -> list[Any] | None:
        """The values of the first row, or None.

        Raises:
            LLMStoreError: The database cannot be read.
        """
        with self._gate, self._lock:
            try:
                row = self._first(select.sql, parameters)
            except BaseException as error:
                self.discard()
                if not isinstance(error, Exception):
                    raise
                raise store_error(error, self._address.label, self._address.path) from None
        return None if row is None else select.values(row)

    def _first(self, sql: str, parameters: Sequence[Any]) -> tuple[Any, ...] | None:
        _, driver, guard = self._open or self._opened()
        guard.check(at_most_old_s=LOOK_AGAIN_S)
        rows: list[tuple[Any, ...]] = driver.execute(sql, parameters).fetchall()
        return rows[0] if rows else None

    def _opened(self) -> tuple[PoolProxiedConnection, Any, FileGuard]:
        pooled = self._engine.raw_connection()
        self._open = pooled, pooled.driver_connection, FileGuard(self._address.path)
        return self._open

    def close(self) -> None:
        """Close the file. The next use opens it again."""
        with self._gate, self._lock:
            self.discard()

    def discard(self) -> None:
        """As `close`, for whoever has shut the gate."""
        if self._open is not None:
            connection, self._open = self._open[0], None
            connection.invalidate()
