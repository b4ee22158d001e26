"""Group commit: one thread owns the write connection, and what callers ask at the same time shares one transaction."""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from logging import getLogger
from queue import Empty, SimpleQueue
from threading import Lock, Thread, current_thread
from typing import Any, ClassVar, Final, Self, TypeAlias

from llmkit.errors import LLMStoreError
from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.compiled_statements import Statements
from llmkit.persistence.connections import WriteConnection, Writer
from llmkit.persistence.database_errors import DatabaseFailure, classify, patiently, store_error

__all__ = ["GroupWriter", "Operation"]

MAX_BATCH: Final = 512
MAX_BEHIND: Final = 2_000
# Answers that cost nothing come by the thousand a second. One transaction for each would take the processor, and the
# interpreter's lock, from the callers: 440 us an answer instead of 150.
BEHIND_LINGER_S: Final = 0.05


class Operation(ABC):
    """One change of the store.

    It may be applied a second time, after a connection broke while it was committed: that must change nothing and
    give the same outcome.

    Attributes:
        rank: Order within a transaction: new runs before what refers to them, outcomes before declarations of death.
    """

    __slots__ = ()
    rank: ClassVar[int]

    @abstractmethod
    def lock_key(self) -> str:
        """Order within a rank, the same in every process, so that two processes do not wait for each other."""

    @abstractmethod
    def prepare(self, statements: Statements) -> None:
        """Make the rows that `apply_all` writes: many in a row, on the writer's thread, cost half as much as singly.

        Raises:
            LLMStoreError: Something in it cannot be stored. That concerns this operation alone.
        """

    @classmethod
    @abstractmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Apply operations of this class inside the open transaction.

        Returns:
            The outcome of each, in order; an exception concerns that operation alone.
        """


# An operation and its waiting caller; one that is written behind has none. A plain tuple: one is made per call.
_Request: TypeAlias = tuple[Operation, asyncio.Future[Any] | None]


class GroupWriter:
    """Applies operations of any number of threads and event loops, each durable before its caller goes on.

    An operation that was handed over is carried out, also when its caller is cancelled in the meantime. The thread
    starts with the first operation, and again should it ever die; callers that waited then get an error.

    Args:
        connection: Used by the writer's thread only.
        statements: Of the same database.
        address: For messages.
        patience_s: How long a locked or absent database is tried again, in seconds.
    """

    def __init__(
        self, connection: WriteConnection, statements: Statements, address: DatabaseAddress, patience_s: float
    ) -> None:
        self._connection = connection
        self._statements = statements
        self._address = address
        self._patience_s = patience_s
        # Two queues: callers wait for the first. The second shares their transactions, or lingers for one of its own.
        self._now: list[_Request] = []
        self._later: list[_Request] = []
        # Rung when one of the two lists stops being empty, with how long to wait for more.
        self._bell: SimpleQueue[float] = SimpleQueue()
        self._lock = Lock()
        self._thread: Thread | None = None
        self._closed = False
        self._behind = 0
        self._lost = 0
        self._lost_because = ""
        self._in_transaction = False

    @property
    def in_transaction(self) -> bool:
        """Whether the write transaction is open at this moment."""
        return self._in_transaction

    @property
    def is_behind(self) -> bool:
        """Whether an operation whose caller did not wait is outstanding, or was lost and not yet reported."""
        return self._behind > 0 or self._lost > 0

    def perform(self, operation: Operation) -> asyncio.Future[Any]:
        """Hand the operation over, and return a future of its outcome.

        The future holds the outcome, which may be an exception, or `LLMStoreError` when the database failed or the
        writer is closed. A plain function, because a coroutine more would cost each call a microsecond.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with self._lock:
            try:
                self._require_thread()
            except LLMStoreError as error:
                future.set_exception(error)
                return future
            self._now.append((operation, future))
            # One ring for each batch is enough: the writer takes the whole list when it comes round.
            if len(self._now) == 1:
                self._bell.put(0.0)
        return future

    async def perform_later(self, operation: Operation) -> None:
        """Hand the operation over and go on, unless too many are outstanding.

        Raises:
            LLMStoreError: The writer is closed, or an earlier operation of this kind was lost.
        """
        self.raise_losses()
        if self._behind >= MAX_BEHIND:
            # The queue would grow without bound where answers come faster than the disk takes them.
            await self.perform(operation)
            return
        with self._lock:
            self._require_thread()
            self._behind += 1
            self._later.append((operation, None))
            if len(self._later) == 1:
                self._bell.put(BEHIND_LINGER_S)

    def raise_losses(self) -> None:
        """Report, once, the operations that failed after their callers had gone on.

        Raises:
            LLMStoreError: There are some.
        """
        if not self._lost:  # nearly always, and the lock is taken for every answer
            return
        with self._lock:
            lost, self._lost = self._lost, 0
        if lost:
            raise LLMStoreError(f"{lost} answers that cost nothing could not be recorded. {self._lost_because}")

    def close(self) -> None:
        """Carry out what was handed over, then stop. Idempotent, from any thread."""
        with self._lock:
            thread, first = self._thread, not self._closed
            # From here on no operation is accepted; the thread carries out what is queued and then ends by itself.
            self._closed = True
            if thread is not None and first:
                self._bell.put(0.0)
        # In the interpreter's last phase other threads stand still, and waiting for one would never end.
        if thread is not None and thread is not current_thread() and not sys.is_finalizing():
            thread.join()

    def _require_thread(self) -> None:
        if self._closed:
            raise LLMStoreError(f"The journal of {self._address.label} is closed. Open a new session.")
        if self._thread is None:
            # A daemon: an interpreter that stops must not wait for a caller that never comes.
            thread = Thread(target=self._run, name="llmkit-journal", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise LLMStoreError(
                    f"{self._address.label} cannot be written: {error}. Close what holds many threads, then try again."
                ) from None
            self._thread = thread

    def _run(self) -> None:
        reason = "it was closed"
        try:
            for batch in self._batches():
                self._carry_out(batch)
        except BaseException as error:
            reason = f"its writer died of {type(error).__name__}"
            getLogger(__name__).exception("the journal's writer died")
        finally:
            self._retire(f"The journal of {self._address.label} stopped: {reason}.")

    def _batches(self) -> Iterator[list[_Request]]:
        """Yield queued requests whenever the bell rings, until the writer is closed and the queue is empty."""
        while True:
            self._linger(self._bell.get())
            with self._lock:
                batch, self._now = self._now[:MAX_BATCH], self._now[MAX_BATCH:]
                if self._now:
                    self._bell.put(0.0)
                batch += self._later
                self._later = []
                # Decided under the lock that `perform` takes: after this no operation can be left in the queue.
                ended = self._closed and not self._now
            if batch:
                yield batch
            if ended:
                return

    def _linger(self, longest_s: float) -> None:
        """Let answers without a waiting caller gather, until a caller waits for something."""
        if longest_s > 0:
            with suppress(Empty):
                self._bell.get(timeout=longest_s)

    def _carry_out(self, batch: list[_Request]) -> None:
        batch = self._prepare_batch(batch)
        if not batch:
            return
        try:
            outcomes = self._outcomes(batch)
        except BaseException as error:
            # Whatever happens, each caller gets an answer: one that waits for ever is worse than an error.
            self._deliver(batch, [_copy(error, self._address) for _ in batch])
            if not isinstance(error, Exception):
                raise
        else:
            self._deliver(batch, outcomes)

    def _prepare_batch(self, batch: list[_Request]) -> list[_Request]:
        """Return the requests that can be stored; each of the others fails alone."""
        refused: list[_Request] = []
        errors: list[Exception] = []
        for request in batch:
            try:
                request[0].prepare(self._statements)
            except Exception as error:  # noqa: BLE001 it is handed to the one who asked
                refused.append(request)
                errors.append(_copy(error, self._address))
        if not refused:
            return batch
        self._deliver(refused, errors)
        return [request for request in batch if request not in refused]

    def _outcomes(self, batch: list[_Request]) -> list[Any]:
        try:
            return patiently(lambda: self._transact(batch), self._patience_s)
        except Exception as error:
            if len(batch) == 1 or classify(error) is not DatabaseFailure.OPERATION:
                raise
        # One of them contains something that the database refuses: alone, it fails alone.
        return [self._outcome(request) for request in batch]

    def _outcome(self, request: _Request) -> Any:
        try:
            return self._outcomes([request])[0]
        except Exception as error:  # noqa: BLE001 it is handed to the one who asked
            return _copy(error, self._address)

    def _transact(self, batch: list[_Request]) -> list[Any]:
        self._in_transaction = True
        try:
            return self._connection.transact(lambda connection: self._apply(connection, batch))
        finally:
            self._in_transaction = False

    def _apply(self, connection: Writer, batch: list[_Request]) -> list[Any]:
        # By class, so that a thousand inserts are one `executemany`; by rank, so that a run exists before its outcome.
        groups: dict[type[Operation], list[int]] = defaultdict(list)
        for index, request in enumerate(batch):
            groups[type(request[0])].append(index)
        outcomes: list[Any] = [None] * len(batch)
        for kind in sorted(groups, key=lambda kind: kind.rank):
            indexes = groups[kind]
            if not self._address.is_sqlite:  # whose one lock is held already
                indexes.sort(key=lambda index: batch[index][0].lock_key())
            applied = kind.apply_all(connection, self._statements, [batch[index][0] for index in indexes])
            for index, outcome in zip(indexes, applied, strict=True):
                outcomes[index] = outcome
        return outcomes

    def _deliver(self, batch: list[_Request], outcomes: list[Any]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = defaultdict(list)
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future is None:
                self._note(outcome)
            else:
                by_loop[future.get_loop()].append((future, outcome))
        for loop, settled in by_loop.items():
            try:
                loop.call_soon_threadsafe(_settle, settled)
            except RuntimeError:  # the loop is closed, so no caller waits
                continue

    def _note(self, outcome: Any) -> None:
        with self._lock:
            self._behind -= 1
            if isinstance(outcome, BaseException):
                self._lost += 1
                self._lost_because = str(outcome)

    def _retire(self, reason: str) -> None:
        self._connection.close()
        with self._lock:
            # The next operation starts another thread, unless the writer is closed.
            self._thread = None
            left, self._now, self._later = self._now + self._later, [], []
        self._deliver(left, [LLMStoreError(reason) for _ in left])


def _settle(settled: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in settled:
        if future.done():  # its caller was cancelled
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _copy(error: BaseException, address: DatabaseAddress) -> LLMStoreError:
    """Copy the error for one caller: an exception that several callers raise collects all their tracebacks."""
    if isinstance(error, Exception):
        return LLMStoreError(str(store_error(error, address.label, address.path)))
    return LLMStoreError(f"The journal of {address.label} stopped: its writer died of {type(error).__name__}.")
