"""Export of a workspace as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

from sqlalchemy import Connection, Engine, Result, Table, select

from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.engines import reading

if TYPE_CHECKING:
    pass
from llmkit.persistence.retention import TABLES, _of_workspace

__all__ = ["export_workspace"]


def export_workspace(engine: Engine, address: DatabaseAddress, workspace_id: str, file: TextIO) -> dict[str, int]:
    """Write every row of a workspace as one JSON object a line, `{"table": ..., column: value, ...}`.

    The rows are those of one moment. Times are ISO 8601 in UTC, columns with `_json` in their name hold JSON text.

    Returns:
        How many rows of each table.

    Raises:
        LLMStoreError: The database cannot be read.
        OSError: The file cannot be written.
    """
    counts = dict.fromkeys((table.name for table in TABLES), 0)
    with closing(_lines(engine, address, workspace_id)) as lines:
        for table_name, line in lines:
            file.write(line)
            counts[table_name] += 1
    return counts


def _lines(engine: Engine, address: DatabaseAddress, workspace_id: str) -> Generator[tuple[str, str]]:
    """Yield each row as a line, with the name of its table."""
    with reading(engine, address) as connection:
        for table in TABLES:
            with _rows_of(connection, table, workspace_id) as rows:
                for row in rows:
                    yield table.name, json.dumps({"table": table.name, **row._asdict()}, default=_plain) + "\n"


def _rows_of(connection: Connection, table: Table, workspace_id: str) -> Result[Any]:
    query = select(table).where(_of_workspace(table, workspace_id)).order_by(*table.primary_key.columns)
    return connection.execution_options(yield_per=1_000).execute(query)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
