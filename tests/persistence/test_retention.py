"""Statistics, pruning, export and erasure."""

from __future__ import annotations

import errno
import io
import json
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import update

from llmkit.errors import LLMStoreError
from llmkit.persistence import retention
from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.engines import make_engine
from llmkit.persistence.eval_store import SqlEvalStore
from llmkit.persistence.retention import compact, erase_workspace, prune
from llmkit.persistence.statements import RUNS, SHARED_CALLS
from llmkit.persistence.stats import store_stats
from llmkit.persistence.workspace_export import export_workspace
from llmkit.types import utc_now
from tests.support.repositories import JournalHome, journal_home
from tests.support.run_values import a_failure, a_start, a_success, an_eval_result, an_eval_run

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = utc_now()


def days_ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


@pytest.fixture
def home(database_url: str) -> Iterator[JournalHome]:
    yield from journal_home(database_url)


async def finished(home: JournalHome, **changes: Any) -> None:
    start = a_start(**changes)
    await home.repo.create_started(start)
    await home.repo.mark_succeeded(a_success(start.id))


async def evaluation(home: JournalHome, opened: datetime, last: datetime, **changes: Any) -> None:
    store = SqlEvalStore(home.journal)
    run = await store.open_run(an_eval_run(created_at_utc=opened, **changes))
    await store.save_result(an_eval_result(run.id, finished_at_utc=last))


def rows(home: JournalHome) -> dict[str, int]:
    return dict(store_stats(home.journal.engine, home.journal.address).rows)


async def test_statistics(home: JournalHome) -> None:
    await finished(home, created_at_utc=days_ago(3))
    await finished(home, workspace_id="other lab", created_at_utc=days_ago(1))
    failed = a_start(created_at_utc=days_ago(2))
    await home.repo.create_started(failed)
    await home.repo.mark_failed(a_failure(failed.id))
    await evaluation(home, days_ago(1), days_ago(1))
    found = store_stats(home.journal.engine, home.journal.address)
    assert found.runs == {"lab": {"FAILED": 1, "SUCCEEDED": 1}, "other lab": {"SUCCEEDED": 1}}
    assert found.rows == {"llm_runs": 3, "llm_attempts": 3, "eval_runs": 1, "eval_results": 1}
    assert (found.oldest_at_utc, found.newest_at_utc) == (days_ago(3), days_ago(1))
    assert found.bytes_on_disk > 16_384


async def test_statistics_of_an_empty_database(home: JournalHome) -> None:
    found = store_stats(home.journal.engine, home.journal.address)
    assert (found.runs, found.oldest_at_utc, found.newest_at_utc) == ({}, None, None)


async def test_old_runs_go_with_their_attempts(home: JournalHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PRUNE_BATCH", 2)
    for age in (5, 6, 7, 8, 9, 1):
        await finished(home, created_at_utc=days_ago(age))
    gone = prune(home.journal.engine, home.journal.address, days_ago(3))
    assert gone == {"llm_runs": 5, "llm_attempts": 5, "shared_calls": 0}
    assert [run["created_at_utc"] for run in home.runs()] == [days_ago(1)]
    assert not any(prune(home.journal.engine, home.journal.address, days_ago(3)).values())


async def test_a_started_run_goes_only_when_it_is_long_silent(home: JournalHome) -> None:
    alive, silent = a_start(created_at_utc=days_ago(9)), a_start(created_at_utc=days_ago(8))
    for start in (alive, silent):
        await home.repo.create_started(start)
    with home.journal.engine.begin() as connection:
        connection.execute(update(RUNS).where(RUNS.c.id == silent.id).values(heartbeat_at_utc=days_ago(8)))
    assert prune(home.journal.engine, home.journal.address, utc_now())["llm_runs"] == 1
    assert [run["id"] for run in home.runs()] == [alive.id]
    assert prune(home.journal.engine, home.journal.address, utc_now(), dead_after=timedelta(0))["llm_runs"] == 1


async def test_only_the_workspace_that_was_named(home: JournalHome) -> None:
    await finished(home, created_at_utc=days_ago(5))
    await finished(home, created_at_utc=days_ago(5), workspace_id="other lab")
    assert prune(home.journal.engine, home.journal.address, NOW, workspace_id="lab")["llm_runs"] == 1
    assert [run["workspace_id"] for run in home.runs()] == ["other lab"]


async def test_old_calls_of_workers_go(home: JournalHome) -> None:
    """Not those of the last two days, for which an engine may start a job yet."""
    store, where = SqlEvalStore(home.journal), (home.journal.engine, home.journal.address)
    old, new = uuid4(), uuid4()
    for call_id in (old, new):
        await store.note_shared_call(call_id, is_stopped=True)
    with home.journal.engine.begin() as connection:
        connection.execute(update(SHARED_CALLS).where(SHARED_CALLS.c.id == old).values(created_at_utc=days_ago(4)))
    assert "shared_calls" not in prune(*where, utc_now(), workspace_id="lab")
    assert prune(*where, utc_now())["shared_calls"] == 1
    assert (await store.is_call_stopped(old), await store.is_call_stopped(new)) == (None, True)


async def test_evaluations_go_when_asked_for_and_over(home: JournalHome) -> None:
    await evaluation(home, days_ago(9), days_ago(8), name="over")
    await evaluation(home, days_ago(9), days_ago(1), name="going on")
    await evaluation(home, days_ago(1), days_ago(1), name="new")
    where = home.journal.engine, home.journal.address
    assert not any(prune(*where, days_ago(5)).values())
    gone = prune(*where, days_ago(5), evaluations=True)
    assert (gone["eval_runs"], gone["eval_results"]) == (1, 1)
    names = {run.name for run in await SqlEvalStore(home.journal).list_runs("lab")}
    assert names == {"going on", "new"}


def test_a_moment_needs_a_zone(home: JournalHome) -> None:
    with pytest.raises(ValueError, match="time zone"):
        prune(home.journal.engine, home.journal.address, datetime(2026, 1, 1))  # noqa: DTZ001


async def test_an_export_holds_every_row_of_one_workspace(home: JournalHome) -> None:
    await finished(home, metadata={"note": "ünï \0"}, created_at_utc=NOW)
    await finished(home, workspace_id="other lab")
    await evaluation(home, NOW, NOW)
    await evaluation(home, NOW, NOW, workspace_id="other lab")
    file = io.StringIO()
    counts = export_workspace(home.journal.engine, home.journal.address, "lab", file)
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert counts == {"llm_runs": 1, "llm_attempts": 1, "eval_runs": 1, "eval_results": 1}
    assert [line["table"] for line in lines] == ["llm_runs", "llm_attempts", "eval_runs", "eval_results"]
    run, attempt, _, result = lines
    assert (run["workspace_id"], run["created_at_utc"]) == ("lab", NOW.isoformat())
    assert json.loads(run["metadata_json"]) == {"note": "ünï \0"}
    assert attempt["run_id"] == run["id"]
    assert json.loads(result["scores_json"]) == {"exact": 1.0}


class FullDisk(io.StringIO):
    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


async def test_unwritable_export_is_not_a_database_error(home: JournalHome) -> None:
    await finished(home)
    with pytest.raises(OSError, match="No space left"):
        export_workspace(home.journal.engine, home.journal.address, "lab", FullDisk())


async def test_an_erased_workspace_is_gone_and_no_other(home: JournalHome) -> None:
    for workspace_id in ("lab", "other lab"):
        await finished(home, workspace_id=workspace_id)
        await evaluation(home, NOW, NOW, workspace_id=workspace_id)
    gone = erase_workspace(home.journal.engine, home.journal.address, "lab")
    assert gone == {"eval_results": 1, "eval_runs": 1, "llm_attempts": 1, "llm_runs": 1}
    assert rows(home) == {"llm_runs": 1, "llm_attempts": 1, "eval_runs": 1, "eval_results": 1}
    assert {run["workspace_id"] for run in home.runs()} == {"other lab"}


async def test_a_call_under_way_does_not_bring_an_erased_workspace_back(home: JournalHome) -> None:
    start = a_start()
    await home.repo.create_started(start)
    erase_workspace(home.journal.engine, home.journal.address, "lab")
    assert not await home.repo.mark_succeeded(a_success(start.id))
    assert rows(home) == {"llm_runs": 0, "llm_attempts": 0, "eval_runs": 0, "eval_results": 0}


async def test_what_is_erased_is_not_left_in_the_file(sqlite_url: str) -> None:
    with JournalHome(sqlite_url) as home:
        start = a_start(request_preview="the secret of Zanzibar " * 50)
        await home.repo.create_started(start)
        await finished(home, workspace_id="other lab")
        path = home.journal.address.path
        assert path is not None
        erase_workspace(home.journal.engine, home.journal.address, "lab")
        compact(home.journal.engine, home.journal.address)
        for file in path.parent.glob("llmkit.db*"):
            assert b"Zanzibar" not in file.read_bytes(), file.name


async def test_compacting_gives_space_back(sqlite_url: str) -> None:
    with JournalHome(sqlite_url) as home:
        for _ in range(50):
            await finished(home, created_at_utc=days_ago(5), request_preview="x" * 20_000)
        where = home.journal.engine, home.journal.address
        compact(*where)
        before = store_stats(*where).bytes_on_disk
        prune(*where, NOW)
        compact(*where)
        assert store_stats(*where).bytes_on_disk < before / 2
        await finished(home)


async def test_reader_of_the_old_file_prevents_compaction(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is read in its earlier state is not called compact."""
    monkeypatch.setattr(retention, "LOG_PATIENCE_S", 0.1)
    with JournalHome(sqlite_url) as home:
        await finished(home, request_preview="the secret of Zanzibar " * 50)
        where = home.journal.engine, home.journal.address
        compact(*where)
        path = home.journal.address.path
        assert path is not None
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM llm_runs").fetchall()
            erase_workspace(*where, "lab")
            with pytest.raises(LLMStoreError, match="Another program is reading"):
                compact(*where)
            assert b"Zanzibar" in path.read_bytes()
            await finished(home, workspace_id="other lab")
        compact(*where)
        assert b"Zanzibar" not in path.read_bytes()


async def test_reader_after_rebuild_keeps_only_the_size(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader since the rebuild keeps the size of the file, and the message says that nothing else is left."""
    monkeypatch.setattr(retention, "LOG_PATIENCE_S", 0.1)
    with JournalHome(sqlite_url) as home:
        await finished(home, request_preview="the secret of Zanzibar " * 50)
        where = home.journal.engine, home.journal.address
        path = home.journal.address.path
        assert path is not None
        erase_workspace(*where, "lab")
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:

            def read_meanwhile(statement: str) -> None:
                if statement == "VACUUM":
                    reader.execute("BEGIN")
                    reader.execute("SELECT count(*) FROM llm_runs").fetchall()

            _driver(home).set_trace_callback(read_meanwhile)
            with pytest.raises(LLMStoreError, match="What was deleted is overwritten"):
                compact(*where)
            assert not any(b"Zanzibar" in file.read_bytes() for file in path.parent.glob("llmkit.db*"))
        _driver(home).set_trace_callback(None)
        compact(*where)


def _driver(home: JournalHome) -> sqlite3.Connection:
    """The connection that the pool gives next."""
    with home.journal.engine.connect() as connection:
        driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _refuse_checkpoints(action: int, what: str | None, *_rest: str | None) -> int:
    refused = action == sqlite3.SQLITE_PRAGMA and what == "wal_checkpoint"
    return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK


async def test_failed_compaction_restores_the_timeout(sqlite_url: str) -> None:
    with JournalHome(sqlite_url) as home:
        driver = _driver(home)
        before = driver.execute("PRAGMA busy_timeout").fetchone()
        driver.set_authorizer(_refuse_checkpoints)
        with pytest.raises(LLMStoreError, match="not authorized"):
            compact(home.journal.engine, home.journal.address)
        assert _driver(home) is driver
        assert driver.execute("PRAGMA busy_timeout").fetchone() == before


async def test_compacting_leaves_postgresql_alone(postgres_url: str) -> None:
    with JournalHome(postgres_url) as home:
        compact(home.journal.engine, home.journal.address)


def test_a_missing_database_is_one_clear_error(new_sqlite_url: str) -> None:
    address = DatabaseAddress.parse(new_sqlite_url)
    engine = make_engine(address)
    for use in (
        lambda: store_stats(engine, address),
        lambda: prune(engine, address, NOW),
        lambda: erase_workspace(engine, address, "lab"),
        lambda: compact(engine, address),
    ):
        with pytest.raises(LLMStoreError, match="does not exist"):
            use()
