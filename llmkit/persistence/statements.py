"""The journal's statements, made from the tables, and their translation for the drivers.

After a change here or in the tables: `python -m scripts.compile_statements`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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

from llmkit.persistence.compiled_statements import Compiled, Processor
from llmkit.persistence.models import EvalResultRow, EvalRunRow, LLMAttemptRow, LLMRunRow, table_of
from llmkit.persistence.rows import (
    FAILURE_COLUMNS,
    FINISHED_COLUMNS,
    STARTED_COLUMNS,
    STORED_RUN_COLUMNS,
    SUCCESS_COLUMNS,
    UNSENT_COLUMNS,
    make_abandoned_values,
    sqlite_time,
    sqlite_uuid,
    time_of_sqlite,
    uuid_of_sqlite,
)
from llmkit.types import utc_now

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

__all__ = [
    "ATTEMPTS",
    "EVAL_RESULTS",
    "EVAL_RUNS",
    "FAILURE_COLUMNS",
    "RUNS",
    "UNSENT_COLUMNS",
    "abandon_run",
    "annotate_run",
    "compile_all",
    "compile_statement",
    "finish_run",
    "holds_flight_key",
    "holds_idempotency_key",
    "insert_attempt",
    "insert_or_ignore",
    "insert_run",
    "is_run",
    "select_stored_run",
]

RUNS: Final = table_of(LLMRunRow)
ATTEMPTS: Final = table_of(LLMAttemptRow)
EVAL_RUNS: Final = table_of(EvalRunRow)
EVAL_RESULTS: Final = table_of(EvalResultRow)

ABANDONED_COLUMNS: Final = tuple(make_abandoned_values(utc_now()))
EVAL_RESULT_KEY: Final = ("eval_run_id", "route", "sample_id", "epoch")

# psycopg takes every one of our types as it is, and so does SQLite but for two.
SQLITE_PROCESSORS: Final[Mapping[type[TypeEngine[Any]], Processor]] = {
    UTCDateTime: sqlite_time,
    Uuid: sqlite_uuid,
}
SQLITE_RESULTS: Final[Mapping[type[TypeEngine[Any]], Processor]] = {
    UTCDateTime: time_of_sqlite,
    Uuid: uuid_of_sqlite,
}


def compile_statement(statement: Executable, dialect: Dialect) -> Compiled:
    """Return the statement in the words of a database."""
    positional = "qmark" if dialect.name == "sqlite" else "format"
    # A dialect of its own: the engine's is set to named parameters on PostgreSQL.
    made = statement.compile(dialect=type(dialect)(paramstyle=positional))  # type: ignore[attr-defined, call-arg]
    assert isinstance(made, SQLCompiler)
    names = tuple(made.positiontup or ())
    ours = SQLITE_PROCESSORS if dialect.name == "sqlite" else {}
    columns = [column.type for column in statement.selected_columns] if isinstance(statement, Select) else []
    return Compiled(
        sql=made.string,
        names=names,
        encoders=_by_position(ours.get(type(made.binds[name].type)) for name in names),
        decoders=_by_position(_result_processor(kind, dialect) for kind in columns),
    )


def _by_position(processors: Iterable[Processor | None]) -> dict[int, Processor]:
    return {index: process for index, process in enumerate(processors) if process is not None}


def _result_processor(kind: TypeEngine[Any], dialect: Dialect) -> Processor | None:
    ours = SQLITE_RESULTS.get(type(kind)) if dialect.name == "sqlite" else None
    return ours or kind.dialect_impl(dialect).result_processor(dialect, None)


def insert_or_ignore(table: Table, dialect_name: str) -> Any:
    """Return an INSERT that leaves out, without an error, a row that a unique index refuses."""
    # The number of rows tells whether it was left out; on PostgreSQL SQLAlchemy forgets it unless an option keeps it.
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
    """Return an INSERT of a run with these columns, left out when one of its keys is held."""
    statement: Insert = insert_or_ignore(RUNS, dialect_name).values(_parameters(RUNS, names))
    return statement


def insert_attempt(dialect_name: str) -> Insert:
    """Return an INSERT of an attempt of the run `of_run`, whose workspace it takes.

    Left out when it exists already.
    """
    # VALUES with a subquery: for INSERT ... SELECT SQLite copies every page that it touches, 25 us instead of 15.
    names = [column.name for column in ATTEMPTS.columns if column.name != "workspace_id"]
    run_id = bindparam("of_run", type_=RUNS.c.id.type)
    workspace_id = select(RUNS.c.workspace_id).where(RUNS.c.id == run_id).scalar_subquery()
    values = _parameters(ATTEMPTS, names) | {"workspace_id": workspace_id}
    statement: Insert = insert_or_ignore(ATTEMPTS, dialect_name).values(values)
    return statement


def finish_run(names: Sequence[str]) -> Update:
    """Return an UPDATE of these columns of the run `run_id`, if it is STARTED."""
    return (
        update(RUNS)
        .where(RUNS.c.id == bindparam("run_id", type_=RUNS.c.id.type), RUNS.c.status == literal_column("'STARTED'"))
        .values(_parameters(RUNS, names))
    )


def abandon_run() -> Update:
    """Return an UPDATE of the run `run_id`, if it is STARTED and was last heard of `seen_at_utc`."""
    same = RUNS.c.heartbeat_at_utc == bindparam("seen_at_utc", type_=RUNS.c.heartbeat_at_utc.type)
    return finish_run(ABANDONED_COLUMNS).where(same)


def annotate_run() -> Update:
    """Return an UPDATE of the metadata of the run `run_id` of `in_workspace`."""
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


def _update_eval_run() -> Update:
    changed = _parameters(EVAL_RUNS, ("dataset_sha256", "spec_json"))
    return update(EVAL_RUNS).where(EVAL_RUNS.c.id == bindparam("run_id", type_=EVAL_RUNS.c.id.type)).values(changed)


def select_stored_run() -> Select[Any]:
    """Select the columns of `StoredRun` for one run."""
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


def compile_all(dialect: Dialect) -> dict[str, Compiled]:
    """Every statement of the journal for one database, by name."""
    name = dialect.name
    found = select_stored_run()
    run_id = RUNS.c.id == bindparam("run_id", type_=RUNS.c.id.type)
    new_evaluation = insert_or_ignore(EVAL_RUNS, name).values(_parameters(EVAL_RUNS, EVAL_RUNS.columns.keys()))
    statements: dict[str, Executable] = {
        "insert_started": insert_run(name, STARTED_COLUMNS),
        "insert_finished": insert_run(name, FINISHED_COLUMNS),
        "insert_unsent": insert_run(name, UNSENT_COLUMNS),
        "insert_attempt": insert_attempt(name),
        "mark_succeeded": finish_run(SUCCESS_COLUMNS),
        "mark_failed": finish_run(FAILURE_COLUMNS),
        "mark_abandoned": abandon_run(),
        "annotate": annotate_run(),
        "beat": _beat(),
        "upsert_result": _upsert_result(name),
        "insert_eval_run": new_evaluation,
        "update_eval_run": _update_eval_run(),
        "by_idempotency_key": found.where(holds_idempotency_key()),
        "by_flight_key": found.where(holds_flight_key()),
        "by_id": found.where(is_run()),
        "outcome": select(RUNS.c.status, RUNS.c.finished_at_utc, RUNS.c.error_code).where(run_id),
    }
    return {key: compile_statement(statement, dialect) for key, statement in statements.items()}
