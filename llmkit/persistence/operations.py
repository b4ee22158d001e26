"""The changes that the journal makes. Each may be applied twice with the effect, and the outcome, of once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, ClassVar, Self
from uuid import UUID

from llmkit.errors import ABANDONED_CODE
from llmkit.persistence.compiled_statements import CompiledStatement, Statements
from llmkit.persistence.connections import Writer
from llmkit.persistence.rows import (
    FAILED,
    SUCCEEDED,
    annotation_values,
    attempt_row,
    failure_values,
    make_abandoned_values,
    make_finished_row,
    make_started_row,
    success_row,
    unsent_values,
)
from llmkit.persistence.writer import Operation
from llmkit.ports import KeyTaken, RunFailure, RunStart, RunSuccess, StoredRun
from llmkit.types import Attempt

__all__ = [
    "AbandonRun",
    "Annotate",
    "Beat",
    "Flush",
    "InsertFinished",
    "InsertStarted",
    "InsertUnsent",
    "MarkFailed",
    "MarkSucceeded",
    "execute",
]

Rows = list[tuple[Any, ...]]


def execute(connection: Writer, statement: CompiledStatement, rows: Rows) -> int:
    """Return how many rows changed."""
    return connection.execute_many(statement.sql, rows)


def _attempt_rows(statements: Statements, run_id: UUID, attempts: Sequence[Attempt]) -> Rows:
    insert, codec = statements.insert_attempt, statements.codec
    return [insert.arrange(attempt_row(run_id, attempt, codec)) for attempt in attempts]


def _insert_attempts(connection: Writer, statements: Statements, operations: Sequence[_Insert | _MarkOutcome]) -> None:
    rows = [row for each in operations for row in each.attempt_rows]
    if rows:
        execute(connection, statements.insert_attempt, rows)


def _outcome_of(connection: Writer, statements: Statements, run_id: UUID) -> list[Any] | None:
    """Return status, end and error code of a run as they are now."""
    select = statements.outcome
    row = connection.first(select.sql, select.row({"run_id": run_id}))
    return None if row is None else select.values(row)


class _Insert(Operation):
    """Insert a run, or say `KeyTaken`."""

    __slots__ = ("attempt_rows", "row", "run_id", "start")
    rank = 0
    statement: ClassVar[attrgetter[CompiledStatement]]
    row: tuple[Any, ...]
    attempt_rows: Rows

    def __init__(self, start: RunStart) -> None:
        self.start = start
        self.run_id = start.id

    def lock_key(self) -> str:
        """See `Operation`."""
        return f"{self.start.workspace_id}\0{self.start.idempotency_key}\0{self.start.flight_key}"

    @classmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Insert all; a row that was there before under the same id is this very one, of a first application."""
        inserted = execute(connection, cls.statement(statements), [each.row for each in operations])
        outcomes: list[Any] = [None] * len(operations)
        if inserted < len(operations):
            # The INSERT skips rows that break a unique index. A row with the operation's own id means that the first
            # application was committed before its connection broke; otherwise another run has the key.
            outcomes = [
                None
                if _outcome_of(connection, statements, each.run_id)
                else KeyTaken("another run of the workspace holds the key")
                for each in operations
            ]
        written = [each for each, outcome in zip(operations, outcomes, strict=True) if outcome is None]
        _insert_attempts(connection, statements, written)
        return outcomes


class InsertStarted(_Insert):
    """A run that begins."""

    __slots__ = ()
    statement = attrgetter("insert_started")

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""
        self.row = statements.insert_started.arrange(make_started_row(self.start, statements.codec))
        self.attempt_rows = []


class InsertFinished(_Insert):
    """A run that is over when it is first written."""

    __slots__ = ("success",)
    statement = attrgetter("insert_finished")

    def __init__(self, start: RunStart, success: RunSuccess) -> None:
        super().__init__(start)
        self.success = success

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""
        self.row = statements.insert_finished.arrange(make_finished_row(self.start, self.success, statements.codec))
        self.attempt_rows = _attempt_rows(statements, self.run_id, self.success.attempts)


class InsertUnsent(_Insert):
    """A run that failed before it was started."""

    __slots__ = ("failure",)
    statement = attrgetter("insert_unsent")

    def __init__(self, start: RunStart, failure: RunFailure) -> None:
        super().__init__(start)
        self.failure = failure

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""
        self.row = statements.insert_unsent.row(unsent_values(self.start, self.failure))
        self.attempt_rows = []


class _MarkOutcome(Operation):
    """Take a run out of STARTED; the outcome says whether it was this operation that did."""

    __slots__ = ("attempt_rows", "expected", "row", "run_id")
    statement: ClassVar[attrgetter[CompiledStatement]]
    row: tuple[Any, ...]
    expected: list[Any]
    attempt_rows: Rows

    def __init__(self, run_id: UUID) -> None:
        self.run_id = run_id

    def lock_key(self) -> str:
        """See `Operation`."""
        return self.run_id.hex

    @classmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Update all, and ask for those that did not change: they may have been changed by a first application."""
        changed = execute(connection, cls.statement(statements), [each.row for each in operations])
        if changed == len(operations):
            _insert_attempts(connection, statements, operations)
            return [True] * changed
        # Fewer rows changed than expected. Either this is a second application, and the row has exactly the expected
        # outcome; or the run was declared dead or erased meanwhile, and the caller has to know.
        found = [_outcome_of(connection, statements, each.run_id) for each in operations]
        # The attempts of a run that was declared dead are recorded; those of one that was erased are not brought back.
        there = [each for each, outcome in zip(operations, found, strict=True) if outcome is not None]
        _insert_attempts(connection, statements, there)
        return [outcome == each.expected for each, outcome in zip(operations, found, strict=True)]


class MarkSucceeded(_MarkOutcome):
    """A good end."""

    __slots__ = ("success",)
    statement = attrgetter("mark_succeeded")
    rank = 1

    def __init__(self, success: RunSuccess) -> None:
        super().__init__(success.run_id)
        self.success = success

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""
        values = success_row(self.success, statements.codec)
        self.row = statements.mark_succeeded.arrange((*values, statements.codec.uuid(self.run_id)))
        self.expected = [SUCCEEDED, self.success.finished_at_utc, None]
        self.attempt_rows = _attempt_rows(statements, self.run_id, self.success.attempts)


class MarkFailed(_MarkOutcome):
    """A bad end."""

    __slots__ = ("failure",)
    statement = attrgetter("mark_failed")
    rank = 1

    def __init__(self, failure: RunFailure) -> None:
        super().__init__(failure.run_id)
        self.failure = failure

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""
        self.row = statements.mark_failed.row(failure_values(self.failure) | {"run_id": self.run_id})
        self.expected = [FAILED, self.failure.finished_at_utc, self.failure.error_code]
        self.attempt_rows = _attempt_rows(statements, self.run_id, self.failure.attempts)


class AbandonRun(_MarkOutcome):
    """The end of a run whose process died, unless the run has stirred since it was looked at."""

    __slots__ = ("at_utc", "run")
    statement = attrgetter("mark_abandoned")
    rank = 2

    def __init__(self, run: StoredRun, at_utc: datetime) -> None:
        super().__init__(run.id)
        self.run = run
        self.at_utc = at_utc

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""
        # The UPDATE compares the heartbeat that was read: a process that was only slow has sent another since.
        seen = {"run_id": self.run_id, "seen_at_utc": self.run.heartbeat_at_utc}
        self.row = statements.mark_abandoned.row(make_abandoned_values(self.at_utc) | seen)
        self.expected = [FAILED, self.at_utc, ABANDONED_CODE]
        self.attempt_rows = []


class Annotate(Operation):
    """Other metadata of a run."""

    __slots__ = ("row", "values")
    rank = 2
    row: tuple[Any, ...]

    def __init__(self, workspace_id: str, run_id: UUID, metadata: Mapping[str, Any]) -> None:
        self.values = (workspace_id, run_id, metadata)

    def lock_key(self) -> str:
        """See `Operation`."""
        return self.values[1].hex

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""
        self.row = statements.annotate.row(annotation_values(*self.values))

    @classmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Update all, the later of two for one run last."""
        execute(connection, statements.annotate, [each.row for each in operations])
        return [None] * len(operations)


class Beat(Operation):
    """A sign of life of some runs."""

    __slots__ = ("rows", "run_ids")
    rank = 3
    rows: Rows

    def __init__(self, run_ids: Sequence[UUID]) -> None:
        # Sorted, so that two processes that beat for the same runs lock the rows in the same order.
        self.run_ids = sorted(run_ids)

    def lock_key(self) -> str:
        """See `Operation`."""
        return self.run_ids[0].hex if self.run_ids else ""

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""
        beat = statements.beat
        self.rows = [beat.row({"run_id": run_id}) for run_id in self.run_ids]

    @classmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Update those that are still STARTED."""
        rows = [row for each in operations for row in each.rows]
        if rows:
            execute(connection, statements.beat, rows)
        return [None] * len(operations)


class Flush(Operation):
    """Nothing; it is done when all that was handed over before is."""

    __slots__ = ()
    rank = 4

    def lock_key(self) -> str:
        """See `Operation`."""
        return ""

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""

    @classmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Change nothing."""
        del connection, statements
        return [None] * len(operations)
