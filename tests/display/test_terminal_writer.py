"""Printing of a text that arrives in pieces: the same as printing all of it, and safe."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.display.terminal_text import escape_controls
from llmkit.display.terminal_writer import TerminalWriter


class Terminal(io.TextIOWrapper):
    """A stream of an encoding, which says whether it is a terminal."""

    def __init__(self, encoding: str = "utf-8", *, is_terminal: bool = True) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="")
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def read_all(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


@given(st.lists(st.text("ab\r\n\x1b[2J\u202e", max_size=4), max_size=5))
def test_pieces_are_escaped_as_the_whole(pieces: list[str]) -> None:
    terminal = Terminal()
    writer = TerminalWriter(terminal)
    for piece in pieces:
        writer.write(piece)
    writer.finish()
    whole = escape_controls("".join(pieces))
    assert terminal.read_all() == whole + ("\n" if whole and not whole.endswith("\n") else "")


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, "\\x1b[2J\\u20ac\n"), (False, "\x1b[2J\\u20ac\n")])
def test_a_file_gets_the_text_unchanged_and_no_encoding_fails(is_terminal: bool, shown: str) -> None:
    terminal = Terminal("ascii", is_terminal=is_terminal)
    writer = TerminalWriter(terminal)
    writer.write("\x1b[2J\u20ac")
    writer.finish()
    assert terminal.read_all() == shown
