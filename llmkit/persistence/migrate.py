"""Bringing a database to the schema that this version knows.

Revisions are numbered: `0001` is the first, the highest file name in the migrations folder is the head.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from enum import StrEnum
from functools import cache
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmkit.errors import LLMConfigurationError, LLMStoreError
from llmkit.persistence.addresses import DatabaseAddress, create_database_file
from llmkit.persistence.database_errors import DatabaseFailure, classify, is_damaged, is_read_only, store_error
from llmkit.persistence.sqlite_driver import SQLITE_PAGE_SIZE, open_sqlite

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection
    from sqlalchemy.engine.interfaces import DBAPICursor

__all__ = [
    "SchemaState",
    "SchemaStatus",
    "current_state",
    "downgrade",
    "list_columns",
    "migration_connection",
    "upgrade",
]

PACKAGE: Final = Path(__file__).parent.parent
SQLITE_SCHEMA_FILE: Final = "sqlite_schema.json"
VERSION_TABLE: Final = "alembic_version"
SELECT_REVISION: Final = f"SELECT version_num FROM {VERSION_TABLE}"  # noqa: S608
HAS_SQLITE_TABLE: Final = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
# Any number will do, as long as every version of llmkit uses the same one.
POSTGRES_LOCK: Final = 7_313_202_611_221
WAL_PATIENCE_S: Final = 30.0
DRIVER_ERRORS: Final = (sqlite3.Error, OSError)


class SchemaStatus(StrEnum):
    """State of a database's schema relative to this version of llmkit."""

    EMPTY = "empty"
    BEHIND = "behind"
    CURRENT = "current"
    UNKNOWN = "unknown"


class SchemaState(NamedTuple):
    """The revision of a database, None for a new one, and the one that this version of llmkit works with."""

    revision: str | None
    head: str
    status: SchemaStatus


def upgrade(database_url: str) -> SchemaState:
    """Create the database if it is an SQLite file that does not exist, and bring it to the head.

    Any number of processes may do so at once: one migrates, the others wait. A crash leaves the old schema whole.
    Nothing but a look at the version (about a millisecond) is done when it is current.

    Returns:
        The state found, before anything was changed.

    Raises:
        LLMStoreError: The database cannot be used, or is newer than this version of llmkit.
        LLMConfigurationError: The URL is wrong or its driver is missing.
    """
    address = DatabaseAddress.parse(database_url)
    if address.path is not None:
        create_database_file(address.path)
    state = _read_state(address)
    _refuse_unknown(state, address)
    if state.status is SchemaStatus.CURRENT or _create_schema(state, address):
        return state
    try:
        _migrate(address, "head")
    except LLMStoreError as error:
        if state.status is SchemaStatus.BEHIND and is_read_only(error):
            # Without this, the reader of an archived file wonders why anything should be written.
            raise LLMStoreError(
                f"{error.message} An older llmkit wrote it (schema revision {state.revision}), so its tables must be "
                "extended before they can be read."
            ) from None
        raise
    return state


def downgrade(database_url: str, revision: str) -> None:
    """Take the schema back to an earlier revision; `base` removes every table and all that is in them.

    Raises:
        LLMStoreError: As for `upgrade`, and when the revision is unknown.
    """
    address = DatabaseAddress.parse(database_url)
    known = ("base", *_revisions())
    if revision not in known:
        raise LLMStoreError(f"There is no revision {revision!r}; known revisions: {', '.join(known)}")
    _refuse_unknown(_read_state(address), address)
    _migrate(address, revision)


def current_state(database_url: str) -> SchemaState:
    """Look at the version without changing anything; a file that does not exist is `empty`.

    Raises:
        LLMStoreError: The database cannot be read.
    """
    address = DatabaseAddress.parse(database_url)
    if address.path is not None and not address.path.exists():
        return _state_of(None)
    return _read_state(address)


@contextmanager
def migration_connection(address: DatabaseAddress) -> Iterator[Connection]:
    """Return a transaction that no other migration can share; committed at the end of the block.

    Raises:
        LLMStoreError: What the database raised inside, translated.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from llmkit.persistence.engines import begin_immediate, make_engine

    engine = make_engine(address)
    try:
        with engine.connect() as connection:
            _prepare(connection, address)
            with begin_immediate(connection).begin():
                _exclude_others(connection, address)
                yield connection
                _check_references(connection, address)
    except SQLAlchemyError as error:
        raise store_error(error, address.label, address.path) from None
    finally:
        engine.dispose()


def _create_schema(state: SchemaState, address: DatabaseAddress) -> bool:
    """Create the tables in an SQLite file that lacks them, without Alembic, whose import takes longer.

    What the migrations make of a new file is kept in a file of the package; a test compares the two.
    """
    if state.status is not SchemaStatus.EMPTY or not address.is_sqlite:
        return False
    made = _read_schema()
    return made["revision"] == state.head and _create(address, made["statements"])


def _read_schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(Path(__file__).with_name(SQLITE_SCHEMA_FILE).read_text("utf-8"))
    return schema


@cache
def list_columns(table: str) -> dict[str, str]:
    """Return the names and SQLite types of a table's columns, in their order.

    They are those that the migrations make, read without loading the models, which takes 0.2 s.
    """
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in _read_schema()["statements"]:
            connection.execute(statement)
        found = connection.execute("SELECT name, type FROM pragma_table_info(?) ORDER BY cid", (table,)).fetchall()
    return dict(found)


def _create(address: DatabaseAddress, statements: Sequence[str]) -> bool:
    """Run them in one transaction, unless another process was first."""
    try:
        with closing(open_sqlite(address)) as connection:
            _shape_file(connection.cursor())
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute(HAS_SQLITE_TABLE, (VERSION_TABLE,)).fetchall():
                return False
            for statement in statements:
                connection.execute(statement)
            connection.execute("COMMIT")
    except DRIVER_ERRORS as error:
        raise store_error(error, address.label, address.path) from None
    return True


def _migrate(address: DatabaseAddress, target: str) -> None:
    # Imported before the lock is taken, so that others wait for the migration only.
    from alembic import command

    config = _alembic_config(address)
    with migration_connection(address) as connection:
        # Another process may have been first, also with a newer version of llmkit.
        state = _state_of(_revision(connection))
        _refuse_unknown(state, address)
        config.attributes["connection"] = connection
        if target == "head" and state.status is not SchemaStatus.CURRENT:
            command.upgrade(config, "head")
        elif target != "head":
            command.downgrade(config, target)


def _alembic_config(address: DatabaseAddress) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["address"] = address
    return config


def migrations_folder() -> Path:
    """Return the folder of the revisions: inside an installed package, beside it in a checkout."""
    for folder in (PACKAGE / "migrations", PACKAGE.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise LLMConfigurationError("llmkit's migrations are missing from its installation; install it again.")


@cache
def _revisions() -> tuple[str, ...]:
    scripts = (migrations_folder() / "versions").glob("[0-9]*.py")
    return tuple(sorted(script.name.partition("_")[0] for script in scripts))


def _state_of(revision: str | None) -> SchemaState:
    head = _revisions()[-1]
    if revision is None:
        return SchemaState(None, head, SchemaStatus.EMPTY)
    if revision not in _revisions():
        return SchemaState(revision, head, SchemaStatus.UNKNOWN)
    return SchemaState(revision, head, SchemaStatus.CURRENT if revision == head else SchemaStatus.BEHIND)


def _refuse_unknown(state: SchemaState, address: DatabaseAddress) -> None:
    if state.status is not SchemaStatus.UNKNOWN:
        return
    if re.fullmatch(r"\d{4}", state.revision or "") is None:
        raise LLMStoreError(
            f"The database {address.label} has schema revision {state.revision}, which is none of llmkit's: it belongs "
            "to another program. Set LLM_DATABASE_URL to another database. Nothing was changed."
        )
    raise LLMStoreError(
        f"The database {address.label} has schema revision {state.revision}, and this version of llmkit knows "
        f"revisions up to {state.head}: it was written by a newer llmkit. "
        "Upgrade llmkit, or set LLM_DATABASE_URL to another database. Nothing was changed."
    )


def _read_state(address: DatabaseAddress) -> SchemaState:
    if address.is_sqlite:
        return _state_of(_sqlite_revision(address))
    from sqlalchemy.exc import SQLAlchemyError

    from llmkit.persistence.engines import make_engine

    engine = make_engine(address)
    try:
        with engine.connect() as connection:
            return _state_of(_revision(connection))
    except SQLAlchemyError as error:
        raise store_error(error, address.label, address.path) from None
    finally:
        engine.dispose()


def _sqlite_revision(address: DatabaseAddress) -> str | None:
    """Do the same as `_revision`, without SQLAlchemy: all that most processes ever want to know of the schema."""
    try:
        with closing(open_sqlite(address)) as connection:
            if not connection.execute(HAS_SQLITE_TABLE, (VERSION_TABLE,)).fetchall():
                return None
            found = connection.execute(SELECT_REVISION).fetchone()
    except DRIVER_ERRORS as error:
        raise store_error(error, address.label, address.path) from None
    if found is None:
        return None
    # From a file that lost its end while a write-ahead log was beside it, SQLite may return NULL or leftovers.
    if not isinstance(found[0], str) or re.fullmatch(r"\w{1,32}", found[0]) is None:
        raise is_damaged(address.label)
    return found[0]


def _revision(connection: Connection) -> str | None:
    if not _has_version_table(connection):
        return None
    revision = connection.exec_driver_sql(SELECT_REVISION).scalar()
    return None if revision is None else str(revision)


def _has_version_table(connection: Connection) -> bool:
    if connection.dialect.name != "sqlite":
        from sqlalchemy import inspect

        return inspect(connection).has_table(VERSION_TABLE)
    return connection.exec_driver_sql(HAS_SQLITE_TABLE, (VERSION_TABLE,)).scalar() is not None


def _prepare(connection: Connection, address: DatabaseAddress) -> None:
    """Do what SQLite allows outside a transaction only."""
    if not address.is_sqlite:
        return
    # The driver's own cursor: SQLAlchemy would begin a transaction.
    cursor = connection.connection.cursor()
    try:
        # A table that is rebuilt is dropped in between, and what refers to it must not be deleted with it.
        cursor.execute("PRAGMA foreign_keys=OFF")
        _shape_file(cursor)
    except DRIVER_ERRORS as error:
        raise store_error(error, address.label, address.path) from None
    finally:
        cursor.close()


def _shape_file(cursor: DBAPICursor | sqlite3.Cursor) -> None:
    cursor.execute(f"PRAGMA page_size={SQLITE_PAGE_SIZE}")
    _switch_to_wal(cursor)


def _switch_to_wal(cursor: DBAPICursor | sqlite3.Cursor) -> None:
    # The busy timeout does not cover this switch: processes that open a new file together get an error at once.
    deadline = monotonic() + WAL_PATIENCE_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.fetchall()
        except DRIVER_ERRORS as error:
            if classify(error) is not DatabaseFailure.TRANSIENT or monotonic() > deadline:
                raise
            sleep(0.01)
        else:
            return


def _exclude_others(connection: Connection, address: DatabaseAddress) -> None:
    # SQLite's transaction has the write lock from its beginning.
    if not address.is_sqlite:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})")


def _check_references(connection: Connection, address: DatabaseAddress) -> None:
    if address.is_sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
        raise LLMStoreError(f"The migration of {address.label} would leave rows without parents; it was taken back.")
