"""`llmkit db` as people run it."""

from __future__ import annotations

import json
import resource
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from llmkit import Session
from llmkit.persistence import retention
from llmkit.testing import OllamaServer, Reply
from tests.test_cli import LLMKIT, run


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
    with OllamaServer(Reply("word " * 20_000)) as server, Session("mine", ollama_api_base=server.url) as session:
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


def test_an_export_into_a_full_disk_says_that_it_is_not_whole(store: Path) -> None:
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
        "LLMBadRequest: Cannot write to standard output: No space left on device; what came out is not whole"
    ]


@pytest.mark.parametrize("command", [("prune", "--before", "2999-01-01"), ("erase", "--workspace", "mine", "--yes")])
def test_what_was_deleted_is_told_although_its_space_cannot_be_given_back(
    store: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LOG_PATIENCE_S", 0.1)
    with closing(sqlite3.connect(store, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM llm_runs").fetchall()
        done = run("db", *command)
    assert done.returncode == 2
    assert "llm_runs" in done.stderr
    assert "space is not given back yet. Another program is reading" in done.stderr
    assert run("db", *command).returncode == 0
    assert _runs("mine") == 0


def test_the_file_is_smaller_after_an_erasure() -> None:
    with OllamaServer(Reply("word " * 20_000)) as server, Session("mine", ollama_api_base=server.url) as session:
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
