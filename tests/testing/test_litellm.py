"""What the pinned LiteLLM makes of every reply and fault of the stand-ins.

These are facts of a dependency, measured through real HTTP: when an upgrade changes one, the test says which.
"""

import asyncio

import pytest
import pytest_asyncio
from pydantic import BaseModel

from llmkit.testing import DEFAULT_TEXT, Fault, GeminiServer, OllamaServer, Reply, ToolCall, Usage, get_refused_url

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # Both are LiteLLM's own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Item .* on TypedDict class:UserWarning"),
]
HELLO = [{"role": "user", "content": "hello out there"}]
TIMEOUT_S = 0.5


@pytest.fixture(scope="session")
def litellm():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        patch.setenv("LITELLM_MODE", "PRODUCTION")
        import litellm

        litellm.suppress_debug_info = True
        # A model that it does not know would cost a look-up that blocks the loop and asks localhost:11434 first.
        litellm.model_cost["ollama_chat/llama3.2"] = {"litellm_provider": "ollama_chat", "mode": "chat"}
        yield litellm


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wires(litellm):
    with OllamaServer() as ollama, GeminiServer(api_key="k") as gemini:
        yield {"ollama": ollama, "gemini": gemini}
        await litellm.close_litellm_async_clients()


@pytest.fixture(params=["ollama", "gemini"])
def wire(request, wires):
    server = wires[request.param]
    server.clear()
    return request.param, server


def arguments(name, url):
    if name == "ollama":
        return {
            "model": "ollama_chat/llama3.2",
            "api_base": url,
            "extra_headers": {"Content-Type": "application/json"},
        }
    return {"model": "gemini/gemini-2.5-flash", "api_base": f"{url}/v1beta", "api_key": "k"}


async def ask(litellm, name, url, **more):
    given = {
        "messages": HELLO,
        "num_retries": 0,
        "max_retries": 0,
        "timeout": TIMEOUT_S,
        **arguments(name, url),
        **more,
    }
    async with asyncio.timeout(10):
        return await litellm.acompletion(**given)


def same(name, status):
    return {"ollama": (name, status), "gemini": (name, status)}


# What goes wrong, the class and `status_code` of the exception per wire, and how many requests reach the server.
FAILURES = [
    (Fault.status(400), same("BadRequestError", 400), 1),
    (Fault.status(401), same("AuthenticationError", 401), 1),
    (Fault.invalid_key(), same("AuthenticationError", 401), 1),
    (Fault.status(403), {"ollama": ("PermissionDeniedError", 403), "gemini": ("BadRequestError", 403)}, 1),
    (Fault.status(404), same("NotFoundError", 404), 1),
    (Fault.status(408), same("Timeout", 408), 1),
    (Fault.status(413), same("BadRequestError", 413), 1),
    (Fault.status(422), same("BadRequestError", 422), 1),
    (Fault.status(429), same("RateLimitError", 429), 1),
    (Fault.status(500), same("InternalServerError", 500), 1),
    (Fault.status(502), {"ollama": ("BadGatewayError", 502), "gemini": ("APIConnectionError", 500)}, 1),
    (Fault.html(502), {"ollama": ("BadGatewayError", 502), "gemini": ("APIConnectionError", 500)}, 1),
    # Google's own words for 503, "The model is overloaded", are matched before the status is looked at.
    (Fault.status(503), {"ollama": ("ServiceUnavailableError", 503), "gemini": ("InternalServerError", 500)}, 1),
    (Fault.status(503, "out of order"), same("ServiceUnavailableError", 503), 1),
    (Fault.status(504), same("Timeout", 504), 1),
    (Fault.hang(), same("Timeout", 408), 1),
    (Fault.drip(2.0), same("Timeout", 408), 1),
    # A reset is sent a second time by LiteLLM's HTTP handler, whatever the retry settings say.
    (Fault.reset(), same("APIConnectionError", 500), 2),
    (Fault.hang_up(), same("APIConnectionError", 500), 1),
    (Fault.truncated(), same("APIConnectionError", 500), 1),
    (Fault.malformed(), {"ollama": ("APIConnectionError", 500), "gemini": ("BadRequestError", 422)}, 1),
    (Fault.html(), {"ollama": ("APIConnectionError", 500), "gemini": ("BadRequestError", 422)}, 1),
    (Fault.empty(), {"ollama": ("APIConnectionError", 500), "gemini": ("BadRequestError", 422)}, 1),
    (Fault.context_overflow(), {"ollama": ("BadRequestError", 400), "gemini": ("ContextWindowExceededError", 400)}, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "expected", "calls"), FAILURES, ids=lambda value: getattr(value, "kind", ""))
async def test_failures(litellm, wire, fault, expected, calls):
    name, server = wire
    server.script(fault)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - they share no base
        await ask(litellm, name, server.url)
    assert (type(caught.value).__name__, getattr(caught.value, "status_code", None)) == expected[name]
    assert server.call_count == calls


async def test_no_candidates(litellm, wires):
    wires["gemini"].script(Fault.no_candidates())
    assert (await ask(litellm, "gemini", wires["gemini"].url)).choices == []
    wires["ollama"].script(Fault.no_candidates())
    with pytest.raises(litellm.APIConnectionError, match="must be a mapping, not NoneType"):
        await ask(litellm, "ollama", wires["ollama"].url)


async def test_refused(litellm, wire):
    name, _ = wire
    with pytest.raises(litellm.APIConnectionError) as caught:
        await ask(litellm, name, get_refused_url())
    assert caught.value.status_code == 500


async def test_no_key(litellm, wires):
    wires["gemini"].clear()
    with pytest.raises(litellm.APIConnectionError, match="Missing Gemini API key"):
        await ask(litellm, "gemini", wires["gemini"].url, api_key=None)
    assert wires["gemini"].request_count == 0


async def test_unknown_model(litellm, wire):
    name, server = wire
    litellm.model_cost["ollama_chat/nope"] = {"litellm_provider": "ollama_chat", "mode": "chat"}
    with pytest.raises(litellm.NotFoundError):
        await ask(litellm, name, server.url, model={"ollama": "ollama_chat/nope", "gemini": "gemini/nope"}[name])


async def test_where_the_wait_is_told(litellm, wires):
    for name, server in wires.items():
        server.script(Fault.status(429, retry_after_s=2))
        with pytest.raises(litellm.RateLimitError) as caught:
            await ask(litellm, name, server.url)
        if name == "ollama":
            assert caught.value.litellm_response_headers["retry-after"] == "2"
        else:  # Google sends no such header: only the body tells, and the body is in the message
            assert "retry-after" not in (caught.value.litellm_response_headers or {})
            assert '"retryDelay":"2s"' in str(caught.value)
            server.script(Fault.daily_quota())
            with pytest.raises(litellm.RateLimitError, match="PerDay"):
                await ask(litellm, name, server.url)


@pytest.mark.parametrize(
    "fault", [Fault.safety_block(), Fault.recitation(), Fault.prompt_block()], ids=lambda f: f.kind
)
async def test_blocks_are_no_exceptions(litellm, wires, fault):
    wires["gemini"].script(fault)
    reply = await ask(litellm, "gemini", wires["gemini"].url)
    assert (reply.choices[0].finish_reason, reply.choices[0].message.content) == ("content_filter", None)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 0)


async def test_a_malformed_tool_call_looks_like_a_stop(litellm, wires):
    wires["gemini"].script(Fault.malformed_tool_call())
    reply = await ask(litellm, "gemini", wires["gemini"].url)
    assert (reply.choices[0].finish_reason, reply.choices[0].message.content) == ("stop", None)


async def test_limits(litellm, wire):
    name, server = wire
    server.script([Fault.cut_at_limit("half an ans"), Fault.reasoning_ate_limit(40), Reply()])
    cut = await ask(litellm, name, server.url)
    assert (cut.choices[0].finish_reason, cut.choices[0].message.content) == ("length", "half an ans")
    eaten = await ask(litellm, name, server.url)
    assert eaten.choices[0].finish_reason == "length"
    assert not eaten.choices[0].message.content
    assert eaten.usage.completion_tokens == 40
    short = await ask(litellm, name, server.url, max_tokens=2)
    assert (short.choices[0].finish_reason, short.choices[0].message.content) == ("length", "This is")


@pytest.mark.slow
async def test_the_timeout_means_inactivity(litellm, wire):
    name, server = wire
    server.script(Fault.drip(0.2, piece_bytes=50))
    began = asyncio.get_running_loop().time()
    assert (await ask(litellm, name, server.url)).choices[0].message.content == DEFAULT_TEXT
    assert asyncio.get_running_loop().time() - began > 2 * TIMEOUT_S


async def test_usage(litellm, wire):
    name, server = wire
    server.script(Reply("yes", input_tokens=100, cached_tokens=60, output_tokens=30, reasoning_tokens=20))
    usage = (await ask(litellm, name, server.url)).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (100, 30, 130)
    if name == "gemini":
        assert usage.prompt_tokens_details.cached_tokens == 60
        assert usage.completion_tokens_details.reasoning_tokens == 20
    assert server.usage == Usage(1, 100, 30, 60, 20)


async def test_no_usage(litellm, wire):
    name, server = wire
    server.script(Reply("yes", no_usage=True))
    if name == "gemini":
        with pytest.raises(litellm.BadRequestError, match="usageMetadata not found") as caught:
            await ask(litellm, name, server.url)
        assert caught.value.status_code == 422
    else:  # counted by LiteLLM with a tokenizer of its own
        assert (await ask(litellm, name, server.url)).usage.prompt_tokens == 10
    assert server.usage == Usage()


async def test_tools_and_thinking(litellm, wire):
    name, server = wire
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    server.script([Reply(tool_calls=[ToolCall("f", {"a": 1})]), Reply("yes", thinking="let me see")])
    choice = (await ask(litellm, name, server.url, tools=[tool])).choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name, call.function.arguments) == ("tool_calls", "f", '{"a": 1}')
    assert call.id.startswith("call-0__thought__") == (name == "gemini")
    message = (await ask(litellm, name, server.url)).choices[0].message
    assert message.content == "yes"
    assert getattr(message, "reasoning_content", None) == ("let me see" if name == "ollama" else None)


async def test_structured_output_without_a_script(litellm, wire):
    class Town(BaseModel):
        name: str
        inhabitants: int

    name, server = wire
    server.script(Reply())
    reply = await ask(litellm, name, server.url, response_format=Town)
    assert Town.model_validate_json(reply.choices[0].message.content) == Town(name="", inhabitants=0)


async def test_streams(litellm, wire):
    name, server = wire
    server.script(Reply())
    chunks = [chunk async for chunk in await ask(litellm, name, server.url, stream=True)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == DEFAULT_TEXT
    assert server.usage.answers == 1


async def test_a_redirect_takes_the_key_along(litellm, wires):
    with GeminiServer() as elsewhere:
        target = f"{elsewhere.url}/v1beta/models/gemini-2.5-flash:generateContent"
        wires["gemini"].script(Fault.redirect(target))
        await ask(litellm, "gemini", wires["gemini"].url)
        assert [call.headers.get("x-goog-api-key") for call in elsewhere.calls] == ["k"]


async def test_cancelling_ends_the_request_at_the_server(litellm, wire):
    name, server = wire
    server.script(Fault.hang())
    task = asyncio.create_task(ask(litellm, name, server.url, timeout=30))
    assert await asyncio.to_thread(server.wait_until_in_flight)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await asyncio.to_thread(server.wait_until_idle, 60)
    assert server.calls[-1].client_disconnected
