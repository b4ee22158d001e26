"""The database's clock, which is the only one that signs of life and leases are compared by.

Clocks of machines that share a database differ, by an hour where a zone is set wrong. So the time of a heartbeat, of a
lease and of the judgement over either is read by the database, inside the statement that needs it; on SQLite that is
the clock of the one machine that has the file.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlmodel.sql.sqltypes import UTCDateTime

__all__ = ["DatabaseNow"]


class DatabaseNow(FunctionElement[Any]):
    """The time at which the statement runs, in SQL."""

    type = UTCDateTime()
    inherit_cache = True


@compiles(DatabaseNow, "postgresql")
def _compile_for_postgresql(_element: DatabaseNow, _compiler: SQLCompiler, **_options: Any) -> str:
    # Not now(), which is when the transaction began: it may have waited for locks since.
    return "clock_timestamp()"


@compiles(DatabaseNow, "sqlite")
def _compile_for_sqlite(_element: DatabaseNow, _compiler: SQLCompiler, **_options: Any) -> str:
    # In the form of `rows.sqlite_time`. SQLite knows milliseconds only.
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
