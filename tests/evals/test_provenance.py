"""What an evaluation was made with is recorded when it begins, without running anything and without secrets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmkit import load_settings
from llmkit.evals.export import import_run
from llmkit.evals.provenance import SETTINGS, commit_of, describe_process
from tests.support.eval_fakes import MemoryStore, run

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def repository(folder: Path, head: str = "ref: refs/heads/main") -> Path:
    git = folder / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text(f"{head}\n")
    return git


def test_the_commit_is_that_of_the_branch_around_the_folder(tmp_path: Path):
    git = repository(tmp_path)
    inner = tmp_path / "evals" / "mine"
    inner.mkdir(parents=True)
    assert commit_of(inner) is None
    (git / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")
    assert commit_of(inner) == COMMIT


def test_the_commit_of_a_packed_branch_and_of_a_detached_head(tmp_path: Path):
    git = repository(tmp_path)
    (git / "packed-refs").write_text(
        f"# pack-refs with: peeled\n{'f' * 40} refs/heads/other-main\n{COMMIT} refs/heads/main\n"
    )
    assert commit_of(tmp_path) == COMMIT
    (git / "HEAD").write_text(f"{'a' * 40}\n")
    assert commit_of(tmp_path) == "a" * 40


def test_the_commit_of_a_linked_working_tree(tmp_path: Path):
    git = repository(tmp_path / "main")
    (git / "refs" / "heads" / "side").write_text(COMMIT)
    linked, own = tmp_path / "linked", git / "worktrees" / "linked"
    linked.mkdir()
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/side\n")
    (own / "commondir").write_text("../..\n")
    (linked / ".git").write_text(f"gitdir: {own}\n")
    assert commit_of(linked) == COMMIT


@pytest.mark.parametrize("head", ["", "ref: refs/heads/none", "not a commit", "ref: ../../../etc/hostname"])
def test_what_cannot_be_read_is_unknown(tmp_path: Path, head: str):
    repository(tmp_path, head)
    assert commit_of(tmp_path) is None
    (tmp_path / ".git" / "HEAD").write_bytes(b"\xff\xfe")
    assert commit_of(tmp_path) is None


def test_settings_are_told_without_keys_and_addresses(tmp_path: Path):
    settings = load_settings(gemini_api_key="canary", database_url="sqlite:///canary.db", max_retries=7)
    found = describe_process(settings, {"repairs": 1}, tmp_path)
    assert set(found) == {"python", "platform", "packages", "commit", "settings", "options"}
    assert (found["settings"]["max_retries"], set(found["settings"])) == (7, set(SETTINGS))
    assert not [word for word in ("canary", "http", str(tmp_path)) if word in json.dumps(found)]


async def test_provenance_is_of_the_first_process(tmp_path: Path):
    """Facts are those of the process that began the run, and an export includes them."""
    store = MemoryStore()
    first = await run(store=store)
    then = replace(first.run, spec={**first.run.spec, "made_with": {"python": "3.0"}})
    store.runs[("w", "run")] = then
    again = await run(store=store)
    assert again.provenance["python"] == "3.0"
    again.export(tmp_path / "run.jsonl")
    imported = await import_run(MemoryStore(), "w", tmp_path / "run.jsonl")
    assert imported.spec["made_with"] == {"python": "3.0"}


async def test_a_run_that_recorded_no_facts_says_what_is_known():
    report = await run()
    bare = replace(report, run=replace(report.run, spec={}))
    assert set(bare.provenance) == {"task_sha256", "dataset_sha256", "models"}
