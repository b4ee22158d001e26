"""`%%llm`, in a real IPython shell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from IPython.core.interactiveshell import InteractiveShell

from llmkit import LLMBadRequest, Session
from llmkit.testing import OllamaServer


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    made = InteractiveShell()
    made.run_line_magic("load_ext", "llmkit")
    yield made
    made.history_manager.end_session()


def test_a_cell_is_sent_by_the_newest_session(shell: InteractiveShell) -> None:
    with OllamaServer("Ahoy.") as ollama, Session("study", ollama_api_base=ollama.url):
        line = '--route ollama/llama3.2 --system "Be a pirate." --into answer'
        shown = shell.run_cell_magic("llm", line, "What is {churn}?\n")
        assert shown.text == "Ahoy."
        assert shell.user_ns["answer"] is shown
        contents = [message["content"] for message in ollama.calls[0].json["messages"]]
        assert contents == ["Be a pirate.", "What is {churn}?"]


@pytest.mark.parametrize("line", ["ollama/x", "--route", "--rout x", "--route 'x", "route x"])
def test_a_bad_first_line_shows_the_usage(shell: InteractiveShell, line: str) -> None:
    with pytest.raises(LLMBadRequest, match="--route provider/model"):
        shell.run_cell_magic("llm", line, "x")


@pytest.mark.parametrize("name", ["'a b'", "class", "1a"])
def test_a_bad_variable_name_is_refused_before_the_call(shell: InteractiveShell, name: str) -> None:
    with OllamaServer() as ollama, Session("study", ollama_api_base=ollama.url):
        with pytest.raises(LLMBadRequest, match="variable"):
            shell.run_cell_magic("llm", f"--into {name}", "x")
        assert not ollama.requests
