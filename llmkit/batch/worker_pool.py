"""The worker pool of `map` and evaluation: it works, postpones, pauses, probes, resumes and gives up."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from llmkit.batch.route_health import LONGEST_SILENCE_S, SHORTEST_REST_S, TRIES_OF_A_SAMPLE, RouteHealth

__all__ = ["WorkerPool"]

JobT = TypeVar("JobT")


class WorkerPool(Generic[JobT]):
    """Runs jobs with bounded concurrency, and returns to those whose route had to be left alone for a while.

    Args:
        work: Does one job. When the job's call fails, it offers the error to `postpone_if_left_alone` and
            `postpone_if_cut_off`, and records a failure only if both decline.
        healths: The health of each route or variant, by name.
        health_of: The name under which the health of a job's route is found; None for a job that calls no route.
        key_of: Identifies a job, to count how often its call was cut off.
        concurrency: Most jobs under way at once.
        is_stopped: Whether all work is to end, as when a budget is used up.
        is_done: Whether a postponed job has been settled elsewhere meanwhile.
        after_each: Awaited by a worker after each job.

    Attributes:
        rests_until_s: The end of the latest pause, on the clock `time.monotonic`.
    """

    def __init__(
        self,
        work: Callable[[JobT], Awaitable[None]],
        healths: Mapping[str, RouteHealth],
        *,
        health_of: Callable[[JobT], str | None],
        key_of: Callable[[JobT], Hashable],
        concurrency: int,
        is_stopped: Callable[[], bool] = lambda: False,
        is_done: Callable[[JobT], bool] = lambda _job: False,
        after_each: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._work = work
        self._healths = healths
        self._health_of = health_of
        self._key_of = key_of
        self._concurrency = concurrency
        self._is_stopped = is_stopped
        self._is_done = is_done
        self._after_each = after_each
        self.rests_until_s = 0.0
        self._postponed: list[JobT] = []
        self._disconnects: Counter[Hashable] = Counter()

    async def run(self, jobs: Iterable[JobT]) -> None:
        """Do all jobs, and those that were postponed until they are done or their routes stay silent.

        Args:
            jobs: Taken one by one, whenever a worker is free.

        Raises:
            Exception: The first error that a job raised; it cancelled the others.
        """
        try:
            await self._run_workers(iter(jobs))
            await self._resume()
        except ExceptionGroup as errors:
            # The first one stopped the others.
            raise errors.exceptions[0] from None

    def postpone_if_left_alone(self, job: JobT, error: Exception) -> bool:
        """Return whether nothing was sent because the route rests; the job then waits, unless the route is given up."""
        health = self._health(job)
        if not health.is_left_alone(error):
            return False
        if health.stopped_by is None and not self._is_stopped():
            self._postponed.append(job)
        return True

    def postpone_if_cut_off(self, job: JobT, error: Exception) -> bool:
        """Return whether the server broke off or cannot be reached; the job then waits and is tried again.

        A job that was cut off too often is not postponed: it may be the reason.
        """
        key = self._key_of(job)
        if self._disconnects[key] + 1 >= TRIES_OF_A_SAMPLE:
            return False
        if not self._health(job).has_lost_contact(error):
            return False
        self._disconnects[key] += 1
        self._postponed.append(job)
        return True

    def _health(self, job: JobT) -> RouteHealth:
        name = self._health_of(job)
        return RouteHealth() if name is None else self._healths[name]

    async def _start(self, job: JobT) -> None:
        if self._health_of(job) is None:
            await self._work(job)
            return
        health = self._health(job)
        if health.stopped_by is not None or self._is_stopped():
            return  # the job stays undone
        # A route that rests would refuse the job at once, and the refusal would count as a result.
        if health.resting_after is not None:
            self._postponed.append(job)
        else:
            await self._work(job)

    async def _run_workers(self, jobs: Iterator[JobT]) -> None:
        async with asyncio.TaskGroup() as group:
            # All workers share one iterator, so that none of them idles while jobs are left.
            for _ in range(self._concurrency):
                group.create_task(self._run_worker(jobs))

    async def _run_worker(self, jobs: Iterator[JobT]) -> None:
        for job in jobs:
            await self._start(job)
            if self._after_each is not None:
                await self._after_each()

    async def _resume(self) -> None:
        silence_s = 0.0
        while self._postponed and silence_s < LONGEST_SILENCE_S and not self._is_stopped():
            rest_s = max(health.rest() for health in self._healths.values())
            self.rests_until_s = time.monotonic() + rest_s
            await asyncio.sleep(rest_s)
            jobs = [job for job in self._postponed if not self._is_done(job)]
            self._postponed = []
            answers = self._count_answers()
            # Probe each route with one job first: the router lets a single call through to see whether it is back,
            # and would refuse the others.
            for probe in {self._health_of(job): job for job in reversed(jobs)}.values():
                jobs.remove(probe)
                await self._start(probe)
            await self._run_workers(iter(jobs))
            # Any answer of any route restarts the wait. A rest without length counts as a second, or a server that
            # refuses immediately would be asked without end.
            silence_s = 0.0 if self._count_answers() > answers else silence_s + max(rest_s, SHORTEST_REST_S)
        if not self._is_stopped():
            for job in self._postponed:
                self._health(job).give_up()
        self._postponed = []

    def _count_answers(self) -> int:
        return sum(health.answers for health in self._healths.values())
