"""One canonical text, and its hash, for values that mean the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from llmkit.types import LLMProfile, LLMRequest

__all__ = ["canonical_json", "prompt_sha256", "request_parameters", "sha256_of"]

# Part of every hash: a change of what is hashed, or how, must not find the answers of another meaning.
REQUEST_FORM = "llmkit-request-1"

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)

_HASHED_FIELDS = {
    "messages",
    "route",
    "profile",
    "temperature",
    "max_output_tokens",
    "tools",
    "tool_choice",
    "response_format",
    "seed",
    "stop",
}


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no white space and ASCII only, so that equal values give equal bytes.

    Raises:
        ValueError: The value holds NaN or an infinity.
        TypeError: The value is not JSON-able.
    """
    return _ENCODER.encode(value)


def sha256_of(value: Any) -> str:
    """Hexadecimal SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


# Long ones are told apart by a hash; messages, route and profile are known elsewhere.
_SHORT_FIELDS = ("temperature", "max_output_tokens", "seed", "stop", "tool_choice")
_LONG_FIELDS = ("tools", "response_format")
_SHORT_HASH = 16


def request_parameters(request: LLMRequest) -> dict[str, Any]:
    """What was asked beside messages, route and profile, as short JSON for people; defaults are left out."""
    given = request.model_dump(mode="json", include={*_SHORT_FIELDS}, exclude_defaults=True)
    if request.tools or request.response_format is not None:
        long = request.model_dump(mode="python", include={*_LONG_FIELDS}, exclude_defaults=True)
        given |= {name: f"sha256:{sha256_of(value)[:_SHORT_HASH]}" for name, value in long.items()}
    return given


def prompt_sha256(request: LLMRequest, default_profile: LLMProfile | None = None) -> str:
    """Hash of everything in a request that changes the output, before any provider's translation.

    Fields left at their default do not count, so that a later version can add one without changing old hashes.

    Args:
        request: What is asked.
        default_profile: The profile of a request that names none.
    """
    content = request.model_dump(mode="python", include=_HASHED_FIELDS, exclude_defaults=True)
    if request.attachments:
        content["messages"] = [_with_hashes(message) for message in content["messages"]]
    if request.route is not None:
        content["route"] = str(request.route)
    if request.profile is None and default_profile is not None:
        content["profile"] = default_profile
    return sha256_of({"form": REQUEST_FORM, **content})


def _with_hashes(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the hashes of its attachments in place of their bytes."""
    attachments = message.get("attachments")
    if not attachments:
        return message
    hashes = [
        {"media_type": each["media_type"], "sha256": hashlib.sha256(each["data"]).hexdigest()} for each in attachments
    ]
    return {**message, "attachments": hashes}
