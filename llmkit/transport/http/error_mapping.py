"""Mapping of failed requests to errors, by the table, with messages that are safe to show."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from llmkit.errors import LLMError, LLMMalformedReply
from llmkit.redaction import preview
from llmkit.transport.http.error_rules import Seen, rule_for
from llmkit.transport.http.exchange import Exchange
from llmkit.types import LLMRequest

__all__ = ["failure"]

DETAIL_CHARS = 300
# Shorter runs that a prompt shares with an error message are chance.
SHARED_CHARS = 16
HTTP_OK = 200
# A longer wait is an error of the server's, and would not fit into a date.
LONGEST_RETRY_AFTER_S = 31 * 24 * 3600.0


def failure(exchange: Exchange, request: LLMRequest, error: Exception, timeout_s: float) -> LLMError:
    """Return the error to raise: its message is ours, on one line, and contains neither a key nor the prompt.

    This never raises, whatever the server sent: an exception here would lose the record of a request that was paid for.
    """
    try:
        return _map_failure(exchange, request, error, timeout_s)
    except Exception as problem:  # noqa: BLE001 - the place where anything unforeseen becomes an error of ours
        return LLMMalformedReply(
            f"{exchange.spec.label} sent a reply that cannot be read ({type(problem).__name__}): try again later.",
            provider=exchange.spec.provider,
            model=str(exchange.arguments.kwargs["model"]).partition("/")[2],
            status_code=exchange.status,
        )


def _map_failure(exchange: Exchange, request: LLMRequest, error: Exception, timeout_s: float) -> LLMError:
    seen = _inspect_failure(exchange, error)
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
        reply_limit=exchange.reply_limit_mb,
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


def _inspect_failure(exchange: Exchange, error: Exception) -> Seen:
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
    """Return the provider's message about the failure, from JSON only: an HTML page would not help."""
    facts = exchange.facts
    if facts.error is None:
        return facts.unreadable or "" if exchange.status == HTTP_OK else ""
    error = (exchange.reply_json or {}).get("error")
    return " ".join([str(facts.error), *_labels(error if isinstance(error, dict) else {})])


def _labels(error: Mapping[str, Any]) -> Iterator[str]:
    """Google's status, reasons and quota names, which say more than its message."""
    if isinstance(error.get("status"), str) and error["status"] != "UNKNOWN":
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
    """Return the provider's words as they may be shown: on one line, short, without keys and without the prompt."""
    # Half of a surrogate pair can be neither printed nor stored.
    text = text.encode("utf-8", "replace").decode()
    line = " ".join(text.split("Traceback (most recent call last)")[0].split())
    beginning = line[: 8 * DETAIL_CHARS]
    return preview(_without_prompt(beginning, request), DETAIL_CHARS, secrets, is_cut=len(beginning) < len(line))


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
            return _bound_wait(float(delay[:-1]))
    return None


def _header_seconds(header: str) -> float | None:
    try:
        return _bound_wait(float(header))
    except ValueError:
        pass
    try:
        return _bound_wait((parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _bound_wait(seconds: float) -> float | None:
    """Return the wait, at least 0; None when no provider can mean it."""
    return max(0.0, seconds) if math.isfinite(seconds) and seconds <= LONGEST_RETRY_AFTER_S else None
