"""A line that says what a call is loading before it can answer, in a notebook or a terminal."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from llmkit.batch.loading import find_loading

if TYPE_CHECKING:
    from llmkit.batch.answer_panel import NotebookPanel, TerminalPanel

__all__ = ["StatusLine", "wait_aside"]

# Most calls have ended by then, and show nothing.
SHOW_AFTER_S = 0.7
TICK_S = 0.1

T = TypeVar("T")


class StatusLine:
    """The line of one waiting call, drawn by the thread that waits. It goes when the call ends."""

    def __init__(self) -> None:
        self._began_s = monotonic()
        self._panel: TerminalPanel | NotebookPanel | None = None
        self._text: str | None = None

    def draw(self) -> None:
        """Draw the line if something is being loaded, and what follows it."""
        waited_s = monotonic() - self._began_s
        if waited_s < SHOW_AFTER_S or threading.current_thread() is not threading.main_thread():
            return
        loading = find_loading()
        if loading is None and self._text is None:
            return
        text = "waiting ..." if loading is None else f"loading {loading} ..."
        if text == self._text:
            return
        if self._panel is None:
            # Imported here: most calls end before they show anything.
            from llmkit.batch.answer_panel import open_panel

            self._panel = open_panel()
        self._text = text
        if self._panel is not None:
            self._panel.show_line(text)

    def close(self) -> None:
        """Remove the line."""
        if self._panel is not None:
            self._panel.clear_line()


def wait_aside(future: Future[T]) -> T:
    """Wait for work that another thread does, and show what it loads."""
    line = StatusLine()
    try:
        while not future.done():
            wait((future,), TICK_S)
            line.draw()
    finally:
        line.close()
    return future.result()
