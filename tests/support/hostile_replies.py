"""Servers that send anything, and a whole service before one of them, for tests and benchmarks."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMError
from llmkit.ports import LLMRunRepo
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.types import LLMRequest, LLMResponse, RequestContext, Route

PATHS = ("fast", "reference")
ROUTES = {"ollama": Route.parse("ollama/llama3.2"), "gemini": Route.parse("gemini/gemini-2.5-flash")}
CONTEXT = RequestContext(workspace_id="hostile")

JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, -(10**30), 1e308, 0.5, "", "x", "\ud800", "\x00", "\x1b[2J", [], {}, [[]], [None],
    {"a": None}, {"\udfff": "\ud800"}, "9" * 400 + "s", float("nan"), 2**63, "x" * 70_000,
)  # fmt: skip
HEADERS: tuple[tuple[str, str], ...] = (
    ("Location", "http://[::1"), ("Retry-After", "1e300"), ("Retry-After", "inf"), ("Retry-After", "nan"),
    ("Retry-After", "Fri, 31 Dec 99999 23:59:59 GMT"), ("Retry-After", "Fri, 31 Dec 2100 23:59:59 +9999"),
    ("Retry-After", "-1"), ("Retry-After", "9" * 5000), ("Content-Encoding", "gzip"), ("Content-Encoding", "deflate"),
    ("Content-Encoding", "br"), ("Content-Type", "text/\xff"), ("Content-Type", "application/json; charset=utf-7"),
    ("Content-Type", "application/json; charset=no-such-one"), ("Set-Cookie", "\xff=\xff; expires=never"),
    ("Transfer-Encoding", "chunked"), ("Content-Length", "-5"), ("X-Long", "y" * 9000), ("Upgrade", "h2c"),
)  # fmt: skip
STATUSES = (200, 200, 200, 200, 201, 204, 206, 300, 302, 304, 400, 401, 402, 403, 404, 408, 413, 422, 429, 429, 499,
            500, 502, 503, 504, 529, 599, 999)  # fmt: skip
BODIES = (
    b"", b"\xff\xfe", b"[" * 5000, b"<html>", b"NaN", b"null", b"[]", b'"text"', b'{"error": ' + b"9" * 5000 + b"}",
    b'{"error": "' + b"e" * 20_000 + b'"}', b'{"a": 1}{"a": 2}', b"data: {}\n\n", b"\x00" * 100,
)  # fmt: skip
RAW = (
    b"", b"\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 OK 200\r\n\r\n", b"HTTP/9.9 200 OK\r\n\r\n", b"SSH-2.0-x\r\n",
    b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nabcde",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"\x16\x03\x01",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Length: 20\r\n\r\n"
    + gzip.compress(b"{}" * 40)[:20],
)  # fmt: skip
GOOD: dict[str, dict[str, Any]] = {
    "ollama": {
        "model": "m", "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": "Hi",
        "thinking": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        "done": True, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 2, "total_duration": 5,
    },
    "gemini": {
        "candidates": [{"content": {"parts": [{"text": "Hi"}, {"functionCall": {"name": "f", "args": {"a": 1}}}],
                                    "role": "model"}, "finishReason": "STOP", "index": 0, "safetyRatings": []}],
        "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 2, "totalTokenCount": 11,
                          "cachedContentTokenCount": 1, "thoughtsTokenCount": 1},
        "promptFeedback": {"safetyRatings": []}, "modelVersion": "m", "responseId": "r",
    },
}  # fmt: skip
ERRORS: dict[str, dict[str, Any]] = {
    "ollama": {"error": "model 'm' not found", "StatusCode": 1},
    "gemini": {"error": {"code": 429, "message": "no", "status": "X", "details": [
        {"retryDelay": "3s", "reason": "R", "violations": [{"quotaId": "PerMinute", "quotaValue": "5"}]}]}},
}  # fmt: skip

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def no_wait(seconds: float) -> None:
    assert seconds >= 0


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test has ended
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    await reader.readexactly(length)
    return head


def is_model_call(head: bytes) -> bool:
    """Whether the request asks a model, and not the server about its models."""
    path = head.split(b" ", 2)[1]
    return path.startswith(b"/api/chat") or b":generateContent" in path


def build_reply(body: bytes, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1")
    start = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n" % (status, len(body))
    return start + lines + b"\r\n" + body


def build_good_reply(provider: str) -> bytes:
    """A complete answer with a text and a tool call, after which the connection closes."""
    return build_reply(json.dumps(GOOD[provider]).encode(), headers=(("Connection", "close"),))


def mutate(value: Any, rng: random.Random) -> Any:
    """Replace one value, or one key, somewhere in the JSON by junk, or leave it out."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {name: each for name, each in value.items() if name != key}
        return {**value, key: mutate(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], mutate(value[at], rng), *value[at + 1 :]]
    return rng.choice(JUNK)


def draw_reply(provider: str, rng: random.Random) -> bytes:
    """Draw the bytes of one reply: mostly HTTP around mostly JSON with one or a few odd values."""
    if rng.random() < 0.04:
        return rng.choice(RAW)
    status = rng.choice(STATUSES)
    value: Any = (GOOD if status < 300 or rng.random() < 0.2 else ERRORS)[provider]
    for _ in range(rng.choice((0, 1, 1, 1, 2, 5))):
        value = mutate(value, rng)
    body = json.dumps(value).encode() if rng.random() < 0.9 else rng.choice(BODIES)
    headers = [("Connection", "close")]
    if rng.random() < 0.3:
        headers += rng.sample(HEADERS, rng.choice((1, 1, 2)))
    if rng.random() < 0.05:
        body = gzip.compress(body)
        headers.append(("Content-Encoding", "gzip"))
    reply = build_reply(body, status, tuple(headers))
    return reply[: rng.randrange(len(reply))] if rng.random() < 0.05 else reply


def open_service(url: str, path: str, runs: LLMRunRepo, **options: Any) -> tuple[LLMService, LiteLLMClient]:
    """A service whose providers are all at `url`, and its client, which the caller closes."""
    given = {"ollama_api_base": url, "gemini_api_base": url, "gemini_api_key": "key-for-tests", "max_retries": 1}
    # The circuit breaker would skip the route after a few replies: it never opens, and a used-up quota ends at once.
    given |= {"cooldown_after_failures": 10**6, "default_timeout_s": 10.0, "request_path": path}
    settings = load_settings(**given | options)
    client = LiteLLMClient(settings, sleep=no_wait)
    router = LLMRouter(settings, client, clock=count(step=10**8).__next__)
    return LLMService(router=router, settings=settings, runs=runs), client


async def ask_hostile_server(
    provider: str, path: str, runs: LLMRunRepo, calls: int, *, callers: int = 1, seed: object = 0
) -> tuple[int, Counter[str]]:
    """Call a service that often before a server whose replies are drawn, then once before one that is well again.

    Each call has a key, and an answer is asked for twice: the second time it must be replayed.

    Returns:
        How many requests the server read, and how often each outcome came.

    Raises:
        Exception: A call raised something other than an `LLMError`, or its answer or error cannot be shown or stored.
    """
    rng, sick, requests = random.Random(f"{provider} {path} {seed}"), [True], [0]
    outcomes: Counter[str] = Counter()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        requests[0] += 1
        writer.write(draw_reply(provider, rng) if sick[0] else build_good_reply(provider))
        await writer.drain()

    async def call(service: LLMService, number: int) -> LLMResponse | LLMError:
        request = LLMRequest(
            messages=f"Hello {number}", route=ROUTES[provider], max_output_tokens=50, idempotency_key=f"k{number}"
        )
        try:
            response = await service.chat(request, CONTEXT)
            again = await service.chat(request, CONTEXT)
        except LLMError as error:
            str(error).encode()
            # The words of an exception that llmkit did not foresee.
            outcomes["defect" if "please report it" in str(error) else error.code] += 1
            return error
        response.model_dump_json()
        assert (again.text, again.tool_calls, again.served_from) == (response.text, response.tool_calls, "replay")
        outcomes["answered"] += 1
        return response

    async with serving(answer) as url:
        service, client = open_service(url, path, runs)
        numbers = iter(range(calls))

        async def caller() -> None:
            for number in numbers:
                await call(service, number)

        await asyncio.gather(*(caller() for _ in range(callers)))
        sick[0] = False
        # Also with the key of a call that failed: none may block.
        for number in (calls, 0):
            after = await call(service, number)
            assert isinstance(after, LLMResponse), f"call {number} after the hostile ones: {after!r}"
        await client.close()
    return requests[0], outcomes
