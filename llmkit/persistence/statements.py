"""SQL of the journal, compiled once per database instead of once per call.

Executing a Core statement costs about 60 us, ten times what SQLite needs to run it. So each is compiled here to the
driver's own SQL, and rows become parameter tuples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    Dialect,
    Executable,
    Insert,
    Select,
    Table,
    Update,
    Uuid,
    bindparam,
    literal_column,
    select,
    update,
)
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine
from sqlmodel.sql.sqltypes import UTCDateTime

from llmkit.persistence.models import EvalResultRow, EvalRunRow, LLMAttemptRow, LLMRunRow, table_of
from llmkit.persistence.rows import (
    AS_IT_IS,
    ATTEMPT_COLUMNS,
    FINISHED_COLUMNS,
    SQLITE_CODEC,
    STARTED_COLUMNS,
    STORED_RUN_COLUMNS,
    SUCCESS_COLUMNS,
    sqlite_time,
    sqlite_uuid,
    time_of_sqlite,
    uuid_of_sqlite,
)

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

__all__ = [
    "ATTEMPTS",
    "EVAL_RESULTS",
    "EVAL_RUNS",
    "FAILURE_COLUMNS",
    "RUNS",
    "Prepared",
    "PreparedSelect",
    "Statements",
    "abandon_run",
    "annotate_run",
    "finish_run",
    "holds_flight_key",
    "holds_idempotency_key",
    "insert_attempt",
    "insert_or_ignore",
    "insert_run",
    "is_run",
    "stored_run_select",
]

RUNS: Final = table_of(LLMRunRow)
ATTEMPTS: Final = table_of(LLMAttemptRow)
EVAL_RUNS: Final = table_of(EvalRunRow)
EVAL_RESULTS: Final = table_of(EvalResultRow)

FAILURE_COLUMNS: Final = (
    "status",
    "finished_at_utc",
    "latency_ms",
    "attempts",
    "error_code",
    "error_message",
    "plan_json",
)
ABANDONED_COLUMNS: Final = ("status", "finished_at_utc", "error_code", "error_message")
EVAL_RESULT_KEY: Final = ("eval_run_id", "route", "sample_id", "epoch")

Processor = Callable[[Any], Any]


# psycopg takes every one of our types as it is, and so does SQLite but for two.
SQLITE_PROCESSORS: Final[Mapping[type[TypeEngine[Any]], Processor]] = {
    UTCDateTime: sqlite_time,
    Uuid: sqlite_uuid,
}
SQLITE_RESULTS: Final[Mapping[type[TypeEngine[Any]], Processor]] = {
    UTCDateTime: time_of_sqlite,
    Uuid: uuid_of_sqlite,
}


class Prepared:
    """One statement of one database, ready for the driver.

    Args:
        columns: The order of rows that are made without a mapping, for `arranged`.

    Attributes:
        sql: With the driver's positional placeholders.
    """

    __slots__ = ("_order", "_pick", "_processed", "sql")

    def __init__(self, statement: Executable, dialect: Dialect, columns: Sequence[str] = ()) -> None:
        compiled = _compile(statement, dialect)
        self.sql = compiled.string
        names = list(compiled.positiontup or ())
        self._order = itemgetter(*map(columns.index, names)) if columns and names != list(columns) else None
        self._pick = itemgetter(*names) if len(names) > 1 else _first_of(names)
        processors = enumerate(_bind_processor(compiled, name) for name in names)
        self._processed = [(index, process) for index, process in processors if process is not None]

    def row(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """The parameters of one execution."""
        row = list(self._pick(values))
        for index, process in self._processed:
            row[index] = process(row[index])
        return tuple(row)

    def arranged(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """The parameters of one execution, from encoded values in the order of `columns`."""
        return row if self._order is None else self._order(row)


class PreparedSelect(Prepared):
    """A query, and how its rows become Python values."""

    __slots__ = ("_results",)

    def __init__(self, statement: Select[Any], dialect: Dialect, columns: Sequence[str] = ()) -> None:
        super().__init__(statement, dialect, columns)
        types = [column.type for column in statement.selected_columns]
        processors = enumerate(_result_processor(kind, dialect) for kind in types)
        self._results = [(index, process) for index, process in processors if process is not None]

    def values(self, row: Sequence[Any]) -> list[Any]:
        """The values of one row, typed."""
        values = list(row)
        for index, process in self._results:
            values[index] = process(values[index])
        return values


def _first_of(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    return lambda values: tuple(values[name] for name in names)


def _compile(statement: Executable, dialect: Dialect) -> SQLCompiler:
    positional = "qmark" if dialect.name == "sqlite" else "format"
    # A dialect of its own: the engine's is set to named parameters on PostgreSQL.
    compiled = statement.compile(dialect=type(dialect)(paramstyle=positional))  # type: ignore[attr-defined, call-arg]
    assert isinstance(compiled, SQLCompiler)
    return compiled


def _bind_processor(compiled: SQLCompiler, name: str) -> Processor | None:
    is_sqlite = compiled.dialect.name == "sqlite"
    return SQLITE_PROCESSORS.get(type(compiled.binds[name].type)) if is_sqlite else None


def _result_processor(kind: TypeEngine[Any], dialect: Dialect) -> Processor | None:
    ours = SQLITE_RESULTS.get(type(kind)) if dialect.name == "sqlite" else None
    return ours or kind.dialect_impl(dialect).result_processor(dialect, None)


def insert_or_ignore(table: Table, dialect_name: str) -> Any:
    """An INSERT that leaves out, without an error, a row that a unique index refuses."""
    # The number of rows tells whether it was left out; on PostgreSQL SQLAlchemy forgets it unless told to keep it.
    return _insert(table, dialect_name).on_conflict_do_nothing().execution_options(preserve_rowcount=True)


def _insert(table: Table, dialect_name: str) -> sqlite.Insert | postgresql.Insert:
    # Imported here: PostgreSQL's is a twentieth of what a first answer from an SQLite file takes.
    if dialect_name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


def _parameters(table: Table, names: Sequence[str]) -> dict[str, Any]:
    return {name: bindparam(name, type_=table.c[name].type) for name in names}


def insert_run(dialect_name: str, names: Sequence[str]) -> Insert:
    """An INSERT of a run with these columns, left out when one of its keys is held."""
    statement: Insert = insert_or_ignore(RUNS, dialect_name).values(_parameters(RUNS, names))
    return statement


def insert_attempt(dialect_name: str) -> Insert:
    """An INSERT of an attempt of the run `of_run`, whose workspace it takes; left out when it is there already."""
    # VALUES with a subquery: for INSERT ... SELECT SQLite copies every page that it touches, 25 us instead of 15.
    names = [column.name for column in ATTEMPTS.columns if column.name != "workspace_id"]
    run_id = bindparam("of_run", type_=RUNS.c.id.type)
    workspace_id = select(RUNS.c.workspace_id).where(RUNS.c.id == run_id).scalar_subquery()
    values = _parameters(ATTEMPTS, names) | {"workspace_id": workspace_id}
    statement: Insert = insert_or_ignore(ATTEMPTS, dialect_name).values(values)
    return statement


def finish_run(names: Sequence[str]) -> Update:
    """An UPDATE of these columns of the run `run_id`, if it is STARTED."""
    return (
        update(RUNS)
        .where(RUNS.c.id == bindparam("run_id", type_=RUNS.c.id.type), RUNS.c.status == literal_column("'STARTED'"))
        .values(_parameters(RUNS, names))
    )


def abandon_run() -> Update:
    """An UPDATE of the run `run_id`, if it is STARTED and was last heard of `seen_at_utc`."""
    same = RUNS.c.heartbeat_at_utc == bindparam("seen_at_utc", type_=RUNS.c.heartbeat_at_utc.type)
    return finish_run(ABANDONED_COLUMNS).where(same)


def annotate_run() -> Update:
    """An UPDATE of the metadata of the run `run_id` of `in_workspace`."""
    mine = RUNS.c.workspace_id == bindparam("in_workspace", type_=RUNS.c.workspace_id.type)
    same = RUNS.c.id == bindparam("run_id", type_=RUNS.c.id.type)
    return update(RUNS).where(mine, same).values(_parameters(RUNS, ("metadata_json",)))


def _beat() -> Update:
    return finish_run(("heartbeat_at_utc",))


def _upsert_result(dialect_name: str) -> Insert:
    statement = _insert(EVAL_RESULTS, dialect_name).values(_parameters(EVAL_RESULTS, EVAL_RESULTS.columns.keys()))
    changed = {
        column.name: statement.excluded[column.name] for column in EVAL_RESULTS.columns if not column.primary_key
    }
    return statement.on_conflict_do_update(index_elements=list(EVAL_RESULT_KEY), set_=changed)


def stored_run_select() -> Select[Any]:
    """What `StoredRun` holds, of one run."""
    return select(*[RUNS.c[name] for name in STORED_RUN_COLUMNS])


def holds_idempotency_key() -> Any:
    """Condition on `workspace_id` and `idempotency_key`, worded as in the partial index so that it is used."""
    return (
        (RUNS.c.workspace_id == bindparam("workspace_id", type_=RUNS.c.workspace_id.type))
        & (RUNS.c.idempotency_key == bindparam("idempotency_key", type_=RUNS.c.idempotency_key.type))
        & literal_column("idempotency_key IS NOT NULL AND status IN ('STARTED', 'SUCCEEDED')")
    )


def holds_flight_key() -> Any:
    """Condition on `workspace_id` and `flight_key`, as `holds_idempotency_key`."""
    return (
        (RUNS.c.workspace_id == bindparam("workspace_id", type_=RUNS.c.workspace_id.type))
        & (RUNS.c.flight_key == bindparam("flight_key", type_=RUNS.c.flight_key.type))
        & literal_column("flight_key IS NOT NULL AND status = 'STARTED'")
    )


def is_run() -> Any:
    """Condition on `workspace_id` and `run_id`."""
    return (RUNS.c.workspace_id == bindparam("workspace_id", type_=RUNS.c.workspace_id.type)) & (
        RUNS.c.id == bindparam("run_id", type_=RUNS.c.id.type)
    )


class Statements:
    """Every statement of the journal for one database."""

    def __init__(self, dialect: Dialect) -> None:
        name = dialect.name
        self.dialect_name = name
        self.codec = SQLITE_CODEC if name == "sqlite" else AS_IT_IS
        self.insert_started = Prepared(insert_run(name, STARTED_COLUMNS), dialect, STARTED_COLUMNS)
        self.insert_finished = Prepared(insert_run(name, FINISHED_COLUMNS), dialect, FINISHED_COLUMNS)
        self.insert_attempt = Prepared(insert_attempt(name), dialect, ATTEMPT_COLUMNS)
        self.mark_succeeded = Prepared(finish_run(SUCCESS_COLUMNS), dialect, (*SUCCESS_COLUMNS, "run_id"))
        self.mark_failed = Prepared(finish_run(FAILURE_COLUMNS), dialect)
        self.mark_abandoned = Prepared(abandon_run(), dialect)
        self.annotate = Prepared(annotate_run(), dialect)
        self.beat = Prepared(_beat(), dialect)
        self.upsert_result = Prepared(_upsert_result(name), dialect)
        self.insert_eval_run = Prepared(
            insert_or_ignore(EVAL_RUNS, name).values(_parameters(EVAL_RUNS, EVAL_RUNS.columns.keys())), dialect
        )
        found = stored_run_select()
        self.by_idempotency_key = PreparedSelect(
            found.where(holds_idempotency_key()), dialect, ("workspace_id", "idempotency_key")
        )
        self.by_flight_key = PreparedSelect(found.where(holds_flight_key()), dialect, ("workspace_id", "flight_key"))
        self.by_id = PreparedSelect(found.where(is_run()), dialect, ("workspace_id", "run_id"))
        run_id = RUNS.c.id == bindparam("run_id", type_=RUNS.c.id.type)
        self.outcome = PreparedSelect(
            select(RUNS.c.status, RUNS.c.finished_at_utc, RUNS.c.error_code).where(run_id), dialect
        )
