"""One canonical text, and its hash, for values that mean the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from llmkit.compact_json import compact_encoder
from llmkit.types import LLMProfile, LLMRequest, Message

__all__ = ["canonical_json", "prompt_sha256", "request_parameters", "sha256_of"]

# Part of every hash: a change of what is hashed, or how, must not find the answers of another meaning.
REQUEST_FORM = "llmkit-request-1"

_encode = compact_encoder(sort_keys=True, allow_nan=False)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no white space and ASCII only, so that equal values give equal bytes.

    Raises:
        ValueError: The value holds NaN or an infinity.
        TypeError: The value is not JSON-able.
    """
    return _encode(value)


def sha256_of(value: Any) -> str:
    """Hexadecimal SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


# Short ones are shown as they are, long ones told apart by a hash; messages, route and profile are known elsewhere.
_SHORT_FIELDS = ("temperature", "max_output_tokens", "seed", "stop", "tool_choice")
_LONG_FIELDS = ("tools", "response_format")
_FIELDS = _SHORT_FIELDS + _LONG_FIELDS
_SHORT_HASH = 16


def request_parameters(request: LLMRequest) -> dict[str, Any]:
    """What was asked beside messages, route and profile, as short JSON for people; defaults are left out."""
    given = _given(request, _SHORT_FIELDS)
    for name, value in _given(request, _LONG_FIELDS).items():
        given[name] = f"sha256:{sha256_of(value)[:_SHORT_HASH]}"
    return given


def prompt_sha256(request: LLMRequest, default_profile: LLMProfile | None = None) -> str:
    """Hash of everything in a request that changes the output, before any provider's translation.

    Fields left at their default do not count, so that a later version can add one without changing old hashes.

    Args:
        request: What is asked.
        default_profile: The profile of a request that names none.
    """
    content = _given(request, _FIELDS)
    content["form"] = REQUEST_FORM
    content["messages"] = [_said(message) for message in request.messages]
    if request.route is not None:
        content["route"] = str(request.route)
    profile = request.profile or default_profile
    if profile is not None:
        content["profile"] = profile
    return sha256_of(content)


def _given(request: LLMRequest, names: Iterable[str]) -> dict[str, Any]:
    """Those of the fields that were given, as plain data; their defaults are None and the empty tuple."""
    given: dict[str, Any] = {}
    for name in names:
        value = getattr(request, name)
        if value is not None and value != ():
            given[name] = _plain(value)
    return given


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="python", exclude_defaults=True)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _said(message: Message) -> dict[str, Any]:
    """The message by its fields that are not at their default, attachments as the hashes of their bytes."""
    if message.attachments or message.tool_calls or message.tool_call_id or message.tool_name:
        return _with_hashes(message.model_dump(mode="python", exclude_defaults=True))
    # Nearly all of them, and pydantic's own way takes as long as all the rest of the hash.
    return {"role": message.role, "content": message.content} if message.content else {"role": message.role}


def _with_hashes(message: dict[str, Any]) -> dict[str, Any]:
    attachments = message.get("attachments")
    if not attachments:
        return message
    hashes = [
        {"media_type": each["media_type"], "sha256": hashlib.sha256(each["data"]).hexdigest()} for each in attachments
    ]
    return {**message, "attachments": hashes}
