"""Calls to a server that sends anything: only documented errors, every request recorded, no reply mixed up."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import ssl
from contextlib import suppress
from typing import Any

import pytest

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMConfigurationError, LLMError, LLMMalformedReply
from llmkit.ports import AttemptLog
from llmkit.settings import load_settings
from llmkit.transport.http import http_pool
from llmkit.transport.paths.select import RequestPaths
from llmkit.types import LLMRequest
from tests.support.hostile_replies import (
    GOOD,
    KEYED,
    PATHS,
    ROUTES,
    build_reply,
    draw_reply,
    no_wait,
    read_request,
    serving,
)

ROUNDS = 30
REQUEST = LLMRequest(messages="Hello", max_output_tokens=5)


def client_of(url: str, path: str, **settings: Any) -> LiteLLMClient:
    given = {f"{kind}_api_base": url for kind in ROUTES} | {f"{kind}_api_key": "key-for-tests" for kind in KEYED}
    given |= {"max_retries": 0}
    return LiteLLMClient(load_settings(request_path=path, **given, **settings), sleep=no_wait)


@pytest.mark.slow
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

    monkeypatch.setattr(http_pool, "load_trusted_certificates", fail)
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
