"""Addresses of databases. Nothing is opened here, and SQLAlchemy is not loaded for an SQLite file."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from llmkit.errors import LLMConfigurationError, LLMStoreError

if TYPE_CHECKING:
    from sqlalchemy import URL

__all__ = ["DatabaseAddress", "create_database_file", "label_of", "path_of"]

SQLITE_URL: Final = re.compile(r"sqlite(?:\+\w+)?:///(?P<database>.+)", re.DOTALL)
EXPECTED: Final = "use sqlite:///llmkit.db, or postgresql://USER:PASSWORD@HOST:5432/NAME"


@dataclass(frozen=True, slots=True)
class DatabaseAddress:
    """Address of a database, in the form of a driver and in a form that may be shown.

    Attributes:
        label: Name for messages, without password.
        path: The SQLite file, absolute, so that a later change of the working directory does not move it.
        server: The address of a PostgreSQL database, with the password, for the driver only.
    """

    label: str
    path: Path | None = None
    server: URL | None = field(default=None, repr=False)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is an SQLite file."""
        return self.path is not None

    @property
    def url(self) -> URL:
        """For SQLAlchemy, with the password."""
        if self.server is not None:
            return self.server
        from sqlalchemy import URL

        return URL.create("sqlite", database=f"file:{self.quoted_path}", query={"mode": "rw", "uri": "true"})

    @property
    def sqlite_uri(self) -> str:
        """For the driver: opening a file that no longer exists is an error and creates no new, empty one."""
        return f"file:{self.quoted_path}?mode=rw"

    @property
    def quoted_path(self) -> str:
        """The path of the SQLite file inside a URI."""
        return quote(str(self.path))

    @classmethod
    def of_file(cls, path: str | Path) -> DatabaseAddress:
        """Return the address of an SQLite file."""
        absolute = Path(path).absolute()
        return cls(label=str(absolute), path=absolute)

    @classmethod
    def parse(cls, database_url: str) -> DatabaseAddress:
        """Read `sqlite:///file.db`, `postgresql://user@host/name` or `postgres://...`.

        Raises:
            LLMConfigurationError: It is neither. The message does not repeat it, because it may hold a password.
        """
        found = SQLITE_URL.fullmatch(database_url)
        if found is not None and found["database"] != ":memory:":
            if "?" in found["database"]:
                # SQLAlchemy would read a query there, and SQLite's driver drop it without a word.
                raise LLMConfigurationError(
                    "LLM_DATABASE_URL must not contain a question mark: queries such as ?mode=ro are not supported"
                )
            return cls.of_file(found["database"])
        return cls._of_server(database_url)

    @classmethod
    def _of_server(cls, database_url: str) -> DatabaseAddress:
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(database_url)
        except (ArgumentError, ValueError):
            raise LLMConfigurationError(f"LLM_DATABASE_URL cannot be read: {EXPECTED}") from None
        if url.drivername.partition("+")[0] not in {"postgresql", "postgres"}:
            raise LLMConfigurationError(f"LLM_DATABASE_URL names no database file and no server: {EXPECTED}")
        if "@" in (url.host or ""):
            # The password ends at its first `@`, and the rest of it would be shown as the host in every message.
            raise LLMConfigurationError(
                "LLM_DATABASE_URL cannot be read: it has two @. "
                "Write an @ in the user or password as %40, : as %3A and / as %2F."
            )
        return cls(label=label_of(url), server=url.set(drivername="postgresql+psycopg"))


def label_of(url: URL) -> str:
    """Return a name for messages, without user and password."""
    if url.get_backend_name() == "sqlite":
        return str(path_of(url) or "in memory")
    host = url.host or url.query.get("host") or "localhost"
    return f"PostgreSQL at {host}/{url.database or ''}"


def path_of(url: URL) -> Path | None:
    """Return the SQLite file that the URL names, if it does."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    is_uri = url.database.startswith("file:")
    return Path(unquote(url.database.removeprefix("file:")) if is_uri else url.database)


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
