"""Agents that stream: events, partial outputs, errors at the door and in the middle, and a reader who leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Required

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_ai import (
    Agent,
    AgentRunResultEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
)
from pydantic_ai.exceptions import ContentFilterError
from pydantic_ai.messages import TextPart, TextPartDelta, ThinkingPart, ToolCallPart
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.output import NativeOutput, ToolOutput
from typing_extensions import TypedDict

from llmkit import Session
from llmkit.errors import LLMContentBlocked, LLMUnavailable
from llmkit.persistence.content_cache import DiskContentCache
from llmkit.ports import StreamPiece
from llmkit.pydanticai import PydanticAiLiteLLMModel
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing import Fault, Reply
from llmkit.testing.in_memory import InMemoryLLMRunRepo
from llmkit.testing.scripted_client import ScriptedAnswer, ScriptedClient, ScriptedStream, reply
from llmkit.types import Route, RunStatus, TokenUsage, ToolCall
from tests.support.scripted_services import CONTEXT, opened_wire, scripted_service

GEMINI = Route.parse("gemini/gemini-2.5-flash")


class City(BaseModel):
    name: str
    people: int
    rivers: list[str] = []


TEXT = '{"name": "Paris", "people": 2100000, "rivers": ["Seine", "Marne"]}'


def scripted(*answers: ScriptedAnswer, **options: Any) -> tuple[PydanticAiLiteLLMModel, InMemoryLLMRunRepo]:
    service, _, runs = scripted_service(answers)
    return PydanticAiLiteLLMModel(service, context=CONTEXT, route=GEMINI, **options), runs


def cut(text: str, size: int = 7) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def call_look_up(*fragments: str, tool_id: str = "one", index: int = 0, name: str = "look_up") -> list[StreamPiece]:
    first = StreamPiece("tool_call", "", index, tool_id, name)
    return [first, *(StreamPiece("tool_call", each, index) for each in fragments)]


def answer_with_calls(*calls: ToolCall, text: str = "") -> Any:
    return replace(reply(text), tool_calls=calls, finish_reason="tool_calls")


def look_up(city: str) -> str:
    """Weather of a city."""
    return f"sunny in {city}"


# --- the documented ways to stream ------------------------------------------------------------------------------------


async def test_text_arrives_in_pieces_and_the_result_is_that_of_a_plain_run() -> None:
    model, runs = scripted(ScriptedStream(["One ", "two ", "three."]))
    async with Agent(model).run_stream("q") as result:
        assert [text async for text in result.stream_text(debounce_by=None)] == ["One ", "One two ", "One two three."]
    assert await result.get_output() == "One two three."
    assert (result.usage.input_tokens, result.usage.output_tokens, result.usage.unmeasured_requests) == (3, 1, 0)
    (row,) = runs.runs
    assert row.status is RunStatus.SUCCEEDED

    model, _ = scripted(reply("One two three."))
    plain = (await Agent(model).run("q")).new_messages()[-1]
    streamed = result.new_messages()[-1]
    for message in (plain, streamed):
        message.timestamp = plain.timestamp
        message.run_id = message.provider_response_id = message.conversation_id = None
        message.provider_details = None
    assert streamed == plain


class Profile(TypedDict, total=False):
    name: Required[str]
    rivers: list[str]


class Opinion(TypedDict, total=False):
    label: Literal["positive", "negative"]
    sure: bool


@pytest.mark.parametrize("form", ["native", "tool", "auto"])
async def test_structured_output_grows_and_ends_validated(form: str) -> None:
    wrap: dict[str, Any] = {"native": NativeOutput, "tool": ToolOutput, "auto": lambda kind: kind}
    text = '{"name": "Paris", "rivers": ["Seine", "Marne"]}'
    stream = ScriptedStream(cut(text))
    if form == "tool":
        call = ToolCall(id="one", name="final_result", arguments=text)
        stream = ScriptedStream(call_look_up(*cut(text), name="final_result"), answer_with_calls(call))
    model, _ = scripted(stream)
    agent = Agent(model, output_type=wrap[form](Profile))
    async with agent.run_stream("q") as result:
        values = [value async for value in result.stream_output(debounce_by=None)]
    names, rivers = [value["name"] for value in values], [len(value.get("rivers", ())) for value in values]
    assert names == sorted(names, key=len)
    assert rivers == sorted(rivers)
    assert len({*names}) > 1
    assert {0, 1, 2} == {*rivers}
    assert values[-1] == {"name": "Paris", "rivers": ["Seine", "Marne"]}


async def test_responses_are_validated_as_far_as_they_have_arrived() -> None:
    model, _ = scripted(ScriptedStream(cut(TEXT, 20)))
    async with Agent(model, output_type=City).run_stream("q") as result:
        seen = []
        async for response in result.stream_response(debounce_by=None):
            try:
                seen.append(await result.validate_response_output(response, allow_partial=response.state != "complete"))
            except ValidationError:
                continue
    assert seen[-1] == City(name="Paris", people=2100000, rivers=["Seine", "Marne"])


async def test_events_of_a_run_with_thinking_and_parallel_tools() -> None:
    calls = (
        ToolCall(id="one", name="look_up", arguments='{"city": "Ulm"}'),
        ToolCall(id="two", name="look_up", arguments='{"city": "Bern"}'),
    )
    pieces = [
        StreamPiece("thinking", "Hm, "),
        StreamPiece("thinking", "weather."),
        "\n",
        *call_look_up('{"city"', ':"Ulm"}'),
        *call_look_up('{"city":"Bern"}', tool_id="two", index=1),
    ]
    model, _ = scripted(
        ScriptedStream(pieces, answer_with_calls(*calls, text="\n")), ScriptedStream(["It is ", "sunny."])
    )
    agent = Agent(model, tools=[look_up])
    async with agent.run_stream_events("Weather?") as stream:
        events = [event async for event in stream]
    starts = [event.part for event in events if isinstance(event, PartStartEvent)]
    assert [type(part) for part in starts] == [ThinkingPart, ToolCallPart, ToolCallPart, TextPart]
    ends = [event.part for event in events if isinstance(event, PartEndEvent)]
    assert [getattr(part, "args", None) or part.content for part in ends] == [
        "Hm, weather.",
        '{"city":"Ulm"}',
        '{"city": "Bern"}',
        "It is sunny.",
    ]
    called = [event.part.tool_call_id for event in events if isinstance(event, FunctionToolCallEvent)]
    assert called == ["one", "two"] == [part.tool_call_id for part in starts[1:3] if isinstance(part, ToolCallPart)]
    results = {event.part.content for event in events if isinstance(event, FunctionToolResultEvent)}
    assert results == {"sunny in Ulm", "sunny in Bern"}
    deltas = [event.delta for event in events if isinstance(event, PartDeltaEvent)]
    assert [delta.content_delta for delta in deltas if isinstance(delta, TextPartDelta)] == ["sunny."]
    assert isinstance(events[-1], AgentRunResultEvent)
    assert events[-1].result.output == "It is sunny."


async def test_a_call_whose_id_comes_last_has_no_other_one_before() -> None:
    """Gemini's ids end in a signature, without which the next request is refused."""
    call = ToolCall(id="one__sign", name="look_up", arguments='{"city": "Ulm"}')
    first = ScriptedStream(call_look_up('{"city": "Ulm"}', tool_id=""), answer_with_calls(call))
    model, _ = scripted(first, ScriptedStream(["sunny"]))
    async with Agent(model, tools=[look_up]).run_stream_events("Weather?") as stream:
        ids = {
            event.part.tool_call_id async for event in stream if hasattr(getattr(event, "part", None), "tool_call_id")
        }
    assert ids == {"one__sign"}


def test_a_script_streams_without_an_event_loop() -> None:
    model, _ = scripted(ScriptedStream(["One ", "two."]))
    # Pydantic AI makes a loop for scripts, and leaves it open.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    with closing(loop), Agent(model).run_stream_sync("q") as result:
        assert list(result.stream_text(delta=True, debounce_by=None)) == ["One ", "two."]
    asyncio.set_event_loop(None)


# --- what is known of tokens, and answers that need no request --------------------------------------------------------


async def test_usage_that_was_not_sent_is_unknown() -> None:
    silent = replace(reply("One"), usage=TokenUsage())
    model, _ = scripted(ScriptedStream(["One"], silent), silent)
    async with Agent(model).run_stream("q") as result:
        await result.get_output()
    assert result.usage.unmeasured_requests == 1
    assert (await Agent(model).run("q")).usage.unmeasured_requests == 1


async def test_a_replayed_answer_streams_as_one_piece() -> None:
    model, runs = scripted(ScriptedStream(["One ", "two."]), idempotency_key="k")
    seen = []
    for _ in range(2):
        async with Agent(model).run_stream("q") as result:
            seen.append([text async for text in result.stream_text(delta=True, debounce_by=None)])
    assert seen == [["One ", "two."], ["One two."]]
    assert [str(run.success.served_from) for run in runs.runs if run.success] == ["provider", "replay"]


# --- failures, and readers who leave ----------------------------------------------------------------------------------


async def test_an_error_before_the_first_piece_is_raised_at_the_door_and_falls_back() -> None:
    down, _ = scripted(LLMUnavailable("down"))
    with pytest.raises(LLMUnavailable):
        async with Agent(down).run_stream("q"):
            pytest.fail("opened")
    up, _ = scripted(ScriptedStream(["One ", "two."]))
    fallback = FallbackModel(down, up, fallback_on=(LLMUnavailable,))
    async with Agent(fallback).run_stream("q") as result:
        assert await result.get_output() == "One two."
    blocked, _ = scripted(LLMContentBlocked("blocked"))
    with pytest.raises(ContentFilterError):
        async with Agent(blocked).run_stream("q"):
            pytest.fail("opened")


async def test_an_error_in_the_middle_ends_the_run_and_falls_back_nowhere() -> None:
    broken, runs = scripted(ScriptedStream(["One ", "two "], LLMUnavailable("gone"), usage=TokenUsage(input_tokens=3)))
    other, others = scripted(reply("other"))
    agent = Agent(FallbackModel(broken, other, fallback_on=(LLMUnavailable,)))
    seen: list[str] = []

    async def read() -> None:
        async with agent.run_stream("q") as result:
            async for text in result.stream_text(debounce_by=None):
                seen.append(text)

    with pytest.raises(LLMUnavailable) as caught:
        await read()
    assert seen == ["One ", "One two "]
    assert caught.value.partial_text == "One two "
    assert (len(runs.runs), len(others.runs)) == (1, 0)
    assert runs.runs[0].status is RunStatus.FAILED


class _StopError(Exception):
    pass


async def leave_by_break(agent: Agent) -> None:
    async with agent.run_stream("q") as result:
        async for _ in result.stream_text(debounce_by=None):
            break


async def leave_by_exception(agent: Agent) -> None:
    with suppress(_StopError):
        async with agent.run_stream("q") as result:
            async for _ in result.stream_text(debounce_by=None):
                raise _StopError


async def leave_by_cancel(agent: Agent) -> None:
    async with agent.run_stream("q") as result:
        async for _ in result.stream_text(debounce_by=None):
            await result.cancel()


async def leave_by_events(agent: Agent) -> None:
    async with agent.run_stream_events("q") as events:
        async for _ in events:
            break


async def leave_by_task(agent: Agent) -> None:
    arrived = asyncio.Event()

    async def read() -> None:
        async with agent.run_stream("q") as result:
            async for _ in result.stream_text(debounce_by=None):
                arrived.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await arrived.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_reader_who_makes_an_equal_call_gets_its_answer() -> None:
    """The equal call waits for the end of the one that is read, which must not wait for its reader."""
    client, settings = ScriptedClient([ScriptedStream(["One ", *["more "] * 20])]), load_settings(gemini_api_key="key")
    with closing(DiskContentCache(Path("cache"), ttl_s=60, size_limit_bytes=10**8)) as cache:
        router = LLMRouter(settings, client)
        service = LLMService(router=router, settings=settings, runs=InMemoryLLMRunRepo(), cache=cache)
        model = PydanticAiLiteLLMModel(service, context=CONTEXT, route=GEMINI)
        async with Agent(model).run_stream("q") as result:
            async for text in result.stream_text(debounce_by=None):
                other = await asyncio.wait_for(Agent(model).run("q"), 60)
                assert other.output.startswith(text)
                break
    assert len(client.calls) == 1


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_exception, leave_by_cancel, leave_by_events, leave_by_task])
async def test_a_reader_who_leaves_cancels_the_call(leave: Callable[[Agent], Awaitable[None]]) -> None:
    model, runs = scripted(ScriptedStream(["One ", *["more "] * 200]))
    await leave(Agent(model))
    (row,) = runs.runs
    assert row.status is RunStatus.FAILED
    assert row.failure is not None
    assert row.failure.error_code == "cancelled"


# --- over real HTTP ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["ollama", "gemini"])
async def test_the_server_sees_a_reader_leave(provider: str) -> None:
    async with opened_wire(provider) as wire:
        wire.server.script([Fault.stream_stall(6, Reply("one two three four five six seven")), Reply("one two three")])
        agent = Agent(wire.model())
        await leave_by_break(agent)
        assert await asyncio.to_thread(wire.server.wait_until_idle, 60)
        assert [call.outcome for call in wire.server.calls] == ["client_left"]
        (row,) = wire.runs.runs
        assert row.failure is not None
        assert row.failure.error_code == "cancelled"
        async with agent.run_stream("q") as result:
            texts = [text async for text in result.stream_text(delta=True, debounce_by=None)]
        assert "".join(texts) == await result.get_output() == "one two three"
        assert result.usage.input_tokens == 1


@pytest.mark.local
@pytest.mark.timeout(400)
async def test_an_agent_on_the_embedded_model() -> None:
    with Session("real") as session:
        model = session.model("local/gemma-3-270m", parameters={"max_output_tokens": 40, "temperature": 0})
        async with Agent(model).run_stream("Once upon a time") as result:
            texts = [text async for text in result.stream_text(delta=True, debounce_by=None)]
        assert "".join(texts) == await result.get_output()
        assert len(texts) > 1
        async with Agent(model, output_type=NativeOutput(Opinion)).run_stream("I love it.") as typed:
            values = [value async for value in typed.stream_output(debounce_by=None)]
        assert len(values) > 1
        assert values[-1] == await typed.get_output()
        assert session.runs()["status"].tolist() == ["SUCCEEDED"] * 2
        assert session.runs()["first_token_ms"].notna().all()
