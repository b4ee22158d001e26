"""Typed extraction and agents through real LiteLLM over real HTTP, on both wires."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelRequest

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMBadRequest, LLMInvalidOutput, LLMModelNotFound, LLMUnsupported
from llmkit.pydanticai import PydanticAiLiteLLMModel, extract
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing import GeminiServer, OllamaServer, Reply, StandInServer, ToolCall
from llmkit.testing.memory import InMemoryLLMRunRepo
from llmkit.types import Message, RequestContext, Route

CONTEXT = RequestContext(workspace_id="w", pipeline_run_id="p")


class Label(BaseModel):
    label: Literal["positive", "negative"]


@dataclass
class Wire:
    """One provider's stand-in with a whole service before it."""

    server: StandInServer
    service: LLMService
    runs: InMemoryLLMRunRepo
    route: Route

    async def extract(self, output_type: type, text: str, **options: object) -> object:
        return await extract(self.service, output_type, text, context=CONTEXT, route=self.route, **options)

    def model(self, **options: object) -> PydanticAiLiteLLMModel:
        return PydanticAiLiteLLMModel(self.service, context=CONTEXT, route=self.route, **options)


@pytest.fixture(params=["ollama", "gemini"])
async def wire(request: pytest.FixtureRequest) -> AsyncIterator[Wire]:
    server = OllamaServer() if request.param == "ollama" else GeminiServer(api_key="key")
    with server:
        settings = load_settings(
            ollama_api_base=server.url,
            gemini_api_base=f"{server.url}/v1beta",
            gemini_api_key="key",
            max_retries=0,
            cache_enabled=False,
        )
        client = LiteLLMClient(settings)
        runs = InMemoryLLMRunRepo()
        service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=runs)
        model = "llama3.2" if request.param == "ollama" else "gemini-2.5-flash"
        yield Wire(server, service, runs, Route.parse(f"{request.param}/{model}"))
        await client.close()


async def test_a_first_answer_that_fits_is_one_call(wire: Wire) -> None:
    wire.server.script([Reply('{"label": "positive"}', input_tokens=11, output_tokens=3)])
    found = await wire.extract(Label, "Great!")
    assert found.value == Label(label="positive")
    assert (found.mode, found.valid_first_try) == ("schema", True)
    assert (found.usage.input_tokens, found.usage.output_tokens) == (11, 3)
    assert len(wire.server.calls) == len(wire.runs.runs) == 1


async def test_an_answer_that_does_not_fit_is_asked_again_with_what_was_wrong(wire: Wire) -> None:
    wire.server.script([Reply('{"label": "meh"}'), Reply('{"label": "negative"}')])
    found = await wire.extract(Label, "Hm.")
    assert (found.value.label, found.valid_first_try) == ("negative", False)
    assert len(found.responses) == 2
    assert "'positive' or 'negative'" in wire.server.calls[1].body.decode()
    assert {run.start.pipeline_run_id for run in wire.runs.runs} == {"p"}


async def test_what_never_fits_is_an_honest_error_with_the_raw_text_and_what_was_billed(wire: Wire) -> None:
    wire.server.script([Reply('{"label": "meh"}')])
    with pytest.raises(LLMInvalidOutput) as caught:
        await wire.extract(Label, "Hm.", retries=2)
    error = caught.value
    assert error.raw_text == '{"label": "meh"}'
    assert "label" in error.validation_errors[0]
    assert len(error.attempts) == len(wire.server.calls) == 3
    assert error.provider == wire.route.provider


async def test_the_same_key_replays_every_step(wire: Wire) -> None:
    wire.server.script([Reply('{"label": "meh"}'), Reply('{"label": "negative"}')])
    first = await wire.extract(Label, "Hm.", idempotency_key="k")
    again = await wire.extract(Label, "Hm.", idempotency_key="k")
    assert len(wire.server.calls) == 2
    assert [str(response.served_from) for response in again.responses] == ["replay", "replay"]
    assert (again.value, again.valid_first_try, again.usage) == (first.value, False, first.usage)


async def test_few_shot_messages_arrive_in_order(wire: Wire) -> None:
    wire.server.script([Reply('{"label": "positive"}')])
    shots = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="good"),
        Message(role="assistant", content='{"label": "positive"}'),
        Message(role="user", content="bad"),
    )
    await extract(wire.service, Label, shots, context=CONTEXT, route=wire.route)
    body = wire.server.calls[0].body.decode()
    places = [body.index(json.dumps(text)[1:-1]) for text in ("good", "bad")]
    assert places == sorted(places)
    assert "Be brief." in body


@pytest.mark.parametrize("output_type", [int, list[str], dict[str, float]])
async def test_bare_types_can_be_extracted(wire: Wire, output_type: type) -> None:
    found = await wire.extract(output_type, "x")
    assert isinstance(found.value, output_type if isinstance(output_type, type) else output_type.__origin__)


async def test_a_type_without_a_schema_is_refused_before_anything_is_sent(wire: Wire) -> None:
    class Opaque:
        pass

    with pytest.raises(LLMBadRequest, match="Opaque cannot be an output type"):
        await wire.extract(Opaque, "x")
    assert not wire.server.calls


async def test_a_provider_error_comes_through_as_ours(wire: Wire) -> None:
    route = Route(provider=wire.route.provider, model="gemini-0-missing")
    with pytest.raises(LLMModelNotFound):
        await extract(wire.service, Label, "x", context=CONTEXT, route=route)


async def test_an_agent_with_tools_and_a_typed_result_runs_to_the_end(wire: Wire) -> None:
    wire.server.script(
        [
            Reply(tool_calls=[ToolCall("look_up", {"city": "Rome"}), ToolCall("add", {"a": 2, "b": 3})]),
            Reply(tool_calls=[ToolCall("look_up", {"city": "Paris"})]),
            Reply('{"label": "positive"}'),
        ]
    )
    agent = Agent(wire.model(idempotency_key="agent"), output_type=Label, instructions="Use the tools.")
    seen: list[object] = []

    @agent.tool_plain
    def look_up(city: str) -> str:
        """Weather of a city."""
        seen.append(city)
        if city == "Rome":
            raise ModelRetry("no such city, try Paris")
        return "sunny"

    @agent.tool_plain
    async def add(a: int, b: int) -> int:
        """Sum."""
        seen.append(a + b)
        return a + b

    result = await agent.run("Weather?")
    assert result.output == Label(label="positive")
    assert sorted(map(str, seen)) == ["5", "Paris", "Rome"]
    assert result.usage.requests == 3
    assert [run.start.idempotency_key for run in wire.runs.runs] == ["agent#0", "agent#1", "agent#2"]
    assert "no such city" in wire.server.calls[1].body.decode()


async def test_a_stream_is_refused_by_name(wire: Wire) -> None:
    agent = Agent(wire.model())
    with pytest.raises(UserError, match="does not support streamed requests"):
        async with agent.run_stream("x"):
            pass


async def test_an_image_is_refused_by_name(wire: Wire) -> None:
    from pydantic_ai import BinaryContent

    with pytest.raises(LLMUnsupported, match="BinaryContent"):
        await Agent(wire.model()).run(["look", BinaryContent(b"x", media_type="image/png")])
    assert not wire.server.calls


async def test_an_unknown_tool_choice_is_a_user_error(wire: Wire) -> None:
    messages = [ModelRequest.user_text_prompt("x")]
    with pytest.raises(UserError, match="unknown tools: nothing"):
        await model_request(wire.model(), messages, model_settings={"tool_choice": ["nothing"]})
    assert not wire.server.calls
