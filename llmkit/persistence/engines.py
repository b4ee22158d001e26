"""SQLAlchemy's engines for SQLite and PostgreSQL, and the first statements of each connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

from llmkit.errors import LLMConfigurationError
from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.database_errors import store_error
from llmkit.persistence.sqlite_driver import SQLITE_BUSY_TIMEOUT_S, prepare_sqlite, require_file

if TYPE_CHECKING:
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = [
    "DATABASE_ERRORS",
    "IMMEDIATE_OPTIONS",
    "MOST_SERVER_CONNECTIONS",
    "begin_immediate",
    "make_async_engine",
    "make_engine",
    "reading",
    "snapshot",
    "writing",
]

BEGIN_OPTION: Final = "llmkit_sqlite_begin"
# Most connections of one process to a server: its writer, and readers, who wait for each other. Workers of a run come
# by the hundred, and PostgreSQL allows 100 connections by default. All of them stay open: others would be opened and
# closed for every burst of reads.
MOST_SERVER_CONNECTIONS: Final = 4
# A transaction that reads first and writes later fails at once, whatever the busy timeout, when another process wrote
# in between; one that takes the write lock at its beginning waits for its turn. Other databases ignore the option.
IMMEDIATE_OPTIONS: Final = {BEGIN_OPTION: "BEGIN IMMEDIATE"}
DATABASE_ERRORS: Final = (SQLAlchemyError, sqlite3.Error, OSError)


def make_engine(address: DatabaseAddress, *, busy_timeout_s: float = SQLITE_BUSY_TIMEOUT_S) -> Engine:
    """Return an engine for threads. Opens nothing yet.

    Args:
        address: Where.
        busy_timeout_s: How long a connection waits for another writer of the same SQLite file, in seconds.

    Raises:
        LLMConfigurationError: The driver is not installed.
    """
    options = _options(address, busy_timeout_s)
    if not address.is_sqlite:
        options |= {"pool_size": MOST_SERVER_CONNECTIONS, "max_overflow": 0}
    try:
        engine = create_engine(address.url, **options)
    except (ImportError, NoSuchModuleError):
        raise _driver_missing() from None
    _listen(engine, address)
    if not address.is_sqlite:
        event.listen(engine, "handle_error", _close_lost_cursor)
    return engine


def _close_lost_cursor(context: ExceptionContext) -> None:
    # SQLAlchemy leaves the cursor of a lost connection open, and psycopg warns when it finds one of its own so.
    if context.is_disconnect and context.execution_context is not None:
        context.execution_context.cursor.close()


def make_async_engine(address: DatabaseAddress, *, busy_timeout_s: float = SQLITE_BUSY_TIMEOUT_S) -> AsyncEngine:
    """Return an engine for one event loop, for callers that hold a database session of their own; as `make_engine`."""
    from sqlalchemy.ext.asyncio import create_async_engine

    drivername = "sqlite+aiosqlite" if address.is_sqlite else address.url.drivername
    options = _options(address, busy_timeout_s)
    try:
        engine = create_async_engine(address.url.set(drivername=drivername), **options)
    except (ImportError, NoSuchModuleError):
        raise _driver_missing() from None
    _listen(engine.sync_engine, address)
    return engine


def _driver_missing() -> LLMConfigurationError:
    return LLMConfigurationError("PostgreSQL needs its driver: pip install 'llmkit-research[postgres]'")


def _options(address: DatabaseAddress, busy_timeout_s: float) -> dict[str, Any]:
    # hide_parameters: prompts and answers must not end up in a driver's message.
    shared: dict[str, Any] = {"hide_parameters": True}
    if address.is_sqlite:
        return shared | {"connect_args": {"timeout": busy_timeout_s, "check_same_thread": False}}
    # A server that vanished without a word is noticed within a minute.
    connect_args = {
        "connect_timeout": 10,
        "application_name": "llmkit",
        "keepalives_idle": 20,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": 30_000,
    }
    return shared | {"connect_args": connect_args, "pool_pre_ping": True}


def _listen(engine: Engine, address: DatabaseAddress) -> None:
    if address.is_sqlite:
        event.listen(engine, "do_connect", lambda *_: require_file(address))
        event.listen(engine, "connect", lambda connection, _record: prepare_sqlite(connection))
        event.listen(engine, "begin", _begin_sqlite)


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(BEGIN_OPTION, "BEGIN"))


def begin_immediate(connection: Connection) -> Connection:
    """Make every later transaction of an SQLite connection take the write lock at its beginning."""
    return connection.execution_options(**IMMEDIATE_OPTIONS)


@contextmanager
def reading(engine: Engine, address: DatabaseAddress) -> Iterator[Connection]:
    """Return a connection for reading, at one moment in time; what fails inside is raised as `LLMStoreError`."""
    try:
        with snapshot(engine) as connection:
            yield connection
    except DATABASE_ERRORS as error:
        raise store_error(error, address.label, address.path) from None


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """Do the same as `reading`, but raise the driver's errors, so that transient ones can be recognised."""
    with engine.connect() as connection:
        if connection.dialect.name != "sqlite":
            connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


@contextmanager
def writing(engine: Engine, address: DatabaseAddress) -> Iterator[Connection]:
    """Return a write transaction: committed at the end of the block, rolled back when it raises.

    Raises:
        LLMStoreError: What the database raised inside, translated.
    """
    try:
        with engine.connect() as connection, begin_immediate(connection).begin():
            yield connection
    except DATABASE_ERRORS as error:
        raise store_error(error, address.label, address.path) from None
