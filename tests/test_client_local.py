"""The client on a server of llmkit's own: an OpenAI-shaped stand-in takes the place of llama.cpp."""

from __future__ import annotations

import asyncio
import re

import pytest
from aiohttp import web

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMContextOverflow, LLMError, LLMTimeout, LLMUnavailable
from llmkit.ports import AttemptLog, Endpoint
from llmkit.settings import load_settings
from llmkit.testing import get_refused_url
from llmkit.types import LLMProvider, LLMRequest, ResponseFormat, Route
from tests.support.request_matrix import REQUESTS

ROUTE = Route.parse("local/gemma-3-270m")
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
OVERFLOW = {
    "error": {
        "code": 400,
        "message": "request (6002 tokens) exceeds the available context size (512 tokens), try increasing it",
        "type": "exceed_context_size_error",
    }
}


def answer(text: str) -> dict:
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "gemma-3-270m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
    }


class Embedded:
    """A model server in the test's own loop that can die."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, dict]] = [(200, answer("fine"))]
        self.seen: list[tuple[str, dict, dict]] = []
        self.bodies: list[bytes] = []
        self.starts = 0
        self.runner: web.ServerRunner | None = None
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.Response:
        self.bodies.append(await request.read())
        self.seen.append((request.path, dict(request.headers), await request.json()))
        status, body = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return web.json_response(body, status=status)

    async def ensure_running(self) -> Endpoint:
        if self.runner is None:
            self.starts += 1
            # A handler that never answers would otherwise be awaited for aiohttp's 60 s.
            self.runner = web.ServerRunner(web.Server(self.handle), shutdown_timeout=0.1)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}/v1"
        return Endpoint(self.url, "embedded-key-canary")

    async def close(self) -> None:
        runner, self.runner = self.runner, None
        if runner is not None:
            await runner.cleanup()


@pytest.fixture
async def embedded():
    server = Embedded()
    yield server
    await server.close()


PATHS = pytest.mark.parametrize("path", ["fast", "reference"])


async def no_wait(_seconds: float) -> None: ...


@pytest.fixture(params=["fast", "reference"])
async def client(embedded, request):
    async def stop_server(_seconds: float) -> None:
        await embedded.close()

    client = LiteLLMClient(load_settings(request_path=request.param), {LLMProvider.LOCAL: embedded}, sleep=stop_server)
    yield client
    await client.close()


async def test_the_server_starts_on_first_use_and_is_called_with_its_key(client, embedded):
    assert embedded.starts == 0
    request = LLMRequest(messages="Hi", response_format=ResponseFormat(json_schema=SCHEMA), temperature=0)
    log = AttemptLog()
    reply = await client.call(ROUTE, request, log)
    assert (reply.text, reply.cost_usd, reply.usage.input_tokens) == ("fine", None, 11)
    path, headers, body = embedded.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer embedded-key-canary"
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert body["model"] == "gemma-3-270m"
    assert log.attempts[0].schema_sha256 is not None
    assert reply.warnings == ()


@pytest.mark.parametrize("name", REQUESTS)
async def test_both_paths_send_the_same_bytes_and_read_the_same_answer(embedded, name):
    request = LLMRequest(**{"messages": "Hi", **REQUESTS[name]})
    quick, reference = [await seen_by_both(embedded, path, request) for path in ("fast", "reference")]
    assert quick == reference


async def seen_by_both(embedded: Embedded, path: str, request: LLMRequest) -> list[object]:
    client, log = (
        LiteLLMClient(load_settings(request_path=path, max_retries=0), {LLMProvider.LOCAL: embedded}),
        AttemptLog(),
    )
    embedded.seen.clear()
    try:
        out: object = await client.call(ROUTE, request, log)
    except LLMError as error:
        out = (type(error), str(error), error.retryable)
    finally:
        await client.close()
    hashes = [(attempt.params_sha256, attempt.schema_sha256, attempt.error_code) for attempt in log.attempts]
    return [out, list(embedded.seen), list(embedded.bodies[-1:]) if log.attempts else [], hashes]


async def test_an_answer_without_a_limit_gets_one_since_a_base_model_rarely_ends(client, embedded):
    cut = answer("on and on")
    cut["choices"][0]["finish_reason"] = "length"
    embedded.replies = [(200, cut)]
    reply = await client.call(ROUTE, LLMRequest(messages="Hi"), AttemptLog())
    assert reply.text == "on and on"
    assert re.match(
        r'The answer was cut off at the default limit of 512 tokens: it is a base model.* stop="\\n"', reply.warnings[0]
    )
    assert embedded.seen[0][2]["max_tokens"] == 512
    reply = await client.call(ROUTE, LLMRequest(messages="Hi", max_output_tokens=900), AttemptLog())
    assert embedded.seen[1][2]["max_tokens"] == 900
    assert reply.warnings == ("The answer stops at the limit of 900 tokens.",)


async def test_a_prompt_that_does_not_fit(client, embedded):
    embedded.replies = [(400, OVERFLOW)]
    with pytest.raises(LLMContextOverflow, match="longer than the context window of gemma-3-270m"):
        await client.call(ROUTE, LLMRequest(messages="Hi"), AttemptLog())
    assert len(embedded.seen) == 1


async def test_a_server_that_died_is_started_again_by_the_retry(client, embedded):
    embedded.replies = [(500, {"error": {"message": "dying"}}), (200, answer("back"))]
    reply = await client.call(ROUTE, LLMRequest(messages="Hi"), AttemptLog())
    assert (reply.text, embedded.starts) == ("back", 2)


async def test_its_key_is_in_no_message(client, embedded):
    embedded.replies = [(503, {"error": {"message": "busy, embedded-key-canary"}})]
    log = AttemptLog()
    with pytest.raises(LLMUnavailable) as caught:
        await client.call(ROUTE, LLMRequest(messages="Hi"), log)
    shown = str(caught.value) + "".join(attempt.model_dump_json() for attempt in log.attempts)
    assert "canary" not in shown
    await asyncio.sleep(0)


async def test_a_call_without_arguments_has_an_empty_object(client, embedded):
    call = {"id": "1", "type": "function", "function": {"name": "look"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
    embedded.replies = [(200, {**answer(""), "choices": [choice]})]
    reply = await client.call(ROUTE, LLMRequest(messages="Hi"), AttemptLog())
    assert [(each.name, each.arguments) for each in reply.tool_calls] == [("look", "{}")]


@PATHS
async def test_a_timeout_is_the_end_and_not_the_first_of_three(embedded, path):
    async def hang(_request):
        embedded.starts += 100
        await asyncio.Event().wait()

    embedded.handle = hang
    client = LiteLLMClient(load_settings(max_retries=2, request_path=path), {LLMProvider.LOCAL: embedded})
    log = AttemptLog()
    with pytest.raises(LLMTimeout):
        await client.call(ROUTE, LLMRequest(messages="Hi", timeout_s=0.2), log)
    await client.close()
    assert (len(log.attempts), embedded.starts) == (1, 101)


@PATHS
async def test_a_server_that_died_is_started_again_within_the_call(path):
    class Dying(Embedded):
        async def ensure_running(self) -> Endpoint:
            self.starts += 1
            if self.starts == 1:
                return Endpoint(f"{get_refused_url()}/v1", "embedded-key-canary")
            return await super().ensure_running()

    server = Dying()
    client = LiteLLMClient(load_settings(max_retries=2, request_path=path), {LLMProvider.LOCAL: server}, sleep=no_wait)
    log = AttemptLog()
    reply = await client.call(ROUTE, LLMRequest(messages="Hi"), log)
    await client.close()
    await server.close()
    assert (reply.text, [attempt.status for attempt in log.attempts]) == ("fine", ["FAILED", "SUCCEEDED"])
