"""Mapping of failed requests to errors, by the table, with messages that are safe to show."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from llmkit.errors import LLMError, LLMMalformedReply, LLMQuotaExhausted, LLMUnavailable
from llmkit.providers.base import find_url_passwords, strip_credentials
from llmkit.redaction import preview
from llmkit.transport.http.error_rules import Seen, rule_for
from llmkit.transport.http.exchange import Exchange
from llmkit.transport.http.quotas import describe_quota, find_objects, list_violations
from llmkit.types import LLMRequest

__all__ = ["failure"]

DETAIL_CHARS = 300
# Messages of real providers have a few hundred characters; patterns are matched in no more than this of one.
MATCHED_CHARS = 4_000
LABEL_CHARS = 100
# Shorter runs that a prompt shares with an error message are chance.
SHARED_CHARS = 16
HTTP_OK = 200
HTTP_TOO_MANY = 429
HTTP_LEAST_ERROR, HTTP_BROKEN, HTTP_LARGEST = 400, 500, 599
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
    message = rule.message.format(
        label=spec.label,
        base=arguments.address,
        model=model,
        name=seen.name,
        timeout_s=timeout_s,
        reply_limit=exchange.reply_limit_mb,
        silence_s=exchange.silence_s,
        detail=_detail(seen.text, request, _secrets(exchange)),
        quota=describe_quota(exchange.error_json, seen.text),
        proxy=strip_credentials(exchange.proxy or ""),
        redirect=exchange.redirected_to or "another address",
        model_hint=spec.hints["model"].format(model=model),
        **{name: spec.hints[name] for name in ("start", "key", "permission", "limit", "address", "path")},
    )
    origin = f"HTTP {seen.status}" if seen.status is not None else seen.name
    if exchange.stream_error is not None:
        origin = "an error in the stream"
    mapped = rule.error(
        f"{message.strip()} ({origin})",
        provider=spec.provider,
        model=model,
        status_code=seen.status if exchange.stream_error is None else exchange.status,
        retry_after_s=_retry_after_s(exchange) if rule.is_temporary else None,
    )
    if isinstance(mapped, LLMQuotaExhausted):
        mapped.is_temporary = rule.is_temporary
    elif isinstance(mapped, LLMUnavailable):
        mapped.retries_in_call = rule.retries_in_call
    return mapped


def _secrets(exchange: Exchange) -> tuple[str, ...]:
    key, base = exchange.arguments.kwargs.get("api_key"), exchange.arguments.kwargs.get("api_base")
    keys = (key,) if exchange.arguments.send_key and isinstance(key, str) else ()
    return keys + find_url_passwords(base) if isinstance(base, str) else keys


def _inspect_failure(exchange: Exchange, error: Exception) -> Seen:
    was_sent = exchange.sent_at_utc is not None
    if isinstance(error, TimeoutError):
        return Seen(name=TimeoutError.__name__, was_sent=was_sent)
    status = exchange.status
    if exchange.stream_error is not None:
        status = _read_error_status(exchange.stream_error)
    elif exchange.has_broken:
        status = None
    text = _provider_words(exchange) if status is not None else "" if was_sent else str(error)
    if type(error).__name__ == "UnsupportedParamsError":
        text = _read_refusal(text)
    return Seen(
        name=exchange.transport_error or type(error).__name__,
        status=status,
        text=_cut(text),
        is_json=exchange.reply_json is not None,
        was_sent=was_sent,
        via_proxy=exchange.proxy is not None,
    )


# Anthropic's names; OpenAI has some of them too.
_STATUS_OF_TYPE = {"invalid_request_error": 400, "rate_limit_error": HTTP_TOO_MANY, "overloaded_error": 529}


def _read_error_status(error: Any) -> int:
    """Return the HTTP status that an error in a stream would have had as an answer: its own word for it, or 500."""
    code, kind = (error.get("code"), error.get("type")) if isinstance(error, Mapping) else (None, None)
    if isinstance(code, int) and HTTP_LEAST_ERROR <= code <= HTTP_LARGEST:
        return code
    return _STATUS_OF_TYPE.get(str(kind), HTTP_BROKEN)


# LiteLLM's advice on its own settings follows, which are not llmkit's.
_ADVICE = re.compile(r"(?:To drop|If you want to use these params|`?litellm).*", re.DOTALL)


def _read_refusal(text: str) -> str:
    """Return LiteLLM's words about a parameter that the model does not take, without its names and advice."""
    words = text.removeprefix("litellm.UnsupportedParamsError: ")
    named = re.search(r"does not support parameters: \[([^\]]*)\]", words)
    return f"it does not take {named[1].replace(chr(39), '')}" if named else _ADVICE.sub("", words).rstrip()


def _cut(text: str) -> str:
    """Shorten foreign text before anything is matched in it; the reason stands at either end of a long message."""
    if len(text) <= MATCHED_CHARS:
        return text
    return f"{text[: 3 * MATCHED_CHARS // 4]} … {text[-MATCHED_CHARS // 4 :]}"


def _provider_words(exchange: Exchange) -> str:
    """Return the provider's message about the failure, from JSON or plain text: an HTML page would not help."""
    if exchange.status == HTTP_OK and exchange.stream_error is None:
        return str(exchange.facts.error or exchange.facts.unreadable or "")
    body = exchange.error_json
    if not body:
        return _read_plain_text(exchange.body)
    words = str(exchange.facts.error or _find_message(body))
    error = body.get("error")
    labels = dict.fromkeys(_labels(error if isinstance(error, dict) else body))
    return " ".join([_cut(words), *_read_upstream(error), *labels])


def _read_upstream(error: Any) -> Iterator[str]:
    """Yield the words of the provider behind OpenRouter, which says itself no more than that there was an error."""
    metadata = error.get("metadata") if isinstance(error, dict) else None
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    if isinstance(raw, str):
        yield _cut(raw)


def _find_message(body: Mapping[str, Any]) -> str:
    """Return the message of an error that is not in the provider's own form, as proxies and gateways send it."""
    for given in (body, *(body.get(name) for name in ("error", "detail", "errors", "fault"))):
        place = given[0] if isinstance(given, list) and given else given
        found = place if isinstance(place, str) else _get_text(place if isinstance(place, dict) else {})
        if found:
            return found
    return ""


def _get_text(body: Mapping[str, Any]) -> str:
    names = ("message", "detail", "error_description", "msg", "title", "error", "faultstring")
    texts = (body.get(name) for name in names)
    return next((text for text in texts if isinstance(text, str) and text), "")


def _read_plain_text(body: bytes) -> str:
    text = body[: 4 * MATCHED_CHARS].decode(errors="replace").strip()
    is_text = not text.startswith("<") and all(char.isprintable() or char.isspace() for char in text)
    return text.strip('"') if is_text else ""


def _labels(error: Mapping[str, Any]) -> Iterator[str]:
    """Yield Google's status, reasons and quota names and OpenAI's code, which are more precise than the message."""
    for name in ("status", "code", "type"):
        if isinstance(error.get(name), str) and error[name] not in {"UNKNOWN", ""}:
            yield f"[{error[name][:LABEL_CHARS]}]"
    for detail in _details(error):
        if isinstance(detail.get("reason"), str):
            yield f"[{detail['reason'][:LABEL_CHARS]}]"
    for violation in list_violations(error):
        if isinstance(violation.get("quotaId"), str):
            yield f"[{violation['quotaId'][:LABEL_CHARS]}]"
        if violation.get("quotaValue") in ("0", 0):
            yield "[limit: 0]"


def _details(error: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    details = error.get("details")
    yield from find_objects(details)


def _detail(text: str, request: LLMRequest, secrets: tuple[str, ...]) -> str:
    """Return the provider's words as they may be shown: on one line, short, without keys and without the prompt."""
    # Half of a surrogate pair can be neither printed nor stored.
    text = text.encode("utf-8", "replace").decode()
    line = " ".join(text.split("Traceback (most recent call last)")[0].split())
    beginning = line[: 8 * DETAIL_CHARS]
    return preview(_without_prompt(beginning, request), DETAIL_CHARS, secrets, is_cut=len(beginning) < len(line))


def _without_prompt(line: str, request: LLMRequest) -> str:
    """Mask every run of 16 characters or more that also occurs in the prompt: some providers quote it."""
    # Indexed is the short line and not the prompt, which may have megabytes.
    runs = {line[at : at + SHARED_CHARS] for at in range(len(line) - SHARED_CHARS + 1)}
    known: set[str] = set()
    for message in request.messages:
        text = " ".join(message.content.split())
        if runs:
            known.update(
                run for at in range(len(text) - SHARED_CHARS + 1) if (run := text[at : at + SHARED_CHARS]) in runs
            )
        if 0 < len(text) < SHARED_CHARS:
            line = re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", "[prompt]", line)
    masked = bytearray(len(line))
    for at in range(len(line) - SHARED_CHARS + 1):
        if line[at : at + SHARED_CHARS] in known:
            masked[at : at + SHARED_CHARS] = b"\x01" * SHARED_CHARS
    shown = "".join("\x00" if hidden else char for char, hidden in zip(line, masked, strict=True))
    return re.sub("\x00+", "[prompt]", shown)


def _retry_after_s(exchange: Exchange) -> float | None:
    """Return the seconds to wait, from whichever place the server uses: the most exact one counts."""
    headers = {name.lower(): value for name, value in exchange.headers.items()}
    milliseconds = re.fullmatch(r"\d{1,15}(\.\d{1,9})?", headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return _bound_wait(float(milliseconds[0]) / 1000)
    if headers.get("retry-after"):
        return _header_seconds(headers["retry-after"])
    error = exchange.error_json.get("error")
    for detail in _details(error if isinstance(error, dict) else {}):
        delay = detail.get("retryDelay")
        if isinstance(delay, str) and re.fullmatch(r"\d{1,20}(\.\d{1,20})?s", delay):
            return _bound_wait(float(delay[:-1]))
    if exchange.status != HTTP_TOO_MANY:
        return None
    resets = [wait for value in _list_resets(headers) if (wait := _duration_seconds(value)) is not None]
    if resets:
        return max(resets)
    words = re.search(rf"(?:try again|retry) in ({_DURATION})", _cut(_provider_words(exchange)))
    return _duration_seconds(words[1]) if words is not None else None


def _list_resets(headers: Mapping[str, str]) -> Iterator[str]:
    """Yield when the limits that are used up begin again, in the headers of OpenAI and of Anthropic."""
    for name, value in headers.items():
        if name.startswith("x-ratelimit-remaining-") and value == "0":
            yield headers.get(name.replace("remaining", "reset"), "")
        elif name.startswith("anthropic-ratelimit-") and name.endswith("-remaining") and value == "0":
            yield headers.get(f"{name.removesuffix('remaining')}reset", "")


_DURATION = r"(?:\d{1,9}(?:\.\d{1,9})?(?:ms|h|m|s)){1,4}"
_SECONDS_OF = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def _duration_seconds(text: str) -> float | None:
    """Read `6m0s`, `1.5s` or `20ms`, a number of seconds, or a time in ISO 8601."""
    if re.fullmatch(_DURATION, text):
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", text)
        return _bound_wait(sum(float(number) * _SECONDS_OF[unit] for number, unit in parts))
    try:
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
            return _bound_wait(float(text))
        return _bound_wait((datetime.fromisoformat(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):  # no time, or one without a zone
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
