"""The official `google-genai` client talks to the stand-in, so that its shapes are not our invention."""

import enum

import httpx
import pytest
from google import genai
from google.genai import errors, types
from pydantic import BaseModel, Field

from llmkit.testing import DEFAULT_TEXT, Fault, GeminiModel, GeminiServer, Reply, ToolCall, Usage

MODEL = "gemini-2.5-flash"
KEY = "key-of-this-test"


class Town(BaseModel):
    name: str
    inhabitants: int


@pytest.fixture
def server():
    with GeminiServer(api_key=KEY) as server:
        yield server


def open_client(server, key=KEY):
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=server.url))


@pytest.fixture
def client(server):
    with open_client(server) as client:
        yield client


def ask(client, **config):
    return client.models.generate_content(
        model=MODEL, contents="hello out there", config=types.GenerateContentConfig(**config)
    )


def test_generate(server, client):
    reply = ask(client, system_instruction="be brief")
    assert reply.text == DEFAULT_TEXT
    assert reply.candidates[0].finish_reason is types.FinishReason.STOP
    usage = reply.usage_metadata
    assert (usage.prompt_token_count, usage.candidates_token_count, usage.total_token_count) == (5, 6, 11)
    assert (usage.thoughts_token_count, usage.cached_content_token_count) == (None, None)
    assert (reply.model_version, bool(reply.response_id)) == (MODEL, True)
    assert server.usage == Usage(1, 5, 6)
    assert server.calls[0].headers["x-goog-api-key"] == KEY
    assert KEY not in repr(server.calls[0])


@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")  # the client's own
async def test_async_and_streams(server):
    client = open_client(server)
    async with client.aio as aio:
        assert (await aio.models.generate_content(model=MODEL, contents="hi")).text == DEFAULT_TEXT
        stream = await aio.models.generate_content_stream(model=MODEL, contents="hi")
        chunks = [chunk async for chunk in stream]
    client.close()
    assert "".join(chunk.text for chunk in chunks) == DEFAULT_TEXT
    assert len(chunks) == 6
    assert chunks[-1].candidates[0].finish_reason is types.FinishReason.STOP
    assert server.usage == Usage(2, 2, 12)


def test_an_error_in_the_middle_of_a_stream(server, client):
    server.script(Fault.stream_error(2, "overloaded", code=503))
    with pytest.raises(errors.ServerError, match="overloaded"):
        list(client.models.generate_content_stream(model=MODEL, contents="hi"))
    assert [call.outcome for call in server.calls] == ["broken"]


def test_counts(server, client):
    server.script(
        Reply("yes", input_tokens=100, cached_tokens=60, output_tokens=30, reasoning_tokens=20, thinking="let me see")
    )
    reply = ask(client, thinking_config=types.ThinkingConfig(include_thoughts=True))
    usage = reply.usage_metadata
    assert (usage.prompt_token_count, usage.cached_content_token_count) == (100, 60)
    assert (usage.candidates_token_count, usage.thoughts_token_count, usage.total_token_count) == (10, 20, 130)
    assert [part.thought for part in reply.parts] == [True, None]
    assert server.usage == Usage(1, 100, 30, 60, 20)
    assert len(ask(client).parts) == 1
    server.script(Reply("yes", no_usage=True))
    assert ask(client).usage_metadata is None
    assert server.usage.answers == 2


def test_schema(server, client):
    for config in ({"response_json_schema": Town.model_json_schema()}, {"response_schema": Town}):
        reply = ask(client, response_mime_type="application/json", **config)
        assert Town.model_validate_json(reply.text) == Town(name="", inhabitants=0)
    server.ignores_schema = True
    assert ask(client, response_mime_type="application/json", response_schema=Town).text == DEFAULT_TEXT


def weather_tool():
    schema = {"type": "object", "properties": {"town": {"type": "string", "minLength": 2}}, "required": ["town"]}
    function = types.FunctionDeclaration(name="weather", description="of a town", parameters_json_schema=schema)
    return types.Tool(function_declarations=[function])


def test_tools(server, client):
    server.script(
        Reply(tool_calls=[ToolCall("weather", {"town": "Ulm"}), ToolCall("weather", {"town": "Bern"}, id="b")])
    )
    reply = ask(client, tools=[weather_tool()])
    assert [(call.name, call.args, call.id) for call in reply.function_calls] == [
        ("weather", {"town": "Ulm"}, "call-0"),
        ("weather", {"town": "Bern"}, "b"),
    ]
    assert [bool(part.thought_signature) for part in reply.parts] == [True, False]
    assert server.usage.output_tokens == 2


def test_a_tool_that_must_be_called_is_called(client):
    mode = types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode="ANY"))
    reply = ask(client, tools=[weather_tool()], tool_config=mode)
    assert [(call.name, call.args) for call in reply.function_calls] == [("weather", {"town": "aa"})]


def test_limits(server, client):
    reply = ask(client, max_output_tokens=3)
    assert (reply.text, reply.candidates[0].finish_reason) == ("This is the", types.FinishReason.MAX_TOKENS)
    server.script(Reply("never seen", reasoning_tokens=50))
    reply = ask(client, max_output_tokens=20)
    assert reply.text is None
    assert reply.candidates[0].finish_reason is types.FinishReason.MAX_TOKENS
    assert (reply.usage_metadata.thoughts_token_count, reply.usage_metadata.candidates_token_count) == (20, None)
    server.models = [GeminiModel(MODEL, input_token_limit=2)]
    with pytest.raises(errors.ClientError, match=r"input token count \(3\) exceeds"):
        ask(client)


def test_models_and_counting(server, client):
    assert "models/gemini-2.5-flash" in [model.name for model in client.models.list()]
    model = client.models.get(model=MODEL)
    assert (model.input_token_limit, model.output_token_limit) == (1_048_576, 65_536)
    assert client.models.count_tokens(model=MODEL, contents="one two three").total_tokens == 3
    with pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model="gemini-0", contents="hi")
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")
    assert server.usage == Usage()


def test_keys(server):
    with open_client(server, "wrong") as client, pytest.raises(errors.ClientError) as caught:
        ask(client)
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
    assert caught.value.message == "API key not valid. Please pass a valid API key."
    assert caught.value.details["error"]["details"][0]["reason"] == "API_KEY_INVALID"


@pytest.mark.parametrize(
    ("fault", "kind", "code", "status"),
    [
        (Fault.status(400), errors.ClientError, 400, "INVALID_ARGUMENT"),
        (Fault.status(403), errors.ClientError, 403, "PERMISSION_DENIED"),
        (Fault.status(429, retry_after_s=2), errors.ClientError, 429, "RESOURCE_EXHAUSTED"),
        (Fault.daily_quota(), errors.ClientError, 429, "RESOURCE_EXHAUSTED"),
        (Fault.status(500), errors.ServerError, 500, "INTERNAL"),
        (Fault.status(503), errors.ServerError, 503, "UNAVAILABLE"),
        (Fault.status(504), errors.ServerError, 504, "DEADLINE_EXCEEDED"),
        (Fault.context_overflow(), errors.ClientError, 400, "INVALID_ARGUMENT"),
        (Fault.invalid_key(), errors.ClientError, 400, "INVALID_ARGUMENT"),
    ],
)
def test_error_classes(server, client, fault, kind, code, status):
    server.script(fault)
    with pytest.raises(kind) as caught:
        ask(client)
    assert (caught.value.code, caught.value.status) == (code, status)


def test_quota_details(server, client):
    server.script([Fault.status(429, retry_after_s=2), Fault.daily_quota()])
    with pytest.raises(errors.ClientError) as per_minute:
        ask(client)
    quota, retry = per_minute.value.details["error"]["details"]
    assert "PerMinute" in quota["violations"][0]["quotaId"]
    assert retry["retryDelay"] == "2s"
    with pytest.raises(errors.ClientError) as per_day:
        ask(client)
    assert "PerDay" in per_day.value.details["error"]["details"][0]["violations"][0]["quotaId"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault.safety_block(), types.FinishReason.SAFETY),
        (Fault.recitation(), types.FinishReason.RECITATION),
        (Fault.malformed_tool_call(), types.FinishReason.MALFORMED_FUNCTION_CALL),
        (Fault.reasoning_ate_limit(), types.FinishReason.MAX_TOKENS),
    ],
)
def test_answers_that_say_nothing(server, client, fault, reason):
    server.script(fault)
    reply = ask(client)
    assert reply.text is None
    assert reply.candidates[0].finish_reason is reason
    assert reply.usage_metadata.total_token_count == server.usage.total_tokens > 0


def test_blocked_prompt_and_no_candidates(server, client):
    server.script([Fault.prompt_block(), Fault.no_candidates()])
    blocked = ask(client)
    assert blocked.prompt_feedback.block_reason is types.BlockedReason.PROHIBITED_CONTENT
    assert not blocked.candidates
    assert not ask(client).candidates
    assert server.usage == Usage(2, 6, 0)


class Label(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Review(BaseModel):
    tags: list[str] = Field(min_length=2)
    title: str = Field(min_length=3)
    score: int | str
    label: Label


def test_a_model_as_schema_is_obeyed(client):
    """The client sends its keywords in snake case: `min_items`, `min_length`, `any_of`."""
    reply = ask(client, response_mime_type="application/json", response_schema=Review)
    assert reply.parsed == Review(tags=["", ""], title="aaa", score=0, label=Label.GOOD)
    listed = ask(client, response_mime_type="application/json", response_schema=list[Review])
    assert listed.parsed == []


def test_an_enum_is_answered_without_quotes(server, client):
    reply = ask(client, response_mime_type="text/x.enum", response_schema=Label)
    assert (reply.text, reply.parsed) == ("good", Label.GOOD)
    server.script("bad")
    assert ask(client, response_mime_type="text/x.enum", response_schema=Label).parsed is Label.BAD


def test_stop_sequences(server, client):
    server.script("one two END three")
    reply = ask(client, stop_sequences=["three", "END"])
    assert (reply.text, reply.candidates[0].finish_reason) == ("one two ", types.FinishReason.STOP)


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_pages_of_models(server, client, size):
    listed = [model.name for model in client.models.list(config={"page_size": size})]
    assert listed == [f"models/{model.name}" for model in server.models]
    assert server.request_count == -(-len(server.models) // size)


def test_logprobs(server, client):
    server.script(Reply("one two three", logprobs=[-0.1, -0.5]))
    candidate = ask(client, response_logprobs=True, logprobs=2).candidates[0]
    chosen = [(token.token, token.log_probability) for token in candidate.logprobs_result.chosen_candidates]
    assert chosen == [("one", -0.1), (" two", -0.5), (" three", -0.5)]
    assert {len(top.candidates) for top in candidate.logprobs_result.top_candidates} == {2}
    assert candidate.avg_logprobs == pytest.approx(-1.1 / 3)
    assert ask(client).candidates[0].logprobs_result is None
    server.models = [GeminiModel(MODEL, logprobs=False)]
    with pytest.raises(errors.ClientError, match=f"Logprobs is not enabled for models/{MODEL}"):
        ask(client, response_logprobs=True)


@pytest.mark.parametrize("verb", ["countTokens", "generateContent"])
def test_a_list_as_body_is_refused(server, verb):
    url = f"{server.url}/v1beta/models/{MODEL}:{verb}"
    reply = httpx.post(url, json=[1], headers={"x-goog-api-key": KEY}, trust_env=False)
    assert (reply.status_code, reply.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")


def test_an_unknown_verb_is_named(client):
    with pytest.raises(errors.ClientError, match="is not supported for batchEmbedContents"):
        client.models.embed_content(model=MODEL, contents="hello")
