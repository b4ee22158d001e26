"""Translation of database errors into one readable `LLMStoreError` with a remedy.

Driver messages are passed on only where they are known to hold neither a password nor a prompt.
"""

from __future__ import annotations

import os
import random
import re
import sqlite3
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from time import monotonic, sleep
from typing import Final, TypeVar

from llmkit.errors import LLMStoreError

__all__ = [
    "DatabaseFailure",
    "cannot_open",
    "classify",
    "database_gone",
    "is_damaged",
    "is_read_only",
    "patiently",
    "store_error",
]

T = TypeVar("T")


class DatabaseFailure(Enum):
    """Scope of a failure, which decides who gets the error.

    `TRANSIENT` may pass by itself; `OPERATION` is about the values of one operation; `STORE` is about everybody.
    """

    TRANSIENT = "transient"
    OPERATION = "operation"
    STORE = "store"


# SQLite's primary result codes (https://sqlite.org/rescode.html), the low byte of the extended ones.
SQLITE_MESSAGES: Final = {
    sqlite3.SQLITE_FULL: "The disk of {label} is full. Free some space, then go on; nothing was half written.",
    sqlite3.SQLITE_READONLY: "{label} cannot be written. Give this user write permission on the file and its folder, "
    "or copy it to a folder of yours and set LLM_DATABASE_URL to the copy.",
    sqlite3.SQLITE_CORRUPT: "{label} is damaged. Move it away and restore a backup, or rescue what is left with "
    "`sqlite3 FILE .recover`; a new database is created by the next run.",
    sqlite3.SQLITE_NOTADB: "{label} is not an SQLite database. Move the file away, or set LLM_DATABASE_URL to another.",
    sqlite3.SQLITE_BUSY: "{label} is locked: another program keeps a write transaction open on it. "
    "Find it (`lsof FILE`), let it finish or stop it, then try again.",
    sqlite3.SQLITE_IOERR: "The disk of {label} failed to read or write. Check the disk, the quota and the mount.",
    sqlite3.SQLITE_PERM: "{label} may not be opened by this user. Change its permissions, or set LLM_DATABASE_URL.",
    sqlite3.SQLITE_TOOBIG: "A string is too large for {label}.",
}
SQLITE_TRANSIENT: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
SQLITE_OPERATION: Final = frozenset({sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG})

# PostgreSQL's SQLSTATE classes and codes (https://www.postgresql.org/docs/current/errcodes-appendix.html).
POSTGRES_MESSAGES: Final = {
    "28": "{label} refuses the user or the password. Correct LLM_DATABASE_URL.",
    "3D": "{label} does not exist. Create it with `createdb`, or correct LLM_DATABASE_URL.",
    "42501": "The user of {label} lacks a permission. Grant it the right to create and write tables.",
    "53100": "The disk of {label} is full. Free some space, then go on; nothing was half written.",
    "25006": "{label} is read-only: a standby, or a database set so. Point LLM_DATABASE_URL at the primary.",
    "XX001": "{label} is damaged. Restore a backup.",
    "XX002": "{label} is damaged. Restore a backup.",
}
# Connection lost, too many connections, shutdown or start-up, deadlock, serialization, lock timeout.
POSTGRES_TRANSIENT: Final = ("08", "53300", "57P0", "40", "55P03")
POSTGRES_OPERATION: Final = ("22", "23", "54")
# A connection that cannot be made carries no SQLSTATE, only words.
CONNECTING: Final = (
    ("starting up", "57P03"),
    ("shutting down", "57P03"),
    ("in recovery mode", "57P03"),
    ("authentication failed", "28P01"),
    ("no pg_hba.conf entry", "28000"),
    ('role "', "28000"),
    ("no password supplied", "28000"),
    ('database "', "3D000"),
    ("too many clients", "53300"),
    ("connection slots", "53300"),
)
MISSING_TABLE: Final = (
    "{label} lacks llmkit's tables. Run `llmkit db upgrade`; if that finds nothing to do, a table was removed: "
    "restore a backup, or move the database away."
)
# Only a migration creates tables, and it begins where the revision in `alembic_version` says.
EXISTING_TABLE: Final = (
    "{label} has tables that the next migration creates: its schema revision was removed, or another program's tables "
    "have the same names. Restore a backup, or set LLM_DATABASE_URL to another database."
)
UNKNOWN_OPTION: Final = (
    "{label} cannot be called: LLM_DATABASE_URL has an option that PostgreSQL does not know; remove it."
)
UNREACHABLE: Final = (
    "{label} does not answer. Start the server, or correct host and port in LLM_DATABASE_URL; "
    "what was stored before is safe."
)


_EXISTS = re.compile(r"^(?:table|index) \S+ already exists$")


def classify(error: Exception) -> DatabaseFailure:
    """Classify a failure."""
    cause = _driver_error(error)
    if _may_pass(error, cause):
        return DatabaseFailure.TRANSIENT
    return DatabaseFailure.OPERATION if _is_about_values(cause) else DatabaseFailure.STORE


def _may_pass(error: Exception, cause: BaseException) -> bool:
    code, state = _sqlite_code(cause), _sqlstate(cause)
    if code is not None:
        return code in SQLITE_TRANSIENT
    if state is not None:
        return state.startswith(POSTGRES_TRANSIENT)
    return _is_of_sqlalchemy(error, "TimeoutError") or _connection_lost(error, cause)


def _is_about_values(cause: BaseException) -> bool:
    code, state = _sqlite_code(cause), _sqlstate(cause)
    if code is not None:
        return code in SQLITE_OPERATION
    if state is not None:
        return state.startswith(POSTGRES_OPERATION)
    # What a driver refuses before it sends anything, such as an integer that is too large.
    refused = isinstance(
        cause, (sqlite3.InterfaceError, sqlite3.ProgrammingError, OverflowError, ValueError, TypeError)
    )
    return refused or type(cause).__name__ == "DataError"


def patiently(work: Callable[[], T], patience_s: float) -> T:
    """Return the result of `work`, tried again while its failure is of the kind that passes.

    Args:
        work: Leaves nothing behind when it fails, and may be done twice.
        patience_s: How long, in seconds, on a clock that is never set back.

    Raises:
        Exception: What `work` raised last.
    """
    deadline = monotonic() + patience_s
    pause_s = 0.01
    while True:
        try:
            return work()
        except Exception as error:
            if classify(error) is not DatabaseFailure.TRANSIENT or monotonic() >= deadline:
                raise
        # Not all processes at the same moment again: those that met once would meet every time.
        sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
        pause_s = min(2 * pause_s, 0.5)


def store_error(error: Exception, label: str, path: Path | None = None) -> LLMStoreError:
    """Return the error to raise instead of what SQLAlchemy or a driver raised.

    Args:
        error: What was raised.
        label: Name of the database, without password.
        path: Its file, for SQLite.
    """
    if isinstance(error, LLMStoreError):
        return error
    cause = _driver_error(error)
    template = _template(error, cause)
    if template is None and path is not None and _sqlite_code(cause) == sqlite3.SQLITE_CANTOPEN:
        return cannot_open(path)
    if template is None:
        template = f"{{label}} failed: {_describe_cause(cause)}"
    name = label if path is None else f"the database {label}"
    message = template.replace("{label}", name)
    return LLMStoreError(message[0].upper() + message[1:])


def database_gone(path: Path) -> LLMStoreError:
    """Return the error for a file that was removed or replaced while it was open."""
    return LLMStoreError(
        f"The database {path} was deleted or replaced while it was in use. What is written now would be lost. "
        "Put it back, or start again with a new session to create a new one."
    )


def is_damaged(label: str) -> LLMStoreError:
    """Return the error for a database whose contents make no sense, although each read of it succeeds."""
    return LLMStoreError(SQLITE_MESSAGES[sqlite3.SQLITE_CORRUPT].replace("{label}", f"The database {label}"))


def is_read_only(error: LLMStoreError) -> bool:
    """Return whether the database may be read and not written."""
    templates = (SQLITE_MESSAGES[sqlite3.SQLITE_READONLY], POSTGRES_MESSAGES["25006"])
    return error.message.endswith(tuple(template.removeprefix("{label}") for template in templates))


def cannot_open(path: Path) -> LLMStoreError:
    """Return the error for a file that SQLite cannot open, with the reason as far as it can be seen."""
    if not path.parent.is_dir():
        return LLMStoreError(f"The database {path} cannot be opened: the folder {path.parent} does not exist.")
    if path.is_dir():
        return LLMStoreError(f"The database {path} cannot be opened: it is a folder. Set LLM_DATABASE_URL to a file.")
    if not path.exists():
        advice = "Run `llmkit db upgrade` to create it, or correct LLM_DATABASE_URL."
        return LLMStoreError(f"The database {path} does not exist. {advice}")
    advice = f"Give this user permission to read and write it and its folder {path.parent}."
    return LLMStoreError(f"The database {path} cannot be opened. {advice}")


def _template(error: Exception, cause: BaseException) -> str | None:
    code = _sqlite_code(cause)
    if code == sqlite3.SQLITE_ERROR and "no such table" in str(cause):
        return MISSING_TABLE
    if code == sqlite3.SQLITE_ERROR and _EXISTS.search(str(cause)) is not None:
        return EXISTING_TABLE
    if code is not None:
        return SQLITE_MESSAGES.get(code)
    state = _sqlstate(cause)
    if state is not None:
        return _by_sqlstate(state)
    if isinstance(cause, OSError) and cause.errno is not None:
        return f"{{label}} cannot be used: {os.strerror(cause.errno)}."
    if type(cause).__module__.startswith("psycopg") and "invalid connection option" in str(cause):
        return UNKNOWN_OPTION
    return UNREACHABLE if _connection_lost(error, cause) else None


def _by_sqlstate(state: str) -> str | None:
    if state == "42P01":
        return MISSING_TABLE
    if state == "42P07":
        return EXISTING_TABLE
    if state.startswith(("08", "57P0")):
        return UNREACHABLE
    return POSTGRES_MESSAGES.get(state) or POSTGRES_MESSAGES.get(state[:2])


def _driver_error(error: Exception) -> BaseException:
    wrapped = getattr(error, "orig", None) if _is_of_sqlalchemy(error, "StatementError") else None
    return wrapped if isinstance(wrapped, BaseException) else error


def _sqlite_code(cause: BaseException) -> int | None:
    extended = getattr(cause, "sqlite_errorcode", None)
    return None if extended is None else int(extended) & 0xFF


def _sqlstate(cause: BaseException) -> str | None:
    state: str | None = getattr(cause, "sqlstate", None)
    if state is None and _is_psycopg_operational(cause):
        return next((state for words, state in CONNECTING if words in str(cause)), None)
    return state


def _connection_lost(error: Exception, cause: BaseException) -> bool:
    broken = _sqlstate(cause) is None and _is_psycopg_operational(cause)
    return broken or bool(getattr(error, "connection_invalidated", False))


def _is_of_sqlalchemy(error: BaseException, name: str) -> bool:
    # By name: a process that only reads a stored answer does not load the library.
    kinds = type(error).__mro__
    return any(kind.__name__ == name and kind.__module__ == "sqlalchemy.exc" for kind in kinds)


def _is_psycopg_operational(cause: BaseException) -> bool:
    # By name: the driver is an optional package.
    return type(cause).__name__ == "OperationalError" and type(cause).__module__.startswith("psycopg")


def _describe_cause(cause: BaseException) -> str:
    """Return the kind of failure and, from a server, its code.

    A message may repeat values, so only SQLite's own is shown.
    """
    name = type(cause).__name__
    if isinstance(cause, sqlite3.Error):
        return f"{_first_line(cause)} ({name})"
    if _is_of_sqlalchemy(cause, "SQLAlchemyError"):
        return name
    constraint = getattr(getattr(cause, "diag", None), "constraint_name", None)
    state = _sqlstate(cause)
    return " ".join(part for part in (name, state and f"SQLSTATE {state}", constraint and f"on {constraint}") if part)


def _first_line(cause: BaseException) -> str:
    return re.sub(r"\s+", " ", str(cause)).strip()
