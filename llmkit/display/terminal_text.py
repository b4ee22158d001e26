"""Text of models and datasets, made safe to print in a terminal."""

from __future__ import annotations

import re

__all__ = ["ControlEscaper", "escape_controls"]

# A terminal executes control characters, which can clear it, rename its window or type commands. Direction marks
# reverse the text that follows, so that `gnp.exe` looks like a picture. Line breaks and tabs are harmless.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def escape_controls(text: str) -> str:
    r"""Write control characters and direction marks as Python escapes, such as `\x1b` or `\u202e`.

    A carriage return before a line feed is dropped, because the two are one line break. Other text stays unchanged.
    """
    return _UNSAFE.sub(_escape_character, text.replace("\r\n", "\n"))


class ControlEscaper:
    """Escapes a text that arrives in pieces, as `escape_controls` does with all of it."""

    def __init__(self) -> None:
        self._kept = ""

    def add(self, text: str) -> str:
        """Return what can be printed: a carriage return at the end waits for what follows it."""
        text = self._kept + text
        self._kept = "\r" if text.endswith("\r") else ""
        return escape_controls(text.removesuffix("\r"))

    def finish(self) -> str:
        """Return what was kept back."""
        kept, self._kept = self._kept, ""
        return escape_controls(kept)


def _escape_character(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
