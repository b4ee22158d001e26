"""The latest answers below a progress bar: failures first, redacted, cut to the terminal, and gone at the end."""

from __future__ import annotations

import os
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from pydantic import BaseModel
from rich.cells import cell_len

from llmkit import Session
from llmkit.batch import progress_bar
from llmkit.batch.answer_panel import NotebookPanel
from llmkit.batch.latest_answers import SHOWN_ANSWERS, LatestAnswer, LatestAnswers, write_answer
from llmkit.batch.progress_bar import Meter, bar
from llmkit.evals import Progress, Sample, Task
from llmkit.testing import Fault, OllamaServer, Reply

KEY = "sk-abcdefghijklmnopqrstuvwxyz0123456789"
ROUTE = "ollama/llama3.2"
# Answers before this one are seen by the thread that draws.
LATE = Fault.delay(1.0, Reply('{"word": "late"}'))


class Answer(BaseModel):
    word: str


def half(_output: Answer, _sample: Sample) -> float:
    return 0.5


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def collect(*kinds: str) -> list[str]:
    latest = LatestAnswers()
    for number, kind in enumerate(kinds):
        latest.note(LatestAnswer(f"{kind}{number}", "", "", failed=kind == "f"))
    return [answer.label for answer in latest.list()]


@contextmanager
def open_terminal(columns: int = 80, encoding: str = "utf-8", term: str = "xterm") -> Iterator[list[str]]:
    """Make stderr a terminal, and yield a list that contains what was written to it at the end."""
    reader, writer = os.openpty()
    ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    pieces: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(reader, 65536):
                pieces.append(piece)
        except OSError:
            pass  # the other end was closed

    thread = threading.Thread(target=read)
    thread.start()
    written: list[str] = []
    stream = os.fdopen(writer, "w", encoding=encoding, errors="backslashreplace")
    with stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setenv("TERM", term)
        patch.setattr(progress_bar, "ANSWERS_INTERVAL_S", 0.0)
        yield written
    thread.join()
    os.close(reader)
    written.append(b"".join(pieces).decode(encoding))


def draw(*answers: LatestAnswer, **terminal: Any) -> str:
    with open_terminal(**terminal) as written:
        meter = Meter(0, 9)
        with bar(lambda: meter, unit="row", answers=True) as show:
            meter = Meter(len(answers), 9, latest=answers)
            assert show is not None
            show()
    return written[0]


def read_panel(written: str) -> list[str]:
    """Return the lines of the last panel that was drawn."""
    panel = written.rpartition("\x1b[?7l\x1b[J")[2].partition("\x1b[?7h")[0]
    return panel.replace("\r", "").strip("\n").split("\n")


def test_failures_come_first_and_leave_room_for_others() -> None:
    assert collect("f", "f", "f", "f", "a", "a", "a") == ["f3", "f2", "f1", "a6", "a5"]
    assert collect("a", "f", "a") == ["f1", "a2", "a0"]
    assert collect(*"ffffffff") == ["f7", "f6", "f5", "f4", "f3"]


def test_memory_stays_flat() -> None:
    latest = LatestAnswers()
    for number in range(1000):
        latest.note(LatestAnswer(str(number), "", "", failed=number % 2 == 0))
    assert len(latest.list()) == SHOWN_ANSWERS
    assert len(latest._failed) + len(latest._others) == 2 * SHOWN_ANSWERS


def test_an_answer_is_redacted_and_printable() -> None:
    answer = LatestAnswer(f"me@example.org {KEY}", {"text": f"a\x1b[31m {KEY}"}, f"b\n\u202e\ud800 hunter {KEY}")
    shown = write_answer(answer, ["hunter"])
    text = f"{shown.label} {shown.input} {shown.output}"
    assert KEY[:12] not in text
    assert "hunter" not in text
    assert "example.org" not in text
    assert text.isprintable()
    assert text.encode()


@pytest.mark.parametrize("value", [Unprintable(), {1: Unprintable()}, None, 7, "x" * 10**6])
def test_any_value_can_be_shown(value: Any) -> None:
    assert len(write_answer(LatestAnswer("r", value, value)).output) <= 201


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_line_fits_and_every_part_is_visible(columns: int) -> None:
    wide = LatestAnswer("sample-with-a-long-name" * 9, "漢字" * 90, "answer " * 90, failed=True, facts=("r=1",))
    (line,) = read_panel(draw(wide, columns=columns))
    assert cell_len(line) < columns
    for part in ("failed", "sample", "漢", "answer"):
        assert part in line


def test_the_panel_goes_at_the_end() -> None:
    written = draw(LatestAnswer("r", "in", "out"))
    assert "ok     r: in -> out" in written
    assert written.rindex("out") < written.rindex("\n\x1b[J\x1b[A\r") < written.rindex("1/9")


def test_a_narrow_encoding_escapes() -> None:
    assert "\\u6f22" in draw(LatestAnswer("r", "in", "漢"), encoding="latin-1")


@pytest.mark.parametrize("terminal", [{"columns": 30}, {"term": "dumb"}])
def test_a_terminal_without_room_or_cursor_shows_the_bar_only(terminal: dict[str, Any]) -> None:
    assert "out" not in draw(LatestAnswer("r", "in", "out"), **terminal)


def test_a_file_gets_the_bar_only(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(lambda: Meter(1, 2, latest=(LatestAnswer("r", "in", "out"),)), unit="row", answers=True) as show:
        assert show is not None
        show()
    assert "out" not in capsys.readouterr().err


def test_a_notebook_gets_one_output_that_is_replaced_and_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []

    def display(data: dict[str, str], **options: bool) -> SimpleNamespace:
        assert options == {"raw": True, "display_id": True}
        shown.append(data)
        return SimpleNamespace(update=lambda data, **_: shown.append(data))

    monkeypatch.setattr("IPython.display.display", display)
    panel = NotebookPanel()
    panel.show([write_answer(LatestAnswer("<r>", "<script>in", "<b>out", failed=True))])
    panel.clear()
    assert "&lt;script&gt;in" in shown[0]["text/html"]
    assert "<b>" not in shown[0]["text/html"]
    assert shown[-1] == {"text/html": "", "text/plain": ""}


@pytest.mark.slow
@pytest.mark.parametrize(("options", "is_shown"), [({}, True), ({"show_answers": False}, False)])
def test_map_shows_rows_as_they_come(options: dict[str, Any], is_shown: bool) -> None:
    rows = pd.Series([f"one {KEY}", "two", "three"], index=["a", "b", "c"])
    replies = [Fault.status(400), Reply("yes"), LATE]
    with (
        OllamaServer(replies) as server,
        open_terminal() as written,
        Session(ollama_api_base=server.url, cache_enabled=False) as session,
    ):
        session.map("Say {text}", rows, route=ROUTE, concurrency=1, **options)
    assert ("failed a: one [api_key] -> " in written[0]) is is_shown
    assert KEY not in written[0]


def test_a_resumed_map_shows_new_answers_only() -> None:
    replies = [Reply("a"), Reply("b"), LATE]
    with OllamaServer(replies) as server, Session(ollama_api_base=server.url, cache_enabled=False) as session:
        session.map("Say {text}", ["old"], route=ROUTE, name="m", progress=False)
        with open_terminal() as written:
            session.map("Say {text}", ["old", "new", "late"], route=ROUTE, name="m", concurrency=1)
    assert "1: new -> " in written[0]
    assert "0: old" not in written[0]


def test_the_setting_switches_it_off() -> None:
    with (
        OllamaServer([Reply("a"), LATE]) as server,
        open_terminal() as written,
        Session(ollama_api_base=server.url, show_answers=False) as session,
    ):
        session.map("Say {text}", ["row", "late"], route=ROUTE, concurrency=1)
    assert "2/2" in written[0]
    assert "0: row" not in written[0]


@pytest.mark.slow
def test_evaluate_shows_samples_with_their_scores() -> None:
    task = Task(
        name="t",
        dataset=[Sample(id=f"s{n}", input=f"in{n}") for n in range(3)],
        prompt="Say {input}",
        output_type=Answer,
        scorers=[half],
    )
    replies = [Reply('{"word": "yes"}'), LATE, Fault.status(400)]
    seen: list[Progress] = []
    with OllamaServer(replies) as server, Session(ollama_api_base=server.url) as session:
        with open_terminal() as written:
            session.evaluate(task, [ROUTE], name="t", limit=2, concurrency=1)
        session.evaluate(task, [ROUTE], name="t", concurrency=1, progress=seen.append)
    assert 'ok     half=0.5 s0: in0 -> {"word":"yes"}' in written[0]
    assert [(answer.label, answer.failed) for answer in seen[-1].latest] == [("s2", True)]
