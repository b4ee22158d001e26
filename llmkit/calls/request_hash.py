"""The hash of a request: everything that changes the output, in a versioned canonical form."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import BaseModel

from llmkit.canonical_json import _encode, _sha256, canonical_json
from llmkit.types import LLMProfile, LLMRequest, Message, ResponseFormat

__all__ = ["CanonicalRequest", "prompt_sha256", "request_parameters"]


# Part of every hash: a change of what is hashed, or how, must not find the answers of another meaning.
REQUEST_FORM = "llmkit-request-1"


# Short ones are shown as they are, long ones distinguished by a hash; messages, route and profile are known elsewhere.
_SHORT_FIELDS = ("temperature", "max_output_tokens", "seed", "stop", "thinking", "tool_choice")


_LONG_FIELDS = ("tools", "response_format")


_SHORT_HASH = 16


_USUAL_NAME = ResponseFormat().name


class CanonicalRequest:
    """Canonical form of everything in a request that changes the output. Each field is encoded once.

    Fields left at their default do not count, so that a later version can add one without changing old hashes.

    Args:
        request: The request.

    Raises:
        ValueError: A tool or a schema contains NaN or an infinity.
        TypeError: One of them is not JSON-able.
    """

    __slots__ = ("_long", "_request", "_short")

    def __init__(self, request: LLMRequest) -> None:
        self._request = request
        self._short = {
            name: _plain(value)
            for name in _SHORT_FIELDS
            if (value := getattr(request, name)) is not None and value != ()
        }
        if request.logprobs:
            self._short["logprobs"] = True
        self._long = {
            name: _encode(_plain(value))
            for name in _LONG_FIELDS
            if (value := getattr(request, name)) is not None and value != ()
        }

    def sha256(self, default_profile: LLMProfile | None = None) -> str:
        """Hash of it all, messages, route and profile included.

        Args:
            default_profile: The profile of a request that names none.
        """
        request = self._request
        content = {**self._short, "form": REQUEST_FORM, "messages": 0}
        route, profile = request.route, request.profile or default_profile
        if route is not None:
            content["route"] = str(route)
        if profile is not None:
            content["profile"] = profile
        messages = f"[{','.join(map(_encode_message, request.messages))}]"
        if not self._long:
            # What comes before is of ours alone.
            return _sha256(_encode(content).replace('"messages":0', f'"messages":{messages}', 1))
        fields = {name: _encode(value) for name, value in content.items()} | self._long | {"messages": messages}
        text = ",".join([f'"{name}":{fields[name]}' for name in sorted(fields)])
        return _sha256(f"{{{text}}}")

    def parameters(self) -> dict[str, Any]:
        """Return the parameters besides messages, route and profile, as short JSON for people."""
        return self._short | {name: f"sha256:{_sha256(text)[:_SHORT_HASH]}" for name, text in self._long.items()}


def request_parameters(request: LLMRequest) -> dict[str, Any]:
    """Return `CanonicalRequest.parameters` of a request."""
    return CanonicalRequest(request).parameters()


def prompt_sha256(request: LLMRequest, default_profile: LLMProfile | None = None) -> str:
    """Return `CanonicalRequest.sha256` of a request."""
    return CanonicalRequest(request).sha256(default_profile)


def _plain(value: Any) -> Any:
    if isinstance(value, ResponseFormat):
        # Part of every extraction, and model_dump() takes as long as encoding its result.
        shape: dict[str, Any] = {} if value.name == _USUAL_NAME else {"name": value.name}
        return shape if value.json_schema is None else {**shape, "json_schema": value.json_schema}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="python", exclude_defaults=True)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _encode_message(message: Message) -> str:
    """Encode the fields that are not at their default as JSON, attachments as the hashes of their bytes."""
    if message.attachments or message.tool_calls or message.tool_call_id or message.tool_name:
        return _encode(_with_hashes(message.model_dump(mode="python", exclude_defaults=True)))
    # Nearly every message takes this way. model_dump() would take as long as the rest of the hash.
    content = f'"content":{canonical_json(message.content)},' if message.content else ""
    return f'{{{content}"role":"{message.role}"}}'


def _with_hashes(message: dict[str, Any]) -> dict[str, Any]:
    attachments = message.get("attachments")
    if not attachments:
        return message
    hashes = [
        {"media_type": each["media_type"], "sha256": hashlib.sha256(each["data"]).hexdigest()} for each in attachments
    ]
    return {**message, "attachments": hashes}
