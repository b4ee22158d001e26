"""Shortcut for the plainest replies: building LiteLLM's objects takes longer than the request itself.

It reads one text that ended by itself or at its limit, with plain counts. For any other reply it returns None, and
LiteLLM reads it. Both readings are compared when the fast path is loaded, and by tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

__all__ = ["READERS", "PlainCompletion", "as_plain"]

Reply = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PlainMessage:
    """Message of a reply."""

    content: str | None
    tool_calls: None = None


@dataclass(frozen=True, slots=True)
class PlainChoice:
    """Message and finish reason of a reply, in OpenAI's terms."""

    message: PlainMessage
    finish_reason: str


@dataclass(frozen=True, slots=True)
class PlainDetails:
    """Parts of a count."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class PlainUsage:
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PlainDetails = PlainDetails()
    completion_tokens_details: PlainDetails = PlainDetails()


@dataclass(frozen=True, slots=True)
class PlainCompletion:
    """The part of LiteLLM's `ModelResponse` that llmkit reads, under the same names."""

    choices: tuple[PlainChoice, ...]
    model: str
    usage: PlainUsage
    _hidden_params: Mapping[str, Any] = field(default_factory=dict, repr=False)


Reader = Callable[[str, Reply], PlainCompletion | None]

_NO_DETAILS = PlainDetails()


def _completion(text: str, finish_reason: str, model: str, usage: PlainUsage) -> PlainCompletion:
    return PlainCompletion((PlainChoice(PlainMessage(text), finish_reason),), model, usage)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


_OLLAMA_ENDS = {"stop": "stop", "length": "length"}


def _ollama(model: str, reply: Reply) -> PlainCompletion | None:
    message, end = reply.get("message"), reply.get("done_reason") or "stop"
    prompt, written = reply.get("prompt_eval_count"), reply.get("eval_count")
    if not isinstance(message, dict) or message.keys() != {"role", "content"} or message["role"] != "assistant":
        return None
    text = message["content"]
    # LiteLLM takes reasoning out of a text that begins with `<think>`.
    if not isinstance(text, str) or text[:1] in {"", "<"} or not isinstance(end, str) or end not in _OLLAMA_ENDS:
        return None
    # A prompt count of 0 is no count (see `providers.ollama`): LiteLLM then estimates it.
    if not _is_count(prompt) or not prompt or not _is_count(written):
        return None
    return _completion(text, _OLLAMA_ENDS[end], f"ollama_chat/{model}", PlainUsage(prompt, written, prompt + written))


_GEMINI_ENDS = {"STOP": "stop", "MAX_TOKENS": "length"}
_GEMINI_REPLY = frozenset({"candidates", "usageMetadata", "modelVersion", "responseId"})
_GEMINI_CANDIDATE = frozenset({"content", "finishReason", "index", "avgLogprobs", "logprobsResult"})
_GEMINI_COUNTS = frozenset({"promptTokenCount", "candidatesTokenCount", "totalTokenCount", "thoughtsTokenCount"})


def _gemini(model: str, reply: Reply) -> PlainCompletion | None:
    candidates, version = reply.get("candidates"), reply.get("modelVersion")
    if not reply.keys() <= _GEMINI_REPLY or not isinstance(candidates, list) or len(candidates) != 1:
        return None
    candidate, usage = candidates[0], _gemini_usage(reply.get("usageMetadata"))
    if usage is None or not isinstance(candidate, dict) or not candidate.keys() <= _GEMINI_CANDIDATE:
        return None
    text, end = _gemini_text(candidate.get("content")), candidate.get("finishReason")
    if text is None or not isinstance(end, str) or end not in _GEMINI_ENDS:
        return None
    served = version.split("@", 1)[0] if isinstance(version, str) and version else model
    return _completion(text, _GEMINI_ENDS[end], served, usage)


def _gemini_text(content: Any) -> str | None:
    """Return the text of an answer that is nothing else."""
    parts = content.get("parts") if isinstance(content, dict) and content.keys() <= {"parts", "role"} else None
    if not isinstance(parts, list) or len(parts) != 1 or not isinstance(parts[0], dict) or parts[0].keys() != {"text"}:
        return None
    text = parts[0]["text"]
    # LiteLLM takes a data URL for sound, wherever it occurs.
    return text if isinstance(text, str) and text and not text.startswith("data:") else None


def _gemini_usage(counted: Any) -> PlainUsage | None:
    if not isinstance(counted, dict) or "promptTokenCount" not in counted:
        return None
    counts = {name: value for name, value in counted.items() if name != "promptTokensDetails"}
    if not counts.keys() <= _GEMINI_COUNTS or not all(map(_is_count, counts.values())):
        return None
    if not _is_all_text(counted.get("promptTokensDetails", [])):
        return None
    prompt, written, total = (counts.get(f"{part}TokenCount", 0) for part in ("prompt", "candidates", "total"))
    thoughts = counts.get("thoughtsTokenCount")
    # Some of Google's services count thoughts as part of the answer, and some beside it.
    output = written if prompt + written == total else written + (thoughts or 0)
    details = _NO_DETAILS if thoughts is None else PlainDetails(reasoning_tokens=thoughts)
    return PlainUsage(prompt, output, total, completion_tokens_details=details)


def _is_all_text(details: Any) -> bool:
    return isinstance(details, list) and all(
        isinstance(detail, dict) and detail.get("modality") == "TEXT" and _is_count(detail.get("tokenCount", 0))
        for detail in details
    )


_OPENAI_ENDS = {"stop": "stop", "length": "length"}
_OPENAI_MESSAGE = frozenset({"role", "content", "refusal", "annotations", "tool_calls", "function_call"})
_OPENAI_COUNTS = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
_OPENAI_DETAILS = frozenset({"prompt_tokens_details", "completion_tokens_details"})
# What these count as well is the same for LiteLLM.
_OPENAI_DETAIL = frozenset(
    {"cached_tokens", "audio_tokens", "reasoning_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"}
)


def _openai(_model: str, reply: Reply) -> PlainCompletion | None:
    choices, served = reply.get("choices"), reply.get("model")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(served, str) or not served:
        return None
    choice, usage = choices[0], _openai_usage(reply.get("usage"))
    if usage is None or reply.get("error") is not None or not isinstance(choice, dict):
        return None
    message, end = choice.get("message"), choice.get("finish_reason")
    if not isinstance(message, dict) or not message.keys() <= _OPENAI_MESSAGE or message.get("role") != "assistant":
        return None
    if message.get("tool_calls") or message.get("function_call"):
        return None
    text = message.get("content")
    # LiteLLM takes reasoning out of a text that begins with `<think>`.
    if not isinstance(text, str) or text[:1] in {"", "<"} or not isinstance(end, str) or end not in _OPENAI_ENDS:
        return None
    return _completion(text, _OPENAI_ENDS[end], served, usage)


def _openai_usage(counted: Any) -> PlainUsage | None:
    if not isinstance(counted, dict) or not counted.keys() <= _OPENAI_COUNTS | _OPENAI_DETAILS:
        return None
    prompt, output, total = (counted.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    if not _is_count(prompt) or not _is_count(output) or not _is_count(total):
        return None
    read, written = (counted.get(name) or {} for name in ("prompt_tokens_details", "completion_tokens_details"))
    for details in (read, written):
        if not isinstance(details, dict) or not details.keys() <= _OPENAI_DETAIL:
            return None
        if not all(map(_is_count, details.values())):
            return None
    cached, reasoning = read.get("cached_tokens"), written.get("reasoning_tokens")
    return PlainUsage(prompt, output, total, PlainDetails(cached), PlainDetails(reasoning_tokens=reasoning))


READERS: Mapping[str, Reader] = {"ollama_chat": _ollama, "openai": _openai, "gemini": _gemini}
"""By LiteLLM's name of the provider: a function of the requested model and the reply's JSON."""


def as_plain(completion: Any) -> PlainCompletion:
    """Reduce LiteLLM's reading of an answer with one choice to the part that llmkit uses."""
    choice, usage = completion.choices[0], completion.usage
    prompt, output = usage.prompt_tokens_details, usage.completion_tokens_details
    message = PlainMessage(choice.message.content, choice.message.tool_calls or None)
    return PlainCompletion(
        choices=(PlainChoice(message, str(choice.finish_reason)),),
        model=str(completion.model),
        usage=PlainUsage(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.total_tokens,
            PlainDetails(cached_tokens=getattr(prompt, "cached_tokens", None)),
            PlainDetails(reasoning_tokens=getattr(output, "reasoning_tokens", None)),
        ),
    )
