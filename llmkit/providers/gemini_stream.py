"""Gemini's streamed answers. Each event is a reply by itself, with the parts that are new."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.ports import StreamPiece
from llmkit.providers.base import StreamForm, as_mapping, read_index, update_known

__all__ = ["STREAM"]

_PLAIN_VERB, _STREAM_VERB = ":generateContent", ":streamGenerateContent"
# A part with more than these is never one half of a text.
_TEXT_FIELDS = frozenset({"text", "thought", "thoughtSignature"})


def _ask(url: str, body: bytes) -> tuple[str, bytes]:
    path, _, query = url.partition("?")
    # Without `alt` the answer would be one JSON list, which grows.
    queries = [query, "alt=sse"] if query else ["alt=sse"]
    return f"{path.removesuffix(_PLAIN_VERB)}{_STREAM_VERB}?{'&'.join(queries)}", body


class _Part:
    """One part of the answer, with the fragments of its text."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = dict(fields)
        text = self.fields.get("text")
        self.texts: list[str] = [text] if isinstance(text, str) else []

    def is_continued_by(self, fields: Mapping[str, Any]) -> bool:
        """Return whether a part is the next fragment of this one's text. A signature ends the text that it signs."""
        return (
            bool(self.texts)
            and isinstance(fields.get("text"), str)
            and self.fields.keys() | fields.keys() <= _TEXT_FIELDS
            and "thoughtSignature" not in self.fields
            and (self.fields.get("thought") is True) == (fields.get("thought") is True)
        )

    def extend(self, fields: Mapping[str, Any]) -> None:
        """Add the next fragment."""
        self.fields.update(fields)
        self.texts.append(fields["text"])

    def fold(self) -> dict[str, Any]:
        """Return the whole part."""
        return {**self.fields, "text": "".join(self.texts)} if self.texts else dict(self.fields)


class GeminiFolder:
    """Folds the events of one answer into the reply of `generateContent`."""

    def __init__(self) -> None:
        self._reply: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._candidate: dict[str, Any] | None = None
        self._index = 0
        self._content: dict[str, Any] | None = None
        self._parts: list[_Part] | None = None
        self._logprobs: dict[str, Any] = {}
        self._tool_calls = 0

    def add(self, event: Mapping[str, Any]) -> Sequence[StreamPiece]:
        """Take the next event."""
        pieces: list[StreamPiece] = []
        for name, value in event.items():
            if name == "candidates":
                pieces += self._add_candidates(value)
            elif name == "usageMetadata":
                # Counts are of the whole answer so far; some chunks have only a part of them.
                update_known(self._usage, as_mapping(value))
            elif value is not None or name not in self._reply:
                self._reply[name] = value
        return pieces

    @property
    def is_complete(self) -> bool:
        """Whether there is a reason for the end. More events may follow: some servers give one in every chunk."""
        blocked = as_mapping(self._reply.get("promptFeedback")).get("blockReason")
        return bool((self._candidate or {}).get("finishReason") or blocked or self._reply.get("error"))

    def fold(self) -> Mapping[str, Any]:
        """Return the reply so far."""
        reply = dict(self._reply)
        if self._usage:
            reply["usageMetadata"] = dict(self._usage)
        if self._candidate is None:
            return reply
        candidate = dict(self._candidate)
        if self._content is not None:
            parts = {} if self._parts is None else {"parts": [part.fold() for part in self._parts]}
            candidate["content"] = {**self._content, **parts}
        if self._logprobs:
            candidate["logprobsResult"] = dict(self._logprobs)
        return {**reply, "candidates": [candidate]}

    def _add_candidates(self, candidates: Any) -> list[StreamPiece]:
        given = as_mapping(candidates[0]) if isinstance(candidates, list) and candidates else {}
        if not given:
            return []
        # One candidate is asked for, and only the first one of a reply is read.
        index = read_index(given.get("index"))
        if self._candidate is None:
            self._candidate, self._index = {}, index
        if index != self._index:
            return []
        candidate = self._candidate
        pieces: list[StreamPiece] = []
        for name, value in given.items():
            if name == "content":
                pieces += self._add_content(value)
            elif name == "logprobsResult":
                self._add_logprobs(as_mapping(value))
            elif value is not None or name not in candidate:
                candidate[name] = value
        return pieces

    def _add_content(self, given: Any) -> list[StreamPiece]:
        if not isinstance(given, Mapping):
            return []
        content = self._content = self._content or {}
        content.update(given)
        parts = content.pop("parts", None)
        if not isinstance(parts, list):
            return []
        self._parts = self._parts or []
        return [piece for part in parts if isinstance(part, Mapping) for piece in self._add_part(self._parts, part)]

    def _add_part(self, parts: list[_Part], part: Mapping[str, Any]) -> list[StreamPiece]:
        if parts and parts[-1].is_continued_by(part):
            parts[-1].extend(part)
        else:
            parts.append(_Part(part))
        pieces, text, call = [], part.get("text"), part.get("functionCall")
        if isinstance(text, str) and text:
            pieces.append(StreamPiece("thinking" if part.get("thought") is True else "text", text))
        if isinstance(call, Mapping):
            pieces.append(self._describe_call(call))
        return pieces

    def _describe_call(self, call: Mapping[str, Any]) -> StreamPiece:
        index, self._tool_calls = self._tool_calls, self._tool_calls + 1
        name, arguments = call.get("name"), json.dumps(call.get("args") or {}, ensure_ascii=False)
        # Without an id: LiteLLM makes it, or adds the signature to Gemini's.
        return StreamPiece("tool_call", arguments, tool_index=index, tool_name=name if isinstance(name, str) else "")

    def _add_logprobs(self, given: Mapping[str, Any]) -> None:
        """Add the tokens of this chunk, which are lists, to those before."""
        for name, value in given.items():
            earlier = self._logprobs.get(name)
            if isinstance(earlier, list) and isinstance(value, list):
                earlier.extend(value)
            else:
                self._logprobs[name] = list(value) if isinstance(value, list) else value


STREAM = StreamForm("sse", _ask, GeminiFolder)
