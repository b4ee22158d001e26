"""How far an evaluation is: told to a function, or drawn as a bar on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Progress", "shown"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an evaluation is; given to a progress function after every sample.

    Attributes:
        done: Samples x routes x epochs that are settled, those from earlier runs included.
        total: All of them.
        failed: How many of those done now ended without a valid output.
        reused: How many were there already.
        sent: Requests sent to providers so far.
    """

    done: int
    total: int
    failed: int
    reused: int
    sent: int


@contextmanager
def shown(progress: bool | Callable[[Progress], None], total: int) -> Iterator[Callable[[Progress], None]]:
    """What to call with every `Progress`: the given function, a bar's drawing for True, nothing for False."""
    if callable(progress):
        yield progress
    elif progress:
        with _progress_bar(total) as show:
            yield show
    else:
        yield lambda _progress: None


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[Progress], None]]:
    from tqdm.auto import tqdm

    with tqdm(total=total, unit="sample", mininterval=_interval_s()) as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix(failed=progress.failed, reused=progress.reused, sent=progress.sent, refresh=False)
            bar.update(progress.done - bar.n)

        yield show


def _interval_s() -> float:
    """Seconds between two drawings: few in a log file, where each is a line of its own."""
    drawn_over = sys.stderr.isatty() or "ipykernel" in sys.modules
    return 0.2 if drawn_over else 10.0
