"""Plain replies cut into the events of a stream, at places that a random generator chooses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from llmkit.testing import AnthropicServer, GeminiServer, Reply
from llmkit.testing.request_log import RecordedRequest

__all__ = ["CUTTERS", "Cutter", "render"]

Cutter = Callable[[Mapping[str, Any], Random], list[dict[str, Any]]]

_TOOL = {"name": "look_up", "input_schema": {"type": "object"}}


def render(kind: str, reply: Reply, *, streamed: bool = False) -> Any:
    """Return what the stand-in answers: the JSON, or the list of events."""
    hello = "Hello there"
    if kind == "gemini":
        verb = "streamGenerateContent" if streamed else "generateContent"
        config = {"thinkingConfig": {"includeThoughts": True}, "responseLogprobs": True, "logprobs": 1}
        body: dict[str, Any] = {"contents": [{"parts": [{"text": hello}]}], "generationConfig": config}
        path, query = f"/v1beta/models/gemini-2.5-flash:{verb}", {"alt": "sse"}
        server: GeminiServer | AnthropicServer = GeminiServer()
    else:
        body = {"model": "claude-sonnet-5", "max_tokens": 99, "thinking": {"type": "enabled"}, "tools": [_TOOL]}
        body |= {"messages": [{"role": "user", "content": hello}], "stream": streamed}
        path, query, server = "/v1/messages", {}, AnthropicServer()
    request = RecordedRequest("POST", path, query, {}, json.dumps(body).encode(), 0.0, True)
    answer = server._render(request, body, reply)
    if not streamed:
        return json.loads(answer.body)
    lines = answer.body.replace(b"\r", b"").split(b"\n")
    return [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: ")]


def _cut(text: str, rng: Random) -> list[str]:
    """Return pieces that together are the text: some are empty, and some end in half a character, as in JSON."""
    units = text.encode("utf-16-le")
    places = sorted(2 * rng.randint(0, len(units) // 2) for _ in range(rng.randint(0, 3)))
    pieces = [units[start:end] for start, end in zip([0, *places], [*places, len(units)], strict=True)]
    return [piece.decode("utf-16-le", "surrogatepass") for piece in pieces]


def _cut_gemini(plain: Mapping[str, Any], rng: Random) -> list[dict[str, Any]]:
    rest = {name: value for name, value in plain.items() if name not in ("candidates", "usageMetadata")}
    (candidate,) = plain["candidates"]
    content = candidate.get("content", {})
    frame = {name: value for name, value in content.items() if name != "parts"}
    events: list[dict[str, Any]] = []
    for part in content.get("parts", ()):
        ends = {name: value for name, value in part.items() if name == "thoughtSignature"}
        whole = {name: value for name, value in part.items() if name not in ("text", *ends)}
        pieces = [{**whole, "text": text} for text in _cut(part["text"], rng)] if "text" in part else [whole]
        pieces[-1] |= ends
        events += [{"candidates": [{"content": {**frame, "parts": [piece]}, "index": 0}]} for piece in pieces]
    ending = {name: value for name, value in candidate.items() if name not in ("content", "logprobsResult")}
    if "content" in candidate and not events:
        ending["content"] = content
    if events and rng.random() < 0.5:
        events[-1]["candidates"][0].update(ending)
    else:
        events.append({"candidates": [ending]})
    for name, tokens in candidate.get("logprobsResult", {}).items():
        at = rng.randint(0, len(tokens))
        events[0]["candidates"][0].setdefault("logprobsResult", {})[name] = tokens[:at]
        events.append({"candidates": [{"logprobsResult": {name: tokens[at:]}, "index": 0}]})
    for event in events:
        event.update(rest)
    usage = plain.get("usageMetadata")
    if usage is not None:
        early = {name: count // 2 if isinstance(count, int) else count for name, count in usage.items()}
        for event in events:
            event.update(rng.choice([{}, {"usageMetadata": early}, {"usageMetadata": None}]))
        events += rng.choice([[{"usageMetadata": usage}], [{"usageMetadata": usage}, {"usageMetadata": {}}]])
    return events


def _cut_anthropic(plain: Mapping[str, Any], rng: Random) -> list[dict[str, Any]]:
    usage, ending = plain.get("usage"), {name: plain[name] for name in ("stop_reason", "stop_sequence")}
    opened = {**plain, "content": [], **dict.fromkeys(ending)}
    closed: dict[str, Any] = {"type": "message_delta", "delta": ending}
    if usage is not None:
        opened["usage"] = {**usage, "output_tokens": rng.randint(0, 9)}
        names = rng.sample(sorted(usage), rng.randint(0, len(usage)))
        closed["usage"] = {**dict.fromkeys(names), "output_tokens": usage["output_tokens"]}
        closed["usage"]["output_tokens_details"] = usage["output_tokens_details"]
    events: list[dict[str, Any]] = [{"type": "message_start", "message": opened}]
    for index, block in enumerate(plain["content"]):
        match block:
            case {"type": "text", "text": text}:
                start = {**block, "text": ""}
                deltas = [{"type": "text_delta", "text": piece} for piece in _cut(text, rng)]
            case {"type": "thinking", "thinking": text}:
                start = {**block, "thinking": "", "signature": ""}
                deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _cut(text, rng)]
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            case {"type": "tool_use", "input": called}:
                start = {**block, "input": {}}
                written = json.dumps(called, ensure_ascii=rng.random() < 0.5)
                deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in _cut(written, rng)]
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    for _ in range(rng.randint(0, 3)):
        events.insert(rng.randint(0, len(events)), {"type": "ping"})
    return [*events, closed, {"type": "message_stop"}]


CUTTERS: Mapping[str, Cutter] = {"gemini": _cut_gemini, "anthropic": _cut_anthropic}
