"""The output mode of an agent that leaves it open: the strongest, on each wire, beside tools, and in a fallback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import UnexpectedModelBehavior

from llmkit.errors import LLMAllRoutesFailed, LLMBadRequest, LLMUnavailable, LLMUnsupported
from llmkit.ports import ClientReply
from llmkit.providers import PROVIDERS
from llmkit.pydanticai import PydanticAiLiteLLMModel
from llmkit.testing import Reply, ToolCall
from llmkit.testing.scripted_client import reply
from llmkit.types import LLMConstraints, LLMProvider, LLMRequest, ResponseFormat, Route, TokenUsage, ToolDefinition
from llmkit.types import ToolCall as OurCall
from tests.support.scripted_services import CONTEXT, Wire, opened_wire, scripted_service

OLLAMA, GEMINI = LLMProvider.OLLAMA, LLMProvider.GEMINI


class Label(BaseModel):
    label: str


@pytest.fixture(params=["ollama", "gemini"])
async def wire(request: pytest.FixtureRequest) -> AsyncIterator[Wire]:
    async with opened_wire(request.param) as wire:
        yield wire


def asked_for(call: Any) -> tuple[bool, list[str]]:
    """Whether the answer is constrained to a schema, and the names of the tools."""
    body = call.json
    config = body.get("generationConfig", {})
    tools = body.get("tools", [])
    if tools and "function_declarations" in tools[0]:
        tools = [{"function": each} for each in tools[0]["function_declarations"]]
    is_held = "format" in body or "response_json_schema" in config or "response_mime_type" in config
    return is_held, [tool["function"]["name"] for tool in tools]


def look_up(city: str) -> str:
    """Weather."""
    return f"sunny in {city}"


async def test_an_open_mode_is_constrained_by_a_schema(wire: Wire) -> None:
    wire.server.script([Reply('{"label": "x"}')])
    assert (await Agent(wire.model(), output_type=Label).run("q")).output == Label(label="x")
    assert [asked_for(call) for call in wire.server.calls] == [(True, [])]
    assert wire.runs.runs[0].start.metadata["agent"]["output_mode"] == "native"


async def test_beside_tools_the_output_is_a_tool(wire: Wire) -> None:
    """The model can still call the other tools."""
    called, final = ToolCall("look_up", {"city": "Rome"}), ToolCall("final_result", {"label": "sunny"})
    wire.server.script([Reply(tool_calls=[called]), Reply(tool_calls=[final])])
    found = await Agent(wire.model(idempotency_key="k"), output_type=Label, tools=[look_up]).run("q")
    assert found.output == Label(label="sunny")
    assert [asked_for(call) for call in wire.server.calls] == [(False, ["look_up", "final_result"])] * 2
    agents = [run.start.metadata["agent"] for run in wire.runs.runs]
    assert [agent["output_mode"] for agent in agents] == ["tool", "tool"]
    assert {agent["schema_sha256"] for agent in agents} == {agents[0]["schema_sha256"]}


async def test_a_final_answer_in_plain_json_is_taken_too(wire: Wire) -> None:
    wire.server.script([Reply('{"label": "sunny"}')])
    found = await Agent(wire.model(), output_type=Label, tools=[look_up]).run("q")
    assert (found.output, len(wire.server.calls)) == (Label(label="sunny"), 1)


async def test_a_chosen_schema_beside_tools_is_refused(wire: Wire) -> None:
    """Where the model could not call them."""
    agent = Agent(wire.model(), output_type=NativeOutput(Label), tools=[look_up])
    with pytest.raises(LLMUnsupported, match="it cannot call tools in a request that asks for JSON"):
        await agent.run("q")
    assert not wire.server.calls


@pytest.mark.parametrize(
    ("route", "takes"),
    [
        ("gemini/gemini-2.5-flash", False),
        ("gemini/gemini-2.0-flash-001", False),
        ("gemini/gemini-3-flash-preview", True),
        ("gemini/gemini-10-pro", True),
        ("gemini/tuned", True),
        ("ollama/llama3.2", False),
    ],
)
def test_the_plan_knows_who_calls_tools_beside_json(route: str, takes: bool) -> None:
    service, _, _ = scripted_service([reply()])
    request = LLMRequest(messages="q", route=route, tools=(ToolDefinition(name="t"),), response_format=ResponseFormat())
    (entry,) = service.router.explain(request).entries
    assert (entry.excluded_because is None) == takes


# --- weaker modes -------------------------------------------------------------------------------------------------

NO_SCHEMA = {"supports_json_schema": False}
WORDS_ONLY = {"supports_json_schema": False, "supports_tools": False}


def providers(**weaker: dict[str, bool]) -> dict[LLMProvider, Any]:
    return {
        name: replace(spec, caps=spec.caps.model_copy(update=weaker.get(str(name), {})), tools_depend_on_model=False)
        for name, spec in PROVIDERS.items()
        if name is not LLMProvider.LOCAL
    }


def answer(_route: Route, request: LLMRequest) -> ClientReply:
    """What a model does in whatever mode it is asked."""
    if request.tools:
        call = OurCall(id="c", name=request.tools[-1].name, arguments='{"label": "x"}')
        return ClientReply("", (call,), "tool_calls", TokenUsage(), None)
    return reply('{"label": "x"}')


@pytest.mark.parametrize(("weaker", "mode"), [({}, "native"), (NO_SCHEMA, "tool"), (WORDS_ONLY, "prompted")])
async def test_an_open_mode_is_the_strongest_that_a_route_has(weaker: dict[str, bool], mode: str) -> None:
    service, client, runs = scripted_service(answer, providers=providers(gemini=weaker))
    model = PydanticAiLiteLLMModel(service, context=CONTEXT, route=Route.parse("gemini/gemini-3-pro"))
    assert (await Agent(model, output_type=Label).run("q")).output == Label(label="x")
    agent = runs.runs[0].start.metadata["agent"]
    assert (agent["output_mode"], len(client.calls)) == (mode, 1)
    assert model.schema is not None
    assert agent["schema_sha256"] == model.schema.sha256


async def test_beside_tools_it_is_a_tool_even_where_a_schema_would_do() -> None:
    service, client, _ = scripted_service(answer)
    model = PydanticAiLiteLLMModel(service, context=CONTEXT, route=Route.parse("gemini/gemini-3-pro"))
    assert (await Agent(model, output_type=Label, tools=[look_up]).run("q")).output == Label(label="x")
    assert [tool.name for tool in client.calls[0][1].tools] == ["look_up", "final_result"]
    assert client.calls[0][1].response_format is None


@pytest.mark.parametrize(("weaker", "mode"), [(NO_SCHEMA, "tool"), (WORDS_ONLY, "prompted")])
async def test_a_route_with_a_weaker_mode_is_fallen_back_to_in_that(weaker: dict[str, bool], mode: str) -> None:
    def first_is_down(route: Route, request: LLMRequest) -> Any:
        return LLMUnavailable("down") if route.provider is OLLAMA else answer(route, request)

    service, client, runs = scripted_service(first_is_down, providers=providers(gemini=weaker))
    model = PydanticAiLiteLLMModel(service, context=CONTEXT, idempotency_key="k")
    assert (await Agent(model, output_type=Label).run("q")).output == Label(label="x")
    assert [route.provider for route, _ in client.calls] == [OLLAMA, GEMINI]
    assert [run.start.idempotency_key for run in runs.runs] == ["k#0", f"k#0~{mode}"]
    assert [run.start.metadata["agent"]["output_mode"] for run in runs.runs] == ["native", mode]


@pytest.mark.parametrize("pinned", [True, False])
async def test_no_weaker_mode_where_fallback_is_forbidden(pinned: bool) -> None:
    service, client, _ = scripted_service([LLMUnavailable("down")], providers=providers(gemini=WORDS_ONLY))
    how: dict[str, Any] = (
        {"route": Route.parse("ollama/m")} if pinned else {"constraints": LLMConstraints(allow_fallback=False)}
    )
    with pytest.raises(LLMUnavailable, match="down"):
        await Agent(PydanticAiLiteLLMModel(service, context=CONTEXT, **how), output_type=Label).run("q")
    assert len(client.calls) == 1


async def test_when_every_mode_fails_the_error_holds_what_was_sent() -> None:
    service, client, _ = scripted_service([LLMUnavailable("down")], providers=providers(gemini=WORDS_ONLY))
    with pytest.raises(LLMUnavailable) as caught:
        await Agent(PydanticAiLiteLLMModel(service, context=CONTEXT), output_type=Label).run("q")
    assert len(caught.value.attempts) == len(client.calls) == 2
    assert not isinstance(caught.value, LLMAllRoutesFailed | UnexpectedModelBehavior)


async def test_what_no_mode_can_do_is_the_routers_error() -> None:
    service, client, _ = scripted_service([reply()])
    nobody = LLMConstraints(allowed_providers=frozenset())
    with pytest.raises(LLMBadRequest, match="allowed_providers leaves"):
        await Agent(PydanticAiLiteLLMModel(service, context=CONTEXT, constraints=nobody), output_type=Label).run("q")
    assert not client.calls
