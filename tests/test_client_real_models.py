"""The client on a real Ollama and on the local model."""

from __future__ import annotations

import asyncio
import json

import pytest

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import (
    LLMContextOverflow,
    LLMError,
    LLMModelNotFound,
    LLMTimeout,
    LLMUnavailable,
    LLMUnsupported,
)
from llmkit.ports import AttemptLog
from llmkit.providers import PROVIDERS
from llmkit.providers.model_facts import Fact, FactBook, ModelFacts
from llmkit.providers.with_facts import add_model_facts
from llmkit.settings import load_settings
from llmkit.types import AttemptStatus, LLMProvider, LLMRequest, ResponseFormat, Route, ToolDefinition

LABELS = ResponseFormat(
    json_schema={
        "type": "object",
        "properties": {"label": {"enum": ["positive", "negative"]}},
        "required": ["label"],
        "additionalProperties": False,
    }
)
SHOTS = (
    "Text: I love it\n{\"label\": \"positive\"}\nText: It broke\n{\"label\": \"negative\"}\n"
    "Text: Great service\n{\"label\": \"positive\"}\nText: What a waste\n"
)  # fmt: skip


async def no_wait(_seconds: float) -> None: ...


async def open_client(url: str, path: str = "fast") -> LiteLLMClient:
    """Retries wait as they do for a user: a real server that is still loading needs the seconds."""
    client = LiteLLMClient(load_settings(ollama_api_base=url, default_timeout_s=100, request_path=path))
    await client.preload()
    return client


@pytest.fixture
async def client(real_ollama):
    client = await open_client(real_ollama.url)
    yield client
    await client.close()


@pytest.fixture
def route(real_ollama):
    return Route(provider=LLMProvider.OLLAMA, model=real_ollama.model)


@pytest.mark.ollama
async def test_ollama_is_held_to_a_schema_and_counts(client, route):
    log = AttemptLog()
    request = LLMRequest(messages=SHOTS, response_format=LABELS, temperature=0, max_output_tokens=30)
    reply = await client.call(route, request, log)
    assert json.loads(reply.text)["label"] in {"positive", "negative"}
    assert reply.warnings == ()
    assert not reply.usage.estimated
    assert reply.usage.input_tokens is not None
    assert 20 < reply.usage.input_tokens < 100
    assert log.attempts[0].usage == reply.usage


@pytest.mark.ollama
async def test_both_paths_get_the_same_from_ollama(real_ollama, route):
    request, seen = LLMRequest(messages=SHOTS, response_format=LABELS, temperature=0, max_output_tokens=30), []
    for path in ("fast", "reference"):
        client, log = await open_client(real_ollama.url, path), AttemptLog()
        seen.append((await client.call(route, request, log), log.attempts[0].params_sha256))
        await client.close()
    assert seen[0] == seen[1]


@pytest.mark.ollama
async def test_ollama_cuts_at_the_callers_limit(client, route):
    reply = await client.call(route, LLMRequest(messages=SHOTS, max_output_tokens=3, temperature=0), AttemptLog())
    assert (reply.finish_reason, reply.usage.output_tokens) == ("length", 3)


@pytest.mark.ollama
async def test_ollama_knows_no_such_model(client):
    with pytest.raises(LLMModelNotFound, match="ollama pull no-such-model"):
        await client.call(Route.parse("ollama/no-such-model"), LLMRequest(messages="Hi"), AttemptLog())


@pytest.mark.ollama
async def test_ollama_model_without_tools(client, route):
    request = LLMRequest(messages="Hi", tools=(ToolDefinition(name="look_up"),))
    with pytest.raises(LLMUnsupported, match="does not support tools"):
        await client.call(route, request, AttemptLog())


@pytest.mark.ollama
async def test_ollama_reads_a_prompt_that_its_own_default_would_cut(client, real_ollama):
    """Asked by itself it would read 256 tokens of it."""
    request = LLMRequest(messages="one two three four " * 100, max_output_tokens=2, temperature=0, timeout_s=280)
    with real_ollama.model_that_reads(256) as name:
        reply = await client.call(Route(provider=LLMProvider.OLLAMA, model=name), request, AttemptLog())
    assert reply.usage.input_tokens is not None
    assert 400 <= reply.usage.input_tokens < 420
    assert reply.warnings == ("The answer stops at the limit of 2 tokens.",)


@pytest.mark.ollama
async def test_a_prompt_that_ollama_would_cut_is_refused(real_ollama, route):
    """6,000 tokens for a model whose own window has 512: without `truncate: false` it would cut and say nothing."""
    book = FactBook()
    book.report(route, ModelFacts(context_tokens=Fact(512, "reported")))
    settings = load_settings(ollama_api_base=real_ollama.url)
    client = LiteLLMClient(settings, providers=add_model_facts(PROVIDERS, book))
    log = AttemptLog()
    with pytest.raises(LLMContextOverflow, match="longer than the context window of gemma-3-270m"):
        await client.call(route, LLMRequest(messages="one two three four " * 1500, max_output_tokens=2), log)
    await client.close()
    assert len(log.attempts) == 1


@pytest.mark.ollama
@pytest.mark.usefixtures("interrupted_ollama")
async def test_ollama_is_free_again_after_a_cancellation(client, route):
    endless = LLMRequest(messages="1 2 3 4 5 6 7 8 9", max_output_tokens=4000, timeout_s=60)
    log = AttemptLog()
    task = asyncio.create_task(client.call(route, endless, log))
    await asyncio.sleep(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log.attempts[-1].status is AttemptStatus.CANCELLED
    async with asyncio.timeout(60):
        await client.call(route, LLMRequest(messages="Hi", max_output_tokens=2), AttemptLog())


@pytest.mark.ollama
@pytest.mark.usefixtures("interrupted_ollama")
async def test_ollama_too_slow_for_the_deadline(client, route):
    endless = LLMRequest(messages="1 2 3 4 5 6 7 8 9", max_output_tokens=4000, timeout_s=0.5)
    with pytest.raises(LLMTimeout):
        await client.call(route, endless, AttemptLog())


@pytest.mark.ollama
async def test_ollama_killed_and_restarted(own_ollama):
    client = await open_client(own_ollama.url)
    route, request = (
        Route(provider=LLMProvider.OLLAMA, model=own_ollama.model),
        LLMRequest(messages="Hi", max_output_tokens=2),
    )
    assert (await client.call(route, request, AttemptLog())).usage.output_tokens
    own_ollama.kill()
    with pytest.raises(LLMUnavailable, match="ollama serve"):
        await client.call(route, request, AttemptLog())
    own_ollama.restart()
    assert (await client.call(route, request, AttemptLog())).usage.output_tokens
    await client.close()


@pytest.mark.local
async def test_the_embedded_model():
    from llmkit.local_model.server import share_server

    settings = load_settings(local_context_tokens=512)
    server = share_server(settings)
    client = LiteLLMClient(settings, {LLMProvider.LOCAL: server}, sleep=no_wait)
    route = Route.parse("local/gemma-3-270m")
    try:
        log = AttemptLog()
        request = LLMRequest(messages=SHOTS, response_format=LABELS, temperature=0, max_output_tokens=30)
        reply = await client.call(route, request, log)
        assert json.loads(reply.text)["label"] in {"positive", "negative"}
        assert log.attempts[0].schema_sha256 is not None
        assert (reply.cost_usd, reply.usage.estimated, reply.warnings) == (None, False, ())
        reference = LiteLLMClient(load_settings(request_path="reference"), {LLMProvider.LOCAL: server})
        again = await reference.call(route, request, AttemptLog())
        await reference.close()
        assert (again.text, again.finish_reason, again.response_model) == (
            reply.text,
            reply.finish_reason,
            reply.response_model,
        )
        with pytest.raises(LLMContextOverflow):
            await client.call(route, LLMRequest(messages="one two three four " * 300), AttemptLog())
        with pytest.raises(LLMError):
            await client.call(route, LLMRequest(messages="Hi", timeout_s=0.05, max_output_tokens=400), AttemptLog())
    finally:
        await client.close()
        await server.close()
