"""Servers that send anything, and a whole service before one of them, for tests and benchmarks."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMError
from llmkit.ports import AnswerSink, LLMRunRepo, StreamPiece
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.types import LLMRequest, LLMResponse, RequestContext, Route

PATHS = ("fast", "reference")
ROUTES = {
    "ollama": Route.parse("ollama/llama3.2"),
    "gemini": Route.parse("gemini/gemini-2.5-flash"),
    "openai": Route.parse("openai/gpt-4o-mini"),
    "anthropic": Route.parse("anthropic/claude-sonnet-5"),
}
KEYED = ("gemini", "openai", "anthropic")
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
    "openai": {
        "id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [{"index": 0, "message": {
            "role": "assistant", "content": "Hi", "refusal": None, "annotations": [], "tool_calls": [
                {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
            "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11,
                  "prompt_tokens_details": {"cached_tokens": 1}, "completion_tokens_details": {"reasoning_tokens": 1}},
        "system_fingerprint": "s",
    },
    "anthropic": {
        "id": "m", "type": "message", "role": "assistant", "model": "m", "content": [
            {"type": "thinking", "thinking": "Hm", "signature": "s"}, {"type": "text", "text": "Hi"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}],
        "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 2, "cache_read_input_tokens": 1,
                  "cache_creation_input_tokens": 0},
    },
}  # fmt: skip
ERRORS: dict[str, dict[str, Any]] = {
    "ollama": {"error": "model 'm' not found", "StatusCode": 1},
    "gemini": {"error": {"code": 429, "message": "no", "status": "X", "details": [
        {"retryDelay": "3s", "reason": "R", "violations": [{"quotaId": "PerMinute", "quotaValue": "5"}]}]}},
    "openai": {"error": {"message": "no", "type": "insufficient_quota", "param": None, "code": "c"}},
    "anthropic": {"type": "error", "error": {"type": "overloaded_error", "message": "no"}, "request_id": "r"},
}  # fmt: skip
_CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": "s"}
EVENTS: dict[str, list[dict[str, Any]]] = {
    "ollama": [
        {"model": "m", "message": {"role": "assistant", "content": "", "thinking": "Hm"}, "done": False},
        {"model": "m", "message": {"role": "assistant", "content": "H"}, "done": False},
        {"model": "m", "message": {"role": "assistant", "content": "i"}, "done": False},
        {**GOOD["ollama"], "message": {"role": "assistant", "content": "",
         "tool_calls": GOOD["ollama"]["message"]["tool_calls"]}},
    ],
    "gemini": [
        {"candidates": [{"content": {"parts": [{"text": "H"}], "role": "model"}, "index": 0}], "modelVersion": "m"},
        {"candidates": [{"content": {"parts": [{"text": "i"}], "role": "model"}, "index": 0}],
         "usageMetadata": {"promptTokenCount": 9}},
        {**GOOD["gemini"], "candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": {"a": 1}}}],
                                                       "role": "model"}, "finishReason": "STOP", "index": 0}]},
    ],
    "openai": [
        {**_CHUNK, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        {**_CHUNK, "choices": [{"index": 0, "delta": {"reasoning_content": "Hm"}, "finish_reason": None}]},
        {**_CHUNK, "choices": [{"index": 0, "delta": {"content": "Hi"}, "logprobs": None, "finish_reason": None}]},
        {**_CHUNK, "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "t", "type": "function",
                                "function": {"name": "f", "arguments": '{"a"'}}]}, "finish_reason": None}]},
        {**_CHUNK, "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
                                "finish_reason": None}]},
        {**_CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        {**_CHUNK, "choices": [], "usage": GOOD["openai"]["usage"]},
    ],
    "anthropic": [
        {"type": "message_start", "message": {**GOOD["anthropic"], "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "s"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_start", "index": 2,
         "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a": 1}'}},
        {"type": "content_block_stop", "index": 2},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
         "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ],
}  # fmt: skip
ODD_LINES = (
    b"data: [DONE]", b"data:", b"data", b"event: error", b": comment", b"id: \x00", b"retry: 1e9", b"error: {}",
    b"error:", b"data: null", b"data: [", b'data: {"error": "no"}', b"null", b"\r\r",
    b'data: {"error": {"code": 429, "message": ["no"]}}',
    b"{}", b"[]", b"data: " + b"[" * 5000, b"data: \xff\xfe", b"data: NaN", b'{"error": {"message": 1}}',
    b'data: {"type": "error", "error": {"type": {}, "message": null}}', b"\xef\xbb\xbf", b"x" * 70_000,
)  # fmt: skip

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
    return path.startswith(b"/api/chat") or b"enerateContent" in path or path.endswith((b"/completions", b"/messages"))


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


def draw_events(provider: str, rng: random.Random) -> bytes:
    """Draw the events of one stream: some with odd values, left out, doubled, or with odd lines between them."""
    lines: list[bytes] = []
    for event in EVENTS[provider]:
        value: Any = event
        for _ in range(rng.choice((0, 0, 0, 0, 1, 2))):
            value = mutate(value, rng)
        line = json.dumps(value).encode()
        lines += [line if provider == "ollama" else b"data: " + line] * rng.choice((*[1] * 18, 0, 2))
    if provider == "openai":
        lines.append(b"data: [DONE]")
    for _ in range(rng.choice((0, 0, 1, 2))):
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(ODD_LINES))
    gap = b"\n" if provider == "ollama" else b"\n\n"
    body = gap.join([*lines, b""])
    return body[: rng.randrange(len(body))] if body and rng.random() < 0.1 else body


def draw_stream(provider: str, rng: random.Random) -> bytes:
    """Draw the bytes of one streamed reply; some are whole answers after all."""
    if rng.random() < 0.3:
        return draw_reply(provider, rng)
    body = draw_events(provider, rng)
    kind = "application/x-ndjson" if provider == "ollama" else "text/event-stream"
    headers = [("Connection", "close"), ("Content-Type", kind if rng.random() < 0.9 else "application/json")]
    if rng.random() < 0.2:
        headers += rng.sample(HEADERS, 1)
    if rng.random() < 0.05:
        body = gzip.compress(body)
        headers.append(("Content-Encoding", "gzip"))
    framing = rng.random()
    if framing < 0.6:
        return build_reply(body, headers=tuple(headers))
    start = "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1")
    if framing < 0.7:  # ends with the connection
        return b"HTTP/1.1 200 OK\r\n" + start + b"\r\n" + body
    chunks = [body[at : at + 40] for at in range(0, len(body), 40)] + [b""] * (rng.random() < 0.9)
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + start + b"\r\n" + framed


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
    given = {f"{kind}_api_base": url for kind in ROUTES} | {f"{kind}_api_key": "key-for-tests" for kind in KEYED}
    given |= {"max_retries": 1, "stream_chunk_timeout_s": 5.0}
    # The circuit breaker would skip the route after a few replies: it never opens, and a used-up quota ends at once.
    given |= {"cooldown_after_failures": 10**6, "default_timeout_s": 10.0, "request_path": path}
    settings = load_settings(**given | options)
    client = LiteLLMClient(settings, sleep=no_wait)
    router = LLMRouter(settings, client, clock=count(step=10**8).__next__)
    return LLMService(router=router, settings=settings, runs=runs), client


async def ask_hostile_server(
    provider: str, path: str, runs: LLMRunRepo, calls: int, *, callers: int = 1, seed: object = 0, streams: bool = False
) -> tuple[int, Counter[str]]:
    """Call a service that often before a server whose replies are drawn, then once before one that is well again.

    Each call has a key, and an answer is asked for twice: the second time it must be replayed. With `streams`, answers
    are read while they are written.

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
        draw = draw_stream if streams else draw_reply
        writer.write(draw(provider, rng) if sick[0] else build_good_reply(provider))
        await writer.drain()

    async def take(pieces: Sequence[StreamPiece]) -> None:
        for piece in pieces:
            "".join((piece.text, piece.tool_id, piece.tool_name)).encode()

    async def call(service: LLMService, number: int) -> LLMResponse | LLMError:
        request = LLMRequest(
            messages=f"Hello {number}", route=ROUTES[provider], max_output_tokens=50, idempotency_key=f"k{number}"
        )
        try:
            response = await service.chat(request, CONTEXT, sink=AnswerSink(take) if streams else None)
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
