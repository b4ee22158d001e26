"""Names of the quota that a provider reports as used up: requests or tokens, per minute or per day."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["describe_quota", "find_objects", "list_violations"]

# A failure names one or two; more are not read.
MOST_OBJECTS = 20
_PERIODS = ("second", "minute", "hour", "day", "week", "month")
_PERIOD = re.compile(r"per[ -]?(second|min|minute|hour|day|week|month)(?![a-z])", re.IGNORECASE)
# OpenAI's short names, as in "on tokens per min (TPM): Limit 30000".
_SHORT = {"RPM": "requests per minute", "TPM": "tokens per minute", "RPD": "requests per day", "TPD": "tokens per day"}


def find_objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a JSON list, the first 20; nothing for any other value."""
    if isinstance(value, list):
        yield from (item for item in value[:MOST_OBJECTS] if isinstance(item, dict))


def list_violations(error: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the quotas that Google lists in the details of an error."""
    return [each for detail in find_objects(error.get("details")) for each in find_objects(detail.get("violations"))]


def describe_quota(body: Mapping[str, Any], text: str) -> str:
    """Describe what is limited, for example "tokens per minute (250,000)"; "requests" when the provider names none.

    Args:
        body: The error's JSON.
        text: The provider's message, already shortened.
    """
    error = body.get("error")
    named = [_describe_violation(each) for each in list_violations(error if isinstance(error, dict) else {})]
    return " and ".join(dict.fromkeys(filter(None, named))) or _describe_text(text)


def _describe_violation(violation: Mapping[str, Any]) -> str:
    """Describe an entry such as `GenerateContentInputTokensPerModelPerMinute-FreeTier`."""
    quota_id, value = violation.get("quotaId"), violation.get("quotaValue")
    if not isinstance(quota_id, str):
        return ""
    # "PerProject" and "PerModel" are not periods.
    kind = "tokens" if "token" in quota_id[:200].lower() else "requests"
    period = next((name for name in _PERIODS if f"per{name}" in quota_id[:200].lower()), None)
    limit = f" ({int(value):,})" if isinstance(value, str) and re.fullmatch(r"\d{1,15}", value) else ""
    return f"{kind} per {period}{limit}" if period else f"{kind}{limit}"


def _describe_text(text: str) -> str:
    short = next((name for name in _SHORT if f"({name})" in text), None)
    if short is not None:
        return _SHORT[short]
    kind = "tokens" if re.search(r"\btokens?\b", text, re.IGNORECASE) else "requests"
    period = _PERIOD.search(text)
    if period is None:
        return kind
    return f"{kind} per {'minute' if period[1].lower() == 'min' else period[1].lower()}"
