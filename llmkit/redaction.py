"""Redaction of secrets and personal data in everything that is stored as a preview or logged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from llmkit.types import LLMRequest, Message

if TYPE_CHECKING:
    pass

__all__ = ["preview", "redact", "request_preview", "tool_preview"]


PREVIEW_CHARS = 1000


# A key of a stand-in or a proxy, such as `k` or `test`: as a part of other words it is no secret.
SHORT_SECRET_CHARS = 8


# A secret that straddles the cut is still whole this far behind it.
_CUT_MARGIN_CHARS = 512


@cache
def _compile(expression: str) -> re.Pattern[str]:
    return re.compile(expression)


class _Pattern(NamedTuple):
    """One kind of secret. The scan, which is slow, only runs on a text in which one of `hints` occurs.

    Expressions are compiled when they are first wanted: that takes 10 ms, which an answer from the store never spends.
    """

    kind: str
    hints: tuple[str, ...]
    expression: str

    @property
    def regex(self) -> re.Pattern[str]:
        """The expression, compiled."""
        return _compile(self.expression)


# The more telling patterns come first. Hints are lower case; with them 1,000 characters of prose cost 50 us, not 400.
_PATTERNS = (
    _Pattern(
        "private_key",
        ("private key-----",),
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    ),
    _Pattern("credentials", ("://",), r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
    _Pattern("bearer", ("bearer ", "basic "), r"(?i)\b(?:bearer|basic)\s+[a-z0-9._~+/=-]{8,}"),
    _Pattern("url_key", ("key=", "token=", "sig"), r"(?i)(?<=[?&])(?:key|token|sig|signature)=[^&\s\"']+"),
    _Pattern(
        "secret",
        ("key", "token", "secret", "pass", "pwd"),
        (
            r"(?i)((?:api[_-]?key|access[_-]?key|private[_-]?key|token|secret|password|passwd|pwd)[\"']?\s*[:=]\s*[\"']?)"
            r"(?!\[)[^\s\"',;&}\])]{4,}"
        ),
    ),
    _Pattern(
        "api_key",
        ("sk-", "sk_", "pk_", "rk_", "gh", "xox", "hf_", "glpat", "akia", "asia", "aiza", "ya29"),
        r"\b(?:sk[-_]|pk_|rk_|gh[opsu]_|xox[abprs]-|hf_|glpat-|AKIA|ASIA|AIza|ya29\.)[A-Za-z0-9_\-]{12,}",
    ),
    _Pattern("jwt", ("eyj",), r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"),
    _Pattern(
        "email",
        ("@",),
        r"[A-Za-z0-9._%+\-]{1,64}@[A-Za-z0-9\-]{1,63}(?:\.[A-Za-z0-9\-]{1,63}){1,8}",
    ),
    _Pattern("iban", (), r"\b[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){3,7}(?:[ ]?[A-Z0-9]{1,3})?\b"),
    _Pattern("number", (), r"(?<![\w.])\+?\(?\d(?:[ ().\-/]{0,2}\d){7,18}(?!\w)"),
)


# Begins with a digit, and not with a group of one: then the scan leaps from digit to digit, in a fifth of the time.
_ENOUGH_DIGITS = re.compile(r"\d(?:\D{0,2}\d){7}")


_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:[ T]\d.*)?$")


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Replace secrets and personal data by what they were, for example `[email]`.

    Known are keys and tokens of common shapes, `key=value` secrets, credentials in URLs, private keys, e-mail
    addresses, IBANs, and phone, card and other long numbers. Names of people are not recognised.

    Args:
        text: Any text.
        secrets: Exact texts that must not remain, whatever their shape; below eight characters, as whole words.
    """
    for secret in secrets:
        if len(secret) >= SHORT_SECRET_CHARS:
            text = text.replace(secret, "[secret]")
        elif secret:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "[secret]", text)
    lower = text.lower()
    has_digits = _ENOUGH_DIGITS.search(text) is not None
    for pattern in _PATTERNS:
        if _has_hint(pattern.hints, lower) if pattern.hints else has_digits:
            text = pattern.regex.sub(_LABELS.get(pattern.kind, f"[{pattern.kind}]"), text)
    return text


def _has_hint(hints: tuple[str, ...], lower: str) -> bool:
    for hint in hints:  # noqa: SIM110 - `any` with a generator takes six times as long here
        if hint in lower:
            return True
    return False


def _label_secret(match: re.Match[str]) -> str:
    return f"{match[1]}[secret]"


def _label_number(match: re.Match[str]) -> str:
    return match[0] if _harmless_number(match[0]) else "[number]"


_LABELS = {"secret": _label_secret, "number": _label_number}


def _harmless_number(text: str) -> bool:
    """Dates and plain decimal numbers are what datasets are made of, and tell nothing about a person."""
    return bool(_ISO_DATE.match(text)) or (text.count(".") == 1 and text.replace(".", "").isdigit())


def preview(text: str, limit_chars: int = PREVIEW_CHARS, secrets: Iterable[str] = ()) -> str:
    """Return the redacted beginning of a text, at most `limit_chars` characters and an ellipsis."""
    clean = redact(text[: limit_chars + _CUT_MARGIN_CHARS], secrets)
    if len(clean) <= limit_chars and len(text) <= limit_chars + _CUT_MARGIN_CHARS:
        return clean
    return clean[:limit_chars] + "…"


def request_preview(request: LLMRequest, secrets: Iterable[str] = ()) -> str:
    """Return the redacted beginning of a conversation, one line per message, the latest message first.

    Of an attachment it says kind, size and the beginning of its hash, such as `[image/png 12 kB sha256:1f0c9ab…]`.
    """
    lines = (f"{message.role}: {_format_message(message)}" for message in reversed(request.messages[-8:]))
    return preview("\n".join(lines), secrets=secrets)


def tool_preview(result_json: str | None) -> str:
    """Return the redacted beginning of what a stored answer gave to tools; empty when it gave them nothing."""
    calls = json.loads(result_json).get("tool_calls", ()) if result_json else ()
    return preview("\n".join(f"{call['name']}({call['arguments']})" for call in calls))


def _format_message(message: Message) -> str:
    text = message.content[: 2 * PREVIEW_CHARS]
    return " ".join([*map(str, message.attachments), text]) if message.attachments else text
