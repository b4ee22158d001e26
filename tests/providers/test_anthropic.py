"""Messages: what is sent to Anthropic, what is made of its answers, and one request for each attempt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from llmkit import LLMRequest, Message, Session
from llmkit.canonical_json import sha256_of
from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMContentBlocked, LLMError, LLMUnsupported
from llmkit.ports import AttemptLog, ClientReply
from llmkit.providers import load_endpoints
from llmkit.settings import load_settings
from llmkit.testing import AnthropicServer, Fault, Reply
from llmkit.testing.anthropic import AnthropicModel
from llmkit.types import Attempt, ResponseFormat, Route
from tests.support.images import PDF, png
from tests.support.request_matrix import FLAT, HISTORY, REQUESTS, WEATHER

KEY = "sk-ant-canary000000000000000000001"
NATIVE, OLDER = "claude-sonnet-4-5", "claude-3-haiku-20240307"
SCHEMA = ResponseFormat(json_schema=FLAT)


@pytest.fixture(scope="module")
def server() -> Iterator[AnthropicServer]:
    models = [NATIVE, AnthropicModel(OLDER, structured_output=False), AnthropicModel("claude-opus-4-7", sampling=False)]
    with AnthropicServer(models=models, api_key=KEY) as server:
        yield server


class Asking:
    """Sends requests through a client and keeps what it recorded."""

    def __init__(self, server: AnthropicServer) -> None:
        self.server = server
        self.attempts: tuple[Attempt, ...] = ()

    async def ask(self, reply: Reply | Fault | None = None, model: str = NATIVE, **fields: Any) -> ClientReply:
        self.server.clear()
        self.server.script(reply or Reply())
        own = load_settings(anthropic_api_base=self.server.url, anthropic_api_key=KEY, max_retries=0)
        client, log = LiteLLMClient(own, providers=load_endpoints(own)), AttemptLog()
        try:
            answer = await client.call(
                Route.parse(f"anthropic/{model}"), LLMRequest(**{"messages": "Hi", **fields}), log
            )
        finally:
            await client.close()
            self.attempts = log.attempts
        assert isinstance(answer, ClientReply)
        return answer

    @property
    def sent(self) -> Any:
        (call,) = self.server.calls
        return call.json


@pytest.fixture
def asking(server) -> Asking:
    return Asking(server)


@pytest.mark.parametrize("model", [NATIVE, OLDER])
@pytest.mark.parametrize("name", [name for name in REQUESTS if name != "long"])
async def test_each_attempt_is_one_request(asking, name, model):
    with suppress(LLMError):
        await asking.ask(model=model, **REQUESTS[name])
    assert len(asking.server.calls) == len(asking.attempts)


async def test_a_limit_and_the_key_are_always_sent(asking):
    await asking.ask()
    assert asking.sent["max_tokens"] == 4096
    assert asking.server.calls[0].headers["x-api-key"] == KEY
    assert "_skip_responses_api_bridge" not in asking.sent
    await asking.ask(max_output_tokens=7)
    assert asking.sent["max_tokens"] == 7


async def test_a_schema_is_sent_as_structured_output_and_hashed_as_sent(asking):
    answer = await asking.ask(response_format=SCHEMA)
    schema = asking.sent["output_format"]["schema"]
    assert schema["properties"]["b"] == {"description": "Note: minimum value: 0.", "type": "integer", "default": 1}
    assert "structured-outputs" in asking.server.calls[0].headers["anthropic-beta"]
    assert asking.attempts[0].schema_sha256 == sha256_of(schema)
    assert answer.text == '{"a": ""}'


async def test_an_older_model_is_made_to_call_a_tool_of_the_schema(asking):
    answer = await asking.ask(model=OLDER, response_format=SCHEMA)
    (tool,) = asking.sent["tools"]
    assert asking.sent["tool_choice"] == {"type": "tool", "name": tool["name"]}
    assert asking.attempts[0].schema_sha256 == sha256_of(tool["input_schema"])
    assert (answer.text, answer.tool_calls, answer.finish_reason) == ('{"a": ""}', (), "stop")


async def test_any_json_is_asked_for_in_words(asking):
    await asking.ask(Reply("{}"), response_format=ResponseFormat())
    assert [block["text"] for block in asking.sent["system"]] == ["Answer with one JSON object and nothing else."]


async def test_system_messages_come_first_as_they_are(asking):
    turns = [("user", "A"), ("system", "B"), ("user", "C"), ("system", "D")]
    await asking.ask(messages=[Message(role=role, content=text) for role, text in turns])
    assert [block["text"] for block in asking.sent["system"]] == ["B", "D"]
    assert [block["text"] for block in asking.sent["messages"][0]["content"]] == ["A", "C"]
    await asking.ask(messages=[Message(role="system", content="B")])
    assert asking.sent["messages"][0]["role"] == "user"


async def test_tools_and_their_history_come_back_whole(asking):
    answer = await asking.ask(messages=HISTORY, tools=(WEATHER,), tool_choice="required")
    assert [block["type"] for block in asking.sent["messages"][1]["content"]] == ["text", "tool_use", "tool_use"]
    assert asking.sent["tool_choice"] == {"type": "any"}
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [("weather", '{"city": ""}')]
    assert answer.finish_reason == "tool_calls"


async def test_images_and_documents_are_blocks(asking):
    from llmkit.attachment import collect_attachments

    attachments = collect_attachments(images=png(), files=PDF)
    await asking.ask(messages=[Message(role="user", content="What?", attachments=attachments)])
    assert [block["type"] for block in asking.sent["messages"][0]["content"]] == ["image", "document", "text"]


async def test_cached_tokens_are_part_of_the_input(asking):
    answer = await asking.ask(Reply("Yes.", input_tokens=100, cached_tokens=40, output_tokens=30))
    usage = answer.usage
    assert (usage.input_tokens, usage.cached_input_tokens, usage.output_tokens) == (100, 40, 30)
    assert not usage.estimated
    assert answer.cost_usd > 0


async def test_counts_that_were_not_sent_are_unknown(asking):
    answer = await asking.ask(Reply("Yes.", no_usage=True))
    assert (answer.text, answer.usage.input_tokens, answer.usage.output_tokens) == ("Yes.", None, None)


async def test_a_refusal_is_a_block(asking):
    with pytest.raises(LLMContentBlocked, match="the model refuses"):
        await asking.ask(Fault.refusal())
    assert asking.attempts[0].usage.input_tokens == 1


async def test_a_stop_sequence_ends_the_answer(asking):
    answer = await asking.ask(Reply("one END two"), stop=("END",))
    assert (answer.text, answer.finish_reason) == ("one ", "stop")


async def test_a_parameter_that_the_model_does_not_take_is_named(asking):
    with pytest.raises(LLMUnsupported, match="temperature") as caught:
        await asking.ask(model="claude-opus-4-7", temperature=0.5)
    assert "litellm" not in str(caught.value).lower()
    assert asking.attempts == ()


def test_a_session_has_it_as_soon_as_it_has_a_key_and_refuses_a_seed(server):
    server.clear()
    server.script(Reply("Yes."))
    with Session("claude", anthropic_api_base=server.url, anthropic_api_key=KEY) as session:
        assert session.chat("Hi", route=f"anthropic/{NATIVE}").text == "Yes."
        with pytest.raises(LLMUnsupported, match="it takes no seed"):
            session.chat("Hi", route=f"anthropic/{NATIVE}", seed=1)


@pytest.mark.parametrize(
    "left_out",
    [{"model"}, {"stop_reason"}, {"id", "type", "role"}, {"usage"}, {"model", "stop_reason", "usage", "stop_sequence"}],
    ids=lambda names: "+".join(sorted(names)),
)
async def test_a_reply_that_lacks_fields_is_an_answer(
    asking: Asking, monkeypatch: pytest.MonkeyPatch, left_out
) -> None:
    make_answer = AnthropicServer._make_answer

    def leave_out(self: AnthropicServer, *arguments: Any, **options: Any) -> Any:
        answer = make_answer(self, *arguments, **options)
        kept = {name: value for name, value in json.loads(answer.body).items() if name not in left_out}
        odd = [None, 7, {"type": 5}, {"type": "text"}, {"type": "tool_use", "id": "x"}]
        return replace(answer, pieces=[json.dumps({**kept, "content": [*odd, *kept["content"]]}).encode()])

    monkeypatch.setattr(AnthropicServer, "_make_answer", leave_out)
    answer = await asking.ask(Reply("Yes."))
    assert (answer.text, answer.tool_calls, answer.finish_reason) == ("Yes.", (), "stop")
    assert answer.response_model == (None if "model" in left_out else NATIVE)
    assert (answer.usage.output_tokens is None) == ("usage" in left_out)
