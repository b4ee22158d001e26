"""Calls to a server that sends anything: only documented errors, every request recorded, no reply mixed up."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import ssl
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMConfigurationError, LLMError, LLMMalformedReply
from llmkit.ports import AttemptLog
from llmkit.settings import load_settings
from llmkit.transport.http import http_pool
from llmkit.transport.paths.select import RequestPaths
from llmkit.types import LLMRequest, Route

PATHS = ("fast", "reference")
ROUTES = {"ollama": Route.parse("ollama/llama3.2"), "gemini": Route.parse("gemini/gemini-2.5-flash")}
ROUNDS = 60
REQUEST = LLMRequest(messages="Hello", max_output_tokens=5)

JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, -(10**30), 1e308, "", "x", "\ud800", "\x00", [], {}, [[]], [None], {"a": None},
    "9" * 400 + "s",
)  # fmt: skip
HEADERS: tuple[tuple[str, str], ...] = (
    ("Location", "http://[::1"), ("Retry-After", "1e300"), ("Retry-After", "inf"), ("Retry-After", "nan"),
    ("Retry-After", "Fri, 31 Dec 99999 23:59:59 GMT"), ("Retry-After", "Fri, 31 Dec 2100 23:59:59 +9999"),
    ("Content-Encoding", "gzip"), ("Content-Encoding", "deflate"), ("Content-Type", "text/\xff"),
)  # fmt: skip
GOOD: dict[str, dict[str, Any]] = {
    "ollama": {
        "model": "m", "message": {"role": "assistant", "content": "Hi", "tool_calls": [
            {"function": {"name": "f", "arguments": {"a": 1}}}]},
        "done": True, "done_reason": "stop", "prompt_eval_count": 9, "eval_count": 2,
    },
    "gemini": {
        "candidates": [{"content": {"parts": [{"text": "Hi"}], "role": "model"}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 2, "totalTokenCount": 11},
        "modelVersion": "m", "error": {"message": "no", "status": "X", "details": [{"retryDelay": "3s"}]},
    },
}  # fmt: skip

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def no_wait(seconds: float) -> None:
    assert seconds >= 0


@asynccontextmanager
async def serving(handler: Handler):
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


def client_of(url: str, path: str, **settings: Any) -> LiteLLMClient:
    given = {"ollama_api_base": url, "gemini_api_base": url, "gemini_api_key": "key-for-tests", "max_retries": 0}
    return LiteLLMClient(load_settings(request_path=path, **given, **settings), sleep=no_wait)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(length)
    return head


def build_reply(body: bytes, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1")
    start = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n" % (status, len(body))
    return start + lines + b"\r\n" + body


def mutate(value: Any, rng: random.Random) -> Any:
    """Replace one value somewhere in the JSON by junk."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return {**value, key: mutate(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], mutate(value[at], rng), *value[at + 1 :]]
    return rng.choice(JUNK)


def draw_reply(provider: str, rng: random.Random) -> bytes:
    status = rng.choice((200, 200, 200, 204, 302, 400, 404, 429, 500, 503))
    body = json.dumps(mutate(GOOD[provider], rng)).encode()
    if rng.random() < 0.1:
        body = rng.choice((b"", b"\xff\xfe", b"[" * 5000, b"<html>", b"NaN", b'{"error": ' + b"9" * 5000 + b"}"))
    headers = (("Connection", "close"), *((rng.choice(HEADERS),) if rng.random() < 0.3 else ()))
    reply = build_reply(body, status, headers)
    return reply[: rng.randrange(len(reply))] if rng.random() < 0.05 else reply


@pytest.mark.parametrize("provider", ROUTES)
@pytest.mark.parametrize("path", PATHS)
async def test_only_our_errors_leave_a_call_and_every_request_is_recorded(path, provider):
    rng, replies, requests = random.Random(f"{path} {provider}"), [], [0]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        requests[0] += 1
        writer.write(replies[-1])
        await writer.drain()

    async with serving(answer) as url:
        client = client_of(url, path)
        for _ in range(ROUNDS):
            replies.append(draw_reply(provider, rng))
            requests[0], log = 0, AttemptLog()
            try:
                await client.call(ROUTES[provider], REQUEST, log)
            except LLMError as error:
                str(error).encode()
            assert len(log.attempts) == requests[0], replies[-1]
            for attempt in log.attempts:
                attempt.model_dump_json()
                counts = attempt.usage.model_dump(exclude={"estimated"}).values()
                assert all(count is None or 0 <= count < 2**31 for count in counts), replies[-1]
        await client.close()


@pytest.mark.parametrize("path", PATHS)
async def test_a_reply_that_decompresses_to_more_than_the_limit_is_refused(path):
    bomb = gzip.compress(b" " * 3 * 2**20)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(build_reply(bomb, headers=(("Content-Encoding", "gzip"),)))
        await writer.drain()

    async with serving(answer) as url:
        client, log = client_of(url, path, max_reply_mb=1), AttemptLog()
        with pytest.raises(LLMMalformedReply, match=r"larger than 1 MB: .*LLM_MAX_REPLY_MB"):
            await client.call(ROUTES["ollama"], REQUEST, log)
        assert len(log.attempts) == 1
        await client.close()


@pytest.mark.parametrize("pause_s", [0.0, 0.05])
@pytest.mark.parametrize("surplus", [b"x", build_reply(json.dumps({**GOOD["ollama"], "eval_count": 77}).encode())])
async def test_a_surplus_response_never_answers_the_next_call(surplus, pause_s):
    connections = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while True:
            await read_request(reader)
            writer.write(build_reply(json.dumps(GOOD["ollama"]).encode()))
            await writer.drain()
            await asyncio.sleep(pause_s)
            writer.write(surplus)
            await writer.drain()

    async with serving(answer) as url:
        client = client_of(url, "fast")
        for _ in range(3):
            # Junk that arrives together with the reply makes it unreadable for aiohttp.
            with suppress(LLMError):
                reply = await client.call(ROUTES["ollama"], REQUEST, AttemptLog())
                assert reply.usage.output_tokens == 2
            await asyncio.sleep(0.15)
        await client.close()
    assert len(connections) == 3


async def test_a_connection_without_surplus_is_reused():
    connections = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while True:
            await read_request(reader)
            writer.write(build_reply(json.dumps(GOOD["ollama"]).encode()))
            await writer.drain()

    async with serving(answer) as url:
        client = client_of(url, "fast")
        for _ in range(3):
            await client.call(ROUTES["ollama"], REQUEST, AttemptLog())
        await client.close()
    assert len(connections) == 1


async def test_certificates_that_cannot_be_loaded_are_named(monkeypatch):
    def fail() -> None:
        raise ssl.SSLError("no certificate or crl found")

    monkeypatch.setattr(http_pool, "_tls", fail)
    client, log = client_of("https://127.0.0.1:1", "fast"), AttemptLog()
    with pytest.raises(LLMConfigurationError, match="SSL_CERT_FILE"):
        await client.call(ROUTES["ollama"], REQUEST, log)
    assert not log.attempts
    await client.close()


async def test_a_library_that_cannot_be_loaded_is_a_configuration_error(monkeypatch):
    async def fail(_paths: object) -> None:
        raise ssl.SSLError("no certificate or crl found")

    monkeypatch.setattr(RequestPaths, "load", fail)
    client = client_of("http://127.0.0.1:1", "fast")
    with pytest.raises(LLMConfigurationError, match="SSL_CERT_FILE"):
        await client.call(ROUTES["ollama"], REQUEST, AttemptLog())
    await client.close()
