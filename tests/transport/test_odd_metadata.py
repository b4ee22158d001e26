"""Replies whose text is sound and whose metadata are not: the answer is paid for, so it is an answer."""

from __future__ import annotations

import asyncio
import json
import warnings
from typing import Any

import pytest

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMMalformedReply
from llmkit.ports import AnswerSink, AttemptLog, StreamPiece
from llmkit.providers import load_endpoints
from llmkit.settings import load_settings
from llmkit.types import LLMProvider, LLMRequest, Route
from tests.support.hostile_replies import (
    EVENTS,
    GOOD,
    KEYED,
    PATHS,
    ROUTES,
    build_reply,
    no_wait,
    read_request,
    serving,
)
from tests.support.raw_server import ServeRaw

HUGE = "a number of 5,000 digits"
ODD: tuple[Any, ...] = ("canary", "12", 1.5, [1], {"a": "canary"}, True, 1e30)
OPENAI = {
    "id": "x", "object": "chat.completion", "created": 1, "model": "m", "system_fingerprint": "f",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7,
              "prompt_tokens_details": {"cached_tokens": 1}, "completion_tokens_details": {"reasoning_tokens": 0}},
}  # fmt: skip
OPENAI_ROUTE = Route(provider=LLMProvider.OPENAI, model="gpt-5-mini")
# Arguments that are neither text nor an object: what they mean is for the validation of the tool to say.
ODD_CALLS: tuple[Any, ...] = tuple(
    {"id": each, "function": {"name": "f", "arguments": each}} for each in (1.5, [1], True)
)
FIELDS = {
    "openai": ("id", "object", "created", "model", "system_fingerprint", "usage", "service_tier"),
    "ollama": ("prompt_eval_count", "eval_count", "done_reason", "model", "created_at", "total_duration", "context"),
    "anthropic": ("id", "type", "role", "model", "stop_reason", "stop_sequence", "usage", "container"),
    "gemini": ("usageMetadata", "modelVersion", "responseId", "promptFeedback", "createTime"),
}
OF_CANDIDATE = ("finishReason", "index", "avgLogprobs", "safetyRatings", "citationMetadata", "groundingMetadata")
COUNTS = ("promptTokenCount", "candidatesTokenCount", "totalTokenCount", "thoughtsTokenCount", "promptTokensDetails")


def vary_replies(provider: str) -> list[tuple[str, Any]]:
    """Return good replies, each with odd values in one place."""
    good = {**GOOD, "openai": OPENAI}
    found = []
    for value in ODD:
        found += [(f"{name}={value!r}", {**good[provider], name: value}) for name in FIELDS[provider]]
        if provider == "openai":
            found += [
                (f"{name}={value!r}", {**OPENAI, "usage": {**OPENAI["usage"], name: value}})  # type: ignore[dict-item]
                for name in OPENAI["usage"]  # type: ignore[attr-defined]
            ]
        if provider == "anthropic":
            usage = GOOD["anthropic"]["usage"]
            found += [(f"{name}={value!r}", {**GOOD["anthropic"], "usage": {**usage, name: value}}) for name in usage]
        if provider == "gemini":
            candidate, usage = GOOD["gemini"]["candidates"][0], GOOD["gemini"]["usageMetadata"]
            found += [
                (f"{name}={value!r}", {**GOOD["gemini"], "candidates": [{**candidate, name: value}]})
                for name in OF_CANDIDATE
            ]
            found += [
                (f"{name}={value!r}", {**GOOD["gemini"], "usageMetadata": {**usage, name: value}}) for name in COUNTS
            ]
    return found + [(f"{provider} {number}", body) for number, body in enumerate(build_odd_replies()[provider])]


def build_odd_replies() -> dict[str, list[Any]]:
    """Return replies with something odd beside the text."""
    gemini, ollama = GOOD["gemini"], GOOD["ollama"]
    text, first = {"text": "Hi"}, gemini["candidates"][0]
    parts = ([None, text], [text, {"executableCode": 5}], [text, {"inlineData": None}], [text, {"functionCall": None}])
    return {
        "ollama": [
            {**ollama, "message": {"role": ["x"], "content": "Hi", "tool_calls": [None], "images": 5}},
            {**ollama, "eval_count": HUGE},
            *({**ollama, "message": {"content": "Hi", "tool_calls": [each]}} for each in ODD_CALLS),
        ],
        "gemini": [
            *({**gemini, "candidates": [{"content": {"parts": each, "role": 5}}]} for each in parts),
            {**gemini, "candidates": [first, None, {"content": "x"}]},
            {**gemini, "usageMetadata": {"promptTokenCount": HUGE}},
        ],
        "openai": [
            {**OPENAI, "choices": [*OPENAI["choices"], None]},  # type: ignore[misc]
            {**OPENAI, "usage": {"prompt_tokens": HUGE, "completion_tokens": 1}},
            *(
                {**OPENAI, "choices": [{**choice, "message": {"content": "Hi", "tool_calls": [each]}}]}
                for choice in OPENAI["choices"]  # type: ignore[attr-defined]
                for each in ODD_CALLS
            ),
        ],
        "anthropic": [{**GOOD["anthropic"], "usage": {**GOOD["anthropic"]["usage"], "output_tokens": HUGE}}],
    }


@pytest.mark.slow
@pytest.mark.parametrize("provider", FIELDS)
@pytest.mark.parametrize("path", PATHS)
async def test_odd_metadata_cost_no_answer(path: str, provider: str) -> None:
    reply: list[Any] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        body = json.dumps(reply[-1]).replace(json.dumps(HUGE), "9" * 5000).encode()
        writer.write(build_reply(body, headers=(("Connection", "close"),)))
        await writer.drain()

    lost, route = [], OPENAI_ROUTE if provider == "openai" else ROUTES[provider]
    async with serving(answer) as url:
        bases = {f"{name}_api_base": url for name in FIELDS}
        keys = {f"{name}_api_key": "key-for-tests" for name in KEYED}
        settings = load_settings(request_path=path, max_retries=0, **bases, **keys)
        client = LiteLLMClient(settings, providers=load_endpoints(settings), sleep=no_wait)
        for name, body in vary_replies(provider):
            reply.append(body)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    found = await client.call(route, LLMRequest(messages="Hello"), AttemptLog())
                except Exception as error:  # noqa: BLE001 - all are listed
                    lost.append(f"{name}: {error}")
                else:
                    assert found.text, name
            assert not [str(each.message) for each in caught if "canary" in str(each.message)], name
        await client.close()
    assert lost == []


async def ask(url: str, route: Route, sink: AnswerSink | None = None) -> Any:
    bases = {f"{name}_api_base": url for name in FIELDS} | {f"{name}_api_key": "key-for-tests" for name in KEYED}
    client = LiteLLMClient(load_settings(max_retries=0, **bases), sleep=no_wait)
    try:
        return await client.call(route, LLMRequest(messages="Hello"), AttemptLog(), sink=sink)
    finally:
        await client.close()


@pytest.mark.parametrize("odd", ["0", 1.5, [0], True, -1, 10**30], ids=repr)
@pytest.mark.parametrize("provider", ["openai", "gemini"])
async def test_an_odd_index_loses_no_part_of_a_stream(provider: str, odd: Any, serve_raw: ServeRaw) -> None:
    """As in whole replies, of which the first answer is read, whatever its number is."""
    name = {"openai": "choices", "gemini": "candidates"}[provider]
    events = [{**event, name: [{**each, "index": odd} for each in event[name]]} for event in EVENTS[provider]]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode()
    server = serve_raw(200, body, **{"Content-Type": "text/event-stream"})
    pieces: list[StreamPiece] = []

    async def take(arrived: Any) -> None:
        pieces.extend(arrived)

    reply = await ask(server.url, ROUTES[provider], AnswerSink(take))
    assert (reply.text, [call.name for call in reply.tool_calls]) == ("Hi", ["f"])
    assert "".join(piece.text for piece in pieces if piece.kind == "text") == "Hi"


@pytest.mark.parametrize("odd", [1.5, ["stop"], {"a": 1}, True], ids=repr)
async def test_an_odd_reason_ends_a_stream(odd: Any, serve_raw: ServeRaw) -> None:
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": odd}]}
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in [*EVENTS["openai"][:3], last]).encode()
    server = serve_raw(200, body, **{"Content-Type": "text/event-stream"})

    async def take(arrived: Any) -> None: ...

    reply = await ask(server.url, ROUTES["openai"], AnswerSink(take))
    assert reply.text == "Hi"


@pytest.mark.parametrize("content", [7, ["Hi"], {"text": "Hi"}], ids=repr)
async def test_an_answer_in_another_form_is_not_called_empty(content: Any, serve_raw: ServeRaw) -> None:
    server = serve_raw(200, {**GOOD["ollama"], "message": {"role": "assistant", "content": content}})
    with pytest.raises(LLMMalformedReply, match="does not speak the protocol of Ollama"):
        await ask(server.url, ROUTES["ollama"])


@pytest.mark.parametrize("status", [600, 999])
async def test_a_status_without_a_meaning_is_no_protocol(status: int, serve_raw: ServeRaw) -> None:
    with pytest.raises(LLMMalformedReply, match=rf"does not speak the protocol of Ollama: .*HTTP {status}"):
        await ask(serve_raw(status, {}).url, ROUTES["ollama"])
