"""The protocol of engines, which start one job on each worker and learn how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

__all__ = ["Engine", "JobEnd", "JobFunction"]

# A plain function of bytes in an importable module, so that the pickler of any engine can carry it.
JobFunction: TypeAlias = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The end of one job.

    Attributes:
        result: What the job returned; None when it was lost.
        reason: Why it was lost, in words.
    """

    result: bytes | None
    reason: str = ""


class Engine(Protocol):
    """Starts jobs on workers. A job may run twice, late or never: nothing here promises more.

    No method waits for a job, except `close`. They may block for a moment, so call them in a thread.
    """

    def start(self, function: JobFunction, parcel: bytes) -> None:
        """Start one job for each worker.

        Raises:
            LLMConfigurationError: The engine takes no jobs.
        """
        ...

    def poll(self, progress: int) -> list[JobEnd]:
        """Return the jobs that ended since the last call, and start jobs on workers that came, or replace lost ones.

        Args:
            progress: Any number that changes while work gets done: without progress, lost workers are not replaced for
                ever.
        """
        ...

    def restart(self) -> None:
        """Start one more job, in place of one that ended too early."""
        ...

    @property
    def running(self) -> int:
        """Number of jobs that have not ended, those that wait for a worker included."""
        ...

    def close(self, *, wait_s: float, is_finished: bool) -> list[JobEnd]:
        """Wait for the jobs to end, cancel the others, and return the ends of those that did in time.

        Args:
            wait_s: Longest wait, in seconds.
            is_finished: Whether the jobs end by themselves, since all work is done; else they are asked to.
        """
        ...
