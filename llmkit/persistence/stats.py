"""Sizes and counts of a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, Table, func, select

from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.engines import reading
from llmkit.persistence.statements import RUNS

if TYPE_CHECKING:
    pass
from llmkit.persistence.retention import TABLES

__all__ = ["StoreStats", "store_stats"]


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Contents of a database, in numbers.

    Attributes:
        bytes_on_disk: Of the whole database, its write-ahead log included for SQLite.
        rows: By table.
        runs: By workspace, then by status.
        oldest_at_utc: When the oldest run was created; None without runs.
        newest_at_utc: When the newest was.
    """

    bytes_on_disk: int
    rows: Mapping[str, int]
    runs: Mapping[str, Mapping[str, int]]
    oldest_at_utc: datetime | None
    newest_at_utc: datetime | None


def store_stats(engine: Engine, address: DatabaseAddress) -> StoreStats:
    """Count everything.

    Raises:
        LLMStoreError: The database cannot be read.
    """
    with reading(engine, address) as connection:
        ends = connection.execute(select(func.min(RUNS.c.created_at_utc), func.max(RUNS.c.created_at_utc))).one()
        return StoreStats(
            bytes_on_disk=_bytes_on_disk(connection, address),
            rows={table.name: _count(connection, table) for table in TABLES},
            runs=_runs_by_workspace(connection),
            oldest_at_utc=ends[0],
            newest_at_utc=ends[1],
        )


def _count(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def _runs_by_workspace(connection: Connection) -> dict[str, dict[str, int]]:
    query = select(RUNS.c.workspace_id, RUNS.c.status, func.count()).group_by(RUNS.c.workspace_id, RUNS.c.status)
    counted: dict[str, dict[str, int]] = {}
    for workspace_id, status, number in sorted(tuple(row) for row in connection.execute(query)):
        counted.setdefault(workspace_id, {})[status] = number
    return counted


def _bytes_on_disk(connection: Connection, address: DatabaseAddress) -> int:
    if address.path is None:
        return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())
    files = [address.path, *(address.path.with_name(address.path.name + end) for end in ("-wal", "-shm"))]
    return sum(file.stat().st_size for file in files if file.exists())
