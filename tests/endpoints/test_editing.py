"""`llmkit endpoints`: the file keeps what people wrote, and nothing unusable is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.cli.main import run_command
from llmkit.settings import load_settings

WRITTEN = """# servers of the lab; ask Ada
[endpoints.old]   # until May
kind = "ollama"
model = "llama3.2"
"""
ADD = ["endpoints", "add", "lab", "--kind", "openai", "--model", "qwen3-8b"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = run_command(list(arguments))
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_adding_and_removing_keep_comments_and_order(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("llmkit.toml")
    path.write_text(WRITTEN, encoding="utf-8")
    code, shown = run(capsys, *ADD, "--api-base", "http://127.0.0.1:9/v1", "--local", "--header", "X-Title=a=b")
    assert (code, "--route lab/qwen3-8b" in shown) == (0, True)
    assert path.read_text(encoding="utf-8").startswith(WRITTEN)
    assert dict(load_settings().endpoints["lab"].headers) == {"X-Title": "a=b"}
    assert run(capsys, "endpoints", "remove", "lab")[0] == 0
    assert path.read_text(encoding="utf-8").strip() == WRITTEN.strip()


def test_an_endpoint_can_be_changed_in_place(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, *ADD, "--api-base", "http://127.0.0.1:9/v1")
    code, shown = run(capsys, *ADD)
    assert (code, "use --replace" in shown) == (2, True)
    assert run(capsys, *ADD[:-1], "qwen3-14b", "--replace")[0] == 0
    lab = load_settings().endpoints["lab"]
    assert (lab.model, lab.api_base) == ("qwen3-14b", "http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "opnai"], "kind: unknown kind 'opnai'; did you mean openai?"),
        (["--api-base", "http://lab/v1", "--api-key-env", "LAB_KEY"], "api_base: plain http would show the key"),
        (["--api-key-env", "sk-proj-canary00000001"], "api_key_env: must be the name of a variable"),
        (["--api-base", "https://me:pass@lab/v1"], "api_base: contains a password"),
        (["--header", "X"], "A header is written NAME=VALUE"),
    ],
)
def test_nothing_unusable_is_written(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    code, shown = run(capsys, *ADD, *arguments)
    assert (code, message in shown) == (2, True), shown
    assert "canary" not in shown
    assert not Path("llmkit.toml").exists()


def test_the_users_own_file_is_for_all_folders(capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    assert run(capsys, *ADD, "--user", "--api-base", "http://127.0.0.1:9/v1")[0] == 0
    assert load_settings().endpoints["lab"].source == str(tmp_path / "own" / "llmkit" / "llmkit.toml")
    code, shown = run(capsys, "endpoints", "remove", "lab")
    assert (code, "llmkit.toml has no [endpoints.lab]" in shown) == (2, True)


def test_the_list_shows_every_endpoint_with_its_capabilities(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("LLM_ENDPOINTS", '{"lab": {"kind": "openai", "model": "m", "api_key_env": "LAB_KEY"}}')
    code, shown = run(capsys, "endpoints", "list", "--json")
    rows = {row["name"]: row for row in json.loads(shown)}
    assert (code, list(rows)) == (0, ["ollama", "gemini", "local", "lab"])
    assert rows["lab"]["can"] == ["tools", "JSON", "schema", "images by model", "log-probabilities by model"]
    assert (rows["lab"]["source"], rows["ollama"]["source"]) == ("LLM_ENDPOINTS", "built in")
    assert "the variable LAB_KEY is empty" in rows["lab"]["problem"]
    assert "LAB_KEY" in run(capsys, "endpoints", "list")[1]
