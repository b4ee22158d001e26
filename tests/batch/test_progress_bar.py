"""The bar behind `map` and `evaluate`: readable at 80 columns, honest about the time that is left."""

from __future__ import annotations

import os
import re
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import ioctl
from select import select

import pytest

from llmkit.batch import progress_bar
from llmkit.batch.progress_bar import Meter, bar


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_bar, "monotonic", clock)
    monkeypatch.setattr(progress_bar, "_interval_s", lambda: 0.0)
    return clock


@contextmanager
def open_terminal() -> Iterator[Callable[[], list[str]]]:
    """Make stderr a terminal of 80 columns, and yield a function that returns the lines drawn there."""
    reader, writer = os.openpty()
    ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def read_lines() -> list[str]:
        sys.stderr.flush()
        # A terminal hands out what was written in pieces.
        drawn = b""
        while select([reader], [], [], 0.2)[0]:
            drawn += os.read(reader, 100_000)
        return [line for line in re.split(r"[\r\n]+", drawn.decode()) if line.strip()]

    with os.fdopen(writer, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        yield read_lines
    os.close(reader)


def draw_states(clock: Clock, *states: tuple[float, Meter]) -> None:
    now = [states[0][1]]
    with bar(lambda: now[0], unit="row") as draw:
        for after_s, meter in states:
            now[0] = meter
            clock.now_s += after_s
            draw()


def test_a_bar_is_readable_at_80_columns(clock: Clock) -> None:
    shown = {"failed": 3, "reused": 1200, "sent": 4800, "gemini/gemini-2.5-flash": 3000, "ollama/llama3.2": 3000}
    with open_terminal() as read_lines:
        draw_states(clock, (0, Meter(0, 6000, shown)), (10, Meter(3000, 6000, shown, reused=1200)))
        last = read_lines()[-1]
    assert len(last) <= 80
    assert re.search(r" 50%\|█{10} {10}\| 3000/6000 \[\d\d:\d\d, ", last)
    assert "failed=3" in last
    assert last.endswith("]")  # no fact is cut in its middle


def test_the_time_left_does_not_count_what_was_there_already(clock: Clock, capsys) -> None:
    draw_states(clock, (0, Meter(900, 1000, reused=900)), (20, Meter(910, 1000, reused=900)))
    assert "910/1000 [" in (err := capsys.readouterr().err)
    assert "03:00 left" in err  # 10 in 20 s, so 90 in 180 s


def test_the_time_left_is_unknown_before_the_first_new_answer(clock: Clock, capsys) -> None:
    draw_states(clock, (0, Meter(0, 10)), (5, Meter(4, 10, reused=4)))
    assert "left" not in capsys.readouterr().err


def test_loading_shows_and_does_not_count_as_work(clock: Clock, capsys) -> None:
    draw_states(
        clock, (0, Meter(0, 10, loading="local/tiny")), (50, Meter(0, 10, loading="local/tiny")), (10, Meter(5, 10))
    )
    err = capsys.readouterr().err
    assert "loading local/tiny" in err
    assert "00:10 left" in err


@pytest.mark.parametrize(("failed", "is_red"), [(4, True), (3, False), (0, False)])
def test_a_bar_is_red_when_all_failed(clock: Clock, capsys, failed: int, is_red: bool) -> None:
    draw_states(clock, (0, Meter(0, 4)), (1, Meter(4, 4, {"failed": failed}, failed=failed)))
    assert ("\x1b[31m" in capsys.readouterr().err) is is_red


@pytest.mark.parametrize(("failed", "style"), [(4, "danger"), (0, "success")])
def test_a_widget_is_red_when_all_failed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, failed: int, style: str
) -> None:
    import tqdm.auto
    from tqdm.notebook import tqdm_notebook

    monkeypatch.setattr("tqdm.notebook.display", lambda *_: None)
    made = []

    def build(**options: object) -> tqdm_notebook:
        made.append(tqdm_notebook(**options))
        return made[-1]

    monkeypatch.setattr(tqdm.auto, "tqdm", build)
    draw_states(clock, (0, Meter(0, 4)), (1, Meter(4, 4, {"a {b}": "{c}"}, failed=failed)))
    left, progress, right = made[0].container.children
    assert progress.bar_style == style
    assert "{c}" in right.value
    assert left.value.strip("\u2007") == "100%"


def test_text_in_braces_is_shown_as_it_is(clock: Clock, capsys) -> None:
    draw_states(clock, (0, Meter(1, 2, {"{route}": "{0}"})))
    assert "{route}={0}" in capsys.readouterr().err
