"""HTTP answers of stand-in servers, and the token counts behind them."""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from llmkit.testing.replies import DEFAULT_TEXT, Fault, Reply
from llmkit.testing.request_log import Usage
from llmkit.testing.schema_instance import minimal_instance
from llmkit.testing.tokens import count_tokens, split_signs, split_tokens, take_tokens

__all__ = [
    "CompletedReply",
    "HttpAnswer",
    "complete_reply",
    "describe_token",
    "find_wrong_type",
    "json_bytes",
    "make_retry_headers",
    "pair_logprobs",
]


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
    """Outcome of a reply after the request's schema, limits and stop sequences are applied. Counts are in tokens."""

    text: str
    finish_reason: str
    usage: Usage
    stop_sequence: str | None = None


def complete_reply(
    reply: Reply, *, prompt_tokens: int, schema: Any = None, limit: int | None = None, stops: Iterable[str] = ()
) -> CompletedReply:
    """Compute text, finish reason and counts of `reply`.

    Args:
        reply: The scripted reply.
        prompt_tokens: The prompt's own count, used when the reply gives none.
        schema: The JSON Schema asked for, if any; used when the reply gives no text.
        limit: The request's limit of output tokens, reasoning included; None for none.
        stops: The request's stop sequences; the text ends before the first that occurs in it.
    """
    text = _text(reply, schema)
    found = [(text.find(stop), stop) for stop in stops if stop and stop in text]
    stop_sequence = None
    if found:
        at, stop_sequence = min(found)
        text = text[:at]
    reasoning = reply.reasoning_tokens if reply.reasoning_tokens is not None else count_tokens(reply.thinking or "")
    spoken = count_tokens(text) + len(reply.tool_calls)
    output = reply.output_tokens if reply.output_tokens is not None else max(1, reasoning + spoken)
    finish_reason = reply.finish_reason or "stop"
    if limit is not None and output > limit:
        reasoning, output = min(reasoning, limit), limit
        text, stop_sequence = take_tokens(text, limit - reasoning), None
        finish_reason = reply.finish_reason or "length"
    entry = reply.input_tokens if reply.input_tokens is not None else prompt_tokens
    usage = Usage(1, entry, output, reply.cached_tokens or 0, reasoning)
    return CompletedReply(text, finish_reason, usage, stop_sequence)


def _text(reply: Reply, schema: Any) -> str:
    if reply.text is not None:
        return reply.text
    if reply.tool_calls:
        return ""
    return DEFAULT_TEXT if schema is None else json.dumps(minimal_instance(schema), ensure_ascii=False)


def make_retry_headers(fault: Fault) -> dict[str, str]:
    """Return the headers of `fault`, with those that every server may use to say when to come back."""
    headers = dict(fault.headers)
    if fault.retry_after_s is None:
        return headers
    match fault.retry_after_form:
        case "seconds":
            headers.setdefault("Retry-After", str(math.ceil(fault.retry_after_s)))
        case "milliseconds":
            headers.setdefault("retry-after-ms", str(math.ceil(fault.retry_after_s * 1000)))
        case "date":
            # A date has whole seconds: the next one, so that the wait is never shorter than scripted.
            headers.setdefault("Retry-After", formatdate(math.ceil(time.time() + fault.retry_after_s), usegmt=True))
    return headers


def pair_logprobs(text: str, logprobs: Sequence[float] | Mapping[str, float]) -> list[tuple[str, float]]:
    """Return the tokens of `text`, which together are the text, each with its log-probability; see `Reply`."""
    if isinstance(logprobs, Mapping):
        return [(sign, logprobs.get(sign, -0.01)) for sign in split_signs(text)]
    tokens = split_tokens(text)
    given = [*logprobs] or [-0.25]
    return [(token, given[min(at, len(given) - 1)]) for at, token in enumerate(tokens)]


def describe_token(token: str, logprob: float, alternatives: int) -> dict[str, Any]:
    """Return one token with its likeliest alternatives: itself, and made-up ones, each less likely than the last."""
    names = [token, *(f"{token}~{number}" for number in range(1, alternatives))][:alternatives]
    top = [{"token": name, "logprob": logprob - at, "bytes": [*name.encode()]} for at, name in enumerate(names)]
    return {"token": token, "logprob": logprob, "bytes": [*token.encode()], "top_logprobs": top}


def find_wrong_type(body: Mapping[str, Any], types: Mapping[str, type | tuple[type, ...]]) -> str | None:
    """Return the first field of a request that is there, not null, and of another type; None for none."""
    for name, expected in types.items():
        value = body.get(name)
        # A bool is an int for Python, and never for a protocol.
        if value is not None and (
            not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool)
        ):
            return name
    return None
