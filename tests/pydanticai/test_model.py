"""What of Pydantic AI works on `PydanticAiLiteLLMModel`, and what is refused, by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import (
    Agent,
    AudioUrl,
    BinaryContent,
    BinaryImage,
    CallDeferred,
    DeferredToolRequests,
    DeferredToolResults,
    DocumentUrl,
    ImageUrl,
    ModelRetry,
    NativeOutput,
    PromptedOutput,
    TextOutput,
    Tool,
    ToolOutput,
    VideoUrl,
)
from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelRequestTimeout,
    OutputTokenLimitExceeded,
    UnexpectedModelBehavior,
    UserError,
)
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    RetryFeedbackPart,
    RetryInfo,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.native_tools import CodeExecutionTool, WebSearchTool
from pydantic_ai.settings import ModelSettings
from pydantic_ai.toolsets import FunctionToolset
from pydantic_ai.usage import UsageLimits

from llmkit.errors import LLMContentBlocked, LLMOutputTruncated, LLMReasoningExhausted, LLMUnsupported
from llmkit.ports import ClientReply
from llmkit.pydanticai import PydanticAiLiteLLMModel, Reader
from llmkit.pydanticai.request_fields import CARRIED_SETTINGS, OTHERS_SETTINGS
from llmkit.testing.scripted_client import ScriptedClient, reply
from llmkit.types import Attachment, LLMRequest, TokenUsage, ToolCall
from tests.support.images import PDF, png
from tests.support.scripted_services import CONTEXT, scripted_service

Answers = Any


class Label(BaseModel):
    """A label."""

    label: str


LABEL = reply('{"label": "x"}')


def calls(*calls_: tuple[str, dict[str, Any]]) -> ClientReply:
    """An answer that calls tools."""
    made = tuple(ToolCall(id=f"c{n}", name=name, arguments=json.dumps(args)) for n, (name, args) in enumerate(calls_))
    return ClientReply(text="", tool_calls=made, finish_reason="tool_calls", usage=TokenUsage(), response_model=None)


def scripted(*answers: Answers, **options: Any) -> tuple[PydanticAiLiteLLMModel, ScriptedClient]:
    service, client, _ = scripted_service(answers)
    return PydanticAiLiteLLMModel(service, context=CONTEXT, **options), client


def sent(client: ScriptedClient, number: int = -1) -> LLMRequest:
    return client.calls[number][1]


def add(a: int, b: int) -> int:
    """Sum."""
    return a + b


async def later(city: str) -> str:
    """Weather."""
    await asyncio.sleep(0)
    return f"sunny in {city}"


def shout(text: str) -> str:
    return text.upper()


def as_dict(label: Label) -> dict[str, str]:
    return {"found": label.label}


# --- what works ---------------------------------------------------------------------------------------------------

CALL_RESULT = calls(("final_result", {"label": "x"}))

WORKS: dict[str, tuple[tuple[ClientReply, ...], Any, Any]] = {
    "text": ((reply("hi"),), str, "hi"),
    "text function": ((reply("hi"),), TextOutput(shout), "HI"),
    "model": ((LABEL,), Label, Label(label="x")),
    "native output": ((LABEL,), NativeOutput(Label), Label(label="x")),
    "native output of several": (
        (reply('{"result": {"kind": "Label", "data": {"label": "x"}}}'),),
        NativeOutput([Label, int]),
        Label(label="x"),
    ),
    "prompted output": ((LABEL,), PromptedOutput(Label), Label(label="x")),
    "tool output": ((CALL_RESULT,), ToolOutput(Label), Label(label="x")),
    "tool output of several": (
        (calls(("final_result_int", {"response": 3})),),
        [ToolOutput(Label), ToolOutput(int)],
        3,
    ),
    "output function": ((reply('{"label": {"label": "x"}}'),), NativeOutput(as_dict), {"found": "x"}),
    "scalar": ((reply('{"response": 3}'),), int, 3),
    "text or a model": ((CALL_RESULT,), [str, ToolOutput(Label)], Label(label="x")),
}


@pytest.mark.parametrize("name", WORKS)
async def test_an_output_of_this_kind_works(name: str) -> None:
    answers, output_type, wanted = WORKS[name]
    model, _ = scripted(*answers)
    found: Any = await Agent(model, output_type=output_type).run("q")
    assert found.output == wanted


async def test_an_agents_near_json_is_repaired_where_it_asks_for_that() -> None:
    model, client = scripted(reply("{'label': 'x',}"))
    reader = Reader()
    agent = Agent(model, output_type=Label, capabilities=[reader])
    assert (await agent.run("q")).output == Label(label="x")
    assert (reader.is_repaired, len(client.calls)) == (True, 1)


async def test_no_answer_may_be_an_answer() -> None:
    model, _ = scripted(reply('{"result": {"kind": "None", "data": {"response": null}}}'))
    assert (await Agent(model, output_type=NativeOutput([Label, type(None)])).run("q")).output is None


async def test_messages_arrive_in_order() -> None:
    """Instructions, system prompts and user messages."""
    model, client = scripted(reply())
    agent = Agent(model, system_prompt="S", instructions="I")

    @agent.instructions
    def dynamic() -> str:
        return "D"

    await agent.run(["U1", "U2"])
    assert [(m.role, m.content) for m in sent(client).messages] == [
        ("system", "S"),
        ("system", "I"),
        ("system", "D"),
        ("user", "U1\n\nU2"),
    ]


async def test_settings_of_agent_model_and_run_arrive() -> None:
    model, client = scripted(reply(), settings=ModelSettings(seed=7, temperature=1.0), parameters={"profile": "fast"})
    agent = Agent(model, model_settings=ModelSettings(temperature=0.5, max_tokens=9))
    await agent.run("q", model_settings=ModelSettings(stop_sequences=["\n"], timeout=5))
    request = sent(client)
    assert (request.temperature, request.max_output_tokens, request.seed) == (0.5, 9, 7)
    assert (request.stop, request.timeout_s, request.profile) == (("\n",), 5.0, "fast")


@pytest.mark.parametrize("setting", [{"parallel_tool_calls": True}, {"cache": True}, {"top_p": None}])
async def test_settings_that_change_nothing_are_let_through(setting: dict[str, Any]) -> None:
    model, _ = scripted(reply())
    assert (await Agent(model).run("q", model_settings=ModelSettings(**setting))).output == "ok"


async def test_a_deadline_of_pydantic_ai_is_kept() -> None:
    service, client, _ = scripted_service([reply()])
    client._latency_s = 5
    with pytest.raises(ModelRequestTimeout):
        await Agent(PydanticAiLiteLLMModel(service, context=CONTEXT)).run(
            "q", model_settings=ModelSettings(request_timeout=0.05)
        )


async def test_tools_plain_async_and_retried_in_one_answer() -> None:
    model, client = scripted(
        calls(("add", {"a": 1, "b": 2}), ("later", {"city": "Rome"}), ("fussy", {})), reply("done")
    )
    agent = Agent(model, tools=[add, later])

    @agent.tool_plain(retries=2)
    def fussy() -> str:
        raise ModelRetry("not like this")

    assert (await agent.run("q")).output == "done"
    returned = [m for m in sent(client).messages if m.role == "tool"]
    assert [(m.tool_call_id, m.tool_name) for m in returned] == [("c0", "add"), ("c1", "later"), ("c2", "fussy")]
    assert (returned[0].content, returned[1].content) == ("3", "sunny in Rome")
    assert "not like this" in returned[2].content


async def test_a_tool_call_that_is_not_json_goes_back_as_an_object() -> None:
    broken = ClientReply("", (ToolCall(id="c", name="add", arguments="{a: 1"),), "tool_calls", TokenUsage(), None)
    model, client = scripted(broken, reply("done"))
    assert (await Agent(model, tools=[add]).run("q")).output == "done"
    assert json.loads(sent(client).messages[1].tool_calls[0].arguments) == {"INVALID_JSON": "{a: 1"}


@pytest.mark.parametrize(
    ("choice", "names", "arrives"),
    [
        ("auto", {"add", "later"}, "auto"),
        ("none", set(), None),
        ("required", {"add", "later"}, "required"),
        (["add"], {"add"}, "add"),
        (["add", "later"], {"add", "later"}, "required"),
    ],
)
async def test_tool_choice(choice: Any, names: set[str], arrives: Any) -> None:
    model, client = scripted(reply("done"))
    parameters = ModelRequestParameters(function_tools=[Tool(add).tool_def, Tool(later).tool_def])
    messages = [ModelRequest.user_text_prompt("q")]
    await model_request(
        model, messages, model_settings=ModelSettings(tool_choice=choice), model_request_parameters=parameters
    )
    request = sent(client)
    assert {tool.name for tool in request.tools} == names
    assert getattr(request.tool_choice, "name", request.tool_choice) == arrives


async def test_an_external_tool_is_deferred_and_resumed() -> None:
    model, client = scripted(calls(("ask", {"q": "?"})), reply("done"))

    def ask(q: str) -> str:
        raise CallDeferred

    agent: Agent[None, Any] = Agent(model, tools=[ask], output_type=[str, DeferredToolRequests])
    first = await agent.run("q")
    (call,) = first.output.calls
    results = DeferredToolResults(calls={call.tool_call_id: "42"})
    second = await agent.run(message_history=first.all_messages(), deferred_tool_results=results)
    assert second.output == "done"
    assert sent(client).messages[-1].content == "42"


async def test_a_tool_that_needs_approval_waits_for_it() -> None:
    model, _ = scripted(calls(("add", {"a": 1, "b": 2})), reply("done"))
    tool = Tool(add, requires_approval=True)
    agent: Agent[None, Any] = Agent(model, tools=[tool], output_type=[str, DeferredToolRequests])
    first = await agent.run("q")
    (call,) = first.output.approvals
    results = DeferredToolResults(approvals={call.tool_call_id: True})
    assert (await agent.run(message_history=first.all_messages(), deferred_tool_results=results)).output == "done"


async def test_toolsets_usage_limits_and_output_validators() -> None:
    model, client = scripted(calls(("add", {"a": 1, "b": 2})), reply("no"), reply("yes"))
    agent = Agent(model, toolsets=[FunctionToolset([add])], retries=2)

    @agent.output_validator
    def agree(text: str) -> str:
        if text != "yes":
            raise ModelRetry("say yes")
        return text

    found = await agent.run("q", usage_limits=UsageLimits(request_limit=3))
    assert (found.output, found.usage.requests) == ("yes", 3)
    assert "say yes" in sent(client).messages[-1].content


async def test_usage_and_finish_reason_are_told() -> None:
    usage = TokenUsage(
        input_tokens=10, output_tokens=7, total_tokens=17, cached_input_tokens=4, reasoning_tokens=5, estimated=False
    )
    model, _ = scripted(ClientReply("hi", (), "stop", usage, "m-1"))
    found = await Agent(model).run("q")
    assert (found.usage.input_tokens, found.usage.output_tokens, found.usage.cache_read_tokens) == (10, 7, 4)
    assert found.usage.details["reasoning_tokens"] == 5
    last = found.all_messages()[-1]
    assert isinstance(last, ModelResponse)
    assert (last.finish_reason, last.model_name) == ("stop", "m-1")
    assert last.provider_details is not None
    assert last.provider_details["served_from"] == "provider"


async def test_a_free_text_that_the_callers_limit_cut_is_an_answer() -> None:
    model, _ = scripted(ClientReply("half of it", (), "length", TokenUsage(), None))
    assert (await Agent(model).run("q", model_settings=ModelSettings(max_tokens=3))).output == "half of it"


async def test_retries_in_both_shapes_and_hidden_reasoning_in_a_history() -> None:
    model, client = scripted(reply())
    history = [
        ModelRequest(parts=[SystemPromptPart("S"), UserPromptPart("q")]),
        ModelResponse(parts=[ThinkingPart("hm"), TextPart("a"), ToolCallPart("add", {"a": 1}, "c1")]),
        ModelRequest(
            parts=[
                ToolReturnPart("add", "wrong", "c1", outcome="retried"),
                RetryFeedbackPart("again", retry=RetryInfo(cause="model_retry")),
            ]
        ),
    ]
    await model.request(list(history), None, ModelRequestParameters())
    told = [(m.role, m.content) for m in sent(client).messages]
    assert told[:3] == [("system", "S"), ("user", "q"), ("assistant", "a")]
    assert told[3][0] == "tool"
    assert "wrong" in told[3][1]
    assert told[4][0] == "user"
    assert "again" in told[4][1]


@pytest.mark.filterwarnings("ignore::pydantic_ai.exceptions.PydanticAIDeprecationWarning")
async def test_the_older_retry_part_is_understood() -> None:
    from pydantic_ai.messages import RetryPromptPart

    model, client = scripted(reply())
    parts = [RetryPromptPart("no", tool_name="add", tool_call_id="c1"), RetryPromptPart("once more")]
    call = ModelResponse(parts=[ToolCallPart("add", {"a": 1}, "c1")])
    await model.request([ModelRequest.user_text_prompt("q"), call, ModelRequest(parts=parts)], None, _plain())
    assert [m.role for m in sent(client).messages] == ["user", "assistant", "tool", "user"]


def _plain() -> ModelRequestParameters:
    return ModelRequestParameters()


# --- refusals and stops -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LLMContentBlocked, ContentFilterError),
        (LLMOutputTruncated, OutputTokenLimitExceeded),
        (LLMReasoningExhausted, OutputTokenLimitExceeded),
    ],
)
async def test_agents_raise_pydantic_ais_exceptions(ours: type[Exception], theirs: type[Exception]) -> None:
    """Ours is the cause."""
    model, _ = scripted(ours("what happened"))
    with pytest.raises(theirs, match="what happened") as caught:
        await Agent(model).run("q")
    assert isinstance(caught.value.__cause__, ours)
    assert isinstance(caught.value, UnexpectedModelBehavior)


# --- what is refused ----------------------------------------------------------------------------------------------

ADDRESSES = {
    "ImageUrl": ImageUrl("https://example.com/a.png"),
    "AudioUrl": AudioUrl("https://example.com/a.mp3"),
    "VideoUrl": VideoUrl("https://example.com/a.mp4"),
    "DocumentUrl": DocumentUrl("https://example.com/a.pdf"),
}
FILES = {
    "BinaryContent of audio/wav": BinaryContent(b"RIFF....WAVE", media_type="audio/wav"),
    "BinaryImage of image/gif": BinaryImage(b"GIF89a", media_type="image/gif"),
    "BinaryContent of image/png with vendor_metadata": BinaryContent(
        png(), media_type="image/png", vendor_metadata={"detail": "low"}
    ),
}


@pytest.mark.parametrize("name", ADDRESSES)
async def test_the_address_of_a_file_is_refused_by_name_and_not_fetched(name: str) -> None:
    model, client = scripted(reply())
    with pytest.raises(LLMUnsupported, match=f"cannot send a {name} to a model, and fetches nothing"):
        await Agent(model).run(["look", ADDRESSES[name]])
    assert not client.calls


@pytest.mark.parametrize("name", FILES)
async def test_a_file_that_cannot_be_sent_is_refused_by_name(name: str) -> None:
    model, client = scripted(reply())
    with pytest.raises(LLMUnsupported, match=name):
        await Agent(model).run(["look", FILES[name]])
    assert not client.calls


async def test_images_and_documents_of_a_prompt_arrive_beside_its_text() -> None:
    model, client = scripted(reply())
    files = [BinaryImage(png(), media_type="image/png"), BinaryContent(PDF, media_type="application/pdf")]
    await Agent(model).run(["look at", *files, "and say what it is"])
    (message,) = sent(client).messages
    assert message.content == "look at\n\nand say what it is"
    assert message.attachments == (Attachment.of(png()), Attachment.of(PDF))
    assert client.calls[0][0].provider == "gemini"


async def test_files_that_tools_return_follow_their_results() -> None:
    model, client = scripted(calls(("draw", {}), ("add", {"a": 1, "b": 2}), ("sing", {})), reply("done"))

    def draw() -> BinaryContent:
        return BinaryContent(png(), media_type="image/png")

    def sing() -> BinaryContent:
        return BinaryContent(b"RIFF....WAVE", media_type="audio/wav")

    assert (await Agent(model, tools=[draw, add, sing]).run("q")).output == "done"
    drawn, added, sung, shown = sent(client).messages[-4:]
    assert [message.role for message in (drawn, added, sung, shown)] == ["tool", "tool", "tool", "user"]
    assert (drawn.tool_name, added.content) == ("draw", "3")
    assert shown.attachments == (Attachment.of(png()),)
    assert "draw" in shown.content
    assert "cannot read audio files" in sung.content


EVERY_SETTING = sorted(ModelSettings.__annotations__)
VALUES: dict[str, Any] = {
    "parallel_tool_calls": False,
    "thinking": "high",
    "extra_headers": {"x": "y"},
    "logit_bias": {"x": 1},
}


@pytest.mark.parametrize("name", sorted(set(EVERY_SETTING) - CARRIED_SETTINGS - OTHERS_SETTINGS))
async def test_every_setting_that_cannot_be_carried_is_refused_by_name(name: str) -> None:
    model, client = scripted(reply())
    with pytest.raises(UserError, match=f"llmkit cannot carry the setting {name}"):
        await Agent(model).run("q", model_settings=ModelSettings(**{name: VALUES.get(name, 1)}))
    assert not client.calls


async def _with_bad_timeout(model: PydanticAiLiteLLMModel) -> None:
    import httpx

    await Agent(model).run("q", model_settings=ModelSettings(timeout=httpx.Timeout(3)))  # type: ignore[typeddict-item]


async def _broken_tool(model: PydanticAiLiteLLMModel) -> None:
    tool = Tool.from_schema(add, name="add", description="", json_schema={"type": "object", "properties": {"a": 5}})
    await Agent(model, tools=[tool]).run("q")


async def _tool_without_an_object(model: PydanticAiLiteLLMModel) -> None:
    tool = Tool.from_schema(add, name="add", description="", json_schema={"type": "string"})
    await Agent(model, tools=[tool]).run("q")


REFUSED: dict[str, tuple[Callable[[PydanticAiLiteLLMModel], Any], type[Exception], str]] = {
    "web search": (lambda m: Agent(m, capabilities=[_native(WebSearchTool())]).run("q"), UserError, "WebSearchTool"),
    "code": (lambda m: Agent(m, capabilities=[_native(CodeExecutionTool())]).run("q"), UserError, "CodeExecutionTool"),
    "image output": (lambda m: Agent(m, output_type=BinaryImage).run("q"), UserError, "Image output is not supported"),
    "timeout object": (_with_bad_timeout, UserError, "timeout as a number of seconds"),
    "temperature": (
        lambda m: Agent(m).run("q", model_settings=ModelSettings(temperature=9)),
        UserError,
        "temperature: Input should be less than or equal to 2",
    ),
    "tool choice": (
        lambda m: Agent(m).run("q", model_settings=ModelSettings(tool_choice="sometimes")),  # type: ignore[typeddict-item]
        UserError,
        "tool_choice",
    ),
    "half a character": (lambda m: Agent(m).run("a\ud800"), LLMUnsupported, "half of a character"),
    "broken tool": (_broken_tool, UserError, "The schema of the tool 'add' cannot be sent: a is not a schema but 5"),
    "scalar tool": (_tool_without_an_object, UserError, "schema"),
    "token count": (lambda m: m.count_tokens([], None, _plain()), NotImplementedError, "count"),
}


def _native(tool: Any) -> Any:
    from pydantic_ai.capabilities import NativeTool

    return NativeTool(tool)


@pytest.mark.parametrize("name", REFUSED)
async def test_unsupported_settings_are_refused(name: str) -> None:
    """The error names the setting, and nothing is sent."""
    act, kind, said = REFUSED[name]
    model, client = scripted(reply())
    with pytest.raises(kind, match=said):
        await act(model)
    assert not client.calls
