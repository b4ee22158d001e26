"""SQLite files through Python's own driver: what the journal does for every call, at the least cost.

Everything else goes through SQLAlchemy's engines, which tell their connections the same first.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any, Final

from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.database_errors import cannot_open

__all__ = ["SQLITE_BUSY_TIMEOUT_S", "SQLITE_PAGE_SIZE", "open_sqlite", "prepare_sqlite", "require_file"]

# SQLite lets one process write at a time; a batch takes milliseconds, so after such a wait something is stuck.
SQLITE_BUSY_TIMEOUT_S: Final = 30.0
# Rows of about 2 KB: with the default of 4096 a page holds one, and the file is 42 % larger.
SQLITE_PAGE_SIZE: Final = 16_384
SQLITE_PRAGMAS: Final = (
    "PRAGMA foreign_keys=ON",
    "PRAGMA synchronous=FULL",
    "PRAGMA fullfsync=ON",  # on macOS a plain fsync leaves data in the disk's own cache
    "PRAGMA cache_size=-16384",
    # 64 MB of log, in pages of ours. A page is copied from it to its place once, however often it was written: with the
    # default of 1000 a pair of writes takes an eighth more.
    "PRAGMA wal_autocheckpoint=4000",
)


def open_sqlite(address: DatabaseAddress, busy_timeout_s: float = SQLITE_BUSY_TIMEOUT_S) -> sqlite3.Connection:
    """Return a connection that any one thread at a time may use; transactions are begun by its user alone.

    Raises:
        LLMStoreError: There is no such file.
        sqlite3.Error: It cannot be opened, or is no database.
    """
    require_file(address)
    connection = sqlite3.connect(address.sqlite_uri, uri=True, timeout=busy_timeout_s, check_same_thread=False)
    try:
        prepare_sqlite(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def require_file(address: DatabaseAddress) -> None:
    """Refuse a file that is not there before a driver tries: aiosqlite leaves a thread behind when it cannot open it.

    Raises:
        LLMStoreError: It is not there.
    """
    if address.path is not None and not address.path.is_file():
        raise cannot_open(address.path)


def prepare_sqlite(connection: Any) -> None:
    """Tell a connection of Python's driver, or one of that interface, what has to hold on it."""
    # Transactions are begun by us alone: the driver's own habit begins them late and only for some statements.
    connection.isolation_level = None
    with closing(connection.cursor()) as cursor:
        for pragma in SQLITE_PRAGMAS:
            cursor.execute(pragma)
