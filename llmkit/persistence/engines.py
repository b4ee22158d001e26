"""Opening databases: addresses, engines for SQLite and PostgreSQL, and what each connection is told first."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from llmkit.errors import LLMConfigurationError, LLMStoreError
from llmkit.persistence.faults import cannot_open, store_error

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = [
    "DATABASE_ERRORS",
    "IMMEDIATE_OPTIONS",
    "SQLITE_BUSY_TIMEOUT_S",
    "SQLITE_PAGE_SIZE",
    "DatabaseAddress",
    "begin_immediate",
    "create_database_file",
    "label_of",
    "make_async_engine",
    "make_engine",
    "path_of",
    "reading",
    "snapshot",
    "writing",
]

# SQLite lets one process write at a time; a batch takes milliseconds, so after such a wait something is stuck.
SQLITE_BUSY_TIMEOUT_S: Final = 30.0
# Rows of about 2 KB: with the default of 4096 a page holds one, and the file is 42 % larger.
SQLITE_PAGE_SIZE: Final = 16_384
BEGIN_OPTION: Final = "llmkit_sqlite_begin"
# A transaction that reads first and writes later fails at once, whatever the busy timeout, when another process wrote
# in between; one that takes the write lock at its beginning waits for its turn. Other databases ignore the option.
IMMEDIATE_OPTIONS: Final = {BEGIN_OPTION: "BEGIN IMMEDIATE"}
DATABASE_ERRORS: Final = (SQLAlchemyError, sqlite3.Error, OSError)
SQLITE_PRAGMAS: Final = (
    "PRAGMA foreign_keys=ON",
    "PRAGMA synchronous=FULL",
    "PRAGMA fullfsync=ON",  # on macOS a plain fsync leaves data in the disk's own cache
    "PRAGMA cache_size=-16384",
)


@dataclass(frozen=True, slots=True)
class DatabaseAddress:
    """Where a database is, as a driver wants it and as a person may see it.

    Attributes:
        url: With the password, for the driver only.
        path: The SQLite file, absolute, so that a later change of the working directory does not move it.
        label: Name for messages, without password.
    """

    url: URL
    path: Path | None
    label: str

    @property
    def is_sqlite(self) -> bool:
        """Whether it is an SQLite file."""
        return self.path is not None

    @classmethod
    def parse(cls, database_url: str) -> DatabaseAddress:
        """Read `sqlite:///file.db`, `postgresql://user@host/name` or `postgres://...`.

        Raises:
            LLMConfigurationError: It is neither. The message does not repeat it, because it may hold a password.
        """
        try:
            url = make_url(database_url)
        except (ArgumentError, ValueError):
            raise LLMConfigurationError(f"LLM_DATABASE_URL cannot be read: {_EXPECTED}") from None
        kind = url.drivername.partition("+")[0]
        if kind == "sqlite" and url.database and url.database != ":memory:":
            return cls._sqlite(url.database)
        if kind in {"postgresql", "postgres"}:
            return cls._postgres(url)
        raise LLMConfigurationError(f"LLM_DATABASE_URL names no database file and no server: {_EXPECTED}")

    @classmethod
    def _sqlite(cls, database: str) -> DatabaseAddress:
        path = Path(database).absolute()
        # mode=rw: whoever opens a database that is gone gets an error and not a new, empty one.
        url = URL.create("sqlite", database=f"file:{quote(str(path))}", query={"mode": "rw", "uri": "true"})
        return cls(url=url, path=path, label=str(path))

    @classmethod
    def _postgres(cls, url: URL) -> DatabaseAddress:
        return cls(url=url.set(drivername="postgresql+psycopg"), path=None, label=label_of(url))

    def __repr__(self) -> str:
        return f"DatabaseAddress({self.label!r})"


def label_of(url: URL) -> str:
    """A name for messages, without user and password."""
    if url.get_backend_name() == "sqlite":
        return str(path_of(url) or "in memory")
    host = url.host or url.query.get("host") or "localhost"
    return f"PostgreSQL at {host}/{url.database or ''}"


def path_of(url: URL) -> Path | None:
    """The SQLite file that the URL names, if it does."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    is_uri = url.database.startswith("file:")
    return Path(unquote(url.database.removeprefix("file:")) if is_uri else url.database)


_EXPECTED = "use sqlite:///llmkit.db, or postgresql://USER:PASSWORD@HOST:5432/NAME"


def make_engine(address: DatabaseAddress, *, busy_timeout_s: float = SQLITE_BUSY_TIMEOUT_S) -> Engine:
    """An engine for threads. Opens nothing yet.

    Args:
        address: Where.
        busy_timeout_s: How long a connection waits for another writer of the same SQLite file, in seconds.

    Raises:
        LLMConfigurationError: The driver is not installed.
    """
    options = _options(address, busy_timeout_s)
    try:
        engine = create_engine(address.url, **options)
    except (ImportError, NoSuchModuleError):
        raise _driver_missing() from None
    _listen(engine, address)
    return engine


def make_async_engine(address: DatabaseAddress, *, busy_timeout_s: float = SQLITE_BUSY_TIMEOUT_S) -> AsyncEngine:
    """An engine for one event loop, for callers that hold a database session of their own; as `make_engine`."""
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
    return LLMConfigurationError("PostgreSQL needs its driver: pip install 'llmkit[postgres]'")


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
        event.listen(engine, "do_connect", lambda *_: _refuse_missing(address))
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)


def _refuse_missing(address: DatabaseAddress) -> None:
    # Before the driver tries: aiosqlite leaves a thread behind when it cannot open the file.
    if address.path is not None and not address.path.is_file():
        raise cannot_open(address.path)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # Transactions are begun by us alone: the driver's own habit begins them late and only for some statements.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in SQLITE_PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(BEGIN_OPTION, "BEGIN"))


def begin_immediate(connection: Connection) -> Connection:
    """Make every later transaction of an SQLite connection take the write lock at its beginning."""
    return connection.execution_options(**IMMEDIATE_OPTIONS)


@contextmanager
def reading(engine: Engine, address: DatabaseAddress) -> Iterator[Connection]:
    """A connection for reading, at one moment in time; what fails inside is raised as `LLMStoreError`."""
    try:
        with snapshot(engine) as connection:
            yield connection
    except DATABASE_ERRORS as error:
        raise store_error(error, address.label, address.path) from None


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """As `reading`, with errors as the driver raises them, so that a failure that may pass can be told from others."""
    with engine.connect() as connection:
        if connection.dialect.name != "sqlite":
            connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


@contextmanager
def writing(engine: Engine, address: DatabaseAddress) -> Iterator[Connection]:
    """A write transaction: committed at the end of the block, rolled back when it raises.

    Raises:
        LLMStoreError: What the database raised inside, translated.
    """
    try:
        with engine.connect() as connection, begin_immediate(connection).begin():
            yield connection
    except DATABASE_ERRORS as error:
        raise store_error(error, address.label, address.path) from None


def create_database_file(path: Path) -> None:
    """Create an empty database file that only its owner can read, unless there is one.

    Raises:
        LLMStoreError: The folder is missing or cannot be written.
    """
    try:
        # O_EXCL also keeps us from opening, and then closing, a file on which this process holds SQLite's locks.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise LLMStoreError(_cannot_create(path, error)) from None


def _cannot_create(path: Path, error: OSError) -> str:
    if not path.parent.is_dir():
        return (
            f"The database {path} cannot be created: the folder {path.parent} does not exist. "
            "Create it, or set LLM_DATABASE_URL to a file elsewhere."
        )
    return (
        f"The database {path} cannot be created: {error.strerror}. "
        f"Make the folder {path.parent} writable, or set LLM_DATABASE_URL to a file elsewhere."
    )
