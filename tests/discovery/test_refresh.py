"""Asking Ollama what its models are, over real HTTP: what is taken over, how often, and that it never does harm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.discovery import ollama as asking
from llmkit.discovery.ollama import fetch_server_state
from llmkit.discovery.refresh import OllamaDiscovery
from llmkit.providers.model_facts import NOTHING_KNOWN, Fact, FactBook, ModelFacts
from llmkit.providers.ollama import add_tag, read_facts
from llmkit.settings import load_settings
from llmkit.testing import Fault, OllamaModel, OllamaServer, Reply, get_refused_url
from llmkit.types import Route

ROUTE = Route.parse("ollama/llama3.2")
AT = datetime(2026, 11, 23, tzinfo=UTC)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer(models=[OllamaModel("llama3.2", context_length=8192, digest="d" * 64)]) as running:
        yield running


def discovery(url: str, book: FactBook, clock: Clock | None = None) -> OllamaDiscovery:
    return OllamaDiscovery(load_settings(ollama_api_base=url, facts_ttl_s=60), book, clock or Clock())


def values(facts: ModelFacts) -> dict[str, object]:
    return {name: fact.value for name, fact in facts}


async def test_reported_facts_are_used(server: OllamaServer) -> None:
    """Tools, images, context and digest."""
    book = FactBook()
    await discovery(server.url, book).discover([ROUTE])
    known = book.of(ROUTE)
    assert values(known) == {"tools": True, "images": False, "context_tokens": 8192, "digest": "d" * 64}
    assert {fact.source for _, fact in known} == {"reported"}
    assert all(fact.at_utc is not None and fact.at_utc.tzinfo is UTC for _, fact in known)
    assert server.call_count == 0


async def test_many_callers_at_once_share_one_question(server: OllamaServer) -> None:
    subject = discovery(server.url, FactBook())
    await asyncio.gather(*(subject.discover([ROUTE]) for _ in range(50)))
    assert sorted(request.path for request in server.requests) == ["/api/show", "/api/tags"]


async def test_it_asks_again_when_the_answer_is_old_and_not_before(server: OllamaServer) -> None:
    book, clock = FactBook(), Clock()
    subject = discovery(server.url, book, clock)
    await subject.discover([ROUTE])
    server.models = [OllamaModel("llama3.2", digest="e" * 64)]
    clock.now = 59.0
    assert not subject.is_due(ROUTE)
    await subject.discover([ROUTE])
    assert server.request_count == 2
    clock.now = 60.0
    assert subject.is_due(ROUTE)
    await subject.discover([ROUTE])
    assert server.request_count == 4
    digest = book.of(ROUTE).digest
    assert digest is not None
    assert digest.value == "e" * 64


@pytest.mark.parametrize("status", [401, 404, 500])
async def test_a_look_in_vain_is_repeated_after_ten_seconds(server: OllamaServer, status: int) -> None:
    server.script(Fault.status(status), endpoint="/api/show")
    book, clock = FactBook(), Clock()
    subject = discovery(server.url, book, clock)
    await subject.discover([ROUTE])
    assert book.of(ROUTE) == NOTHING_KNOWN
    clock.now = 9.0
    assert not subject.is_due(ROUTE)
    clock.now = 10.0
    server.script(Reply(), endpoint="/api/show")
    await subject.discover([ROUTE])
    assert book.of(ROUTE).tools is not None


async def test_facts_survive_an_outage(server: OllamaServer) -> None:
    """Known facts stay while the server is down, and end with the model."""
    book, clock = FactBook(), Clock()
    subject = discovery(server.url, book, clock)
    await subject.discover([ROUTE])
    known = book.of(ROUTE)
    server.stop()
    clock.now = 60.0
    await subject.discover([ROUTE])
    assert book.of(ROUTE) == known
    server.start()
    server.models = ["mistral"]
    clock.now = 120.0
    await subject.discover([ROUTE])
    assert book.of(ROUTE) == NOTHING_KNOWN


async def test_nobody_there_is_no_error() -> None:
    book = FactBook()
    await discovery(get_refused_url(), book).discover([ROUTE])
    await discovery("http://nobody.example.org:11434", book).discover([ROUTE])
    assert book.of(ROUTE) == NOTHING_KNOWN


async def test_a_server_that_does_not_answer_is_left_after_a_moment(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ANSWER_WITHIN_S", 0.2)
    server.script(Fault.hang(), endpoint="/api/show")
    book = FactBook()
    async with asyncio.timeout(30):
        await discovery(server.url, book).discover([ROUTE])
    assert book.of(ROUTE) == NOTHING_KNOWN


async def test_an_old_server_without_capabilities_tells_the_rest() -> None:
    with OllamaServer(models=[OllamaModel("llama3.2", capabilities=())], version="0.5.0") as server:
        book = FactBook()
        await discovery(server.url, book).discover([ROUTE])
        assert set(values(book.of(ROUTE))) == {"context_tokens", "digest"}


async def test_only_ollama_is_asked(server: OllamaServer) -> None:
    subject = discovery(server.url, FactBook())
    routes = [Route.parse("gemini/gemini-2.5-flash"), Route.parse("local/gemma-3-270m")]
    assert not any(map(subject.is_due, routes))
    await subject.discover(routes)
    assert server.request_count == 0


async def test_cancelled_caller_does_not_end_discovery(server: OllamaServer) -> None:
    """Other callers wait for the same question."""
    book = FactBook()
    subject = discovery(server.url, book)
    impatient = asyncio.create_task(subject.discover([ROUTE]))
    patient = asyncio.create_task(subject.discover([ROUTE]))
    await asyncio.sleep(0)
    impatient.cancel()
    await patient
    assert book.of(ROUTE) != NOTHING_KNOWN
    assert server.request_count == 2


async def test_discovery_sends_a_password_to_its_server_only(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redirects are not followed."""
    monkeypatch.setenv("OLLAMA_API_KEY", "canary")
    book = FactBook()
    with OllamaServer() as redirecting:
        for endpoint in ("/api/show", "/api/tags"):
            redirecting.script(Fault.redirect(server.url), endpoint=endpoint)
        await discovery(redirecting.url.replace("://", "://user:secret@"), book).discover([ROUTE])
        sent = [request.headers.get("Authorization") for request in redirecting.requests]
    assert sent == ["Basic dXNlcjpzZWNyZXQ="] * 2
    assert server.request_count == 0
    assert book.of(ROUTE) == NOTHING_KNOWN


async def test_a_whole_server_is_described(server: OllamaServer) -> None:
    server.models = [OllamaModel("llama3.2"), OllamaModel("llava:7b", capabilities=("completion", "vision"))]
    found = await fetch_server_state(server.url)
    assert found is not None
    assert found.version == "0.17.4"
    images = {model.name: model.facts.images for model in found.models}
    assert {name: fact is not None and fact.value for name, fact in images.items()} == {
        "llama3.2:latest": False,
        "llava:7b": True,
    }
    assert await fetch_server_state(get_refused_url()) is None


# -- reading what it says --------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
odd = st.fixed_dictionaries(
    {},
    optional={
        "capabilities": anything | st.lists(st.sampled_from(["tools", "vision", 1, None])),
        "model_info": anything
        | st.fixed_dictionaries({"general.architecture": st.just("a"), "a.context_length": anything}),
        "digest": anything,
    },
)


@pytest.mark.slow
@given(odd, odd)
def test_whatever_a_server_says_gives_well_formed_facts(shown: dict[str, object], listed: dict[str, object]) -> None:
    found = read_facts(shown, listed, AT)
    assert found.json_schema is None
    for _, fact in found:
        assert isinstance(fact, Fact)
    assert found.tools is None or isinstance(found.tools.value, bool)
    assert found.context_tokens is None or found.context_tokens.value > 0
    assert found.digest is None or found.digest.value


@pytest.mark.parametrize(
    ("model", "listed"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("llama3.2:1b", "llama3.2:1b"),
        ("host:5000/team/model", "host:5000/team/model:latest"),
    ],
)
def test_a_model_is_found_in_the_list_by_its_tag(model: str, listed: str) -> None:
    assert add_tag(model) == listed


async def test_a_page_that_is_not_ollamas_says_nothing_about_the_model(server: OllamaServer) -> None:
    book = FactBook()
    book.report(ROUTE, ModelFacts(tools=Fact(value=True, source="reported")))
    await discovery(f"{server.url}/v1", book).discover([ROUTE])
    assert book.of(ROUTE).tools is not None
