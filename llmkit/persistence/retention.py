"""Retention: pruning by age, and erasure of a workspace.

Three rules. A run that is STARTED and was heard of within `dead_after` is never pruned. Pruning leaves evaluations
and their results alone, which contain measurements; they have their own switch. What was pruned can no longer be
replayed: the same idempotency key calls, and pays, again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Engine, Select, Table, and_, delete, exists, or_, select

from llmkit.errors import LLMStoreError
from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.clock import DatabaseNow
from llmkit.persistence.engines import reading, writing
from llmkit.persistence.models import CostDayRow, table_of
from llmkit.persistence.statements import ATTEMPTS, EVAL_RESULTS, EVAL_RUNS, RUNS, SHARED_CALLS
from llmkit.types import RunStatus

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPICursor

__all__ = ["compact", "erase_workspace", "prune"]

# A live call says so every few seconds; a suspended laptop may be silent for a night.
DEAD_AFTER: Final = timedelta(days=2)
# Few enough that a writer waits for milliseconds, not for the whole of it.
PRUNE_BATCH: Final = 2_000
# Parents first, as a database that takes the lines in wants them.
TABLES: Final = (RUNS, ATTEMPTS, EVAL_RUNS, EVAL_RESULTS)
COST_DAYS: Final = table_of(CostDayRow)
# Writers wait while SQLite waits for readers to empty its log, so it is asked often and briefly.
LOG_PATIENCE_S: Final = 10.0
LOG_TRY_MS: Final = 200
FIND_READER: Final = "Find that program (`lsof FILE`) and let it finish or stop it."


def prune(
    engine: Engine,
    address: DatabaseAddress,
    before: datetime,
    *,
    workspace_id: str | None = None,
    evaluations: bool = False,
    dead_after: timedelta = DEAD_AFTER,
) -> dict[str, int]:
    """Delete runs that were created before a moment, with their attempts, a few at a time; SQLite overwrites them.

    What workers looked up of calls that they shared (`workers=`) goes too, unless only one workspace is meant.

    Args:
        engine: From `make_engine`.
        address: Of the same database.
        before: Aware.
        workspace_id: Only that one's; None prunes all.
        evaluations: Delete also evaluations that were opened before and have no result since, with their results.
        dead_after: Silence after which a STARTED run is dead and may go too.

    Returns:
        How many rows of each table are gone.

    Raises:
        LLMStoreError: The database failed; what was deleted until then stays deleted.
        ValueError: `before` has no time zone.
    """
    if before.utcoffset() is None:
        raise ValueError("before needs a time zone")
    with reading(engine, address) as connection:
        silent_since = connection.execute(select(DatabaseNow())).scalar_one() - dead_after
    gone = _prune(engine, address, (RUNS, ATTEMPTS, ATTEMPTS.c.run_id), _old_runs(before, workspace_id, silent_since))
    if workspace_id is None:  # they have no workspace
        gone[SHARED_CALLS.name] = _prune_shared_calls(engine, address, min(before, silent_since))
    if evaluations:
        chosen = _old_evaluations(before, workspace_id)
        gone |= _prune(engine, address, (EVAL_RUNS, EVAL_RESULTS, EVAL_RESULTS.c.eval_run_id), chosen)
    return gone


def erase_workspace(engine: Engine, address: DatabaseAddress, workspace_id: str) -> dict[str, int]:
    """Delete every row of a workspace, all or nothing; SQLite overwrites what it deletes.

    A call that is under way is not recorded any more when it ends. The content cache is the caller's to clear. An
    SQLite file shows what was deleted until `compact` has ended.

    Returns:
        How many rows of each table are gone.

    Raises:
        LLMStoreError: The database failed; nothing was deleted.
    """
    gone: dict[str, int] = {}
    with _deleting(engine, address) as connection:
        connection.execute(delete(COST_DAYS).where(COST_DAYS.c.workspace_id == workspace_id))
        for table in reversed(TABLES):
            gone[table.name] = connection.execute(delete(table).where(_of_workspace(table, workspace_id))).rowcount
    return gone


@contextmanager
def _deleting(engine: Engine, address: DatabaseAddress) -> Iterator[Connection]:
    with writing(engine, address) as connection:
        if address.is_sqlite:
            connection.exec_driver_sql("PRAGMA secure_delete=ON")
        yield connection


def compact(engine: Engine, address: DatabaseAddress) -> None:
    """Give freed space back to the system, which takes as much free disk as the database is large.

    An SQLite file is rebuilt and its write-ahead log emptied, while writers wait; PostgreSQL does both by itself.

    Raises:
        LLMStoreError: The database failed, is locked, or is being read by another program; the message says whether
            what was deleted can still be found in the file.
    """
    if not address.is_sqlite:
        return
    with reading(engine, address) as connection:
        # The driver's own connection: neither is allowed in a transaction.
        cursor = connection.connection.cursor()
        try:
            _compact_sqlite(cursor, address.label)
        finally:
            cursor.close()


def _compact_sqlite(cursor: DBAPICursor, label: str) -> None:
    # First of all what was deleted leaves the file, also where the disk has no room for a second one.
    if not _log_emptied(cursor):
        raise LLMStoreError(
            f"Another program is reading the database {label} as it was before: its file keeps its size, and what was "
            f"deleted can still be found in it. {FIND_READER}"
        )
    cursor.execute("VACUUM")
    if not _log_emptied(cursor):
        raise LLMStoreError(
            f"What was deleted is overwritten in the database {label}, but another program has begun to read it since: "
            "its file keeps its size, and unused places of it may hold earlier versions of what was deleted. "
            f"{FIND_READER}"
        )


def _log_emptied(cursor: DBAPICursor) -> bool:
    usual_ms = _number(cursor, "PRAGMA busy_timeout")
    cursor.execute(f"PRAGMA busy_timeout={LOG_TRY_MS}")
    try:
        deadline = monotonic() + LOG_PATIENCE_S
        while _number(cursor, "PRAGMA wal_checkpoint(TRUNCATE)") != 0:
            if monotonic() > deadline:
                return False
            sleep(LOG_TRY_MS / 1000)
        return True
    finally:
        cursor.execute(f"PRAGMA busy_timeout={usual_ms}")


def _number(cursor: DBAPICursor, pragma: str) -> int:
    cursor.execute(pragma)
    return int(cursor.fetchall()[0][0])


def _old_runs(before: datetime, workspace_id: str | None, silent_since: datetime) -> Select[Any]:
    silent = RUNS.c.heartbeat_at_utc < min(before, silent_since)
    over = or_(RUNS.c.status != RunStatus.STARTED.value, silent)
    return _select_batch(RUNS, workspace_id, and_(RUNS.c.created_at_utc < before, over))


def _old_evaluations(before: datetime, workspace_id: str | None) -> Select[Any]:
    newer = exists().where(EVAL_RESULTS.c.eval_run_id == EVAL_RUNS.c.id, EVAL_RESULTS.c.finished_at_utc >= before)
    return _select_batch(EVAL_RUNS, workspace_id, and_(EVAL_RUNS.c.created_at_utc < before, ~newer))


def _select_batch(table: Table, workspace_id: str | None, condition: ColumnElement[bool]) -> Select[Any]:
    query = select(table.c.id).where(condition).limit(PRUNE_BATCH)
    return query if workspace_id is None else query.where(table.c.workspace_id == workspace_id)


def _prune(
    engine: Engine, address: DatabaseAddress, family: tuple[Table, Table, ColumnElement[Any]], chosen: Select[Any]
) -> dict[str, int]:
    parent, child, reference = family
    gone = {parent.name: 0, child.name: 0}
    ids: list[UUID] | None = None
    while ids is None or len(ids) == PRUNE_BATCH:
        with _deleting(engine, address) as connection:
            ids = list(connection.execute(chosen).scalars())
            gone[child.name] += connection.execute(delete(child).where(reference.in_(ids))).rowcount
            gone[parent.name] += connection.execute(delete(parent).where(parent.c.id.in_(ids))).rowcount
    return gone


def _prune_shared_calls(engine: Engine, address: DatabaseAddress, before: datetime) -> int:
    # Not those of the last days: a job that an engine starts late must find that its call was stopped.
    with _deleting(engine, address) as connection:
        return connection.execute(delete(SHARED_CALLS).where(SHARED_CALLS.c.created_at_utc < before)).rowcount


def _of_workspace(table: Table, workspace_id: str) -> ColumnElement[bool]:
    if table is EVAL_RESULTS:
        return EVAL_RESULTS.c.eval_run_id.in_(select(EVAL_RUNS.c.id).where(EVAL_RUNS.c.workspace_id == workspace_id))
    if table is ATTEMPTS:
        return ATTEMPTS.c.run_id.in_(select(RUNS.c.id).where(RUNS.c.workspace_id == workspace_id))
    return table.c.workspace_id == workspace_id
