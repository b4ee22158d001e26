"""A progress bar that the waiting thread draws, in the cell that waits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

__all__ = ["Meter", "bar"]


@dataclass(frozen=True, slots=True)
class Meter:
    """Progress of some work; `shown` is printed behind the bar."""

    done: int
    total: int
    shown: Mapping[str, int | str] = field(default_factory=dict)


@contextmanager
def bar(read: Callable[[], Meter | None], *, unit: str, shown: bool = True) -> Iterator[Callable[[], None] | None]:
    """Draw a meter: a widget in Jupyter, a line on stderr elsewhere. Yield None if nothing is to be drawn.

    Args:
        read: How far the work is; None until that is known.
        unit: What is counted.
        shown: Whether to draw at all.
    """
    if not shown:
        yield None
        return
    drawn = _Bar(read, unit)
    try:
        yield drawn.draw
    finally:
        drawn.close()


class _Bar:
    """Made in the thread of the waiting cell: what another thread shows, Jupyter puts under another cell.

    It is redrawn even when nothing moves: a bar whose clock stands still looks as if all had stopped.
    """

    def __init__(self, read: Callable[[], Meter | None], unit: str) -> None:
        self._read = read
        self._unit = unit
        self._bar: Any = None
        self._drawn_s = monotonic()

    def draw(self) -> None:
        meter = self._read()
        if meter is None:
            return
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=meter.total, unit=self._unit, mininterval=_interval_s())
        self._bar.set_postfix(meter.shown, refresh=False)
        now_s = monotonic()
        if self._bar.update(meter.done - self._bar.n):
            self._drawn_s = now_s
        elif now_s - self._drawn_s >= 5 * self._bar.mininterval:
            self._drawn_s = now_s
            self._bar.refresh()

    def close(self) -> None:
        self.draw()
        if self._bar is not None:
            self._bar.close()


def _interval_s() -> float:
    """Seconds between two drawings: few in a log file, where each is a line of its own."""
    drawn_over = sys.stderr.isatty() or "ipykernel" in sys.modules
    return 0.2 if drawn_over else 10.0
