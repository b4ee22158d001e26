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
    delete,
    distinct,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine
from sqlmodel.sql.sqltypes import UTCDateTime

from llmkit.persistence.clock import DatabaseNow
from llmkit.persistence.compiled_statements import Compiled, Processor
from llmkit.persistence.models import (
    EvalDigestRow,
    EvalResultRow,
    EvalRunRow,
    LLMAttemptRow,
    LLMLeaseRow,
    LLMPauseRow,
    LLMRunRow,
    SharedCallRow,
    table_of,
)
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
    "EVAL_DIGESTS",
    "EVAL_RESULTS",
    "EVAL_RUNS",
    "FAILURE_COLUMNS",
    "LEASES",
    "PAUSES",
    "RUNS",
    "SHARED_CALLS",
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
EVAL_DIGESTS: Final = table_of(EvalDigestRow)
SHARED_CALLS: Final = table_of(SharedCallRow)
LEASES: Final = table_of(LLMLeaseRow)
PAUSES: Final = table_of(LLMPauseRow)

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
    values = _parameters(RUNS, names) | {"heartbeat_at_utc": DatabaseNow()}
    statement: Insert = insert_or_ignore(RUNS, dialect_name).values(values)
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
    return finish_run(()).values(heartbeat_at_utc=DatabaseNow())


def _upsert_result(dialect_name: str) -> Insert:
    statement = _insert(EVAL_RESULTS, dialect_name).values(_parameters(EVAL_RESULTS, EVAL_RESULTS.columns.keys()))
    changed = {
        column.name: statement.excluded[column.name] for column in EVAL_RESULTS.columns if not column.primary_key
    }
    return statement.on_conflict_do_update(index_elements=list(EVAL_RESULT_KEY), set_=changed)


def _upsert_digest(dialect_name: str) -> Insert:
    names = ("eval_run_id", "host", "provider", "model", "digest")
    values = _parameters(EVAL_DIGESTS, names) | {"seen_at_utc": DatabaseNow()}
    statement = _insert(EVAL_DIGESTS, dialect_name).values(values)
    changed = {name: statement.excluded[name] for name in ("digest", "seen_at_utc")}
    return statement.on_conflict_do_update(index_elements=list(names[:4]), set_=changed)


def _upsert_shared_call(dialect_name: str) -> Insert:
    values = _parameters(SHARED_CALLS, ("id", "is_stopped")) | {"created_at_utc": DatabaseNow()}
    statement = _insert(SHARED_CALLS, dialect_name).values(values)
    return statement.on_conflict_do_update(index_elements=["id"], set_={"is_stopped": statement.excluded["is_stopped"]})


def _update_eval_run() -> Update:
    changed = _parameters(EVAL_RUNS, ("dataset_sha256", "spec_json"))
    return update(EVAL_RUNS).where(EVAL_RUNS.c.id == bindparam("run_id", type_=EVAL_RUNS.c.id.type)).values(changed)


def select_stored_run() -> Select[Any]:
    """Select the fields of `StoredRun` for one run."""
    return select(*[RUNS.c[name] for name in STORED_RUN_COLUMNS], DatabaseNow().label("read_at_utc"))


def holds_idempotency_key() -> Any:
    """Build the condition on `workspace_id` and `idempotency_key`, worded as the partial index, so that it is used."""
    return (
        (RUNS.c.workspace_id == bindparam("workspace_id", type_=RUNS.c.workspace_id.type))
        & (RUNS.c.idempotency_key == bindparam("idempotency_key", type_=RUNS.c.idempotency_key.type))
        & literal_column("idempotency_key IS NOT NULL AND status IN ('STARTED', 'SUCCEEDED')")
    )


def holds_flight_key() -> Any:
    """Build the condition on `workspace_id` and `flight_key`, as `holds_idempotency_key` does."""
    return (
        (RUNS.c.workspace_id == bindparam("workspace_id", type_=RUNS.c.workspace_id.type))
        & (RUNS.c.flight_key == bindparam("flight_key", type_=RUNS.c.flight_key.type))
        & literal_column("flight_key IS NOT NULL AND status = 'STARTED'")
    )


def is_run() -> Any:
    """Build the condition on `workspace_id` and `run_id`."""
    return (RUNS.c.workspace_id == bindparam("workspace_id", type_=RUNS.c.workspace_id.type)) & (
        RUNS.c.id == bindparam("run_id", type_=RUNS.c.id.type)
    )


def _lock_pool(dialect_name: str) -> Select[Any]:
    """Select the lock of a pool: SQLite's write transaction is one already."""
    pool = bindparam("pool", type_=LEASES.c.pool.type)
    if dialect_name == "sqlite":
        return select(pool)
    return select(func.pg_advisory_xact_lock(func.hashtextextended(pool, literal_column("0"))))


def _lease_statements(dialect_name: str) -> dict[str, Executable]:
    """Make the statements of leases; the time is an argument, read once after the pool's lock was given."""
    rows = LEASES.c
    now = bindparam("now_utc", type_=rows.expires_at_utc.type)
    of_pool = rows.pool == bindparam("in_pool", type_=rows.pool.type)
    of_id = rows.id == bindparam("lease_id", type_=rows.id.type)
    changed = ("amount", "settled", "expires_at_utc")
    return {
        "database_now": select(DatabaseNow()),
        "lock_pool": _lock_pool(dialect_name),
        "insert_lease": insert_or_ignore(LEASES, dialect_name).values(_parameters(LEASES, LEASES.columns.keys())),
        "update_lease": update(LEASES).where(of_id).values(_parameters(LEASES, changed)),
        "delete_lease": delete(LEASES).where(of_id),
        "prune_leases": delete(LEASES).where(of_pool, rows.expires_at_utc <= now),
        "lease": select(rows.amount, rows.settled, rows.expires_at_utc).where(of_id),
        "pool_use": select(
            func.coalesce(func.sum(rows.amount), literal_column("0")), func.count(distinct(rows.owner))
        ).where(of_pool, rows.expires_at_utc > now),
        # Enough to see when there is room again: a window that has more parts gets its first room sooner.
        "pool_ends": select(rows.amount, rows.expires_at_utc)
        .where(of_pool, rows.expires_at_utc > now)
        .order_by(rows.expires_at_utc)
        .suffix_with("LIMIT 200"),
        # The row without owner is of those that are gone.
        "budget_use": select(
            func.coalesce(func.sum(rows.amount), literal_column("0")),
            func.coalesce(func.sum(rows.settled), literal_column("0")),
            func.count(),
        ).where(of_pool, rows.owner != literal_column("''"), rows.id != bindparam("lease_id", type_=rows.id.type)),
        "budget_shares": select(rows.id, rows.owner, rows.amount, rows.settled, rows.expires_at_utc).where(
            of_pool, rows.owner != literal_column("''")
        ),
    }


def _pause_statements(dialect_name: str) -> dict[str, Executable]:
    at = PAUSES.c
    of_route = (at.endpoint == bindparam("in_endpoint", type_=at.endpoint.type)) & (
        at.model == bindparam("of_model", type_=at.model.type)
    )
    pause = _insert(PAUSES, dialect_name).values(_parameters(PAUSES, PAUSES.columns.keys()))
    longer = pause.excluded.until_utc > at.until_utc
    return {
        "pause_route": pause.on_conflict_do_update(
            index_elements=["endpoint", "model"], set_={"until_utc": pause.excluded.until_utc}, where=longer
        ),
        "pause_of_route": select(at.until_utc, DatabaseNow()).where(of_route),
    }


def compile_all(dialect: Dialect) -> dict[str, Compiled]:
    """Compile every statement of the journal for one database, by name."""
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
        "upsert_digest": _upsert_digest(name),
        "upsert_shared_call": _upsert_shared_call(name),
        "insert_eval_run": new_evaluation,
        "update_eval_run": _update_eval_run(),
        "by_idempotency_key": found.where(holds_idempotency_key()),
        "by_flight_key": found.where(holds_flight_key()),
        "by_id": found.where(is_run()),
        "outcome": select(RUNS.c.status, RUNS.c.finished_at_utc, RUNS.c.error_code).where(run_id),
    }
    statements |= _lease_statements(name) | _pause_statements(name)
    return {key: compile_statement(statement, dialect) for key, statement in statements.items()}
