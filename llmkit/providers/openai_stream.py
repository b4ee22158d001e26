"""Streamed answers of Chat Completions: chunks with deltas, and a last one with the counts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from llmkit.ports import StreamPiece
from llmkit.providers.base import StreamForm, as_mapping, read_index
from llmkit.providers.streamed_body import set_body_fields

__all__ = ["OPENAI_STREAM", "OpenAIFolder"]

# The first one that a chunk has is shown; some servers send the same reasoning in both.
_REASONING_FIELDS = ("reasoning_content", "reasoning")
_HEAD_FIELDS = ("id", "created", "model", "system_fingerprint", "provider")


@dataclass(slots=True)
class _GrowingCall:
    """A tool call, as far as it has arrived."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": "".join(self.arguments)}
        return {"id": self.id, "type": "function", "function": function}


class OpenAIFolder:
    """The folder of one answer in chunks of Chat Completions, from any server that speaks it."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._texts: list[str] = []
        self._other_texts: dict[str, list[str]] = {}
        self._calls: list[_GrowingCall] = []
        self._call_at: dict[Any, int] = {}
        self._logprobs: dict[str, list[Any]] = {}
        self._finish_reason: Any = None
        self._usage: Any = None
        self._error: Any = None
        self._has_choice = False

    def add(self, event: Mapping[str, Any]) -> Sequence[StreamPiece]:
        """Take a chunk. All parts of it are foreign, so each is used only if it has the expected type."""
        if not self._head:
            self._head = {name: event[name] for name in _HEAD_FIELDS if event.get(name) is not None}
        # Counts come in a chunk of their own, with the last choice, or with every chunk and then grow: the last counts.
        usage = event.get("usage")
        if usage:
            self._usage = usage
        error = event.get("error")
        if error:
            self._error = error
        choices = event.get("choices")
        # One answer was requested. Further choices, of a server that sends more, are not for the reader.
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, Mapping) or read_index(choice.get("index")):
            return ()
        return self._add_choice(choice)

    def _add_choice(self, choice: Mapping[str, Any]) -> Sequence[StreamPiece]:
        self._has_choice = True
        end = choice.get("finish_reason")
        if end:
            self._finish_reason = end
        if choice.get("logprobs"):
            self._add_logprobs(choice["logprobs"])
        if choice.get("usage") and not self._usage:
            self._usage = choice["usage"]
        if choice.get("error"):
            self._error = choice["error"]
        delta = choice.get("delta")
        if not isinstance(delta, Mapping):
            # A server that cannot stream sends its whole answer as the only event.
            delta = choice.get("message")
            if not isinstance(delta, Mapping) or self._texts or self._calls:
                return ()
        pieces = []
        thinking = self._add_other_texts(delta) if len(delta) > 1 or "content" not in delta else ""
        if thinking:
            pieces.append(StreamPiece("thinking", thinking))
        text = delta.get("content")
        if text and isinstance(text, str):
            self._texts.append(text)
            pieces.append(StreamPiece("text", text))
        calls = delta.get("tool_calls")
        if calls and isinstance(calls, list):
            pieces.extend(self._add_call(part) for part in calls if isinstance(part, Mapping))
        return pieces

    def _add_other_texts(self, delta: Mapping[str, Any]) -> str:
        """Keep reasoning and refusal, and return the reasoning."""
        shown = ""
        for name in (*_REASONING_FIELDS, "refusal"):
            text = delta.get(name)
            if text and isinstance(text, str):
                self._other_texts.setdefault(name, []).append(text)
                if name != "refusal" and not shown:
                    shown = text
        return shown

    def _add_logprobs(self, logprobs: Any) -> None:
        for name in ("content", "refusal"):
            tokens = as_mapping(logprobs).get(name)
            if isinstance(tokens, list):
                self._logprobs.setdefault(name, []).extend(tokens)

    def _add_call(self, part: Mapping[str, Any]) -> StreamPiece:
        function = as_mapping(part.get("function"))
        call_id, name, arguments = part.get("id"), function.get("name"), function.get("arguments")
        at = self._find_call(part.get("index"), call_id)
        call = self._calls[at]
        # A fragment that repeats id or name adds nothing to them.
        new_id = call_id if isinstance(call_id, str) and not call.id else ""
        new_name = name if isinstance(name, str) and not call.name else ""
        call.id, call.name = call.id or new_id, call.name or new_name
        text = arguments if isinstance(arguments, str) else json.dumps(arguments) if arguments else ""
        call.arguments.append(text)
        return StreamPiece("tool_call", text, at, new_id, new_name)

    def _find_call(self, index: Any, call_id: Any) -> int:
        """Return the place of the call that a fragment belongs to, which may be a new one.

        Some servers leave out the index, or give it 0 for every one of parallel calls: then another id is another call.
        """
        key = index if isinstance(index, int) else None
        at = self._call_at.get(key)
        known = self._calls[at] if at is not None else None
        if at is None or known is None or (call_id and known.id and call_id != known.id):
            at = self._call_at[key] = len(self._calls)
            self._calls.append(_GrowingCall())
        return at

    @property
    def is_complete(self) -> bool:
        """Whether the reason of the end, or an error, was sent; counts may follow."""
        return self._finish_reason is not None or self._error is not None

    def fold(self) -> Mapping[str, Any]:
        """Return the `chat.completion` of the chunks."""
        reply: dict[str, Any] = {**self._head, "object": "chat.completion", "choices": []}
        if self._has_choice:
            message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts) or None}
            if message["content"] is None and not self._calls:
                message["content"] = ""
            message["refusal"] = None
            message |= {name: "".join(texts) for name, texts in self._other_texts.items()}
            if self._calls:
                message["tool_calls"] = [call.describe() for call in self._calls]
            logprobs = {"content": None, "refusal": None, **self._logprobs} if self._logprobs else None
            choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": self._finish_reason}
            reply["choices"] = [choice]
        if self._usage is not None:
            reply["usage"] = self._usage
        if self._error is not None:
            reply["error"] = self._error
        return reply


def _ask(url: str, body: bytes, **options: Any) -> tuple[str, bytes]:
    return url, set_body_fields(body, stream=True, **options)


# Servers that never heard of the option either ignore it, and send no counts, or refuse the request.
_WITHOUT_COUNTS = StreamForm("sse", _ask, OpenAIFolder)
OPENAI_STREAM = replace(
    _WITHOUT_COUNTS, ask=partial(_ask, stream_options={"include_usage": True}), simpler=_WITHOUT_COUNTS
)
"""Asks for counts too, which are sent only if the request has the option for them."""
