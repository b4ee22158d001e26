"""What a failed request means: one table from what was seen to the error that is raised and what its message says."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

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
    LLMPermissionDenied,
    LLMQuotaExhausted,
    LLMRateLimited,
    LLMTimeout,
    LLMUnavailable,
    LLMUnsupported,
)
from llmkit.telemetry import redact
from llmkit.types import LLMRequest
from llmkit.wire.exchange import Exchange

__all__ = ["RULES", "Rule", "Seen", "failure", "rule_for"]

DETAIL_CHARS = 300
# Shorter runs that a prompt shares with an error message are chance.
SHARED_CHARS = 16
NO_ANSWER = "no answer"


@dataclass(frozen=True, slots=True)
class Seen:
    """What can be told of a failure.

    Attributes:
        name: Class name of the error: of the transport when nothing came back, else LiteLLM's.
        status: HTTP status of the answer; None when there was none.
        text: The provider's own words, or those of the error when nothing was sent.
        is_json: Whether the answer is a JSON object.
        was_sent: Whether the request left.
    """

    name: str
    status: int | None = None
    text: str = ""
    is_json: bool = False
    was_sent: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table: what is left open matches anything.

    Attributes:
        error: What is raised.
        message: What it says; see `failure` for the names that can be filled in.
        statuses: HTTP statuses.
        names: Class names, for failures without an answer.
        pattern: What the text has to contain, as a regular expression without regard to case.
        is_json: Whether the answer has to be a JSON object.
    """

    error: type[LLMError]
    message: str
    statuses: Collection[int] = ()
    names: Collection[str] = ()
    pattern: str = ""
    is_json: bool | None = None

    def matches(self, seen: Seen) -> bool:
        """Whether everything that this rule asks for was seen."""
        return (
            (not self.statuses or seen.status in self.statuses)
            and (not self.names or (seen.status is None and seen.name in self.names))
            and (self.is_json is None or seen.is_json is self.is_json)
            and (not self.pattern or re.search(self.pattern, seen.text, re.IGNORECASE) is not None)
        )


_REFUSED = "{label} refuses the request: {detail}"
_SILENT = "{label} does not answer at {base}: {start}."
_OVERFLOW = "The prompt is longer than the context window of {model}: shorten it, or use a model with a larger one."
_UNKNOWN_MODEL = "{label} does not have the model {model}: {model_hint}."
_NO_KEY = "{label} refuses the key: {key}."
_NOT_ALLOWED = "{label} does not allow this: {permission}. {detail}"
_TIMED_OUT = "{label} did not finish its answer within {timeout_s:g} s: {start}, or allow more with timeout_s."
_TOO_MANY = "{label} wants fewer requests: {limit}."
_BROKEN = "{label} is overloaded or broken: try again later. {detail}"
_UNREADABLE = "What answers at {base} does not speak the protocol of {label}: check what runs there, or {address}."
_LIBRARY = "LiteLLM could not carry out the request ({name}): {detail}"

RULES: tuple[Rule, ...] = (
    # An answer came back: its status and the provider's words decide, not LiteLLM's class, which is made of guesses.
    Rule(
        LLMAuthenticationError, _NO_KEY, {400, 401, 403}, pattern=r"API key not valid|API_KEY_INVALID|API key expired"
    ),
    Rule(
        LLMContextOverflow,
        _OVERFLOW,
        {400, 413, 422, 500},
        pattern=r"context (length|window|size)|maximum number of tokens allowed|maximum context|too many tokens",
    ),
    Rule(
        LLMUnsupported,
        "The model {model} cannot do what is asked: {detail}",
        {400, 422, 501},
        pattern=r"does(n't| not) support|not supported (by|for|with) this model|is not enabled for",
    ),
    Rule(LLMPermissionDenied, _NOT_ALLOWED, {400}, pattern=r"location is not supported|FAILED_PRECONDITION"),
    Rule(LLMModelNotFound, _UNKNOWN_MODEL, {400}, pattern=r"model .*(not found|does not exist)|invalid model name"),
    Rule(
        LLMQuotaExhausted,
        "The quota of {label} is used up for today: {detail}",
        {429},
        pattern=r"per ?day|daily|RequestsPerDay|TokensPerDay",
    ),
    Rule(LLMQuotaExhausted, "{label} wants to be paid: {detail}", {402}),
    Rule(LLMAuthenticationError, _NO_KEY, {401, 407}),
    Rule(LLMPermissionDenied, _NOT_ALLOWED, {403}),
    Rule(LLMModelNotFound, _UNKNOWN_MODEL, {404}),
    Rule(LLMTimeout, _TIMED_OUT, {408, 504, 524}),
    Rule(LLMRateLimited, _TOO_MANY, {429}),
    Rule(LLMBadRequest, "{label} finds the request too large: shorten the prompt. {detail}", {413}),
    Rule(LLMBadRequest, _REFUSED, range(400, 500)),
    Rule(LLMUnavailable, _BROKEN, range(500, 600)),
    Rule(
        LLMConfigurationError,
        "{label} redirects from {base} to {redirect}, which is not followed, since the key would go along: {address} "
        "to where it really is.",
        range(300, 400),
    ),
    Rule(LLMEmptyReply, "{label} answered without content: {detail}", range(200, 300), is_json=True),
    Rule(LLMMalformedReply, _UNREADABLE, range(100, 300)),
    # No answer came back: the transport's own classes.
    Rule(
        LLMConfigurationError,
        "The certificate of {base} is not trusted: set SSL_CERT_FILE to the certificates of your network, or "
        "{address}.",
        names={"ClientConnectorCertificateError", "ClientConnectorSSLError", "ServerFingerprintMismatch"},
    ),
    Rule(
        LLMConfigurationError,
        "{base} is not an address that can be called: {address}.",
        names={"InvalidURL", "InvalidUrlClientError", "NonHttpUrlClientError", "UnsupportedProtocol"},
    ),
    Rule(
        LLMConfigurationError,
        "LiteLLM was about to send the request somewhere else than {base}: remove its api_base and OLLAMA_API_BASE "
        "settings from this process.",
        names={"WrongAddress"},
    ),
    Rule(
        LLMTimeout,
        _TIMED_OUT,
        names={"TimeoutError", "ServerTimeoutError", "ConnectionTimeoutError", "SocketTimeoutError", "Timeout"},
    ),
    Rule(
        LLMUnavailable,
        "{label} cannot be found: {base} has no address in the DNS: {start}.",
        names={"ClientConnectorDNSError", "gaierror"},
    ),
    Rule(
        LLMUnavailable,
        _SILENT,
        names={"ClientConnectorError", "ClientProxyConnectionError", "ClientHttpProxyError", "ConnectionRefusedError"},
    ),
    Rule(
        LLMUnavailable,
        "{label} broke off the connection at {base}: try again, or {start}.",
        names={
            "ClientOSError",
            "ServerDisconnectedError",
            "ClientConnectionResetError",
            "ClientPayloadError",
            "ConnectionResetError",
            "ReadError",
        },
    ),
    # LiteLLM's classes, for what fails before anything is sent, and for a change of its habits.
    Rule(LLMAuthenticationError, _NO_KEY, names={"AuthenticationError"}),
    Rule(LLMPermissionDenied, _NOT_ALLOWED, names={"PermissionDeniedError"}),
    Rule(LLMModelNotFound, _UNKNOWN_MODEL, names={"NotFoundError"}),
    Rule(LLMContextOverflow, _OVERFLOW, names={"ContextWindowExceededError"}),
    Rule(LLMContentBlocked, "{label} blocked the prompt or the answer.", names={"ContentPolicyViolationError"}),
    Rule(LLMUnsupported, _REFUSED, names={"UnsupportedParamsError"}),
    Rule(LLMRateLimited, _TOO_MANY, names={"RateLimitError"}),
    Rule(LLMQuotaExhausted, "{label} wants to be paid.", names={"PaymentRequiredError", "BudgetExceededError"}),
    Rule(
        LLMBadRequest,
        _LIBRARY,
        names={
            "BadRequestError",
            "ImageFetchError",
            "InvalidRequestError",
            "RejectedRequestError",
            "UnprocessableEntityError",
        },
    ),
    Rule(
        LLMConfigurationError,
        _LIBRARY,
        names={"LiteLLMUnknownProvider", "ModelNotMappedError", "ImportError", "ModuleNotFoundError"},
    ),
    Rule(
        LLMMalformedReply,
        _UNREADABLE,
        names={"APIResponseValidationError", "JSONSchemaValidationError", "IndexError", "KeyError", "JSONDecodeError"},
    ),
    Rule(
        LLMUnavailable,
        _BROKEN,
        names={
            "APIConnectionError",
            "APIError",
            "BadGatewayError",
            "InternalServerError",
            "MidStreamFallbackError",
            "ServiceUnavailableError",
        },
    ),
    # Of its proxy, its guardrails and its vector stores, none of which is used: no guess at what they mean.
    Rule(
        LLMError,
        _LIBRARY,
        names={
            "BlockedPiiEntityError",
            "GuardrailRaisedException",
            "MockException",
            "ModifyResponseException",
            "OpenAIError",
            "SensitiveDataRouteException",
            "VectorStoreSearchError",
        },
    ),
)
"""The table; the first line that matches decides."""

_UNKNOWN_TRANSPORT = Rule(LLMUnavailable, _SILENT)
_UNKNOWN = Rule(LLMError, _LIBRARY)
_TRANSPORT_WORDS = re.compile(r"connect|timeout|socket|disconnect|network|protocol|payload|http", re.IGNORECASE)


def rule_for(seen: Seen) -> Rule:
    """The line of the table for a failure; for an unknown one a guess by its name: transport, or not."""
    for rule in RULES:
        if rule.matches(seen):
            return rule
    return _UNKNOWN_TRANSPORT if _TRANSPORT_WORDS.search(seen.name) else _UNKNOWN


def failure(exchange: Exchange, request: LLMRequest, error: Exception, timeout_s: float) -> LLMError:
    """The error to raise: its message is ours, on one line, and holds neither a key nor the prompt."""
    seen = _seen(exchange, error)
    rule = rule_for(seen)
    spec, arguments = exchange.spec, exchange.arguments
    model = str(arguments.kwargs["model"]).partition("/")[2]
    secrets = _secrets(exchange)
    message = rule.message.format(
        label=spec.label,
        base=arguments.address,
        model=model,
        name=seen.name,
        timeout_s=timeout_s,
        detail=_detail(seen.text, request, secrets),
        redirect=exchange.redirected_to or "another address",
        model_hint=spec.hints["model"].format(model=model),
        **{name: spec.hints[name] for name in ("start", "key", "permission", "limit", "address")},
    )
    origin = f"HTTP {seen.status}" if seen.status is not None else seen.name
    return rule.error(
        f"{message.strip()} ({origin})",
        provider=spec.provider,
        model=model,
        status_code=seen.status,
        retry_after_s=_retry_after_s(exchange),
    )


def _secrets(exchange: Exchange) -> tuple[str, ...]:
    key = exchange.arguments.kwargs.get("api_key")
    return (key,) if exchange.arguments.send_key and isinstance(key, str) else ()


def _seen(exchange: Exchange, error: Exception) -> Seen:
    was_sent = exchange.sent_at_utc is not None
    if isinstance(error, TimeoutError):
        return Seen(name=TimeoutError.__name__, was_sent=was_sent)
    text = _provider_words(exchange) if exchange.status is not None else "" if was_sent else str(error)
    return Seen(
        name=exchange.transport_error or type(error).__name__,
        status=exchange.status,
        text=text,
        is_json=exchange.reply_json is not None,
        was_sent=was_sent,
    )


def _provider_words(exchange: Exchange) -> str:
    """What the provider says about the failure. Only from JSON: a page of HTML helps nobody."""
    reply = exchange.reply_json or {}
    said = exchange.spec.reply_facts(reply)
    if said.error is None:
        return said.unreadable or ""
    error = reply.get("error")
    return " ".join([said.error, *_labels(error if isinstance(error, dict) else {})])


def _labels(error: Mapping[str, Any]) -> Iterator[str]:
    """Google's status, reasons and quota names, which say more than its message."""
    if isinstance(error.get("status"), str):
        yield f"[{error['status']}]"
    for detail in _details(error):
        if isinstance(detail.get("reason"), str):
            yield f"[{detail['reason']}]"
        violations = detail.get("violations")
        for violation in violations if isinstance(violations, list) else ():
            if isinstance(violation, dict) and isinstance(violation.get("quotaId"), str):
                yield f"[{violation['quotaId']}]"


def _details(error: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    details = error.get("details")
    yield from (detail for detail in details if isinstance(detail, dict)) if isinstance(details, list) else ()


def _detail(text: str, request: LLMRequest, secrets: tuple[str, ...]) -> str:
    """The provider's words as they may be shown: on one line, short, without keys and without the prompt."""
    line = " ".join(text.split("Traceback (most recent call last)")[0].split())
    clean = redact(_without_prompt(line[: 4 * DETAIL_CHARS], request), secrets)
    return clean if len(clean) <= DETAIL_CHARS else clean[:DETAIL_CHARS] + "…"


def _without_prompt(line: str, request: LLMRequest) -> str:
    """Mask every run of 16 characters or more that also occurs in the prompt: some providers quote it."""
    known: set[str] = set()
    for message in request.messages:
        text = " ".join(message.content.split())
        known.update(text[at : at + SHARED_CHARS] for at in range(len(text) - SHARED_CHARS + 1))
        if 0 < len(text) < SHARED_CHARS:
            line = re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", "[prompt]", line)
    masked = bytearray(len(line))
    for at in range(len(line) - SHARED_CHARS + 1):
        if line[at : at + SHARED_CHARS] in known:
            masked[at : at + SHARED_CHARS] = b"\x01" * SHARED_CHARS
    shown = "".join("\x00" if hidden else char for char, hidden in zip(line, masked, strict=True))
    return re.sub("\x00+", "[prompt]", shown)


def _retry_after_s(exchange: Exchange) -> float | None:
    """Seconds to wait, by the header or by Google's `RetryInfo`."""
    header = exchange.headers.get("retry-after") or exchange.headers.get("Retry-After")
    if header:
        return _header_seconds(header)
    reply = exchange.reply_json or {}
    error = reply.get("error")
    for detail in _details(error if isinstance(error, dict) else {}):
        delay = detail.get("retryDelay")
        if isinstance(delay, str) and re.fullmatch(r"\d+(\.\d+)?s", delay):
            return float(delay[:-1])
    return None


def _header_seconds(header: str) -> float | None:
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
