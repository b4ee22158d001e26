"""A fallback to another model is reported."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from llmkit import Session
from llmkit.testing import OllamaServer, get_refused_url
from llmkit.testing.scripted_client import ScriptedClient, reply


@pytest.fixture
def session() -> Iterator[Session]:
    """A session whose first choice, Gemini, is down."""
    with (
        OllamaServer() as ollama,
        Session(
            "study",
            router_policy="prefer_cloud",
            gemini_api_base=get_refused_url(),
            gemini_api_key="k",
            ollama_api_base=ollama.url,
            max_retries=0,
        ) as opened,
    ):
        yield opened


def test_a_session_warns_once_at_the_callers_line(session: Session) -> None:
    with pytest.warns(UserWarning, match="ollama/llama3.2 answered, because the first choice") as caught:
        session.chat("a")
    assert caught[0].filename == __file__
    assert "gemini/gemini-2.5-flash" in str(caught[0].message)
    session.chat("b")  # a second warning would be an error


async def test_async_code_is_warned_too(session: Session) -> None:
    with pytest.warns(UserWarning, match="answered, because"):
        await session.achat("a")


def test_every_map_warns_once_and_shows_the_route(session: Session) -> None:
    for texts in (["a", "b", "c"], ["d", "e", "f", "g"]):
        with pytest.warns(UserWarning, match="answered, because the first choice") as caught:
            frame = session.map("Say {text}", texts, progress=False)
        assert len(caught) == 1
        assert set(frame["route"]) == {"ollama/llama3.2"}


def test_a_pinned_call_does_not_warn(session: Session) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.chat("a", route="ollama/llama3.2")


class City(BaseModel):
    name: str


@pytest.fixture
def scripted_local(monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A session whose every model answers the same, without one that is installed."""
    monkeypatch.setattr("llmkit.bootstrap._FirstUseClient", lambda *_: ScriptedClient([reply('{"name": "Rome"}')]))
    with Session("study") as opened:
        yield opened


def test_a_base_model_without_examples_is_warned_about_once(scripted_local: Session) -> None:
    with pytest.warns(UserWarning, match="local/gemma-3-270m is a small base model") as caught:
        scripted_local.extract(City, "Rome", route="local/gemma-3-270m")
    assert caught[0].filename == __file__
    scripted_local.extract(City, "Oslo", route="local/gemma-3-270m")  # a second warning would be an error


def test_a_base_model_with_examples_is_not(scripted_local: Session) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scripted_local.extract(City, "Rome", examples=[("Oslo", City(name="Oslo"))], route="local/gemma-3-270m")
