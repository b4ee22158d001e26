"""Separation of reasoning from text while an answer arrives, for models that write it between `<think>` tags."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from llmkit.ports import StreamPiece

__all__ = ["ReasoningTags"]

_OPENING = ("<think>", "<thinking>")
_CLOSING = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
# The end of a text that may become a closing tag.
_HALF_CLOSING = re.compile(r"<(?:/(?:t(?:h(?:i(?:n(?:k(?:i(?:ng?)?)?)?)?)?)?)?)?\Z", re.IGNORECASE)


class ReasoningTags:
    """The state of one answer. Only reasoning at its beginning is separated, as in `replies.drop_reasoning`.

    An answer whose opening tag is in the prompt has a closing tag alone, which comes too late for what was shown.
    """

    def __init__(self) -> None:
        self._state: Literal["beginning", "thinking", "gap", "text"] = "beginning"
        self._held = ""

    def separate(self, pieces: list[StreamPiece], *, is_last: bool) -> list[StreamPiece]:
        """Return the pieces with reasoning as `thinking`. A text that may become a tag is held back.

        Args:
            pieces: The next pieces.
            is_last: Whether no more follow, so that nothing is held back.
        """
        if self._state == "text":
            return pieces
        separated: list[StreamPiece] = []
        for piece in pieces:
            if piece.kind != "text":
                separated.append(piece)
                continue
            self._held += piece.text
            separated.extend(self._release())
        if is_last and self._held:
            separated.append(StreamPiece("thinking" if self._state == "thinking" else "text", self._held))
            self._held = ""
        return separated

    def _release(self) -> Iterator[StreamPiece]:
        """Yield what is known of the held text."""
        if self._state == "beginning":
            beginning = self._held.lstrip().lower()
            tag = next((each for each in _OPENING if beginning.startswith(each)), None)
            if tag is not None:
                self._state, self._held = "thinking", self._held.lstrip()[len(tag) :]
            elif not any(each.startswith(beginning) for each in _OPENING):
                self._state = "text"
        if self._state == "thinking":
            closing = _CLOSING.search(self._held)
            half = _HALF_CLOSING.search(self._held) if closing is None else None
            end = closing.start() if closing else half.start() if half else len(self._held)
            if end:
                yield StreamPiece("thinking", self._held[:end])
            self._held = self._held[closing.end() if closing else end :]
            if closing is not None:
                self._state = "gap"
        if self._state == "gap":
            self._held = self._held.lstrip()
            if self._held:
                self._state = "text"
        if self._state == "text" and self._held:
            yield StreamPiece("text", self._held)
            self._held = ""
