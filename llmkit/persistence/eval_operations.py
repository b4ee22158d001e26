"""The changes of evaluations; see `operations`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self
from uuid import UUID

from llmkit.eval_ports import EvalResult, EvalRun, HostDigest
from llmkit.persistence.compiled_statements import Statements
from llmkit.persistence.connections import Writer
from llmkit.persistence.eval_rows import eval_result_values, eval_run_values
from llmkit.persistence.operations import execute
from llmkit.persistence.rows import storable
from llmkit.persistence.writer import Operation

__all__ = ["NoteDigests", "NoteSharedCall", "OpenEvalRun", "SaveEvalResult", "UpdateEvalRun"]


class OpenEvalRun(Operation):
    """Insert an evaluation unless its workspace has one of this name."""

    __slots__ = ("row", "run")
    rank = 0
    row: tuple[Any, ...]

    def __init__(self, run: EvalRun) -> None:
        self.run = run

    def lock_key(self) -> str:
        """See `Operation`."""
        return f"{self.run.workspace_id}\0{self.run.name}"

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""
        self.row = statements.insert_eval_run.row(eval_run_values(self.run))

    @classmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Insert those that are new."""
        execute(connection, statements.insert_eval_run, [each.row for each in operations])
        return [None] * len(operations)


class UpdateEvalRun(Operation):
    """Replace the description of an evaluation."""

    __slots__ = ("row", "run")
    rank = 0
    row: tuple[Any, ...]

    def __init__(self, run: EvalRun) -> None:
        self.run = run

    def lock_key(self) -> str:
        """See `Operation`."""
        return f"{self.run.workspace_id}\0{self.run.name}"

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""
        values = eval_run_values(self.run)
        changed = {name: values[name] for name in ("dataset_sha256", "spec_json")}
        self.row = statements.update_eval_run.row({**changed, "run_id": self.run.id})

    @classmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Write all, the later of two for one run last."""
        execute(connection, statements.update_eval_run, [each.row for each in operations])
        return [None] * len(operations)


class NoteDigests(Operation):
    """Keep the digests of models as one machine has them."""

    __slots__ = ("digests", "eval_run_id", "rows")
    rank = 1
    rows: list[tuple[Any, ...]]

    def __init__(self, eval_run_id: UUID, digests: Sequence[HostDigest]) -> None:
        self.eval_run_id = eval_run_id
        # Sorted, so that two processes of one machine lock the rows in the same order.
        self.digests = sorted(digests, key=str)

    def lock_key(self) -> str:
        """See `Operation`."""
        return self.eval_run_id.hex

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""
        self.rows = [
            statements.upsert_digest.row(
                {
                    "eval_run_id": self.eval_run_id,
                    "host": storable(each.host),
                    "provider": str(each.route.provider),
                    "model": storable(each.route.model),
                    "digest": storable(each.digest),
                }
            )
            for each in self.digests
        ]

    @classmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Write all, the later of two for one machine and route last."""
        execute(connection, statements.upsert_digest, [row for each in operations for row in each.rows])
        return [None] * len(operations)


class SaveEvalResult(Operation):
    """Insert a result or replace the one before."""

    __slots__ = ("result", "row")
    rank = 1
    row: tuple[Any, ...]

    def __init__(self, result: EvalResult) -> None:
        self.result = result

    def lock_key(self) -> str:
        """See `Operation`."""
        result = self.result
        return "\0".join((result.eval_run_id.hex, result.route, result.sample_id, f"{result.epoch:09}"))

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""
        self.row = statements.upsert_result.row(eval_result_values(self.result))

    @classmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Write all, the later of two for one key last."""
        execute(connection, statements.upsert_result, [each.row for each in operations])
        return [None] * len(operations)


class NoteSharedCall(Operation):
    """Note that workers take part in a call, or that it was stopped."""

    __slots__ = ("call_id", "is_stopped", "row")
    rank = 0
    row: tuple[Any, ...]

    def __init__(self, call_id: UUID, *, is_stopped: bool) -> None:
        self.call_id = call_id
        self.is_stopped = is_stopped

    def lock_key(self) -> str:
        """See `Operation`."""
        return self.call_id.hex

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""
        self.row = statements.upsert_shared_call.row({"id": self.call_id, "is_stopped": self.is_stopped})

    @classmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Write all, the later of two for one call last."""
        execute(connection, statements.upsert_shared_call, [each.row for each in operations])
        return [None] * len(operations)
