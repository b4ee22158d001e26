"""The official `anthropic` client talks to the stand-in, so that its shapes are not our invention."""

import anthropic
import httpx2
import pytest
from pydantic import BaseModel

from llmkit.testing import DEFAULT_TEXT, AnthropicModel, AnthropicServer, Fault, Reply, ToolCall, Usage

MODEL = "claude-sonnet-5"
KEY = "sk-ant-of-the-tests"
HELLO = [{"role": "user", "content": "Hello, Claude"}]
ASK = {"model": MODEL, "max_tokens": 1024, "messages": HELLO}
WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather in a given location",
    "input_schema": {
        "type": "object",
        "properties": {"location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"}},
        "required": ["location"],
    },
}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class ContactInfo(BaseModel):
    name: str
    email: str
    demo_requested: bool


@pytest.fixture
def server():
    with AnthropicServer(api_key=KEY) as server:
        yield server


@pytest.fixture
def client(server):
    # Reading the certificates for each client takes most of a test's time.
    plain = anthropic.DefaultHttpxClient(verify=False)
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0, http_client=plain) as client:
        yield client


def test_message(server, client):
    message = client.messages.create(**ASK, system="You are a seasoned data scientist.")
    assert [(block.type, block.text) for block in message.content] == [("text", DEFAULT_TEXT)]
    assert (message.role, message.model, message.stop_reason) == ("assistant", MODEL, "end_turn")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (8, 6)
    assert server.usage == Usage(1, 8, 6)
    assert [call.json["messages"] for call in server.calls] == [HELLO]


def test_stream(server, client):
    server.script("one two  three\nfour")
    with client.messages.stream(**ASK) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert pieces == ["one", " two", "  three", "\nfour"]
    assert message.content[0].text == "one two  three\nfour"
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("end_turn", 2, 4)
    assert server.usage.output_tokens == 4


def test_events_of_a_stream(client):
    kinds = [event.type for event in client.messages.create(**ASK, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def read_stream(client):
    with client.messages.stream(**ASK) as stream:
        return list(stream.text_stream)


def test_failures_in_the_middle_of_a_stream(server, client):
    server.script(Fault.stream_error(4, "Overloaded", code=529))
    with pytest.raises(anthropic.APIStatusError) as caught:
        read_stream(client)
    assert caught.value.body["error"] == {"type": "overloaded_error", "message": "Overloaded"}
    server.script(Fault.stream_break(4))
    with pytest.raises(httpx2.RemoteProtocolError):
        read_stream(client)
    assert [call.outcome for call in server.calls] == ["broken", "broken"]


async def test_async_message_and_stream(server):
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key=KEY) as client:
        assert (await client.messages.create(**ASK)).stop_reason == "end_turn"
        async with client.messages.stream(**ASK) as stream:
            assert await stream.get_final_text() == DEFAULT_TEXT


def test_schema(server, client):
    message = client.messages.parse(**ASK, output_format=ContactInfo)
    assert message.parsed_output == ContactInfo(name="", email="", demo_requested=False)
    server.ignores_schema = True
    server.script("prose")
    form = {"type": "json_schema", "schema": {"type": "object", "additionalProperties": False}}
    assert client.messages.create(**ASK, output_config={"format": form}).content[0].text == "prose"


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "object"}, "'additionalProperties' must be explicitly set to false"),
        ({"type": "integer", "minimum": 1}, "For 'integer' type, property 'minimum' is not supported"),
        ({"type": "array", "items": {"type": "string", "maxLength": 3}}, "property 'maxLength' is not supported"),
        ({"type": "array", "minItems": 2}, "'minItems' values other than 0 or 1"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused(server, client, schema, problem):
    form = {"format": {"type": "json_schema", "schema": schema}}
    with pytest.raises(anthropic.BadRequestError, match=problem):
        client.messages.create(**ASK, output_config=form)
    server.strict_schemas = False
    assert client.messages.create(**ASK, output_config=form).stop_reason == "end_turn"


def test_an_older_model_takes_no_schema(server, client):
    server.models = [AnthropicModel(MODEL, structured_output=False)]
    with pytest.raises(anthropic.BadRequestError, match="does not support output format"):
        client.messages.parse(**ASK, output_format=ContactInfo)


@pytest.mark.parametrize("stream", [False, True])
def test_tools(server, client, stream):
    server.script(
        Reply("Let me look.", tool_calls=[ToolCall("get_weather", {"location": at}) for at in ("Ulm", "Bern")])
    )
    if stream:
        with client.messages.stream(**ASK, tools=[WEATHER]) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(**ASK, tools=[WEATHER])
    assert message.stop_reason == "tool_use"
    text, *calls = message.content
    assert text.text == "Let me look."
    assert [(call.id, call.name, call.input) for call in calls] == [
        ("call-0", "get_weather", {"location": "Ulm"}),
        ("call-1", "get_weather", {"location": "Bern"}),
    ]
    assert server.usage.output_tokens == 5


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_required_tool_is_called(client, choice):
    (call,) = client.messages.create(**ASK, tools=[WEATHER], tool_choice=choice).content
    assert (call.name, call.input) == ("get_weather", {"location": ""})


def test_a_tool_result_is_answered(server, client):
    called = {"type": "tool_use", "id": "call-0", "name": "get_weather", "input": {"location": "Ulm"}}
    result = {"type": "tool_result", "tool_use_id": "call-0", "content": "15 degrees"}
    messages = [*HELLO, {"role": "assistant", "content": [called]}, {"role": "user", "content": [result]}]
    client.messages.create(model=MODEL, max_tokens=10, messages=messages, tools=[WEATHER])
    assert server.usage.input_tokens == 2 + 1 + 1


def test_image(server, client):
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is in the above image?"}]
    client.messages.create(model=MODEL, max_tokens=10, messages=[{"role": "user", "content": content}])
    assert server.usage.input_tokens == 7


def test_thinking(server, client):
    server.script(Reply("four", thinking="one two three"))
    enabled = {"type": "enabled", "budget_tokens": 1024}
    message = client.messages.create(model=MODEL, max_tokens=2048, messages=HELLO, thinking=enabled)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].signature
    assert (message.usage.output_tokens, message.usage.output_tokens_details.thinking_tokens) == (4, 3)
    assert [block.type for block in client.messages.create(**ASK).content] == ["text"]


def test_cached_tokens_are_not_part_of_the_input(server, client):
    server.script(Reply("yes", input_tokens=9, cached_tokens=4))
    usage = client.messages.create(**ASK).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (5, 4)
    assert server.usage.input_tokens == 9


def test_limit_and_stop(server, client):
    server.script("one two three END four")
    cut = client.messages.create(model=MODEL, max_tokens=2, messages=HELLO)
    assert (cut.content[0].text, cut.stop_reason, cut.usage.output_tokens) == ("one two", "max_tokens", 2)
    stopped = client.messages.create(**ASK, stop_sequences=["END"])
    assert (stopped.content[0].text, stopped.stop_reason, stopped.stop_sequence) == (
        "one two three ",
        "stop_sequence",
        "END",
    )


def test_models_and_counts(server, client):
    server.models = ["claude-sonnet-5", "claude-opus-5", "claude-haiku-5-5"]
    assert [model.id for model in client.models.list(limit=2)] == [model.name for model in server.models]
    model = client.models.retrieve("claude-opus-5")
    assert (model.display_name, model.max_input_tokens, model.max_tokens) == ("Claude Opus 5", 200_000, 64_000)
    assert model.capabilities.structured_outputs.supported
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("nobody-made-this")
    assert client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens == 2
    assert (server.request_count, server.call_count) == (5, 0)


# --- What goes wrong --------------------------------------------------------------------------------------------------

ERRORS = [
    (Fault.status(400), anthropic.BadRequestError, "invalid_request_error"),
    (Fault.invalid_key(), anthropic.AuthenticationError, "authentication_error"),
    (Fault.status(402), anthropic.PaymentRequiredError, "billing_error"),
    (Fault.status(403), anthropic.PermissionDeniedError, "permission_error"),
    (Fault.status(404), anthropic.NotFoundError, "not_found_error"),
    (Fault.status(409), anthropic.ConflictError, "invalid_request_error"),
    (Fault.status(413), anthropic.RequestTooLargeError, "request_too_large"),
    (Fault.status(422), anthropic.UnprocessableEntityError, "invalid_request_error"),
    (Fault.status(429), anthropic.RateLimitError, "rate_limit_error"),
    (Fault.status(500), anthropic.InternalServerError, "api_error"),
    (Fault.status(503), anthropic.ServiceUnavailableError, "api_error"),
    (Fault.status(504), anthropic.DeadlineExceededError, "timeout_error"),
    (Fault.status(529), anthropic.OverloadedError, "overloaded_error"),
    (Fault.context_overflow(), anthropic.BadRequestError, "invalid_request_error"),
    (Fault.prompt_block(), anthropic.BadRequestError, "invalid_request_error"),
]


@pytest.mark.parametrize(("fault", "error", "kind"), ERRORS, ids=[f"{e[0].kind}-{e[0].status_code}" for e in ERRORS])
def test_a_fault_is_the_clients_own_exception(server, client, fault, error, kind):
    server.script(fault)
    with pytest.raises(error) as caught:
        client.messages.create(**ASK)
    assert type(caught.value) is error
    assert (caught.value.body["type"], caught.value.body["error"]["type"]) == ("error", kind)
    assert caught.value.request_id == caught.value.body["request_id"]
    assert (server.call_count, server.usage) == (1, Usage())


@pytest.mark.parametrize("fault", [Fault.reset(), Fault.hang_up(), Fault.truncated()], ids=lambda fault: fault.kind)
def test_a_broken_connection(server, client, fault):
    server.script(fault)
    with pytest.raises(anthropic.APIConnectionError):
        client.messages.create(**ASK)
    assert server.call_count == 1


def test_requests_that_are_refused(server, client):
    refused = [
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "messages.0.role"),
        ({"messages": []}, "at least one message"),
        ({"max_tokens": 1025}, "1025 > 1024, which is the maximum allowed number of output tokens"),
    ]
    server.models = [AnthropicModel(MODEL, max_output_tokens=1024)]
    for change, problem in refused:
        with pytest.raises(anthropic.BadRequestError, match=problem):
            client.messages.create(**(ASK | change))
    with pytest.raises(anthropic.NotFoundError, match="model: nobody-made-this"):
        client.messages.create(**(ASK | {"model": "nobody-made-this"}))
    for sampling, problem in ((False, "temperature: not supported with"), (True, "temperature: range")):
        server.models = [AnthropicModel(MODEL, sampling=sampling)]
        with pytest.raises(anthropic.BadRequestError, match=problem):
            client.messages.create(**ASK, extra_body={"temperature": 1.5})
    with pytest.raises(anthropic.BadRequestError, match="max_tokens: Field required"):
        client.post("/v1/messages", body={"model": MODEL, "messages": HELLO}, cast_to=object)
    server.models = [AnthropicModel(MODEL, context_length=1)]
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: 2 tokens > 1 maximum"):
        client.messages.create(**ASK)


def test_keys_and_the_version_are_checked(server, client):
    with (
        anthropic.Anthropic(base_url=server.url, api_key="sk-ant-other", max_retries=0) as other,
        pytest.raises(anthropic.AuthenticationError, match="invalid x-api-key"),
    ):
        other.messages.create(**ASK)
    with pytest.raises(anthropic.BadRequestError, match="anthropic-version: header is required"):
        client.messages.create(**ASK, extra_headers={"anthropic-version": anthropic.omit})


def test_refusal(server, client):
    server.script(Fault.refusal("No."))
    message = client.messages.create(**ASK)
    assert (message.stop_reason, message.content[0].text) == ("refusal", "No.")


def test_malformed_tool_call(server, client):
    server.script(Fault.malformed_tool_call())
    (call,) = client.messages.create(**ASK, tools=[WEATHER]).content
    assert (call.type, call.input) == ("tool_use", '{"name": "a')


def test_no_content(server, client):
    server.script(Fault.no_candidates())
    assert client.messages.create(**ASK).content == []
    assert server.usage == Usage(1, 2)


@pytest.mark.parametrize("form", ["seconds", "milliseconds", "date"])
def test_the_client_waits_as_it_is_told(server, form, monkeypatch):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    server.script([Fault.status(529, retry_after_s=7, retry_after_form=form), "after all"])
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=1) as client:
        assert client.messages.create(**ASK).content[0].text == "after all"
    assert 6 <= waits[-1] <= 8


def test_the_reset_of_the_rate_limit(server, client):
    server.script(Fault.status(429, retry_after_s=1.5, retry_after_form="reset"))
    with pytest.raises(anthropic.RateLimitError) as caught:
        client.messages.create(**ASK)
    headers = caught.value.response.headers
    assert (headers["anthropic-ratelimit-requests-remaining"], "retry-after" in headers) == ("0", False)
    assert headers["anthropic-ratelimit-requests-reset"].endswith("Z")
