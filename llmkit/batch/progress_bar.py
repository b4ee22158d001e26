"""A progress bar that the waiting thread draws, in the cell that waits."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from llmkit.batch.answer_panel import open_panel
from llmkit.batch.latest_answers import AnswerText, LatestAnswer, write_answer

__all__ = ["Meter", "bar"]

# In a terminal of 80 columns this leaves 30 for the facts behind the bar.
BAR_WIDTH = 20
LOG_WIDTH = 200
# Faster changes cannot be read.
ANSWERS_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Meter:
    """Progress of some work.

    Attributes:
        done: How much is done, including earlier results.
        total: How much there is.
        shown: Facts to print behind the bar, the most important first: a narrow line drops the last ones.
        reused: How much was there already, which says nothing about how fast the work is.
        failed: How much ended without an answer.
        loading: Name of the model that is being loaded; the work has not begun then.
        latest: The latest answers, in the order in which they are shown.
    """

    done: int
    total: int
    shown: Mapping[str, int | str] = field(default_factory=dict)
    reused: int = 0
    failed: int = 0
    loading: str | None = None
    latest: tuple[LatestAnswer, ...] = ()


@contextmanager
def bar(
    read: Callable[[], Meter | None],
    *,
    unit: str,
    shown: bool = True,
    answers: bool = False,
    secrets: Iterable[str] = (),
) -> Iterator[Callable[[], None] | None]:
    """Draw a meter: a widget in Jupyter, a line on stderr elsewhere. Yield None if nothing is to be drawn.

    Args:
        read: How far the work is; None until that is known.
        unit: What is counted.
        shown: Whether to draw at all.
        answers: Whether to show the latest answers below the bar, if this is a notebook or a terminal.
        secrets: Keys that no answer may show.
    """
    if not shown:
        yield None
        return
    drawn = _Bar(read, unit, _LatestAnswersView(tuple(secrets)) if answers else None)
    try:
        yield drawn.draw
    finally:
        drawn.close()


class _Bar:
    """Made in the thread of the waiting cell: what another thread shows, Jupyter puts under another cell.

    It is redrawn even when nothing moves: a bar whose clock stands still looks as if all had stopped.
    """

    def __init__(self, read: Callable[[], Meter | None], unit: str, view: _LatestAnswersView | None) -> None:
        self._read = read
        self._view = view
        self._unit = unit
        self._bar: Any = None
        self._drawn_s = self._work_began_s = monotonic()

    def draw(self) -> None:
        """Draw the meter, if there is one yet, and it moved or the clock must."""
        meter = self._read()
        if meter is None:
            return
        if self._bar is None:
            from tqdm.auto import tqdm

            first = _write_format("{bar}", [])
            self._bar = tqdm(total=meter.total, unit=self._unit, mininterval=_interval_s(), bar_format=first)
        now_s = monotonic()
        if meter.loading is not None:
            self._work_began_s = now_s
        self._bar.colour = "red" if _is_all_failed(meter) else None
        self._bar.bar_format = self._choose_format(meter, now_s)
        if self._bar.update(meter.done - self._bar.n):
            self._drawn_s = now_s
        elif now_s - self._drawn_s >= 5 * self._bar.mininterval:
            self._drawn_s = now_s
            self._bar.refresh()
        if self._view is not None and self._is_alone and self._view.show(meter.latest, now_s):
            # Whatever is printed next belongs behind the bar, and not over it.
            self._bar.refresh()

    def close(self) -> None:
        """Draw the last state and leave it there. The answers go: the result has all of them."""
        if self._view is not None:
            self._view.close()
            self._view = None
        self.draw()
        if self._bar is None:
            return
        self._bar.close()
        meter = self._read()
        if self._is_widget and meter is not None and _is_all_failed(meter):
            # Tqdm's widget turns green at the end of any work that reaches its total.
            self._bar.container.children[-2].bar_style = "danger"

    @property
    def _is_alone(self) -> bool:
        """Whether no other bar of the user's is on the lines below or above."""
        return self._is_widget or len(type(self._bar)._instances) == 1  # noqa: SLF001 - tqdm has no other way to ask

    @property
    def _is_widget(self) -> bool:
        return hasattr(self._bar, "container")

    def _choose_format(self, meter: Meter, now_s: float) -> str:
        """Return a format of tqdm with what is known of this moment; tqdm itself would count reused work as speed."""
        left_s = _estimate_left_s(meter, now_s - self._work_began_s)
        facts = [f"loading {meter.loading}"] if meter.loading is not None else []
        if left_s is not None:
            facts.append(f"{self._bar.format_interval(left_s)} left")
        facts += [f"{name}={value}" for name, value in meter.shown.items()]
        if self._is_widget:
            return _write_format("{bar}", facts)
        # Of stderr, for stdout may be a file.
        width = os.get_terminal_size(sys.stderr.fileno()).columns if sys.stderr.isatty() else LOG_WIDTH
        room = width - BAR_WIDTH - len(f"100%|| {meter.total}/{meter.total} [00:00:00, ]")
        while facts and sum(map(len, facts)) + 2 * (len(facts) - 1) > room:
            facts.pop()
        return _write_format(f"{{bar:{BAR_WIDTH}}}", facts)


class _LatestAnswersView:
    """Shows the latest answers below a bar, each of them redacted once."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = secrets
        self._panel = open_panel()
        self._texts: dict[LatestAnswer, AnswerText] = {}
        self._drawn_s = -ANSWERS_INTERVAL_S

    def show(self, latest: tuple[LatestAnswer, ...], now_s: float) -> bool:
        """Show the answers, unless the same ones or others were shown a moment ago. Return whether they were drawn."""
        if self._panel is None or now_s - self._drawn_s < ANSWERS_INTERVAL_S or latest == tuple(self._texts):
            return False
        self._drawn_s = now_s
        self._texts = {each: self._texts.get(each) or write_answer(each, self._secrets) for each in latest}
        self._panel.show(list(self._texts.values()))
        return True

    def close(self) -> None:
        """Remove the answers."""
        if self._panel is not None:
            self._panel.clear()


def _write_format(bar_field: str, facts: list[str]) -> str:
    behind = "".join(f", {fact}" for fact in facts).replace("{", "{{").replace("}", "}}")
    return f"{{percentage:3.0f}}%|{bar_field}| {{n_fmt}}/{{total_fmt}} [{{elapsed}}{behind}]"


def _estimate_left_s(meter: Meter, worked_s: float) -> float | None:
    """Return the seconds that the rest takes at the speed so far; None when that is not known."""
    fresh = meter.done - meter.reused
    if fresh <= 0 or meter.done >= meter.total:
        return None
    return (meter.total - meter.done) * worked_s / fresh


def _is_all_failed(meter: Meter) -> bool:
    return meter.failed > 0 and meter.failed >= meter.done


def _interval_s() -> float:
    """Return the seconds between two drawings: many in a log file, where each drawing is a line of its own."""
    drawn_over = sys.stderr.isatty() or "ipykernel" in sys.modules
    return 0.2 if drawn_over else 10.0
