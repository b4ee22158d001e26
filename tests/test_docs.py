"""What is written is run: README examples, the settings table, the command lines."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.testing import GeminiServer, OllamaServer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.local
def test_the_first_example_of_the_readme_runs_with_the_local_model(capsys: pytest.CaptureFixture[str]) -> None:
    """As pasted, with the extra `local` alone: no server, no key.

    The answer copies a number and a name. A judgement by this small model differs from processor to processor.
    """
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(_block("examples = ["), "README.md", "exec", dont_inherit=True), names)
    assert capsys.readouterr().out == "Order(quantity=3, city='Lima')\n"
    assert len(names["history"]) == 1


def test_the_chat_example_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaServer() as ollama:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", ollama.url)
        names: dict[str, object] = {"__name__": "readme"}
        exec(compile(_block("answer = s.chat("), "README.md", "exec", dont_inherit=True), names)
        assert str(names["answer"])


def test_the_example_on_the_first_page_of_the_site_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    with OllamaServer() as ollama:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", ollama.url)
        names: dict[str, object] = {"__name__": "index"}
        exec(compile(block, "index.md", "exec", dont_inherit=True), names)
        assert names["complaints"]["status"].tolist() == ["SUCCEEDED"] * 2
        assert len(names["history"]) == 4


def _block(part: str) -> str:
    (block,) = [block for block in _blocks("python") if part in block]
    return block


def test_the_column_example_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaServer() as ollama:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", ollama.url)
        names: dict[str, object] = {"__name__": "readme"}
        exec(compile(_block("s.map("), "README.md", "exec", dont_inherit=True), names)
        assert names["cities"]["status"].tolist() == ["SUCCEEDED"] * 3 + ["SKIPPED"]
        assert names["cities"].index.equals(names["df"].index)
        assert names["again"].messages == names["talk"].messages
        assert names["cost"]["requests"].tolist() == [len(ollama.calls)] == [8]
        names["s"].close()


@pytest.mark.slow
def test_the_evaluation_example_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sentiment.py").write_text(_block("task = Task("), encoding="utf-8")
    line = {"input": "Great!", "target": "positive"}
    (tmp_path / "sentiment.jsonl").write_text(json.dumps(line), encoding="utf-8")
    (command,) = [
        line for block in _blocks("sh") for line in block.splitlines() if "eval run" in line and "--name first" in line
    ]
    with OllamaServer() as ollama, GeminiServer(api_key="k") as gemini:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", ollama.url)
        monkeypatch.setenv("LLM_GEMINI_API_BASE", f"{gemini.url}/v1beta")
        monkeypatch.setenv("LLM_GEMINI_API_KEY", "k")
        arguments = [sys.executable, "-m", *shlex.split(command)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "gemini/gemini-2.5-flash" in done.stdout


def test_the_settings_table_is_current() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "settings_table.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stdout


def test_every_file_that_the_readme_links_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("name", ["dev.txt", "run.txt", "bootstrap.txt"])
def test_requirements_are_hashed_and_hold_no_address(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    pins = re.findall(r"^\S+==\S+", text, re.MULTILINE)
    assert pins
    assert text.count("--hash=sha256:") >= len(pins)
    assert "://" not in text
    assert "--index-url" not in text
