"""A hook for tests: is a write transaction open while a model is called?"""

from __future__ import annotations

import asyncio
from threading import Lock, current_thread
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, Self

__all__ = ["OpenTransaction", "WriteTransactionWatch", "write_began", "write_ended"]

WRITES = ("INSERT", "UPDATE", "DELETE", "REPLACE", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "CREATE", "ALTER", "DROP")


class OpenTransaction(NamedTuple):
    """A transaction that has written, or holds SQLite's write lock.

    Attributes:
        number: Unlike that of every other transaction.
        thread: Name of the thread that wrote.
        statement: Its first writing statement.
    """

    number: int
    thread: str
    statement: str


class WriteTransactionWatch:
    """Knows which write transactions are open in this process inside its `with` block.

    Those of every engine of SQLAlchemy's, and those of journals.

    A test calls `assert_none_held` where a request leaves for a provider (spec 3.3):

        with WriteTransactionWatch() as watch:
            client = ScriptedClient(before_reply=watch.assert_none_held)
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: dict[object, OpenTransaction] = {}
        self._count = 0

    def __enter__(self) -> Self:
        from sqlalchemy import Engine, event

        _WATCHES.append(self)
        for name, listener in self._listeners():
            event.listen(Engine, name, listener)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from sqlalchemy import Engine, event

        _WATCHES.remove(self)
        for name, listener in self._listeners():
            event.remove(Engine, name, listener)

    def _listeners(self) -> tuple[tuple[str, Any], ...]:
        return (
            ("before_cursor_execute", self._on_statement),
            ("commit", self.end_transaction),
            ("rollback", self.end_transaction),
        )

    @property
    def open_transactions(self) -> tuple[OpenTransaction, ...]:
        """Those open at this moment."""
        with self._lock:
            return tuple(self._open.values())

    @property
    def count(self) -> int:
        """Write transactions seen so far."""
        return self._count

    async def assert_none_held(self, patience_s: float = 2.0) -> None:
        """Check that no write transaction waits for the caller.

        The journal's writer may be in the middle of a transaction for another caller. That one ends by itself; one that
        is held open across the call does not.

        Args:
            patience_s: How long those open now may take, in seconds.

        Raises:
            AssertionError: One is still open.
        """
        waiting = {transaction.number for transaction in self.open_transactions}
        deadline = monotonic() + patience_s
        while held := [each for each in self.open_transactions if each.number in waiting]:
            if monotonic() > deadline:
                raise AssertionError(f"a write transaction is open across a call: {held}")
            await asyncio.sleep(0.001)

    def _on_statement(self, connection: object, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.lstrip().upper().startswith(WRITES):
            self.began(connection, statement)

    def began(self, connection: object, statement: str) -> None:
        """Note that a connection has executed a statement that writes."""
        with self._lock:
            # Later statements of the same transaction change nothing: its number tells it from the next one.
            if connection not in self._open:
                self._count += 1
                self._open[connection] = OpenTransaction(self._count, current_thread().name, statement[:80])

    def end_transaction(self, connection: object) -> None:
        """Note that the transaction of a connection is over."""
        with self._lock:
            self._open.pop(connection, None)


# The watches whose `with` block is open. SQLAlchemy's events do not reach the journal's own SQLite connections, so
# these report here. Outside of tests the list is empty, which costs less than a microsecond a transaction.
_WATCHES: list[WriteTransactionWatch] = []


def write_began(connection: object, statement: str) -> None:
    """Tell the watches that a connection holds a write transaction."""
    for watch in _WATCHES:
        watch.began(connection, statement)


def write_ended(connection: object) -> None:
    """Tell the watches that it is over."""
    for watch in _WATCHES:
        watch.end_transaction(connection)
