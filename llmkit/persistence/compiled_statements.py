"""Statements as the driver takes them: SQL with positional placeholders, and rows as tuples.

Executing a Core statement costs about 60 us, ten times what SQLite needs to run it, so each is compiled once. Those of
the journal on SQLite are compiled ahead, into `sqlite_statements.json`: a process that only looks up a stored answer
then never loads SQLAlchemy, which takes it longer than all the rest. A test compares the file with the tables.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

from llmkit.persistence.rows import (
    AS_IT_IS,
    ATTEMPT_COLUMNS,
    FINISHED_COLUMNS,
    SQLITE_CODEC,
    STARTED_COLUMNS,
    SUCCESS_COLUMNS,
    Codec,
    sqlite_time,
    sqlite_uuid,
    time_of_sqlite,
    uuid_of_sqlite,
)

__all__ = [
    "ORDERS",
    "SQLITE_STATEMENTS_FILE",
    "Compiled",
    "CompiledStatement",
    "PreparedSelect",
    "Processor",
    "Statements",
    "as_json",
    "sqlite_statements",
]

Processor = Callable[[Any], Any]

SQLITE_STATEMENTS_FILE: Final = "sqlite_statements.json"
# What SQLite's driver does not take, and give back, as it is.
PROCESSORS: Final[Mapping[str, Processor]] = {
    "to_time": sqlite_time,
    "to_uuid": sqlite_uuid,
    "from_time": time_of_sqlite,
    "from_uuid": uuid_of_sqlite,
}
# The order of rows that are made without a mapping, by statement.
ORDERS: Final[Mapping[str, Sequence[str]]] = {
    "insert_started": STARTED_COLUMNS,
    "insert_finished": FINISHED_COLUMNS,
    "insert_attempt": ATTEMPT_COLUMNS,
    "mark_succeeded": (*SUCCESS_COLUMNS, "run_id"),
    "by_idempotency_key": ("workspace_id", "idempotency_key"),
    "by_flight_key": ("workspace_id", "flight_key"),
    "by_id": ("workspace_id", "run_id"),
    "pause_of_route": ("in_endpoint", "of_model"),
}


class Compiled(NamedTuple):
    """A statement in the words of one database.

    Attributes:
        sql: With the driver's positional placeholders.
        names: Parameters, by position.
        encoders: Conversions of parameters before the driver gets them, by position.
        decoders: Conversions of columns of the result, by position.
    """

    sql: str
    names: tuple[str, ...]
    encoders: Mapping[int, Processor]
    decoders: Mapping[int, Processor]


class CompiledStatement:
    """One statement of one database, ready for the driver.

    Args:
        compiled: The statement.
        columns: The order of rows that are made without a mapping, for `arrange`.

    Attributes:
        sql: With the driver's positional placeholders.
    """

    __slots__ = ("_order", "_pick", "_processed", "sql")

    def __init__(self, compiled: Compiled, columns: Sequence[str] = ()) -> None:
        self.sql = compiled.sql
        names = compiled.names
        self._order = itemgetter(*map(columns.index, names)) if columns and names != tuple(columns) else None
        self._pick = itemgetter(*names) if len(names) > 1 else _first_of(names)
        self._processed = tuple(compiled.encoders.items())

    def row(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the parameters of one execution."""
        row = list(self._pick(values))
        for index, process in self._processed:
            row[index] = process(row[index])
        return tuple(row)

    def arrange(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the parameters of one execution, from encoded values in the order of `columns`."""
        return row if self._order is None else self._order(row)


class PreparedSelect(CompiledStatement):
    """A query, and how its rows become Python values."""

    __slots__ = ("_results",)

    def __init__(self, compiled: Compiled, columns: Sequence[str] = ()) -> None:
        super().__init__(compiled, columns)
        self._results = tuple(compiled.decoders.items())

    def values(self, row: Sequence[Any]) -> list[Any]:
        """Return the values of one row, typed."""
        values = list(row)
        for index, process in self._results:
            values[index] = process(values[index])
        return values


def _first_of(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    return lambda values: tuple(values[name] for name in names)


class Statements:
    """Every statement of the journal for one database.

    Args:
        compiled: By name, as `statements.compile_all` makes them.
        codec: How the driver takes what it does not know.
    """

    def __init__(self, compiled: Mapping[str, Compiled], codec: Codec = AS_IT_IS) -> None:
        self.codec = codec

        def prepare(name: str) -> CompiledStatement:
            return CompiledStatement(compiled[name], ORDERS.get(name, ()))

        def select(name: str) -> PreparedSelect:
            return PreparedSelect(compiled[name], ORDERS.get(name, ()))

        self.insert_started = prepare("insert_started")
        self.insert_finished = prepare("insert_finished")
        self.insert_unsent = prepare("insert_unsent")
        self.insert_attempt = prepare("insert_attempt")
        self.mark_succeeded = prepare("mark_succeeded")
        self.mark_failed = prepare("mark_failed")
        self.mark_abandoned = prepare("mark_abandoned")
        self.annotate = prepare("annotate")
        self.beat = prepare("beat")
        self.upsert_result = prepare("upsert_result")
        self.upsert_digest = prepare("upsert_digest")
        self.upsert_shared_call = prepare("upsert_shared_call")
        self.insert_eval_run = prepare("insert_eval_run")
        self.update_eval_run = prepare("update_eval_run")
        self.by_idempotency_key = select("by_idempotency_key")
        self.by_flight_key = select("by_flight_key")
        self.by_id = select("by_id")
        self.outcome = select("outcome")
        self.database_now = select("database_now")
        self.lock_pool = select("lock_pool")
        self.insert_lease = prepare("insert_lease")
        self.update_lease = prepare("update_lease")
        self.delete_lease = prepare("delete_lease")
        self.prune_leases = prepare("prune_leases")
        self.lease = select("lease")
        self.pool_use = select("pool_use")
        self.pool_ends = select("pool_ends")
        self.budget_use = select("budget_use")
        self.budget_shares = select("budget_shares")
        self.pause_route = prepare("pause_route")
        self.pause_of_route = select("pause_of_route")


@cache
def sqlite_statements() -> Statements:
    """Load the statements for SQLite files from the file that was compiled ahead."""
    text = Path(__file__).with_name(SQLITE_STATEMENTS_FILE).read_text("utf-8")
    return Statements({name: _of_json(entry) for name, entry in json.loads(text).items()}, SQLITE_CODEC)


def _of_json(entry: Mapping[str, Any]) -> Compiled:
    encoders, decoders = (
        {int(index): PROCESSORS[name] for index, name in entry[part].items()} for part in ("encoders", "decoders")
    )
    return Compiled(entry["sql"], tuple(entry["names"].split()), encoders, decoders)


def as_json(compiled: Mapping[str, Compiled]) -> str:
    """Return the text of `sqlite_statements.json` for statements that were compiled for SQLite."""
    names = {process: name for name, process in PROCESSORS.items()}
    entries = {
        name: {
            "sql": each.sql,
            "names": " ".join(each.names),
            "encoders": {index: names[process] for index, process in each.encoders.items()},
            "decoders": {index: names[process] for index, process in each.decoders.items()},
        }
        for name, each in compiled.items()
    }
    return json.dumps(entries, indent=1) + "\n"
