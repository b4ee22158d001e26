"""Streamed answers over real HTTP: the same replies as plain ones, and what goes wrong in the middle of them."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMError, LLMMalformedReply, LLMTimeout, LLMUnavailable
from llmkit.ports import AnswerSink, AttemptLog, ClientReply, StreamPiece
from llmkit.settings import load_settings
from llmkit.testing import (
    AnthropicServer,
    Fault,
    GeminiServer,
    OllamaModel,
    OllamaServer,
    OpenAIDialect,
    OpenAIServer,
    Reply,
)
from llmkit.types import AttemptStatus, LLMRequest, ResponseFormat, Route, TokenUsage
from tests.support.raw_server import ServeRaw
from tests.support.request_matrix import FLAT, REPLIES, WEATHER

PATHS = ("fast", "reference")
ROUTES = {
    "ollama": Route.parse("ollama/llama3.2"),
    "openai": Route.parse("openai/gpt-4o-mini"),
    "gemini": Route.parse("gemini/gemini-2.5-flash"),
    "anthropic": Route.parse("anthropic/claude-sonnet-5"),
}
TALL = Reply("one two three four five six seven eight")


def open_server(kind: str) -> Any:
    if kind == "ollama":
        return OllamaServer(models=[OllamaModel("llama3.2", capabilities=("completion", "tools", "thinking"))])
    return {"openai": OpenAIServer, "gemini": GeminiServer, "anthropic": AnthropicServer}[kind]()


async def no_wait(_seconds: float) -> None: ...


_opened: list[LiteLLMClient] = []


@pytest.fixture(autouse=True)
async def _clients_are_closed() -> AsyncIterator[None]:
    yield
    while _opened:
        await _opened.pop().close()


def open_client(kind: str, server: Any, **changes: Any) -> LiteLLMClient:
    own = {f"{kind}_api_base": server.api_base if kind == "openai" else server.url}
    if kind != "ollama":
        own[f"{kind}_api_key"] = "key"
    _opened.append(LiteLLMClient(load_settings(**{"max_retries": 1, **own, **changes}), sleep=no_wait))
    return _opened[-1]


@dataclass
class Called:
    """One streamed call: what came of it, and what its reader saw."""

    pieces: list[StreamPiece] = field(default_factory=list)
    log: AttemptLog = field(default_factory=AttemptLog)
    reply: Any = None
    error: LLMError | None = None

    def join(self, kind: str) -> str:
        return "".join(piece.text for piece in self.pieces if piece.kind == kind)

    @property
    def text(self) -> str:
        return self.join("text")


async def stream(client: LiteLLMClient, kind: str, *, request: LLMRequest | None = None, slow_s: float = 0.0) -> Called:
    called = Called()

    async def take(pieces: Any) -> None:
        called.pieces.extend(pieces)
        await asyncio.sleep(slow_s)

    try:
        called.reply = await client.call(
            ROUTES[kind], request or LLMRequest(messages="Say it."), called.log, sink=AnswerSink(take)
        )
    except LLMError as error:
        called.error = error
    return called


# --- the same reply -----------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "text": {},
    "tools": {"tools": (WEATHER,)},
    "schema": {"response_format": ResponseFormat(json_schema=FLAT)},
    "logprobs": {"logprobs": True},
}


def compare(outcome: Any, attempt: Any) -> Any:
    """Return what must be equal of a streamed and of a plain call."""
    own = {"latency_ms", "first_token_ms", "started_at_utc", "number", "status_code", "error_message"}
    recorded = attempt.model_dump(exclude=own)
    if isinstance(outcome, ClientReply):
        # LiteLLM makes up an id for calls that have none.
        calls = tuple(call.model_copy(update={"id": ""}) for call in outcome.tool_calls)
        return replace(outcome, tool_calls=calls), recorded
    return type(outcome), str(outcome), recorded


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ROUTES)
async def test_a_streamed_reply_is_the_plain_one(kind: str, path: str) -> None:
    """Over all replies of the stand-ins; only a count that was not sent is never estimated for a stream."""
    with open_server(kind) as server:
        client = open_client(kind, server, request_path=path, max_retries=0)
        for variant, extra in VARIANTS.items():
            # Anthropic has no log-probabilities, and the reference path is slow.
            if variant == "logprobs" and (kind == "anthropic" or path == "reference"):
                continue
            for name, reply in REPLIES.items():
                server.script(reply)
                request = LLMRequest(messages="Say it.", **extra)
                log = AttemptLog()
                try:
                    plain: Any = await client.call(ROUTES[kind], request, log)
                except LLMError as error:
                    plain = error
                called = await stream(client, kind, request=request)
                streamed = called.reply or called.error
                expected = compare(plain, log.attempts[0])
                if isinstance(plain, ClientReply) and plain.usage.estimated:
                    assert streamed.usage == TokenUsage()
                    expected = (
                        replace(expected[0], usage=TokenUsage()),
                        {**expected[1], "usage": TokenUsage().model_dump()},
                    )
                assert compare(streamed, called.log.attempts[0]) == expected, (variant, name)
                if isinstance(streamed, ClientReply):
                    assert called.text == streamed.text, (variant, name)
                    calls = [piece for piece in called.pieces if piece.kind == "tool_call"]
                    for at, call in enumerate(streamed.tool_calls):
                        mine = [piece for piece in calls if piece.tool_index == at]
                        assert json.loads("".join(piece.text for piece in mine) or "{}") == json.loads(call.arguments)
                        assert mine[0].tool_name == call.name
                    assert (called.log.attempts[0].first_token_ms is not None) == bool(called.pieces)


@pytest.mark.parametrize("counts", ["after", "with_end", "every", "never"])
async def test_counts_come_where_the_server_sends_them(counts: str) -> None:
    place: dict[str, Any] = {"stream_options": "ignored"} if counts == "never" else {"streamed_counts": counts}
    with OpenAIServer(TALL, dialect=OpenAIDialect(**place)) as server:
        client = open_client("openai", server)
        called = await stream(client, "openai")
    expected = TokenUsage() if counts == "never" else TokenUsage(input_tokens=2, output_tokens=8, total_tokens=10)
    assert called.reply.usage.input_tokens == expected.input_tokens
    assert called.reply.usage.output_tokens == expected.output_tokens


async def test_a_server_that_refuses_the_option_or_the_stream_is_asked_in_a_simpler_way() -> None:
    """The refusal is an attempt like any other, and happens once."""
    for dialect, streams in ((OpenAIDialect(stream_options="refused"), True), (OpenAIDialect(can_stream=False), False)):
        with OpenAIServer(TALL, dialect=dialect) as server:
            client = open_client("openai", server, max_retries=0)
            first, second = [await stream(client, "openai") for _ in range(2)]
            assert [attempt.status for attempt in first.log.attempts] == [AttemptStatus.FAILED, AttemptStatus.SUCCEEDED]
            assert second.reply.text == first.reply.text == TALL.text
            assert server.call_count == 3
            assert bool(first.pieces) == bool(second.pieces) == streams


# --- faults -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=ROUTES)
def wire(request: pytest.FixtureRequest) -> Any:
    with open_server(request.param) as server:
        yield request.param, server


async def test_a_failure_before_the_first_piece_is_retried(wire: Any) -> None:
    kind, server = wire
    client = open_client(kind, server)
    for fault in (Fault.status(503), Fault.hang_up(), Fault.stream_break(0), Fault.stream_error(0)):
        server.clear()
        server.script([fault, TALL])
        called = await stream(client, kind)
        assert (called.text, called.reply.text, server.call_count) == (TALL.text, TALL.text, 2)
        assert [attempt.status.value for attempt in called.log.attempts] == ["FAILED", "SUCCEEDED"]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [(Fault.stream_break(6, TALL), LLMUnavailable), (Fault.stream_error(6, "no more of this", TALL), LLMUnavailable),
     (Fault.stream_stall(6, TALL), LLMTimeout)],
    ids=["break", "error", "stall"],
)  # fmt: skip
async def test_a_failure_in_the_middle_is_the_end(wire: Any, fault: Fault, expected: type[LLMError]) -> None:
    kind, server = wire
    server.script(fault)
    client = open_client(kind, server, stream_chunk_timeout_s=0.2)
    called = await stream(client, kind)
    assert type(called.error) is expected
    assert called.text
    assert TALL.text.startswith(called.text)
    assert called.text != TALL.text
    assert "three" not in f"{called.error}{called.error!r}"
    (attempt,) = called.log.attempts
    assert (attempt.status, attempt.usage.estimated, server.call_count) == (AttemptStatus.FAILED, False, 1)
    if kind in {"ollama", "openai"}:  # which send their counts at the end
        assert attempt.usage == TokenUsage()
    assert ("no more of this" in str(called.error)) == (fault.kind == "stream_error")
    server.script(TALL)
    assert (await stream(client, kind)).text == TALL.text


@pytest.mark.slow
async def test_the_time_of_the_request_ends_with_its_first_piece(wire: Any) -> None:
    kind, server = wire
    server.script(Fault.stream_pace(0.2, TALL))
    client = open_client(kind, server, max_retries=0)
    assert (await stream(client, kind, request=LLMRequest(messages="x", timeout_s=1.2))).text == TALL.text
    server.script(Fault.stream_stall(0))
    called = await stream(client, kind, request=LLMRequest(messages="x", timeout_s=0.25))
    assert isinstance(called.error, LLMTimeout)
    assert "within 0.25 s" in str(called.error)


@pytest.mark.slow
async def test_the_time_of_the_reader_is_not_silence() -> None:
    with OllamaServer(Fault.stream_pace(0.1, Reply("word " * 30))) as server:
        client = open_client("ollama", server, stream_chunk_timeout_s=1)
        called = await stream(client, "ollama", slow_s=1.1)
    assert called.text == "word " * 30


async def test_what_follows_the_end_of_an_answer_reaches_no_other(wire: Any) -> None:
    kind, server = wire
    server.script([Fault.stream_surplus(Reply("first answer")), Reply("second"), Reply("third")])
    client = open_client(kind, server)
    texts = [(await stream(client, kind)).reply.text for _ in range(3)]
    assert texts[1:] == ["second", "third"]
    if kind != "gemini":  # which marks no end
        assert texts[0] == "first answer"


@pytest.mark.parametrize("size", [1, 7])
async def test_characters_and_events_in_many_reads(wire: Any, size: int) -> None:
    kind, server = wire
    text = "Grüße \U0001f600 世界, oder?"
    server.script(Fault.drip(0, Reply(text), piece_bytes=size))
    client = open_client(kind, server)
    called = await stream(client, kind)
    assert (called.text, called.reply.text) == (text, text)


async def test_pieces_that_follow_one_another_are_read_together() -> None:
    with OllamaServer(Fault.stream_pace(0.001, Reply("word " * 60))) as server:
        reads: list[int] = []

        async def take(pieces: Any) -> None:
            reads.append(len(pieces))

        request = LLMRequest(messages="Say it.")
        await open_client("ollama", server).call(ROUTES["ollama"], request, AttemptLog(), sink=AnswerSink(take))
    assert reads[0] == 1
    assert len(reads) < sum(reads) / 2


@pytest.mark.parametrize(
    "wire",
    ["ollama", "openai", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gemini", "anthropic"))],
    indirect=True,
)
async def test_an_event_of_ten_megabytes_and_the_limit(wire: Any) -> None:
    kind, server = wire
    server.script(Reply("x" * 10 * 2**20))
    client = open_client(kind, server, max_reply_mb=24)
    called = await stream(client, kind)
    assert len(called.text) == len(called.reply.text) == 10 * 2**20
    client = open_client(kind, server, max_reply_mb=1)
    called = await stream(client, kind)
    assert isinstance(called.error, LLMMalformedReply)
    assert "larger than 1 MB" in str(called.error)


@pytest.mark.parametrize("path", PATHS)
async def test_a_reader_that_leaves_is_seen_by_the_server(wire: Any, path: str) -> None:
    kind, server = wire
    server.script(Fault.stream_stall(6, TALL))
    client = open_client(kind, server, request_path=path)
    begun = asyncio.Event()

    async def take(_pieces: Any) -> None:
        begun.set()

    log = AttemptLog()
    call = client.call(ROUTES[kind], LLMRequest(messages="Say it."), log, sink=AnswerSink(take))
    task = asyncio.create_task(call)
    await asyncio.wait_for(begun.wait(), 60)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await asyncio.to_thread(server.wait_until_idle, 60)
    assert server.calls[0].client_disconnected
    (attempt,) = log.attempts
    assert attempt.status is AttemptStatus.CANCELLED
    # Two of the protocols count the prompt before the answer; the tokens of the answer until then are not those billed.
    counted = {"gemini", "anthropic"}
    assert attempt.usage == (TokenUsage(input_tokens=2) if kind in counted else TokenUsage())


def make_chunks(*texts: str, end: bool = True) -> bytes:
    deltas = [{"index": 0, "delta": {"content": text}} for text in texts]
    choices = [*deltas, {"index": 0, "delta": {}, "finish_reason": "stop"}] if end else deltas
    return b"".join(b"data: " + json.dumps({"id": "1", "choices": [each]}).encode() + b"\n\n" for each in choices)


@pytest.mark.parametrize(
    ("content_type", "body", "texts", "error"),
    [
        ("text/event-stream", make_chunks("half \ud83d", "\ude00 \ud83d"), ["half ", "\U0001f600 "], None),
        ("application/json", make_chunks("one ", "two"), [], None),
        ("text/event-stream", {"error": {"message": "no such stream"}}, [], "no such stream"),
        ("text/event-stream", b"", [], "broke off"),
        ("text/event-stream", make_chunks("one", end=False), ["one"], "broke off"),
        ("text/event-stream", make_chunks("a few") + b"data:\n\n" * 10_000 + b"data: [DONE]\n\n", ["a few"], None),
        (
            "text/event-stream",
            make_chunks("one", end=False) + b"data: {\n\n" * 25_000,
            ["one"],
            "does not speak the protocol",
        ),
        ("text/event-stream", b"data:\n\n" * 25_000 + make_chunks("one"), [], "does not speak the protocol"),
        ("application/json", b"data: x\n\n" * 25_000 + make_chunks("one"), [], "does not speak the protocol"),
    ],
    ids=[
        *("half characters", "another content type", "no stream at all", "nothing", "no end"),
        *("some junk", "junk in the middle", "junk at the beginning", "junk of another content type"),
    ],
)
async def test_odd_streams(serve_raw: ServeRaw, content_type: str, body: Any, texts: list[str], error: Any) -> None:
    server = serve_raw(200, body, **{"Content-Type": content_type})
    settings = load_settings(openai_api_key="key", openai_api_base=f"{server.url}/v1", max_retries=0)
    _opened.append(LiteLLMClient(settings))
    called = await stream(_opened[-1], "openai")
    assert called.text == "".join(texts)
    if error is None:
        assert called.reply.text.startswith(called.text or "one two")
    else:
        assert error in str(called.error)


async def test_an_answer_is_whole_when_its_connection_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.transport.http.stream_reading.COUNTS_WAIT_S", 0.05)
    left = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + make_chunks("one ", "two"))
        while await reader.read(10_000):
            writer.write(b": still here\n\n")
        left.set()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    _opened.append(LiteLLMClient(load_settings(openai_api_key="key", openai_api_base=base)))
    called = await stream(_opened[-1], "openai")
    assert (called.reply.text, called.reply.usage) == ("one two", TokenUsage())
    await asyncio.wait_for(left.wait(), 60)
    server.close()
    await server.wait_closed()


async def test_one_connection_carries_streams_one_after_the_other() -> None:
    with OllamaServer(TALL) as server:
        client = open_client("ollama", server)
        for _ in range(5):
            await stream(client, "ollama")
        pool = client._paths._open_path.pool
        (kept,) = pool._session.connector._conns.values()
        assert len(kept) == 1


async def test_a_stream_holds_its_place_until_its_end() -> None:
    with OllamaServer(Fault.stream_pace(0.01, TALL)) as server:
        client = open_client("ollama", server, concurrency_limit=2)
        done = await asyncio.gather(*(stream(client, "ollama") for _ in range(6)))
    assert [called.text for called in done] == [TALL.text] * 6
    assert server.max_in_flight == 2


@pytest.mark.slow
async def test_a_thousand_abandoned_streams_leave_nothing() -> None:
    rng = random.Random(18)
    with OllamaServer(Fault.stream_pace(0.002, Reply("word " * 40))) as server:
        client = open_client("ollama", server, concurrency_limit=100, adaptive_concurrency=False)
        await client.preload()
        threads, tasks = threading.active_count(), len(asyncio.all_tasks())

        async def leave() -> None:
            left = rng.randint(0, 6)

            async def take(_pieces: Any) -> None:
                nonlocal left
                left -= 1
                if left <= 0:
                    call.cancel()

            request = LLMRequest(messages="Say it.")
            call = asyncio.create_task(client.call(ROUTES["ollama"], request, AttemptLog(), sink=AnswerSink(take)))
            if not left:
                await asyncio.sleep(rng.random() * 0.1)
                call.cancel()
            await asyncio.gather(call, return_exceptions=True)

        for _ in range(10):
            await asyncio.gather(*(leave() for _ in range(100)))
        assert await asyncio.to_thread(server.wait_until_idle, 60)
        outcomes = [call.outcome for call in server.calls]
        assert outcomes.count("client_left") > 800
        assert set(outcomes) <= {"client_left", "answered"}
        assert not client._paths._open_path.pool._session.connector._acquired
        assert (len(asyncio.all_tasks()), threading.active_count()) <= (
            tasks,
            threads + 1,
        )  # asyncio.to_thread keeps one
        server.script(TALL)
        assert (await stream(client, "ollama")).text == TALL.text
