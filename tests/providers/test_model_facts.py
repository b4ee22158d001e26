"""Facts of single models: values, the book that keeps them, and what the router makes of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.errors import LLMContextOverflow, LLMUnsupported
from llmkit.providers import PROVIDERS
from llmkit.providers.model_facts import NOTHING_KNOWN, Fact, FactBook, ModelFacts
from llmkit.providers.with_facts import add_model_facts
from llmkit.router import LLMRouter
from llmkit.settings import load_settings
from llmkit.testing.scripted_client import ScriptedClient
from llmkit.types import LLMConstraints, LLMProvider, LLMRequest, ResponseFormat, Route, ToolDefinition

AT = datetime(2026, 11, 23, 2, 5, tzinfo=UTC)
OLLAMA = Route.parse("ollama/llama3.2")
TOOLS = (ToolDefinition(name="look_up"),)
SCHEMA = ResponseFormat(json_schema={"type": "object"})
IGNORES = ModelFacts(json_schema=Fact(False, "probed", AT))


def reported(**values: object) -> ModelFacts:
    return ModelFacts(**{name: Fact(value, "reported", AT) for name, value in values.items()})


def router(book: FactBook, client: ScriptedClient | None = None, **settings: object) -> LLMRouter:
    return LLMRouter(load_settings(**{"gemini_api_key": "k", **settings}), client or ScriptedClient(), facts=book)


def order(subject: LLMRouter, **request: object) -> list[str]:
    return [str(route.provider) for route in subject.explain(LLMRequest(messages="Hi", **request)).candidates]


# -- the book --------------------------------------------------------------------------------------


def test_probed_facts_outweigh_reported_ones() -> None:
    """Both keep their source and time."""
    book = FactBook()
    book.report(OLLAMA, reported(json_schema=True, context_tokens=4096))
    book.probe(OLLAMA, IGNORES, digest=None)
    assert book.of(OLLAMA).as_dict() == {
        "json_schema": {"value": False, "source": "probed", "at_utc": "2026-11-23T02:05:00+00:00"},
        "context_tokens": {"value": 4096, "source": "reported", "at_utc": "2026-11-23T02:05:00+00:00"},
    }


def test_a_probe_holds_for_the_digest_that_it_was_made_on() -> None:
    book = FactBook()
    book.probe(OLLAMA, IGNORES, digest="a")
    assert book.of(OLLAMA) == IGNORES  # the digest is not known yet
    book.report(OLLAMA, reported(digest="b"))
    assert book.of(OLLAMA) == reported(digest="b")
    book.report(OLLAMA, reported(digest="a"))
    assert book.of(OLLAMA).json_schema == IGNORES.json_schema


def test_a_model_that_nobody_knows_has_no_facts_and_one_can_be_forgotten() -> None:
    book = FactBook()
    assert book.of(OLLAMA) is NOTHING_KNOWN
    book.report(OLLAMA, reported(tools=True))
    book.report(OLLAMA, NOTHING_KNOWN)
    assert book.of(OLLAMA) == NOTHING_KNOWN


facts = st.builds(
    ModelFacts,
    tools=st.none() | st.builds(Fact, st.booleans(), st.just("reported"), st.just(AT)),
    json_schema=st.none() | st.builds(Fact, st.booleans(), st.just("probed"), st.just(AT)),
    images=st.none() | st.builds(Fact, st.booleans(), st.just("reported"), st.just(AT)),
    context_tokens=st.none() | st.builds(Fact, st.integers(1, 200_000), st.just("reported"), st.just(AT)),
    digest=st.none() | st.builds(Fact, st.sampled_from("abc"), st.just("reported"), st.just(AT)),
)


@given(facts, facts)
def test_stronger_facts_win_and_weaker_ones_fill_the_gaps(stronger: ModelFacts, weaker: ModelFacts) -> None:
    both = stronger.over(weaker)
    for name in ModelFacts.__dataclass_fields__:
        assert getattr(both, name) == (getattr(stronger, name) or getattr(weaker, name))
    assert NOTHING_KNOWN.over(weaker) == weaker
    assert stronger.over(NOTHING_KNOWN) == stronger


# -- what the router makes of them -----------------------------------------------------------------


def test_capabilities_are_refined_and_every_fact_says_where_it_came_from() -> None:
    book = FactBook()
    subject = router(book)
    assert not subject.capabilities(OLLAMA).supports_tools
    assert subject.facts(OLLAMA).tools is None  # not promised is not a no
    book.report(OLLAMA, reported(tools=True, images=True, context_tokens=8192))
    caps = subject.capabilities(OLLAMA)
    assert (caps.supports_tools, caps.supports_images, caps.max_context_tokens) == (True, True, 8192)
    first = subject.explain(LLMRequest(messages="Hi")).entries[0]
    assert first.facts == (
        "tools: yes (reported), schema: yes (declared), images: yes (reported), context: 8,192 tokens (reported)"
    )
    assert first.facts in str(subject.explain(LLMRequest(messages="Hi")))


def test_reported_tools_make_a_candidate_behind_declared_ones() -> None:
    """Ollama reports tools, Gemini declares them."""
    book = FactBook()
    assert order(router(book), tools=TOOLS) == ["gemini"]
    book.report(OLLAMA, reported(tools=True))
    assert order(router(book), tools=TOOLS) == ["gemini", "ollama"]
    assert order(router(book, router_policy="prefer_local"), tools=TOOLS) == ["ollama", "gemini"]
    assert order(router(book, gemini_api_key=None), tools=TOOLS) == ["ollama"]


async def test_a_pinned_model_that_reports_no_tools_is_refused_before_anything_is_sent() -> None:
    book, client = FactBook(), ScriptedClient()
    subject = router(book, client)
    request = LLMRequest(messages="Hi", route=OLLAMA, tools=TOOLS)
    assert subject.explain(request).candidates == (OLLAMA,)
    book.report(OLLAMA, reported(tools=False))
    with pytest.raises(LLMUnsupported, match=r"it cannot call tools \(reported\)"):
        await subject.execute(request)
    assert not client.calls


def test_a_model_that_was_seen_to_ignore_schemas_is_not_asked_for_one() -> None:
    book = FactBook()
    book.probe(OLLAMA, IGNORES, digest=None)
    assert "ollama" not in order(router(book), response_format=SCHEMA)
    assert "ollama" in order(router(book), response_format=ResponseFormat())
    reason = router(book).explain(LLMRequest(messages="Hi", response_format=SCHEMA, route=OLLAMA)).entries[0]
    assert reason.excluded_because == "it cannot be constrained to a schema (probed)"


async def test_a_prompt_beyond_the_reported_window_is_not_sent() -> None:
    """The error is a context overflow."""
    book, client = FactBook(), ScriptedClient()
    subject = router(book, client)
    request = LLMRequest(messages="word " * 20_000, route=OLLAMA)
    assert subject.explain(request).candidates == (OLLAMA,)
    book.report(OLLAMA, reported(context_tokens=8192))
    with pytest.raises(LLMContextOverflow, match="8192 tokens; nothing was sent"):
        await subject.execute(request)
    assert not client.calls
    assert order(router(book), constraints=LLMConstraints(min_context_tokens=8193)) == ["gemini"]


def test_a_prompt_of_blanks_is_not_taken_for_a_long_one() -> None:
    book = FactBook()
    book.report(OLLAMA, reported(context_tokens=4096))
    request = LLMRequest(messages="a" + " " * 100_000 + "b", route=OLLAMA)
    assert router(book).explain(request).candidates == (OLLAMA,)


@settings(deadline=None)
@given(st.booleans(), st.booleans(), facts, facts)
def test_the_same_facts_give_the_same_plan_whatever_was_known_before(
    tools: bool, schema: bool, before: ModelFacts, now: ModelFacts
) -> None:
    request = LLMRequest(messages="Hi", tools=TOOLS if tools else (), response_format=SCHEMA if schema else None)
    changed, fresh = FactBook(), FactBook()
    subject = router(changed)
    changed.report(OLLAMA, before)
    subject.explain(request)
    changed.report(OLLAMA, now)
    fresh.report(OLLAMA, now)
    plan = subject.explain(request)
    assert plan == router(fresh).explain(request)
    for route in plan.candidates:
        caps = subject.capabilities(route)
        assert not tools or caps.supports_tools
        assert not schema or caps.supports_json_schema


@pytest.mark.parametrize(
    ("constraints", "asked_about"),
    [
        ({}, {"ollama", "gemini", "local"}),
        ({"local_only": True}, {"local"}),
        ({"allowed_providers": frozenset({LLMProvider.OLLAMA})}, {"ollama"}),
    ],
)
def test_no_server_is_asked_that_a_constraint_keeps_out(constraints: dict[str, object], asked_about: set[str]) -> None:
    subject = router(FactBook(), ollama_api_base="http://gpu.example.org:11434")
    request = LLMRequest(messages="Hi", tools=TOOLS, constraints=LLMConstraints(**constraints))
    assert {str(route.provider) for route in subject.open_routes(request)} == asked_about


# -- what the providers make of them ---------------------------------------------------------------


@pytest.mark.parametrize(("window", "asked_for"), [(2048, 2048), (8192, 4096), (None, 4096)])
def test_ollama_is_asked_for_no_larger_window_than_the_model_has(window: int | None, asked_for: int) -> None:
    book = FactBook()
    if window is not None:
        book.report(OLLAMA, reported(context_tokens=window, digest="abc"))
    spec = add_model_facts(PROVIDERS, book)[LLMProvider.OLLAMA]
    arguments = spec.call_arguments(load_settings(), OLLAMA, LLMRequest(messages="Hi"), None)
    assert (arguments.kwargs["num_ctx"], arguments.context_tokens) == (asked_for, asked_for)
    assert arguments.model_digest == (None if window is None else "abc")
    plain = PROVIDERS[LLMProvider.OLLAMA].call_arguments(load_settings(), OLLAMA, LLMRequest(messages="Hi"), None)
    assert replace(arguments, model_digest=None, kwargs={}, context_tokens=0, model_context_tokens=None) == replace(
        plain, kwargs={}, context_tokens=0
    )
