"""Taking in what `retention.export_workspace` wrote: a workspace moves to another database, SQLite or PostgreSQL."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby, islice
from typing import Any, Final, NoReturn
from uuid import UUID

from sqlalchemy import Column, Connection, Engine, Table, insert, select, tuple_
from sqlalchemy.exc import DataError, IntegrityError
from sqlmodel.sql.sqltypes import UTCDateTime

from llmkit.canonical_json import has_lone_surrogate
from llmkit.errors import LLMBadRequest
from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.engines import writing
from llmkit.persistence.retention import TABLES
from llmkit.persistence.statements import ATTEMPTS, EVAL_RESULTS, EVAL_RUNS, RUNS

__all__ = ["has_workspace", "import_workspace"]

BATCH: Final = 200
_TABLES: Final = {table.name: table for table in TABLES}
# Which columns of a table name a row that has a workspace, and where that row is.
_REFERENCES: Final = {
    RUNS.name: ((RUNS, "id"), (RUNS, "source_run_id")),
    ATTEMPTS.name: ((RUNS, "run_id"),),
    EVAL_RUNS.name: ((EVAL_RUNS, "id"),),
    EVAL_RESULTS.name: ((EVAL_RUNS, "eval_run_id"),),
}

Row = dict[str, Any]


def import_workspace(
    engine: Engine,
    address: DatabaseAddress,
    lines: Iterable[str],
    source: str,
    *,
    workspace_id: str | None = None,
    may_exist: bool = False,
) -> tuple[dict[str, int], dict[str, int]]:
    """Add every row of an export, all or nothing. Existing rows stay unchanged.

    The author of the file need not own the workspace that it names: rows of a workspace that exists are added only
    where the caller named or confirmed it, and no row may belong to any other.

    Args:
        engine: From `make_engine`.
        address: Of the same database, which is at head.
        lines: Of the file.
        source: Name of the file, for messages.
        workspace_id: The workspace of every row; default that of the first one.
        may_exist: Add to the workspace of the first row even if it has rows already.

    Returns:
        How many rows of each table were added, and how many were there.

    Raises:
        LLMBadRequest: A line is no row of such an export, belongs to another workspace, or collides with another row;
            or the workspace exists. The message says which. Nothing was added.
        LLMStoreError: The database failed; nothing was added.
    """
    added, there = dict.fromkeys(_TABLES, 0), dict.fromkeys(_TABLES, 0)
    exists = False
    with writing(engine, address) as connection:
        for table, places, rows in _batches(lines, source):
            where = f"{source}, {places}"
            if workspace_id is None:
                workspace_id = _owner(rows[0], where)
                exists = not may_exist and has_workspace(connection, workspace_id)
            _check_owner(connection, table, rows, workspace_id, where)
            new = list(_new(connection, table, rows))
            if new and exists:
                _refuse(
                    where,
                    f"the file is of workspace {workspace_id!r}, which exists. Check where the file is from, then "
                    f"confirm with --workspace {workspace_id}",
                )
            added[table.name] += len(new)
            there[table.name] += len(rows) - len(new)
            _add(connection, table, new, where, address.label)
    return added, there


def has_workspace(connection: Connection, workspace_id: str) -> bool:
    """Return whether the database has a call or an evaluation of the workspace."""
    tables = (RUNS, EVAL_RUNS)
    return any(
        connection.execute(select(table.c.id).where(table.c.workspace_id == workspace_id).limit(1)).first()
        for table in tables
    )


def _owner(first: Row, where: str) -> str:
    # An export begins with runs, or with evaluations where there are no runs: their children name no workspace.
    if "workspace_id" not in first:
        _refuse(where, "the first row names no workspace; is the beginning of the file missing?")
    return str(first["workspace_id"])


def _check_owner(connection: Connection, table: Table, rows: list[Row], workspace_id: str, where: str) -> None:
    """Refuse rows of another workspace, and rows that would change or refer to one of another workspace."""
    foreign = next((row for row in rows if row.get("workspace_id", workspace_id) != workspace_id), None)
    if foreign is not None:
        _refuse(where, f"a row of {table.name} is of workspace {foreign['workspace_id']!r}, not of {workspace_id!r}")
    for parent, column in _REFERENCES[table.name]:
        wanted = {row[column] for row in rows} - {None}
        owned = parent.c.workspace_id == workspace_id
        if connection.execute(select(parent.c.id).where(parent.c.id.in_(wanted), ~owned).limit(1)).first():
            _refuse(where, f"the {column} of a row of {table.name} is that of another workspace")


def _add(connection: Connection, table: Table, rows: list[Row], where: str, label: str) -> None:
    try:
        if rows:
            connection.execute(insert(table), rows)
    except IntegrityError:
        _refuse(
            where,
            f"a row of {table.name} does not fit into {label}: a key or a name of it is taken there, the row that it "
            "belongs to is missing, or its status is unknown",
        )
    except (DataError, OverflowError):
        _refuse(where, f"{label} cannot store a value of {table.name}, such as a string with a NUL in PostgreSQL")


def _batches(lines: Iterable[str], source: str) -> Iterator[tuple[Table, str, list[Row]]]:
    parsed = _rows(lines, source)
    for name, group in groupby(parsed, key=lambda each: each[1]):
        while batch := list(islice(group, BATCH)):
            yield _TABLES[name], f"lines {batch[0][0]} to {batch[-1][0]}", [row for _, _, row in batch]


def _rows(lines: Iterable[str], source: str) -> Iterator[tuple[int, str, Row]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{source}, line {number}"
            record = _record(line, where)
            table = _TABLES.get(str(record.pop("table", None)))
            if table is None:
                _refuse(where, f"this is no row of `llmkit db export`: its table is none of {', '.join(_TABLES)}")
            yield number, table.name, _values(table, record, where)


def _record(line: str, where: str) -> Row:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        _refuse(where, f"not JSON: {error}")
    if not isinstance(record, dict):
        _refuse(where, "a row is a JSON object")
    return record


def _values(table: Table, record: Mapping[str, Any], where: str) -> Row:
    unknown = record.keys() - table.columns.keys()
    if unknown:
        _refuse(where, f"{table.name} has no column {min(unknown)!r}; was it written by a newer llmkit?")
    missing = [column.name for column in table.columns if not column.nullable and record.get(column.name) is None]
    if missing:
        _refuse(where, f"{table.name} needs a value of {missing[0]!r}")
    return {column.name: _value(_kind(column), record.get(column.name), where) for column in table.columns}


def _kind(column: Column[Any]) -> type[Any]:
    return datetime if isinstance(column.type, UTCDateTime) else column.type.python_type


def _value(kind: type[Any], value: Any, where: str) -> Any:
    if value is None:
        return None
    try:
        if kind is UUID:
            return UUID(value)
        if kind is datetime:
            return _moment(value)
    except (ValueError, TypeError, AttributeError) as error:
        _refuse(where, f"{value!r:.50}: {error}")
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        _refuse(where, f"{value!r:.50} is no {kind.__name__}")
    if isinstance(value, str) and has_lone_surrogate(value):
        _refuse(where, f"{value!r:.50} has half of a surrogate pair, which no export of llmkit's has")
    # Budgets and reports add up what is stored: one such number would spoil every sum.
    if kind in {int, float} and not 0 <= value < math.inf:
        _refuse(where, f"{value!r:.50} is no count, cost or time")
    return value


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.utcoffset() is None:
        raise ValueError("a moment needs a time zone")
    return moment


def _new(connection: Connection, table: Table, rows: Sequence[Row]) -> Iterator[Row]:
    """Return the rows that the database does not have."""
    key = list(table.primary_key.columns)
    wanted = [tuple(row[column.name] for column in key) for row in rows]
    known = {tuple(row) for row in connection.execute(select(*key).where(tuple_(*key).in_(wanted)))}
    return (row for row, own in zip(rows, wanted, strict=True) if own not in known)


def _refuse(where: str, problem: str) -> NoReturn:
    raise LLMBadRequest(f"{where}: {problem}. Nothing was imported.")
