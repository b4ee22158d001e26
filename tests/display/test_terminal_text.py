"""Text of models and providers is harmless in a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.lib.pretty import pretty

from llmkit import LLMBadRequest, Session
from llmkit.display.terminal_text import escape_controls
from llmkit.testing import Fault, OllamaServer

STEERING = "\x1b]0;title\x07\x1b[2J\x9b31m\rover\x08\x00 \u202egnp.exe"


def _steers(text: str) -> bool:
    return any(each not in "\n\t" and (unicodedata.category(each) == "Cc" or each in "\u202d\u202e") for each in text)


@settings(max_examples=50)
@given(st.text())
def test_controls_are_escaped_and_other_text_stays(text: str) -> None:
    shown = escape_controls(text)
    assert not _steers(shown)
    assert escape_controls(shown) == shown
    if text.isprintable():
        assert shown == text


def test_line_breaks_and_tabs_stay() -> None:
    assert escape_controls("a\r\nb\tc\x1b[0m\u202e שלום") == "a\nb\tc\\x1b[0m\\u202e שלום"


def test_ipython_terminal_output_is_escaped(session_url: str) -> None:
    """Answers and conversations."""
    with Session("w", ollama_api_base=session_url) as session:
        answer = session.chat("Hi")
        talk = session.conversation()
        talk.say("And?")
    assert answer.text == STEERING  # the text itself is as the model wrote it
    assert not _steers(pretty(answer))
    assert not _steers(pretty(talk))


def test_provider_text_in_an_error_is_escaped() -> None:
    with OllamaServer(Fault.status(400, STEERING)) as ollama, Session("w", ollama_api_base=ollama.url) as session:
        with pytest.raises(LLMBadRequest, match=r"\\x1b\]0;title") as caught:
            session.chat("Hi", route="ollama/llama3.2")
        assert not _steers(str(caught.value))
        assert not _steers(session.runs()["error_message"][0])


@pytest.fixture
def session_url():
    with OllamaServer(STEERING) as ollama:
        yield ollama.url
