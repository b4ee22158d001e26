"""Both paths, side by side over real HTTP: the same bytes to the provider, and the same answer or error out."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMError
from llmkit.ports import AttemptLog, ClientReply
from llmkit.providers import load_endpoints
from llmkit.settings import load_settings
from llmkit.testing import Fault, GeminiServer, OllamaServer, OpenAIServer, Reply
from llmkit.transport.paths import fast, library, translation
from llmkit.transport.paths.reference import ReferencePath
from llmkit.types import LLMProvider, LLMRequest, Message, ResponseFormat, Route, ToolDefinition
from tests.support.request_matrix import BARE_TOOL, FLAT, REPLIES, REQUESTS, WEATHER

KEY = "AIzaSyCanary0123456789-canary_canary"
PATHS = ("fast", "reference")
ROUTES = ("ollama/llama3.2", "gemini/gemini-2.5-flash", "openai/gpt-4o-mini")
MODELS = {
    "ollama": ("llama3.2", "hf.co/org/Some-Model_GGUF:Q4_K_M", "responses/x", "odd name?x=1"),
    "gemini": ("gemini-2.5-flash", "gemini-3-pro-preview", "gemini-1.5-pro", "tuned-model", "tunedModels/mine-7",
               "gemma-3-27b-it", "odd name?x=1", "gemini-2.0-flash"),
    "openai": ("gpt-4o-mini", "gpt-5-mini", "o3-mini", "meta-llama/llama-3.3-70b:free", "Qwen/Qwen3-8B", "odd name?x=1",
               "ft:gpt-4o-mini-2024-07-18:me::7p4lURel"),
}  # fmt: skip
CHANGING = frozenset({"host"})
UUID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}|(?<=call_)[0-9a-f]{28}")


@dataclass(frozen=True)
class Seen:
    """All that provider and caller see of one call."""

    wire: tuple[Any, ...]
    out: ClientReply | tuple[Any, ...]
    recorded: tuple[Any, ...]


async def no_wait(_seconds: float) -> None: ...


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Any]]:
    with (
        OllamaServer(models=MODELS["ollama"]) as ollama,
        GeminiServer(models=MODELS["gemini"], api_key=KEY) as gemini,
        OpenAIServer(models=MODELS["openai"], api_key=KEY) as openai,
    ):
        yield {"ollama": ollama, "gemini": gemini, "openai": openai}


class Both:
    """Sends a request through either path."""

    def __init__(self, servers: Mapping[str, Any]) -> None:
        self.servers = servers
        self.user = ""

    async def see(self, path: str, route: str, request: LLMRequest, reply: Reply | Fault = REPLIES["text"]) -> Seen:
        server = self.servers[route.partition("/")[0]]
        server.clear()
        server.script(reply)
        bases = {name: one.url.replace("//", f"//{self.user}") for name, one in self.servers.items()}
        own = load_settings(
            request_path=path,
            ollama_api_base=bases["ollama"],
            gemini_api_base=bases["gemini"],
            gemini_api_key=KEY,
            openai_api_base=f"{bases['openai']}/v1",
            openai_api_key=KEY,
            max_retries=1,
        )
        client = LiteLLMClient(own, providers=load_endpoints(own), sleep=no_wait)
        log = AttemptLog()
        try:
            out: Any = await client.call(Route.parse(route), request, log)
        except LLMError as error:
            out = (type(error), str(error), error.retryable, error.status_code, error.retry_after_s)
        finally:
            await client.close()
        return Seen(tuple(map(on_the_wire, server.requests)), without_random(out), tuple(map(recorded, log.attempts)))


def on_the_wire(request: Any) -> tuple[Any, ...]:
    headers = {name.lower(): value for name, value in request.headers.items() if name.lower() not in CHANGING}
    return request.method, request.path, dict(request.query), headers, request.body


def without_random(out: Any) -> Any:
    """Ids that LiteLLM draws are told by their shape; what hangs on them is kept."""
    if not isinstance(out, ClientReply):
        return out
    calls = tuple(call.model_copy(update={"id": UUID.sub("<random>", call.id)}) for call in out.tool_calls)
    return replace(out, tool_calls=calls)


def recorded(attempt: Any) -> Any:
    return attempt.model_dump(exclude={"started_at_utc", "latency_ms"})


@pytest.fixture
def both(servers):
    return Both(servers)


@pytest.fixture
def carried(monkeypatch) -> list[str]:
    """The models of requests that the reference path carried."""
    models: list[str] = []
    complete = ReferencePath.complete

    async def noted(self, exchange, timeout_s):
        models.append(exchange.arguments.kwargs["model"])
        return await complete(self, exchange, timeout_s)

    monkeypatch.setattr(ReferencePath, "complete", noted)
    return models


# What is no JSON that Gemini's encoder takes, or no history that LiteLLM reads, is left to LiteLLM's own words.
LEFT_TO_REFERENCE = {
    ("lone surrogate in a schema", "gemini/gemini-2.5-flash"),
    ("NaN in a schema", "gemini/gemini-2.5-flash"),
    ("lone surrogate in a schema", "openai/gpt-4o-mini"),
    ("history that cannot be read", "ollama/llama3.2"),
    ("history that cannot be read", "gemini/gemini-2.5-flash"),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", REQUESTS)
async def test_both_paths_send_the_same_bytes(both, carried, name, route):
    request = LLMRequest(**{"messages": "Hi", **REQUESTS[name]})
    before = request.model_dump_json() if "surrogate" not in name else None
    quick = await both.see("fast", route, request)
    assert carried == ([route] * 0 if (name, route) not in LEFT_TO_REFERENCE else carried[:1])
    assert quick == await both.see("reference", route, request)
    assert before is None or request.model_dump_json() == before


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", REPLIES)
async def test_both_paths_read_the_same_answer(both, carried, name, route):
    request = LLMRequest(messages="Hi", tools=(WEATHER, BARE_TOOL) if "tool" in name else ())
    quick = await both.see("fast", route, request, REPLIES[name])
    assert carried == []
    assert quick == await both.see("reference", route, request, REPLIES[name])


@pytest.mark.parametrize("route", [f"{provider}/{model}" for provider in MODELS for model in MODELS[provider]])
async def test_both_paths_know_the_same_models(both, route):
    # The only temperature that OpenAI's reasoning models take.
    request = LLMRequest(messages="Hi", temperature=1, response_format=ResponseFormat(json_schema=FLAT))
    quick, reference = [await both.see(path, route, request) for path in PATHS]
    assert quick == reference
    # LiteLLM takes `responses/x` for the model `x` behind another API, and sends that past what records.
    assert len(quick.wire) == len(quick.recorded) == 1
    assert route.partition("/")[2].split("?")[0] in unquote(quick.wire[0][1]) + quick.wire[0][4].decode()


@pytest.mark.parametrize("route", ROUTES)
async def test_user_and_password_of_an_address_travel_on_both_paths(both, route):
    both.user = "me:s%40cret%2Fcanary@"
    quick, reference = [await both.see(path, route, LLMRequest(messages="Hi")) for path in PATHS]
    assert quick == reference
    assert quick.wire[0][3]["authorization"].startswith("Basic ")
    assert ("x-goog-api-key" in quick.wire[0][3]) is route.startswith("gemini")


async def test_the_proxy_of_the_environment_carries_both_paths(servers, monkeypatch):
    monkeypatch.setenv("http_proxy", servers["ollama"].url)
    monkeypatch.delenv("no_proxy", raising=False)
    seen = []
    for path in PATHS:
        servers["ollama"].clear()
        servers["ollama"].script("by proxy")
        client = LiteLLMClient(load_settings(request_path=path, ollama_api_base="http://behind-the-proxy.example:8080"))
        reply = await client.call(Route.parse("ollama/llama3.2"), LLMRequest(messages="Hi"), AttemptLog())
        await client.close()
        seen.append((reply, servers["ollama"].calls[-1].headers["Host"], on_the_wire(servers["ollama"].calls[-1])))
    assert seen[0] == seen[1]
    assert seen[0][1] == "behind-the-proxy.example:8080"


@pytest.mark.parametrize("route", ROUTES)
async def test_a_reply_at_the_edge_of_json_is_read_alike(both, route):
    for fault in (Fault.malformed(), Fault.html(), Fault.empty(), Fault.truncated(), Fault.no_candidates()):
        quick, reference = [await both.see(path, route, LLMRequest(messages="Hi"), fault) for path in PATHS]
        assert quick == reference
        assert isinstance(quick.out, tuple)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SCHEMAS = st.recursive(
    st.sampled_from([{"type": "string"}, {"type": "integer", "minimum": 0}, {"enum": ["a", 1, None]}, {}]),
    lambda inner: st.one_of(
        st.dictionaries(TEXTS, inner, max_size=3).map(
            lambda properties: {"type": "object", "properties": properties, "required": sorted(properties)[:1]}
        ),
        inner.map(lambda items: {"type": "array", "items": items}),
        st.lists(inner, min_size=1, max_size=2).map(lambda options: {"anyOf": options}),
    ),
    max_leaves=6,
)
ASKED = st.builds(
    LLMRequest,
    messages=st.lists(
        st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=TEXTS), min_size=1, max_size=4
    ).map(tuple),
    temperature=st.none() | st.floats(0, 2),
    max_output_tokens=st.none() | st.integers(1, 9999),
    seed=st.none() | st.integers(0, 2**31),
    stop=st.lists(TEXTS.filter(bool), max_size=6).map(tuple),
    response_format=st.none() | st.builds(ResponseFormat, json_schema=st.none() | SCHEMAS),
    tools=st.just(()) | st.tuples(st.builds(ToolDefinition, name=st.just("t"), description=TEXTS, parameters=SCHEMAS)),
)


@pytest.mark.slow
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(request=ASKED, route=st.sampled_from(ROUTES))
async def test_no_request_tells_the_paths_apart(both, request, route):
    assert await both.see("fast", route, request) == await both.see("reference", route, request)


# -- which path ------------------------------------------------------------------------------------


@pytest.fixture
def unloaded(monkeypatch, caplog):
    """The fast path is not loaded yet in this process."""
    monkeypatch.setattr(fast, "_parts", None)
    caplog.set_level(logging.WARNING)


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "llmkit"]


async def test_the_setting_chooses_the_path(both, carried):
    for path in PATHS:
        await both.see(path, "ollama/llama3.2", LLMRequest(messages="Hi"))
    assert carried == ["ollama_chat/llama3.2"]


def _changed_parameters(monkeypatch) -> None:
    name = "litellm.llms.ollama.chat.transformation:OllamaChatConfig.transform_request"
    monkeypatch.setitem(library.EXPECTED, name, ("self", "model"))


def _missing_function(monkeypatch) -> None:
    monkeypatch.setitem(library.EXPECTED, "litellm.utils:no_such_function", ())


def _missing_module(monkeypatch) -> None:
    monkeypatch.setitem(library.EXPECTED, "litellm.no_such_module:function", ())


def _another_release(monkeypatch) -> None:
    monkeypatch.setattr(library, "RELEASE", "1.999.0")


def _another_reading(monkeypatch) -> None:
    monkeypatch.setattr(translation, "_REPLIES", {**translation._REPLIES, "gemini": ('{"candidates": "none"}',)})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_changed_parameters, "OllamaChatConfig.transform_request has changed"),
        (_missing_function, "no_such_function has changed"),
        (_missing_module, "function has changed"),
        (_another_release, "release 1.106.2"),
        (_another_reading, "at rehearsal"),
    ],
)
async def test_another_litellm_is_called_by_its_own_way_with_one_warning(
    both, carried, unloaded, caplog, monkeypatch, change, told
):
    change(monkeypatch)
    for _ in range(2):
        seen = await both.see("fast", "gemini/gemini-2.5-flash", LLMRequest(messages="Hi"))
        assert isinstance(seen.out, ClientReply)
    assert carried == ["gemini/gemini-2.5-flash"] * 2
    (warning,) = warnings_of(caplog)
    assert told in warning
    assert "LLM_REQUEST_PATH=reference" in warning


async def test_the_pinned_litellm_is_the_known_one(both, carried, unloaded, caplog):
    assert library.surprises() == ()
    await both.see("fast", "ollama/llama3.2", LLMRequest(messages="Hi"))
    assert (carried, warnings_of(caplog)) == ([], [])


async def test_unknown_argument_takes_the_reference_path(servers, carried):
    from llmkit.providers import PROVIDERS

    spec = PROVIDERS[LLMProvider.OLLAMA]

    def with_more(*given):
        arguments = spec.call_arguments(*given)
        return replace(arguments, kwargs={**arguments.kwargs, "top_p": 0.5})

    client = LiteLLMClient(
        load_settings(ollama_api_base=servers["ollama"].url),
        providers={LLMProvider.OLLAMA: replace(spec, call_arguments=with_more)},
    )
    servers["ollama"].script("Yes.")
    await client.call(Route.parse("ollama/llama3.2"), LLMRequest(messages="Hi"), AttemptLog())
    await client.close()
    assert carried == ["ollama_chat/llama3.2"]
    assert servers["ollama"].calls[-1].json["options"]["top_p"] == 0.5
