"""Lines below a progress bar: in a terminal drawn over, in a notebook an output that is replaced."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from llmkit.batch.latest_answers import AnswerText
from llmkit.display.html import render_answers, render_line

__all__ = ["NotebookPanel", "TerminalPanel", "open_panel"]

# The bar, the line of the prompt and one to spare.
OTHER_LINES = 3
NARROWEST = 40


class TerminalPanel:
    """Lines below the line of the cursor. Each change is one write, and only what changed moves: nothing flickers."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_drawn = False

    def show(self, answers: Sequence[AnswerText]) -> None:
        """Replace the lines, and leave the cursor at the begin of the line that it was on."""
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except OSError:  # the terminal was closed meanwhile
            return
        columns = size.columns or 80
        lines = [_write_line(each, columns - 1) for each in answers[: max(0, (size.lines or 24) - OTHER_LINES)]]
        if columns < NARROWEST or not lines:
            self.clear()
            return
        encoding = self._stream.encoding or "utf-8"
        # What the encoding of the terminal cannot show is escaped, which makes a line longer. So lines never wrap here,
        # whatever the terminal thinks of the width of a character, because then the way back up would be too short.
        drawn = "".join(f"\n{line}" for line in lines).encode(encoding, "backslashreplace").decode(encoding)
        self._stream.write(f"\x1b[?7l\x1b[J{drawn}\x1b[?7h\x1b[{len(lines)}A\r")
        self._stream.flush()
        self._is_drawn = True

    def clear(self) -> None:
        """Remove the lines."""
        if self._is_drawn:
            self._stream.write("\n\x1b[J\x1b[A\r")
            self._stream.flush()
        self._is_drawn = False

    def show_line(self, text: str) -> None:
        """Write over the line of the cursor."""
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()

    def clear_line(self) -> None:
        """Empty the line of the cursor."""
        self.show_line("")


class NotebookPanel:
    """An output of the cell that is being run, replaced in place."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, answers: Sequence[AnswerText]) -> None:
        """Replace the lines."""
        self._replace(
            {
                "text/html": render_answers([(each.status, each.label, each.input, each.output) for each in answers]),
                "text/plain": "\n".join(_write_line(each, 79) for each in answers),
            }
        )

    def clear(self) -> None:
        """Remove the lines, so that a saved notebook has them no more."""
        if self._handle is not None:
            self._replace({"text/html": "", "text/plain": ""})

    def show_line(self, text: str) -> None:
        """Replace the output by one line."""
        self._replace({"text/html": render_line(text), "text/plain": text})

    def clear_line(self) -> None:
        """Remove the line."""
        self.clear()

    def _replace(self, data: dict[str, str]) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(data, raw=True)


def open_panel() -> TerminalPanel | NotebookPanel | None:
    """Return the panel for where this code runs; None for a file, a pipe, or a terminal that cannot move its cursor."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if hasattr(shell, "kernel"):
        return NotebookPanel()
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    # Imported here: a script without a terminal does without.
    from rich.console import Console

    return None if Console(stderr=True).is_dumb_terminal else TerminalPanel(sys.stderr)


def _write_line(answer: AnswerText, columns: int) -> str:
    """Return an answer on one line: the beginning of each part, none of which pushes the others out."""
    from rich.cells import cell_len, set_cell_size

    def cut(text: str, room: int) -> str:
        return text if cell_len(text) <= room else f"{set_cell_size(text, max(0, room - 3)).rstrip()}..."

    head = f"{answer.status:<6} {cut(answer.label, columns // 3)}: "
    room = columns - cell_len(head) - len(" -> ")
    # Of a failure the reason matters most.
    share = room // 4 if answer.status == "failed" else room // 2
    asked = cut(answer.input, max(share, room - cell_len(answer.output)))
    return cut(f"{head}{asked} -> {answer.output}", columns)
