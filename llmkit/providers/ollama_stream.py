"""Streamed answers of Ollama's `/api/chat`: a JSON object in each line, and the counts in the last one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.ports import StreamPiece
from llmkit.providers.base import StreamForm, as_mapping
from llmkit.providers.streamed_body import set_body_fields

__all__ = ["OLLAMA_STREAM", "OllamaFolder"]


class OllamaFolder:
    """The folder of one answer in lines of `/api/chat`."""

    def __init__(self) -> None:
        self._last: Mapping[str, Any] = {}
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[Any] = []
        self._logprobs: list[Any] = []
        self._error: Any = None
        self._has_message = False

    def add(self, event: Mapping[str, Any]) -> Sequence[StreamPiece]:
        """Take a line. The last one has the counts, and mostly no text."""
        if self.is_complete:
            return ()
        error = event.get("error")
        if error:
            self._error = error
            return ()
        self._last = event
        message, logprobs = event.get("message"), event.get("logprobs")
        if isinstance(logprobs, list):
            self._logprobs.extend(logprobs)
        if not isinstance(message, Mapping):
            return ()
        self._has_message = True
        pieces: list[StreamPiece] = []
        thought, text, calls = message.get("thinking"), message.get("content"), message.get("tool_calls")
        if thought and isinstance(thought, str):
            self._thoughts.append(thought)
            pieces.append(StreamPiece("thinking", thought))
        if text and isinstance(text, str):
            self._texts.append(text)
            pieces.append(StreamPiece("text", text))
        if calls and isinstance(calls, list):
            pieces.extend(map(self._add_call, calls))
        return pieces

    def _add_call(self, call: Any) -> StreamPiece:
        """Keep a tool call, which always comes whole."""
        self._calls.append(call)
        function, call_id = as_mapping(as_mapping(call).get("function")), as_mapping(call).get("id")
        return StreamPiece(
            "tool_call",
            json.dumps(function.get("arguments") or {}),
            len(self._calls) - 1,
            call_id if isinstance(call_id, str) else "",
            str(function.get("name") or ""),
        )

    @property
    def is_complete(self) -> bool:
        """Whether the line with `done: true`, or an error, was sent."""
        return self._last.get("done") is True or self._error is not None

    def fold(self) -> Mapping[str, Any]:
        """Return the reply with `stream: false`: the last line with the message of all of them."""
        reply = dict(self._last)
        if self._has_message:
            message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts)}
            if self._thoughts:
                message["thinking"] = "".join(self._thoughts)
            if self._calls:
                message["tool_calls"] = self._calls
            reply["message"] = message
        if self._logprobs:
            reply["logprobs"] = self._logprobs
        if self._error is not None:
            reply["error"] = self._error
        return reply


def _ask(url: str, body: bytes) -> tuple[str, bytes]:
    return url, set_body_fields(body, stream=True)


OLLAMA_STREAM = StreamForm("ndjson", _ask, OllamaFolder)
"""Lines of JSON."""
