"""The line that says what a call is loading."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from llmkit.batch import answer_panel
from llmkit.batch.loading import find_loading, note_loading
from llmkit.notebook import status_line
from llmkit.notebook.status_line import StatusLine, wait_aside


class Panel:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def show_line(self, text: str) -> None:
        self.lines.append(text)

    def clear_line(self) -> None:
        self.lines.append("")


@pytest.fixture
def panel(monkeypatch: pytest.MonkeyPatch) -> Panel:
    panel = Panel()
    monkeypatch.setattr(status_line, "SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(answer_panel, "open_panel", lambda: panel)
    return panel


def test_it_names_what_is_loaded_and_goes(panel: Panel) -> None:
    line = StatusLine()
    line.draw()
    with note_loading("llmkit"):
        line.draw()
        with note_loading("gemma-3-270m"):
            line.draw()
            line.draw()
    line.draw()
    line.close()
    assert panel.lines == ["loading llmkit ...", "loading gemma-3-270m ...", "waiting ...", ""]
    assert find_loading() is None


def test_a_call_that_loads_nothing_shows_nothing(panel: Panel) -> None:
    line = StatusLine()
    line.draw()
    line.close()
    assert panel.lines == []


def test_a_short_wait_shows_nothing(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_line, "SHOW_AFTER_S", 60.0)
    done: Future[int] = Future()
    done.set_result(3)
    with note_loading("llmkit"):
        assert wait_aside(done) == 3
    assert panel.lines == []


def test_an_error_of_the_other_thread_is_raised() -> None:
    failed: Future[int] = Future()
    failed.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        wait_aside(failed)
