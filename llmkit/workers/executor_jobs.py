"""Jobs on any `concurrent.futures.Executor`: a pool of processes, executorlib on SLURM, mpi4py, Parsl and others."""

from __future__ import annotations

from concurrent.futures import CancelledError, Executor, Future, wait

from llmkit.errors import LLMConfigurationError, LLMEvaluationError
from llmkit.workers.engine import JobEnd, JobFunction

__all__ = ["ExecutorJobs", "count_workers", "describe_loss"]

# Where executors keep how many workers they have: the standard library, loky and executorlib; mpi4py.
SIZE_NAMES = ("max_workers", "_max_workers", "num_workers")
MOST_LOST_IN_A_ROW = 3
# Modules of the executors that say which jobs have begun. Dask's cancels one that runs, and its counts would be lost.
# Not by their classes: pools of processes can no longer be imported when the interpreter ends.
STANDARD_POOLS = ("concurrent.futures.thread", "concurrent.futures.process")


class ExecutorJobs:
    """An `Engine` on an executor of the user's, who closes it.

    Args:
        executor: The executor.
        count: How many jobs to start.
    """

    def __init__(self, executor: Executor, count: int) -> None:
        self._executor = executor
        self._count = count
        self._futures: list[Future[bytes]] = []
        self._job: tuple[JobFunction, bytes] | None = None
        self._submitted = 0
        self._lost_in_a_row = 0
        self._progress = -1

    def start(self, function: JobFunction, parcel: bytes) -> None:
        """See `Engine`."""
        self._job = function, parcel
        for _ in range(self._count):
            self.restart()

    def restart(self) -> None:
        """See `Engine`."""
        assert self._job is not None
        function, parcel = self._job
        # Some executors run equal jobs once (Dask's by default, executorlib's with a cache): bytes after the end of a
        # pickle are ignored, and make each job another one.
        self._submitted += 1
        try:
            future = self._executor.submit(function, parcel + f" job {self._submitted}".encode())
        except Exception as error:  # noqa: BLE001 - each executor has its own
            raise LLMConfigurationError(f"The executor takes no jobs: {describe_loss(error)}") from None
        if not isinstance(future, Future):
            raise LLMConfigurationError(
                f"The submit of {type(self._executor).__name__} returns a {type(future).__name__} instead of a "
                "concurrent.futures.Future: use another executor"
            )
        self._futures.append(future)

    def poll(self, progress: int) -> list[JobEnd]:
        """See `Engine`."""
        if progress != self._progress:
            self._progress, self._lost_in_a_row = progress, 0
        ends = self._take_ended()
        for end in ends:
            if end.result is None:
                self._lost_in_a_row += 1
                if self._lost_in_a_row <= MOST_LOST_IN_A_ROW:
                    self._replace()
        return ends

    def _replace(self) -> None:
        try:
            self.restart()
        except LLMConfigurationError:  # a broken pool stays broken: the reason is in the end of the lost job
            return

    def _take_ended(self) -> list[JobEnd]:
        ended = [future for future in self._futures if future.done()]
        self._futures = [future for future in self._futures if future not in ended]
        return [read_end(future) for future in ended]

    @property
    def running(self) -> int:
        """See `Engine`."""
        return len(self._futures)

    def close(self, *, wait_s: float, is_finished: bool) -> list[JobEnd]:  # noqa: ARG002 - the same either way
        """See `Engine`. Jobs that run see the stop mark in the store, for most executors cannot stop them."""
        if any(each.__module__ in STANDARD_POOLS for each in type(self._executor).__mro__):
            self._cancel()
        wait(self._futures, timeout=wait_s)
        ends = self._take_ended()
        self._cancel()
        return ends

    def _cancel(self) -> None:
        for future in self._futures:
            future.cancel()


def read_end(future: Future[bytes]) -> JobEnd:
    """Return the end of a job that is done."""
    try:
        result: object = future.result(timeout=0)
    except (Exception, CancelledError) as error:  # noqa: BLE001 - engines raise whatever they like
        return JobEnd(None, describe_loss(error))
    if not isinstance(result, bytes):
        return JobEnd(None, f"its engine returned a {type(result).__name__} instead of what the job returned")
    return JobEnd(result)


def describe_loss(error: BaseException) -> str:
    """Return one line on an error of an engine."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def count_workers(executor: Executor) -> int:
    """Return how many workers an executor has.

    Raises:
        LLMEvaluationError: It does not say.
    """
    for name in SIZE_NAMES:
        size = getattr(executor, name, None)
        if isinstance(size, int) and size > 0:
            return size
    raise LLMEvaluationError(
        f"{type(executor).__name__} does not say how many workers it has: pass workers=(executor, 16) for 16 jobs."
    )
