"""Scripted answers of a stand-in server: a `Reply`, or a `Fault` of the transport, the server or the model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Any, Literal, Self, TypeAlias

__all__ = ["DEFAULT_TEXT", "Fault", "FaultKind", "Reply", "RetryAfterForm", "ToolCall"]

RetryAfterForm: TypeAlias = Literal["seconds", "milliseconds", "date", "reset", "message"]
"""How a server says when to come back: `Retry-After` in seconds (a `RetryInfo` on Gemini's wire), `retry-after-ms`,
`Retry-After` as a date, the provider's own `ratelimit-reset` header, or only in the text of the error."""

DEFAULT_TEXT = "This is the stand-in's own reply."
"""The answer when nothing was scripted and no schema was requested: six words, six tokens."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of one tool by the model.

    A call without an id gets `call-<n>`, counted from 0 within its reply; Ollama's wire has none. `thought_signature`
    exists on Gemini's wire only: the first call without one gets a made-up one, as Gemini signs the first of parallel
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
            includes thoughts; OpenAI in the field that the server was given; Anthropic as a block if the request
            enables thinking.
        input_tokens: Tokens billed for the prompt.
        output_tokens: Tokens billed for the answer, reasoning included.
        cached_tokens: Part of `input_tokens` that was read from a cache. Ollama does not report it.
        reasoning_tokens: Part of `output_tokens` that was reasoning. Ollama does not tell them apart.
        logprobs: Natural logarithms of the probabilities of the answer's tokens, in order; the last repeats. Sent
            where the request asks for them and the model has them. A mapping has those of single words and signs, which
            are then the tokens; all others have -0.01.
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
    logprobs: Sequence[float] | Mapping[str, float] = (-0.25,)
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
    REFUSAL = "refusal"
    RECITATION = "recitation"
    PROMPT_BLOCK = "prompt_block"
    MALFORMED_TOOL_CALL = "malformed_tool_call"
    CUT_AT_LIMIT = "cut_at_limit"
    REASONING_ATE_LIMIT = "reasoning_ate_limit"
    STREAM_PACE = "stream_pace"
    STREAM_STALL = "stream_stall"
    STREAM_BREAK = "stream_break"
    STREAM_ERROR = "stream_error"
    STREAM_SURPLUS = "stream_surplus"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong. Build it with one of the class methods, which say what each does on the wire."""

    kind: FaultKind
    _: KW_ONLY
    status_code: int = 200
    message: str | None = None
    retry_after_s: float | None = None
    retry_after_form: RetryAfterForm = "seconds"
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    piece_bytes: int = 1
    events: int = 0
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
        retry_after_form: RetryAfterForm = "seconds",
        headers: Mapping[str, str] | None = None,
    ) -> Self:
        """Return an error status with a body in the server's own shape.

        `retry_after_s` becomes a `Retry-After` header in whole seconds, rounded up, or a `RetryInfo` detail (Gemini's
        wire, which has no such header); `retry_after_form` chooses another form. `headers` are added as they are, so
        that either can be had on the other wire.
        """
        waits: dict[str, Any] = {"retry_after_s": retry_after_s, "retry_after_form": retry_after_form}
        return cls(FaultKind.STATUS, status_code=code, message=message, headers=tuple((headers or {}).items()), **waits)

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
        """Answer as the server does to a wrong key: Gemini 400 `API_KEY_INVALID`, the others 401."""
        return cls(FaultKind.INVALID_KEY)

    @classmethod
    def daily_quota(cls, retry_after_s: float | None = None) -> Self:
        """Return 429 for a quota that no retry today satisfies: Gemini's of the day, OpenAI's `insufficient_quota`."""
        return cls(FaultKind.DAILY_QUOTA, status_code=429, retry_after_s=retry_after_s)

    @classmethod
    def context_overflow(cls) -> Self:
        """Return 400 for a prompt that is longer than the model's context."""
        return cls(FaultKind.CONTEXT_OVERFLOW, status_code=400)

    @classmethod
    def no_candidates(cls) -> Self:
        """Return status 200 without an answer; the prompt counts.

        There are no `candidates` (Gemini), no `message` (Ollama), no `choices` (OpenAI), no `content` (Anthropic).
        """
        return cls(FaultKind.NO_CANDIDATES)

    @classmethod
    def safety_block(cls) -> Self:
        """Return status 200 and no content: finish reason `SAFETY` (Gemini) or `content_filter` (OpenAI)."""
        return cls(FaultKind.SAFETY_BLOCK)

    @classmethod
    def refusal(cls, text: str = "I'm sorry, I cannot help with that.") -> Self:
        """Return status 200 and a refusal: `message.refusal` (OpenAI), stop reason `refusal` (Anthropic)."""
        return cls(FaultKind.REFUSAL, message=text)

    @classmethod
    def recitation(cls) -> Self:
        """Return status 200, finish reason `RECITATION`, no content. Gemini only."""
        return cls(FaultKind.RECITATION)

    @classmethod
    def prompt_block(cls, reason: str = "PROHIBITED_CONTENT") -> Self:
        """Refuse the prompt: status 200 with `promptFeedback.blockReason` (Gemini), 400 (OpenAI, Anthropic)."""
        return cls(FaultKind.PROMPT_BLOCK, message=reason)

    @classmethod
    def malformed_tool_call(cls) -> Self:
        """Return status 200 and a tool call that cannot be read.

        Gemini's finish reason is `MALFORMED_FUNCTION_CALL`, without content; OpenAI's and Anthropic's arguments break
        off in the middle of the JSON.
        """
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

    @classmethod
    def stream_pace(cls, interval_s: float, then: Reply | None = None) -> Self:
        """Send an answer with a pause of `interval_s` seconds before each event; answer whole without one."""
        return cls(FaultKind.STREAM_PACE, seconds=interval_s, then=then or Reply())

    @classmethod
    def stream_stall(cls, events: int, then: Reply | None = None, *, seconds: float = math.inf) -> Self:
        """Send `events` events, then nothing for `seconds` seconds, then the rest.

        An answer that is not streamed begins after that time.
        """
        return cls(FaultKind.STREAM_STALL, events=events, seconds=seconds, then=then or Reply())

    @classmethod
    def stream_break(cls, events: int, then: Reply | None = None) -> Self:
        """Send `events` events and close the connection; one that is not streamed closes after half of its bytes."""
        return cls(FaultKind.STREAM_BREAK, events=events, then=then or Reply())

    @classmethod
    def stream_error(
        cls, events: int, message: str | None = None, then: Reply | None = None, *, code: int = 500
    ) -> Self:
        """Send `events` events and then an error in the form of the wire, which is the end.

        An answer that is not streamed is the same error with `code` as its status.
        """
        return cls(FaultKind.STREAM_ERROR, events=events, status_code=code, message=message, then=then or Reply())

    @classmethod
    def stream_surplus(cls, then: Reply | None = None) -> Self:
        """Send an answer, and after its end the same events once more in the same body."""
        return cls(FaultKind.STREAM_SURPLUS, then=then or Reply())
