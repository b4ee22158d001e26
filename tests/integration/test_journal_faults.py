"""Databases that fail under the journal: a clear error or a recovery, no half-written row, no hang."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url

from llmkit.errors import LLMStoreError
from llmkit.persistence import sqlite_driver as sqlite_files
from llmkit.persistence.addresses import create_database_file
from llmkit.persistence.migrate import current_state, upgrade
from llmkit.types import utc_now
from tests.support.databases import execute
from tests.support.repositories import JournalHome, async_engine
from tests.support.run_values import a_failure, a_start, a_success, new_id, served

if TYPE_CHECKING:
    from uuid import UUID

    from tests.support.databases import PostgresServer

NOBODY = 65_534


async def pair(home: JournalHome, **changes: Any) -> None:
    start = a_start(**changes)
    await home.repo.create_started(start)
    assert await home.repo.mark_succeeded(a_success(start.id))


def path_of(home: JournalHome) -> Path:
    assert home.journal.address.path is not None
    return home.journal.address.path


def limit_pages(monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    """A disk that takes no more than so many pages: SQLite answers as it does when a write finds no space."""
    limited = (*sqlite_files.SQLITE_PRAGMAS, f"PRAGMA max_page_count={pages}")
    monkeypatch.setattr(sqlite_files, "SQLITE_PRAGMAS", limited)


async def fill(home: JournalHome, confirmed: list[UUID]) -> None:
    for _ in range(100):
        start = a_start(request_preview="x" * 30_000)
        await home.repo.create_started(start)
        confirmed.append(start.id)


async def create_all(home: JournalHome, keys: range) -> None:
    for key in keys:
        await home.repo.create_started(a_start(idempotency_key=str(key)))


async def test_a_full_disk(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with JournalHome(sqlite_url) as home, monkeypatch.context() as patch:
        used = home.journal.read_here(lambda connection: connection.exec_driver_sql("PRAGMA page_count").scalar_one())
        home.journal.engine.dispose()
        limit_pages(patch, used + 20)
        confirmed: list[UUID] = []
        with pytest.raises(LLMStoreError, match=r"The disk of the database .* is full\. Free some space") as caught:
            await fill(home, confirmed)
        assert caught.value.__cause__ is None
        assert 0 < len(confirmed) < 100
        assert [run["id"] for run in home.runs()] == confirmed, "reading goes on, and nothing is half there"
        last = a_success(confirmed[-1], result_json="y" * 900_000)
        with pytest.raises(LLMStoreError, match="is full"):
            await home.repo.mark_succeeded(last)
        assert home.runs()[-1]["status"] == "STARTED"
        assert home.attempts() == []
    with JournalHome(sqlite_url) as later:
        assert await later.repo.mark_succeeded(last), "there is space again"


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own with 3 MB, where this user may mount one; else the test of a full disk above stands."""
    import subprocess

    folder = Path(tempfile.mkdtemp(prefix="llmkit-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(command, capture_output=True, check=False).returncode == 0
    if not mounted:
        # What a write meets then is a limit on the size of files, which SQLite reports as a failing disk.
        yield folder
    else:
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)
    shutil.rmtree(folder, ignore_errors=True)


def test_a_small_disk(small_disk: Path) -> None:
    """In a process of its own, because the limit on file sizes that stands in for it cannot be taken back."""
    import subprocess
    import sys

    code = """
import asyncio, os, resource, signal, sys
from llmkit.errors import LLMStoreError
from llmkit.persistence.migrate import upgrade
from tests.support.repositories import JournalHome
from tests.support.run_values import a_start

folder = sys.argv[1]
upgrade(f"sqlite:///{folder}/x.db")
if not os.path.ismount(folder):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
confirmed = []

async def fill(home):
    for _ in range(400):
        start = a_start(request_preview="x" * 30_000)
        await home.repo.create_started(start)
        confirmed.append(start.id)

with JournalHome(f"sqlite:///{folder}/x.db") as home:
    try:
        asyncio.run(fill(home))
    except LLMStoreError as error:
        print(error)
    assert [run["id"] for run in home.runs()] == confirmed
    assert 0 < len(confirmed) < 400
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(small_disk)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Free some space" in done.stdout or "The disk of" in done.stdout


@contextmanager
def powerless() -> Iterator[None]:
    """Root may write to everything; be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Where everybody may enter, unlike pytest's own folders."""
    folder = Path(tempfile.mkdtemp(prefix="llmkit-open-"))
    folder.chmod(0o777)
    yield folder
    folder.chmod(0o777)
    shutil.rmtree(folder)


def test_a_read_only_database(open_folder: Path) -> None:
    url = f"sqlite:///{open_folder / 'x.db'}"
    with powerless():
        upgrade(url)
        with JournalHome(url) as home:
            home.start(idempotency_key="k")
        (open_folder / "x.db").chmod(0o444)
        with JournalHome(url) as home:
            with pytest.raises(LLMStoreError, match=r"cannot be written\. Give this user write permission"):
                home.start()
            assert asyncio.run(home.repo.get_by_idempotency_key("lab", "k")) is not None
            assert len(home.runs()) == 1


def test_a_folder_that_cannot_be_written(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    with powerless(), pytest.raises(LLMStoreError, match=r"cannot be created: Permission denied\. Make the folder"):
        upgrade(f"sqlite:///{open_folder / 'x.db'}")


def test_a_file_that_cannot_be_read(open_folder: Path) -> None:
    url = f"sqlite:///{open_folder / 'x.db'}"
    with powerless():
        upgrade(url)
        (open_folder / "x.db").chmod(0o000)
        with pytest.raises(LLMStoreError, match="Give this user permission to read and write"):
            upgrade(url)


async def test_a_database_deleted_while_it_is_used(sqlite_url: str) -> None:
    with JournalHome(sqlite_url) as home:
        await pair(home, idempotency_key="k")
        for file in path_of(home).parent.glob("llmkit.db*"):
            file.unlink()
        with pytest.raises(LLMStoreError, match="was deleted or replaced while it was in use"):
            await home.repo.create_started(a_start())
        for use in (home.repo.create_started(a_start()), home.repo.get_by_idempotency_key("lab", "k")):
            with pytest.raises(LLMStoreError, match=r"deleted or replaced|does not exist"):
                await use
        assert not path_of(home).exists(), "no empty database was made in its place"
        upgrade(sqlite_url)
        assert await home.repo.get_by_idempotency_key("lab", "k") is None
        await pair(home)
        assert len(home.runs()) == 1, "the new one is used"


async def test_a_database_replaced_while_it_is_read(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkit.persistence.connections.LOOK_AGAIN_S", 0.0)
    with JournalHome(sqlite_url) as home:
        await home.repo.create_started(a_start(idempotency_key="old"))
        assert await home.repo.get_by_idempotency_key("lab", "old") is not None
        upgrade(f"sqlite:///{tmp_path / 'other.db'}")
        for end in ("-wal", "-shm"):
            path_of(home).with_name(path_of(home).name + end).unlink()
        (tmp_path / "other.db").replace(path_of(home))
        with pytest.raises(LLMStoreError, match="deleted or replaced"):
            await home.repo.get_by_idempotency_key("lab", "old")
        assert await home.repo.get_by_idempotency_key("lab", "old") is None


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to be looked at" * 40, b"\x00" * 4096])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(content)
    with pytest.raises(LLMStoreError, match=r"is not an SQLite database\. Move the file away"):
        upgrade(f"sqlite:///{path}")
    assert path.read_bytes() == content


async def test_a_damaged_database(sqlite_url: str) -> None:
    with JournalHome(sqlite_url) as home:
        for number in range(200):
            await home.repo.create_started(a_start(request_preview="x" * 2_000, idempotency_key=str(number)))
        path = path_of(home)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(3 * 16_384)
        file.write(os.urandom(size - 6 * 16_384))
    with JournalHome(sqlite_url) as home:
        with pytest.raises(LLMStoreError, match=r"is damaged\. Move it away and restore a backup"):
            home.runs()
        with pytest.raises(LLMStoreError, match="is damaged"):
            await create_all(home, range(200))


async def test_a_lock_that_lasts_is_reported_and_one_that_passes_is_not(sqlite_url: str) -> None:
    with JournalHome(sqlite_url, busy_timeout_s=0.05, write_patience_s=0.4) as home:
        await pair(home)
        with closing(sqlite3.connect(path_of(home), isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            with pytest.raises(LLMStoreError, match=r"is locked: another program keeps a write transaction open"):
                await home.repo.create_started(a_start())
            assert time.monotonic() - began < 25
            with JournalHome(sqlite_url, busy_timeout_s=0.05, write_patience_s=30) as patient:
                release = threading.Timer(0.15, lambda: other.execute("COMMIT"))
                release.start()
                await pair(patient)
                release.join()
        assert len(home.runs()) == 2


async def test_the_clock_set_back_an_hour(database_url: str) -> None:
    early = utc_now() - timedelta(hours=1)
    with JournalHome(database_url) as home:
        before = a_start(idempotency_key="before", flight_key="f")
        await home.repo.create_started(before)
        # From here on the clock says an hour less.
        after = a_start(idempotency_key="after", created_at_utc=early)
        await home.repo.create_started(after)
        await home.repo.heartbeat([before.id, after.id])
        assert await home.repo.mark_succeeded(a_success(before.id, finished_at_utc=early))
        assert await home.repo.mark_failed(a_failure(after.id, finished_at_utc=early))
        await home.repo.create_started(a_start(flight_key="f", created_at_utc=early))


async def test_missing_tables(new_sqlite_url: str) -> None:
    create_database_file(Path(new_sqlite_url.removeprefix("sqlite:///")))
    with JournalHome(new_sqlite_url) as home:
        for use in (home.repo.create_started(a_start()), home.repo.get_run("lab", new_id())):
            with pytest.raises(LLMStoreError, match=r"lacks llmkit's tables\. Run `llmkit db upgrade`"):
                await use


async def test_a_missing_database_is_not_created(new_sqlite_url: str) -> None:
    with JournalHome(new_sqlite_url) as home:
        for use in (home.repo.create_started(a_start()), home.repo.get_run("lab", new_id())):
            with pytest.raises(LLMStoreError, match=r"does not exist\. Run `llmkit db upgrade`"):
                await use
        assert not path_of(home).exists()


async def test_what_was_served_into_a_broken_store_is_told_at_the_end(new_sqlite_url: str) -> None:
    home = JournalHome(new_sqlite_url)
    start = a_start()
    await home.repo.record_served(start, served(start.id))
    with pytest.raises(LLMStoreError, match=r"1 answers .* could not be recorded\. .* does not exist"):
        home.journal.close()


async def test_no_postgresql_at_that_address() -> None:
    url = "postgresql://ada:s3cr3t@127.0.0.1:1/lab"
    with pytest.raises(LLMStoreError, match=r"does not answer\. Start the server") as caught:
        current_state(url)
    assert "s3cr3t" not in str(caught.value)
    with JournalHome(url, write_patience_s=0.3) as home:
        began = time.monotonic()
        for use in (home.repo.create_started(a_start()), home.repo.get_run("lab", new_id())):
            with pytest.raises(LLMStoreError, match="does not answer"):
                await use
        assert time.monotonic() - began < 25


def test_a_postgresql_database_or_user_that_does_not_exist(postgres_server_url: str) -> None:
    with pytest.raises(LLMStoreError, match=r"does not exist\. Create it with `createdb`"):
        upgrade(
            postgres_server_url.rpartition("/postgres?")[0]
            + "/no_such_database?"
            + postgres_server_url.rpartition("?")[2]
        )


def test_a_postgresql_user_without_rights(postgres_url: str) -> None:
    name = f"weak_{new_id().hex[-12:]}"
    execute(postgres_url, f"CREATE ROLE {name} LOGIN")
    try:
        weak = make_url(postgres_url).set(username=name).render_as_string(hide_password=False)
        with JournalHome(weak) as home, pytest.raises(LLMStoreError, match=r"lacks a permission"):
            home.start()
    finally:
        execute(postgres_url, f"DROP ROLE {name}")


@pytest.mark.slow
async def test_postgresql_restarted_in_the_middle(own_postgres: PostgresServer) -> None:
    """Calls go on through it; none is lost, none is written twice."""
    with JournalHome(own_postgres.url) as home:
        stop = asyncio.Event()
        done = 0

        async def caller() -> None:
            nonlocal done
            while not stop.is_set():
                await pair(home)
                done += 1

        async def more_than(count: int) -> None:
            while done <= count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        callers = [asyncio.ensure_future(caller()) for _ in range(8)]
        await asyncio.wait_for(more_than(20), 60)
        await asyncio.to_thread(own_postgres.stop)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(own_postgres.start)
        restarted = done
        await asyncio.wait_for(more_than(restarted + 20), 60)
        stop.set()
        await asyncio.gather(*callers)
        assert done > restarted > 0
        assert [run["status"] for run in home.runs()] == ["SUCCEEDED"] * done
        assert len(home.attempts()) == done
        assert await home.repo.get_run("lab", new_id()) is None


@pytest.mark.slow
async def test_postgresql_that_stays_away(own_postgres: PostgresServer) -> None:
    with JournalHome(own_postgres.url, write_patience_s=1.0) as home:
        await pair(home)
        await asyncio.to_thread(own_postgres.stop)
        began = time.monotonic()
        outcomes = await asyncio.gather(
            *[home.repo.create_started(a_start()) for _ in range(5)],
            home.repo.get_run("lab", new_id()),
            return_exceptions=True,
        )
        assert time.monotonic() - began < 25
        assert all(isinstance(outcome, LLMStoreError) and "does not answer" in str(outcome) for outcome in outcomes)
        await asyncio.to_thread(own_postgres.start)
        await pair(home)
        assert [run["status"] for run in home.runs()] == ["SUCCEEDED"] * 2


async def test_backends_killed_by_the_administrator(postgres_url: str) -> None:
    with JournalHome(postgres_url) as home:
        await pair(home)
        assert await home.repo.get_run("lab", new_id()) is None
        execute(
            postgres_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        assert await home.repo.get_run("lab", new_id()) is None
        await pair(home)
        assert len(home.runs()) == 2


async def test_a_session_whose_server_stops_is_one_clear_error(own_postgres: PostgresServer) -> None:
    from llmkit.persistence.unit_of_work import SqlUnitOfWork

    async with async_engine(own_postgres.url) as engine:
        async with SqlUnitOfWork(engine) as unit:
            await unit.runs.create_started(a_start())
            await asyncio.to_thread(own_postgres.stop)
            with pytest.raises(LLMStoreError, match="does not answer"):
                await unit.runs.create_started(a_start())
        with pytest.raises(LLMStoreError, match="does not answer"):
            async with SqlUnitOfWork(engine):
                pass
        await asyncio.to_thread(own_postgres.start)
    with JournalHome(own_postgres.url) as home:
        assert home.runs() == []
