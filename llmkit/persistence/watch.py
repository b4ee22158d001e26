"""A hook for tests: is a write transaction open while a model is called?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from threading import Lock, current_thread
from time import monotonic
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Engine, event

__all__ = ["OpenTransaction", "WriteTransactionWatch"]

WRITES = ("INSERT", "UPDATE", "DELETE", "REPLACE", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "CREATE", "ALTER", "DROP")


@dataclass(frozen=True, slots=True)
class OpenTransaction:
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
    """Knows which write transactions are open, on every engine of this process, inside its `with` block.

    A test calls `assert_none_held` where a request leaves for a provider (spec 3.3):

        with WriteTransactionWatch() as watch:
            client = ScriptedClient(before_reply=watch.assert_none_held)
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: dict[Connection, OpenTransaction] = {}
        self._count = 0

    def __enter__(self) -> Self:
        for name, listener in self._listeners():
            event.listen(Engine, name, listener)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name, listener in self._listeners():
            event.remove(Engine, name, listener)

    def _listeners(self) -> tuple[tuple[str, Any], ...]:
        return (
            ("before_cursor_execute", self._on_statement),
            ("commit", self._on_end),
            ("rollback", self._on_end),
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

        The journal's writer may be in the middle of a transaction for somebody else. That one ends by itself; one that
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

    def _on_statement(self, connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.lstrip().upper().startswith(WRITES):
            with self._lock:
                if connection not in self._open:
                    self._count += 1
                    self._open[connection] = OpenTransaction(self._count, current_thread().name, statement[:80])

    def _on_end(self, connection: Connection) -> None:
        with self._lock:
            self._open.pop(connection, None)
