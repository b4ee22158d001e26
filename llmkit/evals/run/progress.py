"""Progress of an evaluation: counted, passed to a function, or drawn as a bar on stderr."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from llmkit.batch.latest_answers import LatestAnswer, LatestAnswers
from llmkit.batch.progress_bar import Meter, bar
from llmkit.eval_ports import EvalResult
from llmkit.evals.budget import Kind
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.results import FAILED, SUCCEEDED, Work

__all__ = ["Progress", "RouteProgress", "Tally", "make_meter", "shown", "standing"]

PROGRESS_INTERVAL_S = 0.2


@dataclass(frozen=True, slots=True)
class RouteProgress:
    """Progress of one route.

    Attributes:
        route: Its label.
        done: Samples x epochs that have their result.
        total: All of them.
        failed: How many of those done now ended without a valid output.
    """

    route: str
    done: int
    total: int
    failed: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of an evaluation, passed to a progress function after every sample.

    Attributes:
        done: Samples x routes x epochs that have their result, those from earlier runs included. Less than `total` at
            the end of a run that a budget stopped, or of which a route was given up.
        total: All of them.
        failed: How many of those done now ended without a valid output.
        reused: How many were there already.
        sent: Requests sent to providers so far.
        routes: The same for each route, in the order in which they were named.
        stopped_by: The limit of the budget that has stopped the run; None when none has.
        loading: Name of the route whose model is being loaded before its first sample; None when none is.
        latest: The latest results of this call, at most five, failures first. Not redacted.
    """

    done: int
    total: int
    failed: int
    reused: int
    sent: int
    routes: tuple[RouteProgress, ...] = ()
    stopped_by: Kind | None = None
    loading: str | None = None
    latest: tuple[LatestAnswer, ...] = field(default=(), repr=False)


class Tally:
    """Counts of one call of `evaluate`.

    Args:
        routes: Labels of the routes.
        each: How many results each of them is to have.
    """

    def __init__(self, routes: Iterable[str], each: int) -> None:
        self._done = dict.fromkeys(routes, 0)
        self._failed = dict.fromkeys(self._done, 0)
        self._each = each
        self._reused = self._shared = self._called = self._replayed = self._sent = 0
        self.rescored = 0
        self.warm_ups = 0
        self.edited = 0
        self.stopped_by: Kind | None = None
        self.loading: str | None = None
        # Requests that workers sent, as the store counts them.
        self.sent_elsewhere = 0
        self._latest = LatestAnswers()

    def reuse(self, route: str) -> None:
        """Return a result was there already."""
        self._reused += 1
        self._done[route] += 1

    def share(self, route: str) -> None:
        """Count a result that another process has made meanwhile."""
        self._shared += 1
        self._done[route] += 1

    def observe(self, route: str, *, done: int, failed: int) -> None:
        """Take the numbers of a route from the store, where workers put their results."""
        self._done[route] = done
        self._failed[route] = failed

    def send(self, requests: int) -> None:
        """Count requests that were sent, whatever their outcome."""
        self._sent += requests

    def call(self, sample: Sample, result: EvalResult, *, replayed: bool) -> None:
        """Count a sample that has its result now."""
        self._called += 1
        self._replayed += replayed
        self._done[result.route] += 1
        self._failed[result.route] += result.status == FAILED
        facts = [f"{name}={score:.3g}" for name, score in result.scores.items()]
        facts += [result.route] if len(self._done) > 1 else []
        facts += [f"{name}: {error}" for name, error in result.scorer_errors.items()]
        output = result.error_message if result.status == FAILED else result.output_json
        self._latest.note(
            LatestAnswer(sample.key, sample.input, output or "", result.status != SUCCEEDED, tuple(facts))
        )

    def progress(self) -> Progress:
        """Return the progress so far."""
        routes = tuple(
            RouteProgress(route, done, self._each, self._failed[route]) for route, done in self._done.items()
        )
        done, failed = sum(self._done.values()), sum(self._failed.values())
        total = self._each * len(self._done)
        return Progress(
            done,
            total,
            failed,
            self._reused,
            self._sent + self.sent_elsewhere,
            routes,
            self.stopped_by,
            self.loading,
            self._latest.list(),
        )

    def work(self) -> Work:
        """Return the work done so far."""
        return Work(
            self._reused,
            self.rescored,
            self._called,
            self._replayed,
            self._sent,
            self._shared,
            self.warm_ups,
            self.edited,
        )


@contextmanager
def shown(progress: bool | Callable[[Progress], None], tally: Tally, *, answers: bool) -> Iterator[Callable[[], None]]:
    """Yield a function to call whenever the counts change. It calls the given function each time; True draws a bar."""
    if callable(progress):
        tell = progress
        yield lambda: tell(tally.progress())
    elif progress:
        with _progress_bar(tally, answers) as show:
            yield show
    else:
        yield lambda: None


@contextmanager
def _progress_bar(tally: Tally, answers: bool) -> Iterator[Callable[[], None]]:
    interval_s, drawn_s = PROGRESS_INTERVAL_S, -math.inf
    with bar(lambda: make_meter(tally.progress()), unit="sample", answers=answers) as draw:
        assert draw is not None

        def show() -> None:
            nonlocal drawn_s
            # Drawing costs more than a sample does.
            if time.monotonic() - drawn_s >= interval_s:
                drawn_s = time.monotonic()
                draw()

        yield show


def make_meter(progress: Progress) -> Meter:
    """Return the progress for a bar."""
    facts = standing(progress)
    return Meter(
        progress.done,
        progress.total,
        facts,
        reused=progress.reused,
        failed=progress.failed,
        loading=progress.loading,
        latest=progress.latest,
    )


def standing(progress: Progress) -> dict[str, int | str]:
    """Return the text behind a bar: why the run stopped, counts, and finished samples of each of several routes.

    The first comes first: where a line is narrow, its end is cut.
    """
    shown: dict[str, int | str] = {}
    if progress.stopped_by is not None:
        shown["stopped_by"] = f"budget of {progress.stopped_by}"
    shown |= {"failed": progress.failed}
    if progress.reused:
        shown["reused"] = progress.reused
    shown["sent"] = progress.sent
    several = progress.routes if len(progress.routes) > 1 else ()
    return shown | {each.route: each.done for each in several}
