"""Every failure of a driver that we know, who it concerns, and what is said."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import psycopg
import pytest
from psycopg import errors as postgres_errors
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import OperationalError as WrappedError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from llmkit.errors import LLMStoreError
from llmkit.persistence.database_errors import DatabaseFailure, classify, patiently, store_error

FILE = Path("/data/x.db")


def sqlite_error(code: int, message: str = "said SQLite") -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


def wrapped(error: Exception) -> WrappedError:
    return WrappedError("INSERT ... a secret prompt", {"prompt": "a secret prompt"}, error, hide_parameters=True)


@pytest.mark.parametrize(
    ("code", "fault", "words"),
    [
        (sqlite3.SQLITE_BUSY, DatabaseFailure.TRANSIENT, "is locked"),
        (sqlite3.SQLITE_BUSY | 2 << 8, DatabaseFailure.TRANSIENT, "is locked"),
        (sqlite3.SQLITE_FULL, DatabaseFailure.STORE, "is full"),
        (sqlite3.SQLITE_READONLY, DatabaseFailure.STORE, "cannot be written"),
        (sqlite3.SQLITE_READONLY | 4 << 8, DatabaseFailure.STORE, "cannot be written"),
        (sqlite3.SQLITE_CORRUPT, DatabaseFailure.STORE, "is damaged"),
        (sqlite3.SQLITE_NOTADB, DatabaseFailure.STORE, "is not an SQLite database"),
        (sqlite3.SQLITE_IOERR | 3 << 8, DatabaseFailure.STORE, "failed to read or write"),
        (sqlite3.SQLITE_PERM, DatabaseFailure.STORE, "may not be opened"),
        (sqlite3.SQLITE_TOOBIG, DatabaseFailure.OPERATION, "too large"),
        (sqlite3.SQLITE_CONSTRAINT, DatabaseFailure.OPERATION, "said SQLite"),
        (sqlite3.SQLITE_CANTOPEN, DatabaseFailure.STORE, "the folder /data does not exist"),
        (sqlite3.SQLITE_MISUSE, DatabaseFailure.STORE, "said SQLite"),
    ],
)
def test_sqlite(code: int, fault: DatabaseFailure, words: str) -> None:
    for error in (sqlite_error(code), wrapped(sqlite_error(code))):
        assert classify(error) is fault
        told = store_error(error, str(FILE), FILE)
        assert words in str(told)
        assert "secret" not in str(told)


@pytest.mark.parametrize(
    ("error", "fault", "words"),
    [
        (postgres_errors.AdminShutdown(), DatabaseFailure.TRANSIENT, "does not answer"),
        (postgres_errors.CannotConnectNow(), DatabaseFailure.TRANSIENT, "does not answer"),
        (postgres_errors.ConnectionFailure(), DatabaseFailure.TRANSIENT, "does not answer"),
        (postgres_errors.TooManyConnections(), DatabaseFailure.TRANSIENT, "TooManyConnections SQLSTATE 53300"),
        (postgres_errors.DeadlockDetected(), DatabaseFailure.TRANSIENT, "DeadlockDetected"),
        (postgres_errors.SerializationFailure(), DatabaseFailure.TRANSIENT, "SerializationFailure"),
        (postgres_errors.DiskFull(), DatabaseFailure.STORE, "is full"),
        (postgres_errors.UndefinedTable(), DatabaseFailure.STORE, "llmkit db upgrade"),
        (postgres_errors.DuplicateTable(), DatabaseFailure.STORE, "its schema revision was removed"),
        (psycopg.ProgrammingError('invalid connection option "a secret"'), DatabaseFailure.STORE, "does not know"),
        (postgres_errors.InsufficientPrivilege(), DatabaseFailure.STORE, "lacks a permission"),
        (postgres_errors.ReadOnlySqlTransaction(), DatabaseFailure.STORE, "is read-only"),
        (postgres_errors.InvalidPassword(), DatabaseFailure.STORE, "refuses the user or the password"),
        (postgres_errors.DataCorrupted(), DatabaseFailure.STORE, "is damaged"),
        (postgres_errors.CheckViolation("a secret prompt"), DatabaseFailure.OPERATION, "CheckViolation SQLSTATE 23514"),
        (postgres_errors.NumericValueOutOfRange("a secret prompt"), DatabaseFailure.OPERATION, "SQLSTATE 22003"),
        (psycopg.DataError("a secret prompt"), DatabaseFailure.OPERATION, "DataError"),
        (psycopg.OperationalError("connection refused"), DatabaseFailure.TRANSIENT, "does not answer"),
        (
            psycopg.OperationalError("FATAL: the database system is starting up"),
            DatabaseFailure.TRANSIENT,
            "does not answer",
        ),
        (psycopg.OperationalError('FATAL: database "x" does not exist'), DatabaseFailure.STORE, "createdb"),
        (psycopg.OperationalError('FATAL: role "x" does not exist'), DatabaseFailure.STORE, "refuses the user"),
        (
            psycopg.OperationalError("password authentication failed"),
            DatabaseFailure.STORE,
            "refuses the user or the password",
        ),
        (psycopg.OperationalError("sorry, too many clients already"), DatabaseFailure.TRANSIENT, "SQLSTATE 53300"),
    ],
)
def test_postgresql(error: psycopg.Error, fault: DatabaseFailure, words: str) -> None:
    for each in (error, wrapped(error)):
        assert classify(each) is fault
        told = store_error(each, "PostgreSQL at db/lab")
        assert words in str(told)
        assert str(told).startswith(("PostgreSQL at db/lab", "The disk of PostgreSQL", "The user of PostgreSQL"))
        assert "secret" not in str(told)


@pytest.mark.parametrize(
    ("error", "fault", "words"),
    [
        (OverflowError("Python int too large"), DatabaseFailure.OPERATION, "failed: OverflowError"),
        (ValueError("a secret prompt"), DatabaseFailure.OPERATION, "failed: ValueError"),
        (PermissionError(13, "Permission denied"), DatabaseFailure.STORE, "cannot be used: Permission denied"),
        (PoolTimeoutError("QueuePool limit"), DatabaseFailure.TRANSIENT, "failed: TimeoutError"),
        (PendingRollbackError("rolled back"), DatabaseFailure.STORE, "failed: PendingRollbackError"),
        (
            DBAPIError("SELECT 1", None, sqlite3.Error("closed"), connection_invalidated=True),
            DatabaseFailure.TRANSIENT,
            "does not answer",
        ),
    ],
)
def test_others(error: Exception, fault: DatabaseFailure, words: str) -> None:
    assert classify(error) is fault
    told = store_error(error, str(FILE), FILE)
    assert words in str(told)
    assert str(told).startswith("The database /data/x.db")
    assert "secret" not in str(told)


def test_our_own_errors_stay_as_they_are() -> None:
    mine = LLMStoreError("as it is")
    assert store_error(mine, "x") is mine
    assert classify(mine) is DatabaseFailure.STORE


def test_a_file_that_may_not_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.touch()
    told = store_error(sqlite_error(sqlite3.SQLITE_CANTOPEN), str(path), path)
    assert "Give this user permission to read and write it" in str(told)


def test_patience_with_what_passes() -> None:
    failures = [sqlite_error(sqlite3.SQLITE_BUSY)] * 3

    def work() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert patiently(work, 10) == "done"


@pytest.mark.parametrize(("code", "patience_s", "tries"), [(sqlite3.SQLITE_FULL, 10, 1), (sqlite3.SQLITE_BUSY, 0, 1)])
def test_no_patience_with_what_does_not(code: int, patience_s: float, tries: int) -> None:
    made = []

    def work() -> None:
        made.append(1)
        raise sqlite_error(code)

    with pytest.raises(sqlite3.OperationalError):
        patiently(work, patience_s)
    assert len(made) == tries
