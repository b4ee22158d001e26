"""`llmkit db` as people run it."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sqlite3
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from llmkit import Session
from llmkit.persistence import retention, workspace_export
from llmkit.testing import OllamaServer, Reply
from tests.cli.test_cli import LLMKIT, run
from tests.support.databases import PostgresServer
from tests.support.repositories import JournalHome


@pytest.fixture
def store() -> Path:
    """A database with three calls of one workspace and one of another, and a cache."""
    with OllamaServer() as server:
        for workspace, prompts in (("mine", "abc"), ("theirs", "z")):
            with Session(workspace, ollama_api_base=server.url) as session:
                for prompt in prompts:
                    session.chat(prompt)
    return Path("llmkit.db")


def _runs(workspace: str) -> int:
    return len(json.loads(run("runs", "--json", "--workspace", workspace).stdout))


def test_stats_count_by_workspace_and_status(store: Path) -> None:
    stats = json.loads(run("db", "stats", "--json").stdout)
    assert stats["runs"] == {"mine": {"SUCCEEDED": 3}, "theirs": {"SUCCEEDED": 1}}
    assert stats["rows"]["llm_attempts"] == 4
    assert stats["bytes_on_disk"] > 0
    assert "theirs" in run("db", "stats").stdout


def test_prune_deletes_what_is_older_and_nothing_else(store: Path) -> None:
    assert "0 llm_runs" in run("db", "prune", "--before", "2020-01-01").stderr
    assert _runs("mine") == 3
    assert "3 llm_runs" in run("db", "prune", "--before", "2999-01-01", "--workspace", "mine").stderr
    assert (_runs("mine"), _runs("theirs")) == (0, 1)


def test_export_writes_a_workspace_and_never_over_a_file(store: Path) -> None:
    lines = [json.loads(line) for line in run("db", "export", "--workspace", "mine").stdout.splitlines()]
    assert {line["workspace_id"] for line in lines} == {"mine"}
    assert sum(line["table"] == "llm_runs" for line in lines) == 3
    assert run("db", "export", "--workspace", "mine", "--output", "out.jsonl").returncode == 0
    again = run("db", "export", "--workspace", "mine", "--output", "out.jsonl")
    assert again.returncode == 2
    assert "out.jsonl" in again.stderr


@contextmanager
def _largest_file(limit_bytes: int) -> Iterator[None]:
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_an_export_that_breaks_off_leaves_no_file_that_looks_whole(tmp_path: Path) -> None:
    with OllamaServer(Reply("word " * 40_000)) as server, Session("mine", ollama_api_base=server.url) as session:
        session.chat("much")
    export = ("db", "export", "--workspace", "mine", "--output", "out.jsonl")
    with _largest_file(65_536):
        broken = run(*export)
    assert (broken.returncode, list(tmp_path.glob("out*"))) == (2, [])
    assert "Cannot write out.jsonl" in broken.stderr
    # As a killed one leaves it.
    Path("out.jsonl.partial").write_text("{", encoding="utf-8")
    assert run(*export).returncode == 0
    assert [json.loads(line)["table"] for line in Path("out.jsonl").read_text("utf-8").splitlines()] == [
        "llm_runs",
        "llm_attempts",
    ]
    assert not Path("out.jsonl.partial").exists()


def test_an_export_to_a_full_disk_is_reported_as_incomplete(store: Path) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        broken = subprocess.run(
            [*LLMKIT, "db", "export", "--workspace", "mine"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=250,
            check=False,
        )
    assert broken.returncode == 2
    assert broken.stderr.splitlines() == [
        "LLMBadRequest: Cannot write to standard output: No space left on device; the output is incomplete"
    ]


def test_an_export_is_as_private_as_the_database_whatever_a_killed_one_has_left(store: Path) -> None:
    left = Path("out.jsonl.partial")
    left.write_text("{", encoding="utf-8")
    left.chmod(0o666)
    usual = os.umask(0)
    try:
        assert run("db", "export", "--workspace", "mine", "--output", "out.jsonl").returncode == 0
    finally:
        os.umask(usual)
    assert stat.S_IMODE(Path("out.jsonl").stat().st_mode) == stat.S_IMODE(store.stat().st_mode) == 0o600


def test_a_server_that_goes_away_in_an_export_is_one_message_and_leaves_no_file(
    own_postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_DATABASE_URL", own_postgres.url)
    with JournalHome(own_postgres.url) as home:
        home.start(workspace_id="mine")

    def listen(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "FROM llm_attempts" in statement:
            own_postgres.stop()

    event.listen(Engine, "before_cursor_execute", listen)
    try:
        done = run("db", "export", "--workspace", "mine", "--output", "out.jsonl")
    finally:
        event.remove(Engine, "before_cursor_execute", listen)
    assert done.returncode == 2
    (message,) = done.stderr.splitlines()
    assert message.startswith("LLMStoreError: PostgreSQL at ")
    assert "does not answer. Start the server" in message
    assert list(Path().glob("out*")) == []
    # What a driver says of objects that are collected open fails the test.
    gc.collect()


@pytest.mark.parametrize(
    ("output", "said"), [((), "The output is incomplete."), (("--output", "o.jsonl"), "o.jsonl is not written.")]
)
def test_an_interrupted_export_is_reported(
    store: Path, monkeypatch: pytest.MonkeyPatch, output: tuple[str, ...], said: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(workspace_export, "_rows_of", _ctrl_c)
        done = run("db", "export", "--workspace", "mine", *output)
    assert done.returncode == 130
    assert f"Interrupted. {said}" in done.stderr
    assert list(Path().glob("o.jsonl*")) == []


@pytest.mark.parametrize("command", [("prune", "--before", "2999-01-01"), ("erase", "--workspace", "mine", "--yes")])
def test_deleted_rows_are_reported_when_their_space_cannot_be_freed(
    store: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LOG_PATIENCE_S", 0.1)
    with closing(sqlite3.connect(store, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM llm_runs").fetchall()
        done = run("db", *command)
    assert done.returncode == 2
    assert "llm_runs" in done.stderr
    assert "space is not freed yet. Another program is reading" in done.stderr
    assert run("db", *command).returncode == 0
    assert _runs("mine") == 0


def _ctrl_c(*_arguments: object) -> None:
    signal.raise_signal(signal.SIGINT)


@contextmanager
def _ctrl_c_at_deletion(number: int) -> Iterator[None]:
    """Ctrl-C comes when runs are to be deleted for the so-manieth time."""
    seen = 0

    def listen(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        nonlocal seen
        seen += statement.startswith("DELETE FROM llm_runs")
        if seen == number:
            _ctrl_c()

    event.listen(Engine, "before_cursor_execute", listen)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", listen)


def test_an_erasure_interrupted_while_deleting_deletes_nothing(store: Path) -> None:
    with _ctrl_c_at_deletion(1):
        done = run("db", "erase", "--workspace", "mine", "--yes")
    assert done.returncode == 130
    assert done.stderr.splitlines() == [
        "",
        "Interrupted. Either no row or every row was deleted. Run the same command again to finish.",
    ]
    assert _runs("mine") == 3


def test_an_erasure_interrupted_while_waiting_for_a_reader_warns_about_the_file(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, closing(sqlite3.connect(store, isolation_level=None)) as reader:
        patch.setattr(retention, "sleep", _ctrl_c)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM llm_runs").fetchall()
        done = run("db", "erase", "--workspace", "mine", "--yes")
    assert done.returncode == 130
    *told, last = (line for line in done.stderr.splitlines() if line)
    assert told == ["Deleted 0 eval_results, 0 eval_runs, 3 llm_attempts, 3 llm_runs", "Deleted 3 cached answers"]
    assert last == (
        "Interrupted. All rows and cached answers are deleted, but the database file may still hold them. "
        "Run the same command again to finish."
    )
    assert run("db", "erase", "--workspace", "mine", "--yes").returncode == 0
    assert (_runs("mine"), _runs("theirs")) == (0, 1)


def test_an_interrupted_prune_reports_what_is_deleted(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PRUNE_BATCH", 1)
    with _ctrl_c_at_deletion(2):
        done = run("db", "prune", "--before", "2999-01-01")
    assert _runs("mine") + _runs("theirs") == 3
    assert done.returncode == 130
    assert "Interrupted. Rows deleted so far stay deleted; run the same command again to delete the rest" in done.stderr


def test_the_file_is_smaller_after_an_erasure() -> None:
    with OllamaServer(Reply("word " * 40_000)) as server, Session("mine", ollama_api_base=server.url) as session:
        for prompt in "abc":
            session.chat(prompt)
    before = Path("llmkit.db").stat().st_size
    run("db", "erase", "--workspace", "mine", "--yes")
    assert Path("llmkit.db").stat().st_size < before / 2


def test_erase_asks_first_and_takes_rows_and_cached_answers(store: Path) -> None:
    assert run("db", "erase", "--workspace", "mine").returncode == 2
    assert _runs("mine") == 3
    done = run("db", "erase", "--workspace", "mine", "--yes")
    assert done.returncode == 0, done.stderr
    assert "3 llm_runs" in done.stderr
    assert "3 cached answers" in done.stderr
    assert (_runs("mine"), _runs("theirs")) == (0, 1)


def test_a_missing_database_is_not_made_by_looking(tmp_path: Path) -> None:
    done = run("db", "stats")
    assert done.returncode == 2
    assert "no database" in done.stderr
    assert not (tmp_path / "llmkit.db").exists()


def test_a_cache_that_cannot_be_cleared_is_reported_and_the_file_compacted(tmp_path: Path) -> None:
    server = OllamaServer(Reply("word " * 40_000))
    with server, Session("mine", ollama_api_base=server.url, cache_enabled=False) as session:
        for prompt in "abc":
            session.chat(prompt)
    before = Path("llmkit.db").stat().st_size
    (tmp_path / "cache").write_text("a file where the folder should be")
    done = run("db", "erase", "--workspace", "mine", "--yes", LLM_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode != 0
    assert "The rows are deleted, but cached answers remain" in " ".join(done.stderr.split())
    assert Path("llmkit.db").stat().st_size < before / 2


def test_a_pause_is_listed_and_ended(store: Path) -> None:
    """It is of one route, and one that is not there is named."""
    with sqlite3.connect(store) as connection:
        rows = [
            ("gemini", name, f"{year}-01-01 00:00:00.000000") for name, year in (("a", 2999), ("b", 2999), ("c", 2001))
        ]
        connection.executemany("INSERT INTO llm_pauses (endpoint, model, until_utc) VALUES (?, ?, ?)", rows)
    connection.close()
    assert [each["route"] for each in json.loads(run("db", "pauses", "--json").stdout)] == ["gemini/a", "gemini/b"]
    assert "There is no pause of gemini/c" in run("db", "pauses", "--clear", "gemini/c").stderr
    assert "gemini/a" in run("db", "pauses", "--clear", "gemini/b").stdout
    assert [each["route"] for each in json.loads(run("db", "pauses", "--json").stdout)] == ["gemini/a"]
