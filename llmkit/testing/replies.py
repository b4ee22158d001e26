"""Scripted answers of a stand-in server: a `Reply`, or a `Fault` of the transport, the server or the model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Any, Self

__all__ = ["DEFAULT_TEXT", "Fault", "FaultKind", "Reply", "ToolCall"]

DEFAULT_TEXT = "This is the stand-in's own reply."
"""The answer when nothing was scripted and no schema was requested: six words, six tokens."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of one tool by the model.

    `id` and `thought_signature` exist on Gemini's wire only. A call without an id gets `call-<n>`, counted from 0
    within its reply; the first call without a signature gets a made-up one, as Gemini signs the first of parallel
    calls.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    thought_signature: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the model.

    Counts are in tokens and follow the words of llmkit: `input_tokens` includes the cached ones and `output_tokens`
    includes the reasoning. A count that is given is reported as it is; one that is left out is worked out (see
    `llmkit.testing`).

    Attributes:
        text: The model's text. None is a minimal valid instance of the requested schema, else `DEFAULT_TEXT`, or
            nothing when there are tool calls.
        tool_calls: Calls made beside the text.
        thinking: Reasoning text. Ollama shows it as `message.thinking`; Gemini as a thought part if the request
            includes thoughts.
        input_tokens: Tokens billed for the prompt.
        output_tokens: Tokens billed for the answer, reasoning included.
        cached_tokens: Part of `input_tokens` that was read from a cache. Gemini only.
        reasoning_tokens: Part of `output_tokens` that was reasoning. Ollama does not tell them apart.
        finish_reason: `stop` and `length` are translated for the wire, anything else is sent as it is. None is
            `stop`, or `length` when the request's own limit cuts the answer.
        no_usage: Leave every count out of the answer, and out of `server.usage`.
        model: The model that the answer names, if it is not the requested one.
    """

    text: str | None = None
    _: KW_ONLY
    tool_calls: Sequence[ToolCall] = ()
    thinking: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    finish_reason: str | None = None
    no_usage: bool = False
    model: str | None = None

    def __post_init__(self) -> None:
        _check_part("cached_tokens", self.cached_tokens, "input_tokens", self.input_tokens)
        _check_part("reasoning_tokens", self.reasoning_tokens, "output_tokens", self.output_tokens)


def _check_part(part_name: str, part: int | None, whole_name: str, whole: int | None) -> None:
    if part is not None and whole is not None and part > whole:
        raise ValueError(f"{part_name}={part} is a part of {whole_name}={whole} and cannot exceed it")


class FaultKind(StrEnum):
    """Kind of fault. The values are stable and suit test ids."""

    STATUS = "status"
    DELAY = "delay"
    DRIP = "drip"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    HTML = "html"
    EMPTY = "empty"
    RESET = "reset"
    HANG_UP = "hang_up"
    REDIRECT = "redirect"
    INVALID_KEY = "invalid_key"
    DAILY_QUOTA = "daily_quota"
    CONTEXT_OVERFLOW = "context_overflow"
    NO_CANDIDATES = "no_candidates"
    SAFETY_BLOCK = "safety_block"
    RECITATION = "recitation"
    PROMPT_BLOCK = "prompt_block"
    MALFORMED_TOOL_CALL = "malformed_tool_call"
    CUT_AT_LIMIT = "cut_at_limit"
    REASONING_ATE_LIMIT = "reasoning_ate_limit"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong. Build it with one of the class methods, which say what each does on the wire."""

    kind: FaultKind
    _: KW_ONLY
    status_code: int = 200
    message: str | None = None
    retry_after_s: float | None = None
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    piece_bytes: int = 1
    tokens: int = 0
    url: str = ""
    then: "Reply | Fault" = field(default_factory=Reply)

    @classmethod
    def status(
        cls,
        code: int,
        message: str | None = None,
        *,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """Return an error status with a body in the server's own shape.

        `retry_after_s` becomes a `Retry-After` header (Ollama's wire, whole seconds, rounded up) or a `RetryInfo`
        detail (Gemini's wire, which has no such header). `headers` are added as they are, so that either can be had
        on the other wire.
        """
        added = tuple((headers or {}).items())
        return cls(FaultKind.STATUS, status_code=code, message=message, retry_after_s=retry_after_s, headers=added)

    @classmethod
    def delay(cls, seconds: float, then: "Reply | Fault | None" = None) -> Self:
        """Wait `seconds`, then answer `then` (default: an unscripted reply)."""
        return cls(FaultKind.DELAY, seconds=seconds, then=then or Reply())

    @classmethod
    def hang(cls) -> Self:
        """Accept the request and never answer. Stopping the server ends it."""
        return cls(FaultKind.DELAY, seconds=math.inf)

    @classmethod
    def drip(cls, interval_s: float, then: Reply | None = None, *, piece_bytes: int = 1) -> Self:
        """Send the headers at once and then the body in pieces of `piece_bytes`, one every `interval_s` seconds."""
        return cls(FaultKind.DRIP, seconds=interval_s, piece_bytes=piece_bytes, then=then or Reply())

    @classmethod
    def truncated(cls, then: Reply | None = None) -> Self:
        """Announce the whole body by `Content-Length`, send half of it and close the connection."""
        return cls(FaultKind.TRUNCATED, then=then or Reply())

    @classmethod
    def malformed(cls) -> Self:
        """Return status 200 and a JSON content type, with a body that breaks off in the middle of a value."""
        return cls(FaultKind.MALFORMED)

    @classmethod
    def html(cls, status_code: int = 200) -> Self:
        """Return an HTML page, as a proxy or a captive portal answers."""
        return cls(FaultKind.HTML, status_code=status_code)

    @classmethod
    def empty(cls, status_code: int = 200) -> Self:
        """Return a body of no bytes."""
        return cls(FaultKind.EMPTY, status_code=status_code)

    @classmethod
    def reset(cls) -> Self:
        """Read the request, then reset the connection (TCP RST)."""
        return cls(FaultKind.RESET)

    @classmethod
    def hang_up(cls) -> Self:
        """Read the request, then close the connection in good order (TCP FIN) without an answer."""
        return cls(FaultKind.HANG_UP)

    @classmethod
    def redirect(cls, url: str, status_code: int = 307) -> Self:
        """Point to `url`; a client that follows sends method, body and perhaps the key there."""
        return cls(FaultKind.REDIRECT, url=url, status_code=status_code)

    @classmethod
    def invalid_key(cls) -> Self:
        """Answer as the server does to a wrong key: Gemini 400 `API_KEY_INVALID`, Ollama (behind a proxy) 401."""
        return cls(FaultKind.INVALID_KEY)

    @classmethod
    def daily_quota(cls, retry_after_s: float | None = None) -> Self:
        """Return 429 for a daily quota, which no retry today can satisfy. Gemini only."""
        return cls(FaultKind.DAILY_QUOTA, status_code=429, retry_after_s=retry_after_s)

    @classmethod
    def context_overflow(cls) -> Self:
        """Return 400 for a prompt that is longer than the model's context."""
        return cls(FaultKind.CONTEXT_OVERFLOW, status_code=400)

    @classmethod
    def no_candidates(cls) -> Self:
        """Return status 200 without an answer: no `candidates` (Gemini), no `message` (Ollama). The prompt counts."""
        return cls(FaultKind.NO_CANDIDATES)

    @classmethod
    def safety_block(cls) -> Self:
        """Return status 200, finish reason `SAFETY`, no content. Gemini only."""
        return cls(FaultKind.SAFETY_BLOCK)

    @classmethod
    def recitation(cls) -> Self:
        """Return status 200, finish reason `RECITATION`, no content. Gemini only."""
        return cls(FaultKind.RECITATION)

    @classmethod
    def prompt_block(cls, reason: str = "PROHIBITED_CONTENT") -> Self:
        """Return status 200, `promptFeedback.blockReason` and no candidate. Gemini only."""
        return cls(FaultKind.PROMPT_BLOCK, message=reason)

    @classmethod
    def malformed_tool_call(cls) -> Self:
        """Return status 200, finish reason `MALFORMED_FUNCTION_CALL`, no content. Gemini only."""
        return cls(FaultKind.MALFORMED_TOOL_CALL)

    @classmethod
    def cut_at_limit(cls, text: str = "This answer breaks off in the") -> Self:
        """Return status 200 and an answer that stopped at the token limit."""
        return cls(FaultKind.CUT_AT_LIMIT, then=Reply(text, finish_reason="length"))

    @classmethod
    def reasoning_ate_limit(cls, tokens: int = 64) -> Self:
        """Return status 200, stopped at the token limit with no text at all: all `tokens` of output were reasoning."""
        eaten = Reply("", output_tokens=tokens, reasoning_tokens=tokens, finish_reason="length")
        return cls(FaultKind.REASONING_ATE_LIMIT, tokens=tokens, then=eaten)
