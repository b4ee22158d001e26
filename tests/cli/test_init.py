"""`llmkit init`: a study that runs, whatever model is there, and never at the cost of a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit.testing import GeminiServer, OllamaServer, Reply, get_refused_url
from tests.cli.test_cli import run

POSITIVE = Reply('{"label": "positive"}')
NAMES = {"sentiment.csv", "sentiment.py", "sentiment.ipynb"}


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaServer]:
    with OllamaServer([POSITIVE]) as server:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", server.url)
        monkeypatch.setenv("LLM_MAX_RETRIES", "0")
        yield server


def list_files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def test_a_study_is_written_after_one_real_call_and_runs(ollama: OllamaServer) -> None:
    done = run("init", "study")
    assert done.returncode == 0, done.stderr
    assert "It answers: positive" in done.stdout
    assert len(ollama.calls) == 1
    assert list_files(Path("study")) == NAMES
    (command,) = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("  llmkit eval run")]
    evaluated = run(*command, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["counts"]["SUCCEEDED"] == 12


@pytest.mark.slow
def test_the_notebook_runs_in_a_real_kernel(ollama: OllamaServer) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    assert run("init").returncode == 0
    notebook = nbformat.read("sentiment.ipynb", as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": "."}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert "Sentiment(label='positive')" in str(outputs)


@pytest.mark.parametrize("there", sorted(NAMES))
def test_no_file_is_overwritten_and_nothing_is_sent(ollama: OllamaServer, there: str) -> None:
    Path(there).write_text("mine", encoding="utf-8")
    done = run("init")
    assert done.returncode == 2
    assert there in done.stderr
    assert Path(there).read_text(encoding="utf-8") == "mine"
    assert list_files(Path()) & NAMES == {there}
    assert not ollama.calls


def test_without_any_model_one_message_lists_all_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_OLLAMA_API_BASE", get_refused_url())
    monkeypatch.setattr("llmkit.providers.local.find_spec", lambda _: None)
    done = run("init", "study")
    assert done.returncode == 2
    for way in ("ollama serve", "LLM_GEMINI_API_KEY", "llmkit-research[local]"):
        assert way in done.stderr
    assert not Path("study").exists()


def test_a_model_that_fails_gives_way_to_the_next(ollama: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    ollama.script(Reply("no JSON"))
    with GeminiServer([POSITIVE], api_key="key") as gemini:
        monkeypatch.setenv("LLM_GEMINI_API_BASE", f"{gemini.url}/v1beta")
        monkeypatch.setenv("LLM_GEMINI_API_KEY", "key")
        done = run("init", "study")
    assert done.returncode == 0, done.stderr
    assert "It failed:" in done.stderr
    assert "gemini/" in Path("study/sentiment.ipynb").read_text(encoding="utf-8")


def test_a_named_route_is_the_only_one_tried(ollama: OllamaServer) -> None:
    done = run("init", "study", "--route", "ollama/missing")
    assert done.returncode == 1
    assert "missing" in done.stderr
    assert not Path("study").exists()
    assert run("init", "study", "--route", "missing").returncode == 2


def test_a_folder_that_cannot_be_written_is_one_line(ollama: OllamaServer) -> None:
    Path("file").write_text("", encoding="utf-8")
    done = run("init", "file/study")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_local_model_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_OLLAMA_API_BASE", get_refused_url())
    done = run("init", "study")
    assert done.returncode == 0, done.stderr
    assert "It answers: positive" in done.stdout
    assert "--routes local/gemma-3-270m" in done.stdout
