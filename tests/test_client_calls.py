"""The LiteLLM client over real HTTP: what it sends, what it records, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time

import pytest
from pydantic import SecretStr

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMBadRequest, LLMConfigurationError, LLMError, LLMModelNotFound, LLMTimeout, LLMUnavailable
from llmkit.ports import AttemptLog, Endpoint
from llmkit.settings import load_settings
from llmkit.testing import Fault, GeminiServer, OllamaServer, Reply
from llmkit.testing import ToolCall as SaidCall
from llmkit.types import (
    AttemptStatus,
    LLMProvider,
    LLMRequest,
    Message,
    NamedToolChoice,
    ResponseFormat,
    Route,
    ToolCall,
    ToolDefinition,
)

OLLAMA = Route.parse("ollama/llama3.2")
GEMINI = Route.parse("gemini/gemini-2.5-flash")
LOCAL = Route.parse("local/gemma-3-270m")
KEY = "AIzaSyCanary0123456789-canary_canary"
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": "integer", "default": 1}},
    "required": ["a"],
    "additionalProperties": False,
}
WEATHER = ToolDefinition(
    name="weather",
    description="The weather in a city.",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


@pytest.fixture
def ollama():
    with OllamaServer("A loss of customers.") as server:
        yield server


@pytest.fixture
def gemini():
    with GeminiServer("A loss of customers.", api_key=KEY) as server:
        yield server


class Waits:
    """Stands in for sleeping, and remembers."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def waits():
    return Waits()


@pytest.fixture(params=["fast", "reference"])
def path(request):
    return request.param


@pytest.fixture
async def make(waits, path):
    clients = []

    def build(servers=(), **settings) -> LiteLLMClient:
        clients.append(LiteLLMClient(load_settings(request_path=path, **settings), dict(servers), sleep=waits))
        return clients[-1]

    yield build
    for client in clients:
        await client.close()


@pytest.fixture
def client(make, ollama, gemini):
    return make(ollama_api_base=ollama.url, gemini_api_base=gemini.url, gemini_api_key=KEY)


def body_of(server, number: int = -1):
    return server.calls[number].json


# -- what is sent ----------------------------------------------------------------------------------


async def test_ollama_gets_all_that_was_asked(client, ollama):
    request = LLMRequest(
        messages=(Message(role="system", content="Be brief."), Message(role="user", content="Hi")),
        temperature=0.2,
        max_output_tokens=50,
        seed=7,
        stop=("END",),
        response_format=ResponseFormat(json_schema=SCHEMA),
    )
    ollama.script('{"a": "x"}')
    await client.call(OLLAMA, request, AttemptLog())
    body = body_of(ollama)
    assert body["model"] == "llama3.2"
    assert [(m["role"], m["content"]) for m in body["messages"]] == [("system", "Be brief."), ("user", "Hi")]
    assert body["format"] == SCHEMA
    expected = {"temperature": 0.2, "num_predict": 50, "seed": 7, "stop": ["END"], "num_ctx": 4096}
    assert body["options"] == expected
    assert body["stream"] is False


async def test_loading_the_client_is_no_part_of_a_call_s_latency(client, ollama, monkeypatch):
    async def load():
        await asyncio.sleep(0.05)

    monkeypatch.setattr(client._paths, "load", load)
    log = AttemptLog()
    await client.call(OLLAMA, LLMRequest(messages="Hi"), log)
    assert log.queued_ms >= 50


async def test_gemini_gets_all_that_was_asked(client, gemini):
    request = LLMRequest(
        messages=(Message(role="system", content="Be brief."), Message(role="user", content="Hi")),
        temperature=0.2,
        max_output_tokens=50,
        seed=7,
        stop=("END",),
        response_format=ResponseFormat(json_schema=SCHEMA),
    )
    gemini.script('{"a": "x"}')
    await client.call(GEMINI, request, AttemptLog())
    config = body_of(gemini)["generationConfig"]
    assert config["response_json_schema"] == SCHEMA
    rest = {"temperature": 0.2, "max_output_tokens": 50, "seed": 7, "stop_sequences": ["END"]}
    assert rest.items() <= config.items()
    assert gemini.calls[-1].path == "/v1beta/models/gemini-2.5-flash:generateContent"


@pytest.mark.parametrize("route", [OLLAMA, GEMINI], ids=str)
async def test_one_schema_is_one_schema_on_every_wire(client, route, ollama, gemini):
    for server in (ollama, gemini):
        server.script('{"a": "x"}')
    log = AttemptLog()
    await client.call(route, LLMRequest(messages="Hi", response_format=ResponseFormat(json_schema=SCHEMA)), log)
    from llmkit.canonical_json import sha256_of

    assert log.attempts[0].schema_sha256 == sha256_of(SCHEMA)


async def test_a_schema_that_only_became_part_of_the_prompt_is_told(client, gemini):
    gemini.models = ("tuned-model",)
    gemini.script('{"a": "x"}')
    request = LLMRequest(messages="Hi", response_format=ResponseFormat(json_schema=SCHEMA))
    log = AttemptLog()
    reply = await client.call(Route.parse("gemini/tuned-model"), request, log)
    assert "was not given the schema" in reply.warnings[0]
    assert log.attempts[0].schema_sha256 is None


@pytest.mark.parametrize("route", [OLLAMA, GEMINI], ids=str)
async def test_a_tool_call_goes_there_and_back(client, route, ollama, gemini):
    server = ollama if route is OLLAMA else gemini
    call = SaidCall("weather", {"city": "Ulm"}, thought_signature=None if route is OLLAMA else "c2lnbmVk")
    server.script([Reply(tool_calls=[call]), "It rains."])
    question = Message(role="user", content="Weather in Ulm?")
    first = await client.call(route, LLMRequest(messages=(question,), tools=(WEATHER,)), AttemptLog())
    assert first.finish_reason == "tool_calls"
    assert (first.tool_calls[0].name, json.loads(first.tool_calls[0].arguments)) == ("weather", {"city": "Ulm"})
    conversation = (
        question,
        Message(role="assistant", tool_calls=first.tool_calls),
        Message(role="tool", content="rain", tool_call_id=first.tool_calls[0].id, tool_name="weather"),
    )
    second = await client.call(route, LLMRequest(messages=conversation, tools=(WEATHER,)), AttemptLog())
    assert second.text == "It rains."
    sent = json.dumps(body_of(server))
    assert "rain" in sent
    if route is GEMINI:
        # The opaque suffix of the id is the thought signature, without which Gemini refuses the conversation.
        assert "c2lnbmVk" in sent


async def test_tool_choice_reaches_gemini(client, gemini):
    gemini.script(Reply(tool_calls=[SaidCall("weather", {"city": "Ulm"})]))
    request = LLMRequest(messages="Hi", tools=(WEATHER,), tool_choice=NamedToolChoice(name="weather"))
    await client.call(GEMINI, request, AttemptLog())
    config = json.dumps(body_of(gemini).get("toolConfig") or body_of(gemini).get("tool_config"))
    assert "ANY" in config
    assert "weather" in config


async def test_assistant_message_without_text_is_no_problem_for_ollama(client, ollama):
    conversation = (
        Message(role="user", content="Weather?"),
        Message(role="assistant", tool_calls=(ToolCall(id="1", name="weather", arguments='{"city": "Ulm"}'),)),
        Message(role="tool", content="rain", tool_call_id="1"),
    )
    assert (await client.call(OLLAMA, LLMRequest(messages=conversation), AttemptLog())).text
    assert body_of(ollama)["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Ulm"}


async def test_a_history_that_cannot_be_translated_is_a_bad_request(client, ollama):
    """LiteLLM calls it a failed connection, which would be tried again."""
    conversation = (
        Message(role="user", content="Weather?"),
        Message(role="assistant", tool_calls=(ToolCall(id="1", name="weather", arguments="not JSON"),)),
    )
    log = AttemptLog()
    with pytest.raises(LLMBadRequest, match="LiteLLM could not carry out the request"):
        await client.call(OLLAMA, LLMRequest(messages=conversation), log)
    assert (ollama.request_count, log.attempts) == (0, ())


async def test_nothing_but_the_call_is_sent(client, ollama, gemini):
    """No look-up of model details, which would block the event loop."""
    for model in ("llama3.2", "never-heard-of:7b"):
        ollama.models = (model,)
        await client.call(Route(provider=LLMProvider.OLLAMA, model=model), LLMRequest(messages="Hi"), AttemptLog())
    await client.call(GEMINI, LLMRequest(messages="Hi"), AttemptLog())
    assert [request.path for request in ollama.requests] == ["/api/chat", "/api/chat"]
    assert gemini.request_count == 1


# -- keys ------------------------------------------------------------------------------------------


async def test_ollama_gets_no_key_of_the_environment(client, ollama, monkeypatch):
    monkeypatch.setenv("OLLAMA_API_KEY", "sk-canary-of-the-environment")
    await client.call(OLLAMA, LLMRequest(messages="Hi"), AttemptLog())
    sent = ollama.calls[-1]
    assert "canary" not in str(sent.headers) + str(sent.body)
    assert "Authorization" not in sent.headers
    assert sent.headers["Content-Type"] == "application/json"


async def test_user_and_password_of_an_address_are_sent_and_not_shown(make, ollama):
    client = make(ollama_api_base=ollama.url.replace("//", "//me:canary-pass@"))
    await client.call(OLLAMA, LLMRequest(messages="Hi"), AttemptLog())
    assert ollama.calls[-1].headers["Authorization"].startswith("Basic ")
    ollama.script(Fault.status(503))
    with pytest.raises(LLMUnavailable) as caught:
        await client.call(OLLAMA, LLMRequest(messages="Hi"), AttemptLog())
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_with_the_key(client, gemini, status):
    with GeminiServer("stolen") as thief:
        gemini.script(Fault.redirect(thief.url.replace("127.0.0.1", "localhost") + "/v1beta/x", status))
        with pytest.raises(LLMConfigurationError, match=r"redirects .* to localhost:\d+, which is not followed"):
            await client.call(GEMINI, LLMRequest(messages="Hi"), AttemptLog())
        assert thief.request_count == 0


@pytest.mark.parametrize("route", [OLLAMA, GEMINI], ids=str)
async def test_a_provider_that_quotes_key_and_prompt_is_not_quoted(client, route, ollama, gemini):
    prompt = "Summarise the complaint of Erika Mustermann from Ulm about her bill"
    said = f"bad request with key {KEY} and prompt '{prompt}' of erika@example.org"
    (ollama if route is OLLAMA else gemini).script(Fault.status(400, said))
    log = AttemptLog()
    with pytest.raises(LLMError) as caught:
        await client.call(route, LLMRequest(messages=prompt), log)
    shown = str(caught.value) + repr(caught.value) + log.attempts[0].model_dump_json()
    assert "Mustermann" not in shown
    assert KEY not in shown
    assert "erika@" not in shown
    assert "bad request with key" in shown


async def test_globals_of_litellm_cannot_move_a_request_elsewhere(client, path, ollama, monkeypatch):
    await client.preload()
    import litellm

    with OllamaServer() as elsewhere:
        monkeypatch.setattr(litellm, "api_base", elsewhere.url.replace("127.0.0.1", "localhost"))
        log = AttemptLog()
        if path == "fast":
            await client.call(OLLAMA, LLMRequest(messages="Hi"), log)
        else:
            with pytest.raises(LLMConfigurationError, match="somewhere else"):
                await client.call(OLLAMA, LLMRequest(messages="Hi"), log)
        assert elsewhere.request_count == 0
        assert ollama.request_count == len(log.attempts) == (1 if path == "fast" else 0)


async def test_a_proxy_is_not_used_for_this_machine(client, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert (await client.call(OLLAMA, LLMRequest(messages="Hi"), AttemptLog())).text


# -- before anything is sent -----------------------------------------------------------------------


async def test_gemini_without_a_key_names_the_variable(make, gemini):
    log = AttemptLog()
    with pytest.raises(LLMConfigurationError, match="set LLM_GEMINI_API_KEY"):
        await make(gemini_api_base=gemini.url).call(GEMINI, LLMRequest(messages="Hi"), log)
    assert (gemini.request_count, log.attempts) == (0, ())


async def test_ambiguous_model_name_is_unknown_to_gemini(make, gemini):
    """LiteLLM would take the name for another model."""
    route, log = Route(provider=LLMProvider.GEMINI, model="responses/gemini-2.5-flash"), AttemptLog()
    with pytest.raises(LLMModelNotFound, match="Gemini has no model 'responses/"):
        await make(gemini_api_base=gemini.url, gemini_api_key="k").call(route, LLMRequest(messages="Hi"), log)
    assert (gemini.request_count, log.attempts) == (0, ())


async def test_a_model_that_cannot_be_embedded_is_unknown(make):
    class Never:
        async def ensure_running(self) -> Endpoint:
            raise AssertionError("nothing has to start for that")

        async def close(self) -> None: ...

    client = make({LLMProvider.LOCAL: Never()})
    with pytest.raises(LLMModelNotFound, match=r"no local model 'llama3\.2'"):
        await client.call(Route.parse("local/llama3.2"), LLMRequest(messages="Hi"), AttemptLog())


async def test_local_without_a_server_says_so(make):
    with pytest.raises(LLMConfigurationError, match=r"open an llmkit\.Session"):
        await make().call(LOCAL, LLMRequest(messages="Hi"), AttemptLog())


# -- what is recorded ------------------------------------------------------------------------------


async def test_hash_of_the_parameters_as_sent(client):
    async def hashed(**changes) -> str | None:
        log = AttemptLog()
        await client.call(OLLAMA, LLMRequest(**{"messages": "Hi", "seed": 1, **changes}), log)
        return log.attempts[0].params_sha256

    first = await hashed()
    assert first is not None
    assert first == await hashed()
    assert first == await hashed(idempotency_key="k", metadata={"a": 1})
    assert len({first, await hashed(seed=2), await hashed(temperature=0.5), await hashed(stop=("x",))}) == 4


async def test_gemini_counts_thoughts_and_cached_tokens(client, gemini):
    gemini.script(Reply("Yes.", input_tokens=100, cached_tokens=40, output_tokens=30, reasoning_tokens=20))
    usage = (await client.call(GEMINI, LLMRequest(messages="Hi"), AttemptLog())).usage
    assert (usage.input_tokens, usage.cached_input_tokens) == (100, 40)
    assert (usage.output_tokens, usage.reasoning_tokens) == (30, 20)
    assert (usage.total_tokens, usage.estimated) == (130, False)


async def test_counts_that_ollama_did_not_send_are_marked(client, ollama):
    ollama.script(Reply("Yes.", no_usage=True))
    usage = (await client.call(OLLAMA, LLMRequest(messages="Hi"), AttemptLog())).usage
    assert usage.estimated
    assert usage.input_tokens


async def test_counts_that_gemini_did_not_send_are_unknown(client, gemini):
    gemini.script(Reply("Yes.", no_usage=True))
    reply = await client.call(GEMINI, LLMRequest(messages="Hi"), AttemptLog())
    assert reply.text == "Yes."
    assert (reply.usage.input_tokens, reply.usage.total_tokens, reply.cost_usd) == (None, None, None)


async def test_cost_is_only_what_can_be_believed(client, ollama, gemini):
    assert (await client.call(OLLAMA, LLMRequest(messages="Hi"), AttemptLog())).cost_usd is None
    reply = await client.call(GEMINI, LLMRequest(messages="Hi"), AttemptLog())
    assert reply.cost_usd is not None
    assert 0 < reply.cost_usd < 0.01


async def test_an_unusable_answer_is_recorded_with_what_it_cost(client, gemini):
    gemini.script(Reply("", input_tokens=10, output_tokens=64, reasoning_tokens=64, finish_reason="length"))
    log = AttemptLog()
    with pytest.raises(LLMError, match="hidden reasoning"):
        await client.call(GEMINI, LLMRequest(messages="Hi", max_output_tokens=64), log)
    attempt = log.attempts[0]
    assert (attempt.status, attempt.error_code) == (AttemptStatus.FAILED, "reasoning_exhausted")
    assert (attempt.usage.output_tokens, attempt.finish_reason) == (64, "length")


async def test_retries_are_attempts_in_order(client, ollama):
    ollama.script([Fault.status(503), Fault.reset(), "there"])
    log = AttemptLog()
    assert (await client.call(OLLAMA, LLMRequest(messages="Hi"), log)).text == "there"
    assert [attempt.number for attempt in log.attempts] == [1, 2, 3]
    assert [attempt.status_code for attempt in log.attempts] == [503, None, 200]
    assert [attempt.status.value for attempt in log.attempts] == ["FAILED", "FAILED", "SUCCEEDED"]


# -- waiting ---------------------------------------------------------------------------------------


async def test_waits_grow_and_are_spread(make, ollama, waits):
    ollama.script(Fault.status(500))
    client = make(ollama_api_base=ollama.url, max_retries=5, retry_max_wait_s=2)
    for _ in range(3):
        with pytest.raises(LLMUnavailable):
            await client.call(OLLAMA, LLMRequest(messages="Hi"), AttemptLog())
    assert len(waits.seconds) == 15
    assert len(set(waits.seconds)) > 10
    limits = [0.5, 1, 2, 2, 2] * 3
    assert all(0 <= wait <= limit for wait, limit in zip(waits.seconds, limits, strict=True))


@pytest.mark.parametrize("route", [OLLAMA, GEMINI], ids=str)
async def test_retry_after_is_honoured(client, route, ollama, gemini, waits):
    (ollama if route is OLLAMA else gemini).script([Fault.status(429, retry_after_s=7), "there"])
    await client.call(route, LLMRequest(messages="Hi"), AttemptLog())
    assert 7 <= waits.seconds[0] <= 7.5


async def test_retry_after_is_capped(make, ollama, waits):
    ollama.script([Fault.status(503, retry_after_s=4000), "there"])
    await make(ollama_api_base=ollama.url, retry_max_wait_s=3).call(OLLAMA, LLMRequest(messages="Hi"), AttemptLog())
    assert waits.seconds == [3]


async def test_retry_after_can_be_a_date(client, ollama, waits):
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 9))
    ollama.script([Fault.status(503, headers={"Retry-After": date}), "there"])
    await client.call(OLLAMA, LLMRequest(messages="Hi"), AttemptLog())
    assert 6 <= waits.seconds[0] <= 10


@pytest.mark.slow
async def test_no_more_than_the_limit_at_once(make, ollama):
    ollama.script(Fault.delay(0.2))
    client = make(ollama_api_base=ollama.url, concurrency_limit=3)
    await asyncio.gather(*(client.call(OLLAMA, LLMRequest(messages=f"Hi {n}"), AttemptLog()) for n in range(9)))
    assert ollama.max_in_flight == 3


@pytest.mark.slow
async def test_the_deadline_covers_an_answer_that_never_pauses(client, ollama):
    ollama.script(Fault.drip(0.02))
    await client.preload()
    began = time.monotonic()
    with pytest.raises(LLMTimeout, match=r"within 0\.3 s"):
        await client.call(OLLAMA, LLMRequest(messages="Hi", timeout_s=0.3), AttemptLog())
    assert time.monotonic() - began < 25


# -- cancellation and the end ----------------------------------------------------------------------


async def test_cancelling_ends_the_request_and_records_it(client, ollama):
    ollama.script(Fault.hang())
    await client.preload()
    log = AttemptLog()
    task = asyncio.create_task(client.call(OLLAMA, LLMRequest(messages="Hi"), log))
    while not ollama.in_flight:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [attempt.status for attempt in log.attempts] == [AttemptStatus.CANCELLED]
    assert log.attempts[0].error_code == "cancelled"
    assert await asyncio.to_thread(ollama.wait_until_idle, 60)
    assert ollama.calls[-1].outcome == "client_left"


async def test_cancelling_at_any_moment_frees_the_slot(make, ollama):
    client = make(ollama_api_base=ollama.url, concurrency_limit=1)
    await client.preload()
    for step in range(12):
        task = asyncio.create_task(client.call(OLLAMA, LLMRequest(messages="Hi"), AttemptLog()))
        await asyncio.sleep(step * 0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(60):
        assert (await client.call(OLLAMA, LLMRequest(messages="Hi"), AttemptLog())).text


async def test_close_is_idempotent_and_leaves_no_task(client):
    await client.call(OLLAMA, LLMRequest(messages="Hi"), AttemptLog())
    await client.close()
    await client.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


SCRIPT = """
import asyncio, logging, sys
from llmkit.client_litellm import LiteLLMClient
from llmkit.ports import AttemptLog
from llmkit.settings import load_settings
from llmkit.types import LLMRequest, Route

# asyncio's debug mode remarks on a slow machine.
logging.getLogger("asyncio").addFilter(lambda record: not record.msg.startswith("Executing"))

async def main(path):
    client = LiteLLMClient(load_settings(ollama_api_base=sys.argv[1], max_retries=0, request_path=path))
    loaded, beats = "litellm" in sys.modules, 0
    warm = asyncio.create_task(client.preload())
    while not warm.done():
        await asyncio.sleep(0.005)
        beats += 1
    for _ in range(2):
        try:
            print((await client.call(Route.parse("ollama/llama3.2"), LLMRequest(messages="Hi"), AttemptLog())).text)
        except Exception as error:
            print(type(error).__name__)
    await client.close()
    print("free" if loaded or beats > 10 else "blocked")

asyncio.run(main("fast"))
asyncio.run(main("reference"))
"""


@pytest.mark.slow
def test_a_process_of_its_own_stays_quiet(ollama):
    ollama.script(["one", Fault.status(500), "two", Fault.malformed()])
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-W", "ignore::DeprecationWarning", "-c", SCRIPT, ollama.url],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    lines = ran.stdout.split()
    assert lines == ["one", "LLMUnavailable", "free", "two", "LLMMalformedReply", "free"], ran.stderr
    assert ran.stderr == ""


async def test_litellm_logs_nothing(client, ollama, caplog, capfd):
    ollama.script([Fault.status(400, "no")])
    with caplog.at_level(logging.DEBUG), pytest.raises(LLMError):
        await client.call(OLLAMA, LLMRequest(messages="Hi"), AttemptLog())
    assert [record.name for record in caplog.records if record.name.startswith("LiteLLM")] == []
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


def test_the_module_does_not_load_litellm():
    heavy = "{'litellm', 'aiohttp', 'httpx'}"
    code = f"import llmkit.client_litellm, llmkit.router, sys; print(sorted({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_settings_show_no_key():
    assert KEY not in repr(load_settings(gemini_api_key=SecretStr(KEY)))


@pytest.mark.parametrize("path", ["fast", "reference"])
@pytest.mark.parametrize("tail", ["/v1", "/api"])
async def test_a_wrong_path_of_ollama_is_no_missing_model(make, ollama, tail, path):
    client = make(ollama_api_base=ollama.url + tail)
    with pytest.raises(LLMConfigurationError, match="set LLM_OLLAMA_API_BASE to its address"):
        await client.call(OLLAMA, LLMRequest(messages="Hi"), AttemptLog())


@pytest.mark.parametrize("path", ["fast", "reference"])
async def test_an_answer_without_a_prompt_count_is_no_cut_prompt(make, path):
    with OllamaServer(Reply("fine", input_tokens=0)) as server:
        reply = await make(ollama_api_base=server.url).call(OLLAMA, LLMRequest(messages="Hi there"), AttemptLog())
    assert (reply.text, reply.usage.estimated, reply.warnings) == ("fine", True, ())
    assert reply.usage.input_tokens


@pytest.mark.parametrize("path", ["fast", "reference"])
async def test_json_in_thinking_is_read_with_one_request(make, path):
    request = LLMRequest(messages="Hi", response_format=ResponseFormat(name="n", json_schema=SCHEMA))
    with OllamaServer(Reply("", thinking='{"a": "x"}')) as server:
        reply = await make(ollama_api_base=server.url).call(OLLAMA, request, AttemptLog())
        assert (reply.text, server.call_count) == ('{"a": "x"}', 1)
