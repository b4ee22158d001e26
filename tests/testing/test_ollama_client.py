"""The official `ollama` client talks to the stand-in, so that its shapes are not our invention."""

import json
import time

import httpx
import ollama
import pytest
from pydantic import BaseModel

from llmkit.testing import DEFAULT_TEXT, Fault, OllamaModel, OllamaServer, Reply, ToolCall, Usage

MODEL = "llama3.2"
HELLO = [{"role": "user", "content": "hello out there"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a town",
        "parameters": {"type": "object", "required": ["town"], "properties": {"town": {"type": "string"}}},
    },
}


class Town(BaseModel):
    name: str
    inhabitants: int


@pytest.fixture
def server():
    with OllamaServer() as server:
        yield server


@pytest.fixture
def client(server):
    with ollama.Client(server.url) as client:
        yield client


def test_chat(server, client):
    reply = client.chat(MODEL, HELLO)
    assert (reply.message.role, reply.message.content) == ("assistant", DEFAULT_TEXT)
    assert (reply.model, reply.done, reply.done_reason) == (MODEL, True, "stop")
    assert (reply.prompt_eval_count, reply.eval_count) == (3, 6)
    assert reply.total_duration > reply.load_duration > 0
    assert min(reply.prompt_eval_duration, reply.eval_duration) > 0
    assert server.usage == Usage(1, 3, 6)
    assert [call.json["messages"] for call in server.calls] == [HELLO]


def test_chat_stream(server, client):
    server.script(Reply("one two  three\nfour"))
    chunks = list(client.chat(MODEL, HELLO, stream=True))
    assert "".join(chunk.message.content for chunk in chunks) == "one two  three\nfour"
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert (chunks[-1].done_reason, chunks[-1].eval_count) == ("stop", 4)
    assert chunks[0].eval_count is None
    assert server.usage.output_tokens == 4


async def test_async_chat_and_stream(server):
    async with ollama.AsyncClient(server.url) as client:
        assert (await client.chat(MODEL, HELLO)).message.content == DEFAULT_TEXT
        chunks = [chunk async for chunk in await client.chat(MODEL, HELLO, stream=True)]
    assert "".join(chunk.message.content for chunk in chunks) == DEFAULT_TEXT
    assert server.usage.answers == 2


def test_list_show_ps(server, client):
    server.models = [
        "llama3.2",
        OllamaModel("gemma3:270m", family="gemma3", context_length=32_768, capabilities=("completion",)),
    ]
    listed = {model.model: model for model in client.list().models}
    assert set(listed) == {"llama3.2:latest", "gemma3:270m"}
    assert len(listed["gemma3:270m"].digest) == 64
    assert listed["gemma3:270m"].modified_at.tzinfo is not None
    shown = client.show("gemma3:270m")
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo["gemma3.context_length"] == 32_768
    assert shown.modelinfo["general.architecture"] == shown.details.family == "gemma3"
    assert shown.template
    assert client.ps().models == []
    client.chat(MODEL, HELLO)
    assert [model.model for model in client.ps().models] == ["llama3.2:latest"]


def test_a_model_created_anew_has_another_digest(server, client):
    before = client.list().models[0].digest
    server.models = [OllamaModel(MODEL, template="{{ .Prompt }}")]
    assert client.list().models[0].digest != before


def test_schema(server, client):
    reply = client.chat(MODEL, HELLO, format=Town.model_json_schema())
    assert Town.model_validate_json(reply.message.content) == Town(name="", inhabitants=0)
    assert json.loads(client.chat(MODEL, HELLO, format="json").message.content) == {}
    server.ignores_schema = True
    assert client.chat(MODEL, HELLO, format=Town.model_json_schema()).message.content == DEFAULT_TEXT
    server.script("Sure! Here it is.")
    assert client.chat(MODEL, HELLO, format=Town.model_json_schema()).message.content == "Sure! Here it is."


@pytest.mark.parametrize("stream", [False, True])
def test_tools(server, client, stream):
    server.script(Reply(tool_calls=[ToolCall("weather", {"town": "Ulm"}), ToolCall("weather", {"town": "Bern"})]))
    reply = client.chat(MODEL, HELLO, tools=[WEATHER], stream=stream)
    parts = list(reply) if stream else [reply]
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("weather", {"town": "Ulm"}),
        ("weather", {"town": "Bern"}),
    ]
    assert "".join(part.message.content for part in parts) == ""
    assert server.usage.output_tokens == 2


def test_tools_on_a_model_without_them(server, client):
    server.models = [OllamaModel(MODEL, capabilities=("completion",))]
    with pytest.raises(ollama.ResponseError, match="does not support tools") as caught:
        client.chat(MODEL, HELLO, tools=[WEATHER])
    assert caught.value.status_code == 400
    assert server.usage == Usage()


def test_unknown_model(server, client):
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat("nope", HELLO)
    assert caught.value.status_code == 404
    assert caught.value.error == "model 'nope' not found"
    server.version = "0.6.5"
    with pytest.raises(ollama.ResponseError, match='model "nope" not found, try pulling it first'):
        client.chat("nope", HELLO)
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found"):
        client.show("nope")


def test_generate(server, client):
    reply = client.generate(MODEL, "why is it so", system="be brief")
    assert (reply.response, reply.done_reason) == (DEFAULT_TEXT, "stop")
    assert (reply.prompt_eval_count, reply.eval_count) == (6, 6)
    assert "".join(chunk.response for chunk in client.generate(MODEL, "why", stream=True)) == DEFAULT_TEXT
    assert client.generate(MODEL, "").done_reason == "load"
    assert client.generate(MODEL, "", keep_alive=0).done_reason == "unload"
    assert server.usage.answers == 2


def test_num_predict_cuts_the_answer(server, client):
    reply = client.chat(MODEL, HELLO, options={"num_predict": 3})
    assert (reply.message.content, reply.done_reason, reply.eval_count) == ("This is the", "length", 3)
    assert server.usage.output_tokens == 3


def test_num_ctx_cuts_the_prompt_silently(server, client):
    long = [{"role": "user", "content": "word " * 6002}]
    assert client.chat(MODEL, long, options={"num_ctx": 512}).prompt_eval_count == 512
    assert client.chat(MODEL, long).prompt_eval_count == 4096
    assert client.ps().models[0].context_length == 4096
    assert client.chat(MODEL, long, options={"num_ctx": 8192}).prompt_eval_count == 6002
    server.version = "0.6.5"
    assert client.chat(MODEL, long).prompt_eval_count == 2048


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(server, client, stream):
    server.script(Reply("one two three", logprobs=[-0.1, -0.5]))
    reply = client.chat(MODEL, HELLO, logprobs=True, top_logprobs=2, stream=stream)
    tokens = [token for part in (reply if stream else [reply]) for token in part.logprobs or ()]
    assert [(token.token, token.logprob) for token in tokens] == [("one", -0.1), (" two", -0.5), (" three", -0.5)]
    assert {len(token.top_logprobs) for token in tokens} == {2}


def test_old_messages_go_first(client):
    talk = [
        {"role": "system", "content": "be kind " * 5},
        {"role": "user", "content": "old " * 50},
        {"role": "assistant", "content": "older " * 20},
        {"role": "user", "content": "new " * 30},
    ]
    assert client.chat(MODEL, talk, options={"num_ctx": 64}).prompt_eval_count == 10 + 20 + 30
    assert client.chat(MODEL, talk, options={"num_ctx": 50}).prompt_eval_count == 10 + 30
    assert client.chat(MODEL, talk, options={"num_ctx": 35}).prompt_eval_count == 35


def test_explicit_counts_thinking_and_no_usage(server, client):
    server.script(
        [
            Reply("yes", input_tokens=70, output_tokens=9, reasoning_tokens=8, thinking="let me see"),
            Reply("yes", no_usage=True),
            Reply("yes", model="other", finish_reason="load"),
        ]
    )
    first = client.chat(MODEL, HELLO)
    assert (first.prompt_eval_count, first.eval_count, first.message.thinking) == (70, 9, "let me see")
    second = client.chat(MODEL, HELLO)
    assert (second.prompt_eval_count, second.eval_count) == (None, None)
    third = client.chat(MODEL, HELLO)
    assert (third.model, third.done_reason) == ("other", "load")
    assert server.usage == Usage(2, 73, 10, 0, 8)


def test_errors_carry_their_status(server, client):
    server.script(
        [Fault.status(503), Fault.status(429, retry_after_s=1.2), Fault.invalid_key(), Fault.context_overflow()]
    )
    statuses = []
    for _ in range(4):
        with pytest.raises(ollama.ResponseError) as caught:
            client.chat(MODEL, HELLO)
        statuses.append(caught.value.status_code)
    assert statuses == [503, 429, 401, 400]


def test_a_bad_format_is_refused(client):
    with pytest.raises(ollama.ResponseError, match="invalid format") as caught:
        client._request(
            ollama.ChatResponse, "POST", "/api/chat", json={"model": MODEL, "messages": HELLO, "format": "xml"}
        )
    assert caught.value.status_code == 500


def test_faults_that_ollama_cannot_have(server):
    for fault in (Fault.safety_block(), Fault.delay(1, then=Fault.prompt_block()), Fault.daily_quota()):
        with pytest.raises(ValueError, match="this server's wire has no"):
            server.script(fault)


@pytest.mark.parametrize("stop", [["END", "four"], "END"])
def test_stop(server, client, stop):
    server.script("one two END three four")
    reply = client.chat(MODEL, HELLO, options={"stop": stop})
    assert (reply.message.content, reply.done_reason) == ("one two ", "stop")
    assert client.generate(MODEL, "hello", options={"stop": stop}).response == "one two "


@pytest.mark.parametrize("keep_alive", [0, "0", "0s"])
def test_a_model_that_is_not_kept_is_unloaded(client, keep_alive):
    client.chat(MODEL, HELLO)
    assert [model.model for model in client.ps().models] == ["llama3.2:latest"]
    client.chat(MODEL, HELLO, keep_alive=keep_alive)
    assert client.ps().models == []
    assert client.generate(MODEL, keep_alive=keep_alive).done_reason == "unload"


@pytest.mark.parametrize(
    ("keep_alive", "seconds"),
    [(None, 300), (90, 90), ("90s", 90), ("1h30m", 5400), (-1, 2**63 / 1e9), ("-1m", 2**63 / 1e9)],
)
def test_a_model_is_kept_as_long_as_it_is_asked(client, keep_alive, seconds):
    client.chat(MODEL, HELLO, keep_alive=keep_alive)
    (model,) = client.ps().models
    left = model.expires_at.timestamp() - time.time()
    assert seconds - 60 < left <= seconds + 1


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/show"])
def test_a_list_as_body_is_refused(server, path):
    assert httpx.post(server.url + path, json=[1], trust_env=False).status_code == 400
