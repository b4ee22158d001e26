"""Failures and the errors that they become, as data: tests check it over real HTTP and `errors_page.py` prints it."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.errors import (
    LLMAuthenticationError,
    LLMBadRequest,
    LLMConfigurationError,
    LLMContentBlocked,
    LLMContextOverflow,
    LLMEmptyReply,
    LLMError,
    LLMMalformedReply,
    LLMModelNotFound,
    LLMOutputTruncated,
    LLMPermissionDenied,
    LLMPromptTruncated,
    LLMQuotaExhausted,
    LLMRateLimited,
    LLMReasoningExhausted,
    LLMTimeout,
    LLMUnavailable,
    LLMUnsupported,
)
from llmkit.testing import Fault, Reply
from llmkit.types import LLMProvider

MAX_RETRIES = 2
TRIES = MAX_RETRIES + 1
OLLAMA = (LLMProvider.OLLAMA,)
GEMINI = (LLMProvider.GEMINI,)
OPENAI = (LLMProvider.OPENAI,)
ANTHROPIC = (LLMProvider.ANTHROPIC,)
EVERYONE = OLLAMA + GEMINI + OPENAI + ANTHROPIC

REFUSED = "refused"
UNKNOWN_HOST = "unknown host"
UNKNOWN_MODEL = "unknown model"


@dataclass(frozen=True)
class Case:
    """One situation: what happens, the error (None for an answer), and the requests that reach the server.

    `attempts` is their number in the log, where it differs. `schema` asks for JSON by a schema; `timeout_s` is the
    deadline of one request, in seconds.
    """

    name: str
    happens: Fault | Reply | str
    error: type[LLMError] | None
    requests: int
    providers: tuple[LLMProvider, ...] = EVERYONE
    schema: bool = False
    max_output_tokens: int | None = None
    timeout_s: float = 20.0
    prompt: str = "What is churn?"
    attempts: int | None = None


CASES = (
    Case("connection refused", REFUSED, LLMUnavailable, 0, attempts=1),
    Case("host name unknown", UNKNOWN_HOST, LLMUnavailable, 0, attempts=TRIES),
    Case("connection reset", Fault.reset(), LLMUnavailable, TRIES),
    Case("body cut off", Fault.truncated(), LLMUnavailable, TRIES),
    Case("no answer in time", Fault.hang(), LLMTimeout, TRIES, timeout_s=0.3),
    Case("answer drips too slowly", Fault.drip(0.05), LLMTimeout, TRIES, timeout_s=0.4),
    Case("status 400", Fault.status(400), LLMBadRequest, 1),
    Case("status 401", Fault.status(401), LLMAuthenticationError, 1),
    Case("wrong key", Fault.invalid_key(), LLMAuthenticationError, 1),
    Case("status 402", Fault.status(402), LLMQuotaExhausted, 1),
    Case("status 403", Fault.status(403), LLMPermissionDenied, 1),
    Case("status 404", Fault.status(404), LLMModelNotFound, 1),
    Case("unknown model", UNKNOWN_MODEL, LLMModelNotFound, 1),
    Case("status 405", Fault.status(405), LLMBadRequest, 1),
    Case("status 408", Fault.status(408), LLMTimeout, TRIES),
    Case("status 409", Fault.status(409), LLMBadRequest, 1),
    Case("status 413", Fault.status(413), LLMBadRequest, 1),
    Case("status 422", Fault.status(422), LLMBadRequest, 1),
    Case("status 429", Fault.status(429), LLMRateLimited, TRIES),
    Case("quota of the day used up", Fault.daily_quota(), LLMQuotaExhausted, 1, GEMINI + OPENAI),
    Case("credit used up", Fault.status(429, "Your prepayment credits are depleted."), LLMQuotaExhausted, 1),
    Case("spending cap reached", Fault.status(429, "exceeded its monthly spending cap"), LLMQuotaExhausted, 1),
    Case("no quota at all", Fault.status(429, "Quota exceeded, limit: 0, model: m"), LLMQuotaExhausted, 1),
    Case("status 499", Fault.status(499), LLMUnavailable, TRIES),
    Case("status 500", Fault.status(500), LLMUnavailable, TRIES),
    Case("status 502", Fault.status(502), LLMUnavailable, TRIES),
    Case("status 503", Fault.status(503), LLMUnavailable, TRIES),
    Case("status 504", Fault.status(504), LLMTimeout, TRIES),
    Case("status 529", Fault.status(529), LLMUnavailable, TRIES),
    Case("redirect", Fault.redirect("http://localhost:9/elsewhere"), LLMConfigurationError, 1),
    Case("malformed JSON with status 200", Fault.malformed(), LLMMalformedReply, 2),
    Case("HTML with status 200", Fault.html(), LLMMalformedReply, 2),
    Case("HTML with status 502", Fault.html(502), LLMUnavailable, TRIES),
    Case("empty body with status 200", Fault.empty(), LLMMalformedReply, 2),
    Case("JSON without an answer", Fault.no_candidates(), LLMEmptyReply, 2),
    Case("empty text", Reply(""), LLMEmptyReply, 2),
    Case("answer without token counts", Reply("A loss.", no_usage=True), None, 1),
    Case("safety block of the answer", Fault.safety_block(), LLMContentBlocked, 1, GEMINI + OPENAI),
    Case("recitation", Fault.recitation(), LLMContentBlocked, 1, GEMINI),
    Case("safety block of the prompt", Fault.prompt_block(), LLMContentBlocked, 1, GEMINI + OPENAI + ANTHROPIC),
    Case("refusal by the model", Fault.refusal(), LLMContentBlocked, 1, OPENAI + ANTHROPIC),
    Case("malformed tool call", Fault.malformed_tool_call(), LLMEmptyReply, 2, GEMINI),
    # What the model wrote is handed on: an agent asks it again.
    Case("tool call whose arguments are not JSON", Fault.malformed_tool_call(), None, 1, OPENAI + ANTHROPIC),
    Case("JSON cut at the limit", Fault.cut_at_limit('{"a": "b'), LLMOutputTruncated, 1, schema=True),
    Case("text cut at a default limit", Fault.cut_at_limit(), None, 1),
    Case("text cut at the caller's limit", Fault.cut_at_limit(), None, 1, max_output_tokens=5),
    Case("reasoning ate the limit", Fault.reasoning_ate_limit(), LLMReasoningExhausted, 1, max_output_tokens=64),
    # The second request asks for all the room that the model has.
    Case("prompt longer than the window, and refused", Fault.context_overflow(), LLMContextOverflow, 2, OLLAMA),
    Case(
        "prompt longer than what the model has",
        Fault.context_overflow(),
        LLMContextOverflow,
        1,
        GEMINI + OPENAI + ANTHROPIC,
    ),
    Case(
        "prompt longer than the window, and cut",
        Reply("A loss.", input_tokens=131_072),
        LLMPromptTruncated,
        2,
        OLLAMA,
        # As many bytes as that count may have tokens; of a shorter prompt it would be an error of the server's.
        prompt="What is churn? " * 10_000,
    ),
    Case(
        "feature that the model lacks",
        Fault.status(400, "registry.ollama.ai/library/llama3.2 does not support tools"),
        LLMUnsupported,
        1,
    ),
    Case(
        "form of the answer that the server does not know",
        Fault.status(400, "'response_format.type' must be 'json_schema' or 'text'"),
        LLMUnsupported,
        1,
        OPENAI,
    ),
    Case(
        "image for a model that cannot see",
        Fault.status(500, "failed to process inputs: this model is missing data required for image input"),
        LLMUnsupported,
        1,
        OLLAMA,
    ),
    Case(
        "too little memory for the model",
        Fault.status(500, "model requires more system memory (5.6 GiB) than is available (3.1 GiB)"),
        LLMConfigurationError,
        1,
        OLLAMA,
    ),
    Case(
        "schema that makes no grammar",
        Fault.status(500, "failed to create new sequence: failed to parse grammar"),
        LLMUnsupported,
        1,
        OLLAMA,
    ),
)
