"""The official `openai` client talks to the stand-in, so that its shapes are not our invention."""

import json

import openai
import pytest
from pydantic import BaseModel

from llmkit.testing import (
    DEFAULT_TEXT,
    Fault,
    OpenAIDialect,
    OpenAIModel,
    OpenAIServer,
    Reply,
    ToolCall,
    Usage,
    get_refused_url,
)

MODEL = "gpt-4o-mini"
KEY = "sk-of-the-tests"
HELLO = [
    {"role": "developer", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hello!"},
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get current temperature for a given location.",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string", "description": "City and country e.g. Bogotá, Colombia"}},
            "required": ["location"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)


class CalendarEvent(BaseModel):
    name: str
    date: str
    participants: list[str]


@pytest.fixture
def server():
    with OpenAIServer(api_key=KEY) as server:
        yield server


@pytest.fixture
def client(server):
    # Reading the certificates for each client takes most of a test's time.
    plain = openai.DefaultHttpxClient(verify=False)
    with openai.OpenAI(base_url=server.api_base, api_key=KEY, max_retries=0, http_client=plain) as client:
        yield client


def test_chat(server, client):
    completion = client.chat.completions.create(model=MODEL, messages=HELLO)
    (choice,) = completion.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", DEFAULT_TEXT, "stop")
    assert (choice.message.refusal, choice.message.tool_calls, choice.logprobs) == (None, None, None)
    assert (completion.object, completion.model) == ("chat.completion", MODEL)
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (6, 6, 12)
    assert server.usage == Usage(1, 6, 6)
    assert [call.json["messages"] for call in server.calls] == [HELLO]


@pytest.mark.parametrize("counted", [True, False])
def test_stream(server, client, counted):
    server.script("one two  three\nfour")
    options = {"stream_options": {"include_usage": True}} if counted else {}
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, **options))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == "one two  three\nfour"
    assert choices[0].delta.role == "assistant"
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == ([4] if counted else [])
    assert server.usage.output_tokens == 4


async def test_async_chat_and_stream(server):
    async with openai.AsyncOpenAI(base_url=server.api_base, api_key=KEY) as client:
        assert (await client.chat.completions.create(model=MODEL, messages=HELLO)).choices[0].finish_reason == "stop"
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == DEFAULT_TEXT


def test_schema(server, client):
    messages = [
        {"role": "system", "content": "Extract the event information."},
        {"role": "user", "content": "Alice and Bob are going to a science fair on Friday."},
    ]
    completion = client.chat.completions.parse(model=MODEL, messages=messages, response_format=CalendarEvent)
    assert completion.choices[0].message.parsed == CalendarEvent(name="", date="", participants=[])
    server.ignores_schema = True
    said = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "event", "schema": CalendarEvent.model_json_schema()},
        },
    )
    assert said.choices[0].message.content == DEFAULT_TEXT


def test_any_json(client):
    form = {"type": "json_object"}
    completion = client.chat.completions.create(model=MODEL, messages=HELLO, response_format=form)
    assert json.loads(completion.choices[0].message.content) == {}


@pytest.mark.parametrize("stream", [False, True])
def test_tools(server, client, stream):
    server.script(Reply(tool_calls=[ToolCall("get_weather", {"location": place}) for place in ("Bogotá", "Paris")]))
    said = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER], stream=stream)
    if stream:
        deltas = [chunk.choices[0].delta for chunk in said]
        pieces = [call for delta in deltas for call in delta.tool_calls or ()]
        arguments = [
            "".join(piece.function.arguments or "" for piece in pieces if piece.index == at) for at in range(2)
        ]
        ids = [piece.id for piece in pieces if piece.id]
    else:
        (choice,) = said.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        arguments = [call.function.arguments for call in choice.message.tool_calls]
        ids = [call.id for call in choice.message.tool_calls]
    assert [json.loads(text) for text in arguments] == [{"location": "Bogotá"}, {"location": "Paris"}]
    assert ids == ["call-0", "call-1"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_required_tool_is_called(client, choice):
    said = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER], tool_choice=choice)
    (call,) = said.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"location": ""})


def test_a_tool_result_is_answered(server, client):
    call = {"id": "call-0", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call-0", "content": "22 degrees"},
    ]
    client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
    assert server.usage.input_tokens == 6 + 1 + 2


def test_image(server, client):
    content = [{"type": "text", "text": "What's in this image?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
    assert server.usage.input_tokens == 5
    server.models = [OpenAIModel(MODEL, capabilities=("tools",))]
    with pytest.raises(openai.BadRequestError, match="image"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(server, client, stream):
    server.script(Reply("one two three", logprobs=[-0.1, -0.5]))
    said = client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2, stream=stream)
    choices = [part.choices[0] for part in said] if stream else said.choices
    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert [(token.token, token.logprob) for token in tokens] == [("one", -0.1), (" two", -0.5), (" three", -0.5)]
    assert [bytes(token.bytes) for token in tokens] == [b"one", b" two", b" three"]
    assert {len(token.top_logprobs) for token in tokens} == {2}
    assert tokens[0].top_logprobs[0].token == "one"


def test_a_model_without_logprobs_leaves_them_out(server, client):
    server.models = [OpenAIModel(MODEL, capabilities=())]
    said = client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True)
    assert said.choices[0].logprobs is None


def test_limit_and_stop(server, client):
    server.script("one two three END four")
    cut = client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=2)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("one two", "length")
    assert cut.usage.completion_tokens == 2
    stopped = client.chat.completions.create(model=MODEL, messages=HELLO, stop=["four", "END"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("one two three ", "stop")


@pytest.mark.parametrize(
    ("limit", "max_tokens", "max_completion_tokens"),
    [
        ("either", "one two", "one two"),
        ("max_tokens", "one two", "one two three"),
        ("max_completion_tokens", None, "one two"),
    ],
)
def test_the_name_of_the_output_limit(server, client, limit, max_tokens, max_completion_tokens):
    server.script("one two three")
    server.models = [OpenAIModel(MODEL, output_limit=limit)]
    if max_tokens is None:
        with pytest.raises(openai.BadRequestError, match="Use 'max_completion_tokens' instead") as caught:
            client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "max_tokens")
    else:
        said = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
        assert said.choices[0].message.content == max_tokens
    said = client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=2)
    assert said.choices[0].message.content == max_completion_tokens


def test_counts_of_reasoning_and_cache(server, client):
    server.script(Reply("four", thinking="one two three", input_tokens=9, cached_tokens=4))
    said = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert (said.usage.completion_tokens, said.usage.completion_tokens_details.reasoning_tokens) == (4, 3)
    assert (said.usage.prompt_tokens, said.usage.prompt_tokens_details.cached_tokens) == (9, 4)
    assert said.choices[0].message.reasoning_content == "one two three"
    server.dialect = OpenAIDialect(reasoning_field=None)
    said = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert not hasattr(said.choices[0].message, "reasoning_content")


def test_models(server, client):
    server.models = ["gpt-4o-mini", OpenAIModel("qwen3-8b", context_length=32_768)]
    assert [model.id for model in client.models.list()] == ["gpt-4o-mini", "qwen3-8b"]
    assert not hasattr(client.models.retrieve("qwen3-8b"), "max_model_len")
    server.dialect = OpenAIDialect(reports_window=True)
    assert client.models.retrieve("qwen3-8b").max_model_len == 32_768
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody-made-this")
    assert server.call_count == 0


# --- Traps of single servers ------------------------------------------------------------------------------------------


def test_lm_studio_rejects_json_object(server, client):
    server.models = [OpenAIModel(MODEL, capabilities=("tools", "vision", "json_schema"))]
    with pytest.raises(openai.BadRequestError, match=r"'response_format\.type' must be 'json_schema' or 'text'"):
        client.chat.completions.create(model=MODEL, messages=HELLO, response_format={"type": "json_object"})
    client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=CalendarEvent)


def test_openai_refuses_a_schema_that_is_not_strict(server, client):
    server.dialect = OpenAIDialect(strict_schemas=True)
    client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=CalendarEvent)
    form = {"name": "event", "schema": CalendarEvent.model_json_schema(), "strict": True}
    with pytest.raises(openai.BadRequestError, match="'additionalProperties' is required"):
        client.chat.completions.create(
            model=MODEL, messages=HELLO, response_format={"type": "json_schema", "json_schema": form}
        )


def test_openrouter_names_the_provider_and_the_model_that_served(server, client):
    server.dialect = OpenAIDialect(served_by="DeepInfra")
    server.script(Reply("yes", model="meta-llama/llama-3.3-70b-instruct:free"))
    said = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert (said.provider, said.model) == ("DeepInfra", "meta-llama/llama-3.3-70b-instruct:free")


def test_a_server_without_usage(server, client):
    server.dialect = OpenAIDialect(reports_usage=False)
    assert client.chat.completions.create(model=MODEL, messages=HELLO).usage is None
    assert server.usage == Usage()


def test_azure_wants_a_deployment_a_query_string_and_its_own_header():
    dialect = OpenAIDialect(base_path="/openai/deployments/mini", query={"api-version": "2024-10-21"})
    with OpenAIServer(api_key=KEY, models=["mini"], dialect=dialect) as server:
        with openai.AzureOpenAI(
            azure_endpoint=server.url, api_version="2024-10-21", api_key=KEY, max_retries=0
        ) as azure:
            assert azure.chat.completions.create(model="mini", messages=HELLO).choices[0].finish_reason == "stop"
        assert server.calls[0].query["api-version"] == "2024-10-21"
        with (
            openai.OpenAI(base_url=server.api_base, api_key=KEY, max_retries=0) as client,
            pytest.raises(openai.NotFoundError, match="Resource not found"),
        ):
            client.chat.completions.create(model="mini", messages=HELLO)


# --- What goes wrong --------------------------------------------------------------------------------------------------

ERRORS = [
    (Fault.status(400), openai.BadRequestError),
    (Fault.invalid_key(), openai.AuthenticationError),
    (Fault.status(402), openai.APIStatusError),
    (Fault.status(403), openai.PermissionDeniedError),
    (Fault.status(404), openai.NotFoundError),
    (Fault.status(408), openai.APIStatusError),
    (Fault.status(409), openai.ConflictError),
    (Fault.status(413), openai.APIStatusError),
    (Fault.status(422), openai.UnprocessableEntityError),
    (Fault.status(429), openai.RateLimitError),
    (Fault.daily_quota(), openai.RateLimitError),
    (Fault.status(500), openai.InternalServerError),
    (Fault.status(502), openai.InternalServerError),
    (Fault.status(503), openai.InternalServerError),
    (Fault.status(529), openai.InternalServerError),
    (Fault.context_overflow(), openai.BadRequestError),
    (Fault.prompt_block(), openai.BadRequestError),
    (Fault.reset(), openai.APIConnectionError),
    (Fault.hang_up(), openai.APIConnectionError),
    (Fault.truncated(), openai.APIConnectionError),
]


@pytest.mark.parametrize(("fault", "error"), ERRORS, ids=lambda value: getattr(value, "kind", ""))
def test_a_fault_is_the_clients_own_exception(server, client, fault, error):
    server.script(fault)
    with pytest.raises(error) as caught:
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert type(caught.value) is error
    assert server.call_count == 1
    if isinstance(caught.value, openai.APIStatusError):
        assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert server.usage == Usage()


def test_codes_of_errors(server, client):
    server.script([Fault.daily_quota(), Fault.context_overflow(), Fault.invalid_key(), Fault.prompt_block()])
    codes = []
    for _ in range(4):
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model=MODEL, messages=HELLO)
        codes.append(caught.value.code)
    assert codes == ["insufficient_quota", "context_length_exceeded", "invalid_api_key", "content_filter"]


def test_a_prompt_over_the_window_is_refused(server, client):
    server.models = [OpenAIModel(MODEL, context_length=5)]
    with pytest.raises(openai.BadRequestError, match=r"maximum context length is 5 tokens.*resulted in 6 tokens"):
        client.chat.completions.create(model=MODEL, messages=HELLO)


def test_keys_are_checked(server):
    with openai.OpenAI(base_url=server.api_base, api_key="sk-of-somebody-else", max_retries=0) as other:
        with pytest.raises(openai.AuthenticationError, match=r"Incorrect API key provided: sk-o\*+else\."):
            other.chat.completions.create(model=MODEL, messages=HELLO)
        with pytest.raises(openai.AuthenticationError):
            other.models.list()


def test_unknown_model_and_path(server, client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody-made-this", messages=HELLO)
    assert caught.value.code == "model_not_found"
    wrong = client.with_options(base_url=server.url)
    with pytest.raises(openai.NotFoundError, match=r"Invalid URL \(POST /chat/completions\)"):
        wrong.chat.completions.create(model=MODEL, messages=HELLO)


def test_refusal(server, client):
    server.script(Fault.refusal())
    message = (
        client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=CalendarEvent).choices[0].message
    )
    assert (message.refusal, message.content, message.parsed) == ("I'm sorry, I cannot help with that.", None, None)
    assert server.usage.output_tokens == 7


def test_content_filter(server, client):
    server.script(Fault.safety_block())
    (choice,) = client.chat.completions.create(model=MODEL, messages=HELLO).choices
    assert (choice.finish_reason, choice.message.content) == ("content_filter", None)
    with pytest.raises(openai.ContentFilterFinishReasonError):
        client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=CalendarEvent)


def test_malformed_tool_call(server, client):
    server.script(Fault.malformed_tool_call())
    (choice,) = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER]).choices
    assert choice.finish_reason == "tool_calls"
    with pytest.raises(json.JSONDecodeError):
        json.loads(choice.message.tool_calls[0].function.arguments)


def test_no_choices(server, client):
    server.script(Fault.no_candidates())
    assert client.chat.completions.create(model=MODEL, messages=HELLO).choices == []


@pytest.mark.parametrize("form", ["seconds", "milliseconds", "date"])
def test_the_client_waits_as_it_is_told(server, form, monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    server.script([Fault.status(429, retry_after_s=7, retry_after_form=form), "after all"])
    with openai.OpenAI(base_url=server.api_base, api_key=KEY, max_retries=1) as client:
        said = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert said.choices[0].message.content == "after all"
    # The date has whole seconds, and time passes before the client looks at its clock.
    assert 6 <= waits[-1] <= 8


def test_the_other_ways_to_ask_for_a_wait(server, client):
    server.script([Fault.status(429, retry_after_s=1.5, retry_after_form=form) for form in ("reset", "message")])
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert caught.value.response.headers["x-ratelimit-reset-requests"] == "1.5s"
    with pytest.raises(openai.RateLimitError, match=r"Please try again in 1\.5s\."):
        client.chat.completions.create(model=MODEL, messages=HELLO)


def test_nobody_there():
    with (
        openai.OpenAI(base_url=get_refused_url(), api_key=KEY, max_retries=0) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.models.list()
