"""An answer that grows in view: an output of the cell that is replaced, or text in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from llmkit.display.html import render_card
from llmkit.display.terminal_text import escape_controls
from llmkit.display.terminal_writer import TerminalWriter
from llmkit.errors import LLMError
from llmkit.types import LLMResponse

__all__ = ["show_stream"]

# Faster changes cannot be read, and each one sends the whole text to the browser.
REDRAW_INTERVAL_S = 0.1


def show_stream(
    read_more: Callable[[], bool],
    read_text: Callable[[], str],
    read_end: Callable[[], LLMResponse],
    cancel: Callable[[], None],
    *,
    is_value: bool = False,
) -> None:
    """Show a text while it grows, and at the end the answer.

    Args:
        read_more: Waits until more has arrived; False at the end.
        read_text: Returns the text so far.
        read_end: Returns what is shown at the end.
        cancel: Cancels the call.
        is_value: Whether the text is of a value, which changes in its middle too: a terminal gets it at the end.

    Raises:
        LLMError: As `read_more`. What had arrived stays in view.
        BaseException: What interrupted it. The call is cancelled, and what had arrived stays in view.
    """
    view = _open_view(is_value=is_value)
    try:
        while read_more():
            view.grow(read_text())
            if view.is_slow:
                # What arrives meanwhile is shown together. Waiting after a change, and not before it, shows all that is
                # there when the model pauses.
                time.sleep(REDRAW_INTERVAL_S)
        view.end(read_end())
    except LLMError:
        view.break_off(read_text())
        raise
    except BaseException:
        cancel()
        view.break_off(read_text())
        raise


class _View(Protocol):
    is_slow: bool

    def grow(self, text: str) -> None: ...

    def end(self, answer: LLMResponse) -> None: ...

    def break_off(self, text: str) -> None: ...


class _NotebookView:
    """One output of the cell, replaced in place."""

    is_slow = True

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown: dict[str, str] = {}

    def grow(self, text: str) -> None:
        self._show(text, f"{len(text):,} characters so far ...")

    def end(self, answer: LLMResponse) -> None:
        from IPython.display import display

        if self._handle is None:
            display(answer)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(answer)

    def break_off(self, text: str) -> None:
        self._show(text, f"{len(text):,} characters, then the answer broke off")

    def _show(self, text: str, fact: str) -> None:
        plain = escape_controls(f"{text}\n[{fact}]")
        self._replace({"text/html": render_card(text, (fact,)), "text/plain": plain})

    def _replace(self, data: dict[str, str]) -> None:
        from IPython.display import display

        if data == self._shown:
            return
        self._shown = data
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(data, raw=True)


class _TextView:
    """Text that is printed as it comes, then a line of facts."""

    is_slow = False

    def __init__(self, *, is_value: bool) -> None:
        self._writer = TerminalWriter(sys.stdout)
        self._is_value = is_value
        self._printed_count = 0

    def grow(self, text: str) -> None:
        if not self._is_value:
            self._writer.write(text[self._printed_count :])
            self._printed_count = len(text)

    def end(self, answer: LLMResponse) -> None:
        self._writer.write(answer.text[self._printed_count :])
        self._writer.finish()
        facts = [*(f"warning: {each}" for each in answer.warnings), f"[{', '.join(answer.facts)}]"]
        sys.stdout.write(escape_controls("\n".join(facts)) + "\n")

    def break_off(self, text: str) -> None:
        self.grow(text)
        self._writer.finish()


def _open_view(*, is_value: bool) -> _View:
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return _NotebookView() if hasattr(shell, "kernel") else _TextView(is_value=is_value)
