"""Printing of a text that arrives in pieces."""

from __future__ import annotations

from typing import TextIO

from llmkit.display.terminal_text import ControlEscaper

__all__ = ["TerminalWriter"]


class TerminalWriter:
    """Prints pieces as they come: made safe for a terminal, unchanged for a file or a pipe.

    Characters that the encoding of the stream lacks are escaped, and no reason to fail.

    Args:
        stream: Such as `sys.stdout`.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._escaper = ControlEscaper() if stream.isatty() else None
        self._encoding = stream.encoding or "utf-8"
        self._is_line_open = False

    def write(self, text: str) -> None:
        """Print more of the text at once."""
        self._print(text if self._escaper is None else self._escaper.add(text))

    def finish(self) -> None:
        """Print what was kept back, and end the line."""
        self._print("" if self._escaper is None else self._escaper.finish())
        if self._is_line_open:
            self._print("\n")

    def _print(self, text: str) -> None:
        if text:
            self._is_line_open = not text.endswith("\n")
            self._stream.write(text.encode(self._encoding, "backslashreplace").decode(self._encoding))
            self._stream.flush()
