"""`llmkit db` as people run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit import Session
from llmkit.testing import OllamaServer
from tests.test_cli import run


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
