"""HTTP answers of stand-in servers, and the token counts behind them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.testing.replies import DEFAULT_TEXT, Reply
from llmkit.testing.request_log import Usage
from llmkit.testing.schema_instance import minimal_instance
from llmkit.testing.tokens import count_tokens, take_tokens

__all__ = ["CompletedReply", "HttpAnswer", "complete_reply", "json_bytes"]


def json_bytes(value: Any) -> bytes:
    """Return `value` as compact UTF-8 JSON; text with a lone surrogate as escaped ASCII."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A status, headers and body. `pieces` are sent one after the other when `streamed`, else as one body."""

    pieces: Sequence[bytes]
    status: int = 200
    content_type: str = "application/json; charset=utf-8"
    headers: Mapping[str, str] | None = None
    usage: Usage | None = None
    streamed: bool = False

    @property
    def body(self) -> bytes:
        """All the pieces together."""
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)

    @property
    def all_headers(self) -> dict[str, str]:
        """The content type and what else there is."""
        return {"Content-Type": self.content_type, **(self.headers or {})}


@dataclass(frozen=True, slots=True)
class CompletedReply:
    """Outcome of a reply after the request's schema and limits are applied. Counts are in tokens."""

    text: str
    finish_reason: str
    usage: Usage


def complete_reply(reply: Reply, *, prompt_tokens: int, schema: Any = None, limit: int | None = None) -> CompletedReply:
    """Compute text, finish reason and counts of `reply`.

    Args:
        reply: The scripted reply.
        prompt_tokens: The prompt's own count, used when the reply gives none.
        schema: The JSON Schema asked for, if any; used when the reply gives no text.
        limit: The request's limit of output tokens, reasoning included; None for none.
    """
    text = _text(reply, schema)
    reasoning = reply.reasoning_tokens if reply.reasoning_tokens is not None else count_tokens(reply.thinking or "")
    spoken = count_tokens(text) + len(reply.tool_calls)
    output = reply.output_tokens if reply.output_tokens is not None else max(1, reasoning + spoken)
    finish_reason = reply.finish_reason or "stop"
    if limit is not None and output > limit:
        reasoning, output = min(reasoning, limit), limit
        text = take_tokens(text, limit - reasoning)
        finish_reason = reply.finish_reason or "length"
    entry = reply.input_tokens if reply.input_tokens is not None else prompt_tokens
    return CompletedReply(text, finish_reason, Usage(1, entry, output, reply.cached_tokens or 0, reasoning))


def _text(reply: Reply, schema: Any) -> str:
    if reply.text is not None:
        return reply.text
    if reply.tool_calls:
        return ""
    return DEFAULT_TEXT if schema is None else json.dumps(minimal_instance(schema), ensure_ascii=False)
