"""Statuses and keys of results, and the work of one call of `evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from llmkit.errors import LLMError, LLMUnusableAnswer
from llmkit.eval_ports import EvalResult

__all__ = [
    "FAILED",
    "FALLBACK_WARNING",
    "IN_PROGRESS",
    "NOT_RUN",
    "SCORER_FAILED",
    "STATUSES",
    "STORED_STATUSES",
    "SUCCEEDED",
    "ResultKey",
    "Slot",
    "Work",
    "fell_back",
    "key_of",
    "sort_results",
]

SUCCEEDED = "SUCCEEDED"
FAILED = "FAILED"
SCORER_FAILED = "SCORER_FAILED"
# Never stored: there is no result yet.
NOT_RUN = "NOT_RUN"
IN_PROGRESS = "IN_PROGRESS"
STORED_STATUSES = (SUCCEEDED, FAILED, SCORER_FAILED)
STATUSES = (*STORED_STATUSES, NOT_RUN, IN_PROGRESS)

FALLBACK_WARNING = "fallback:"


class ResultKey(NamedTuple):
    """Which result: one sample on one route in one epoch."""

    sample_id: str
    route: str
    epoch: int


class Slot(NamedTuple):
    """Identity of a result before it exists: the fields that do not depend on the outcome."""

    eval_run_id: UUID
    route: str
    sample_id: str
    epoch: int
    pipeline_run_id: str
    sample_group: str | None
    content_digest: str | None = None

    def result(self, status: str, finished_at_utc: datetime, **outcome: Any) -> EvalResult:
        """Return the result with this outcome."""
        return EvalResult(**self._asdict(), status=status, finished_at_utc=finished_at_utc, **outcome)


def sort_results(results: Iterable[EvalResult], sample_ids: Iterable[str], variants: Iterable[str]) -> list[EvalResult]:
    """Return results in the order of the dataset, then of the variants, then by epoch; what is in neither comes last.

    Args:
        results: The results.
        sample_ids: Ids in the order of the dataset.
        variants: Labels in the order in which they were named.
    """
    positions = {sample_id: number for number, sample_id in enumerate(sample_ids)}
    turns = {label: number for number, label in enumerate(variants)}

    def key(result: EvalResult) -> tuple[int, str, int, str, int]:
        position = positions.get(result.sample_id, len(positions))
        return position, result.sample_id, turns.get(result.route, len(turns)), result.route, result.epoch

    return sorted(results, key=key)


def key_of(result: EvalResult) -> ResultKey:
    """Return the key of a result."""
    return ResultKey(result.sample_id, result.route, result.epoch)


def fell_back(result: EvalResult) -> bool:
    """Return whether another model answered than the one that the route or policy puts first."""
    return any(warning.startswith(FALLBACK_WARNING) for warning in result.warnings)


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one call of `evaluate`.

    Attributes:
        reused: Results that were there already.
        rescored: Stored outputs that were scored again.
        called: Samples called now, replayed ones included.
        replayed: Of those, answered wholly from the store.
        sent: Requests sent to providers for samples.
        shared: Results that another process made meanwhile.
        warm_ups: Unmeasured requests before the samples, so that models were loaded.
        edited: Samples whose target, group or metadata was edited since they were called.
        workers: Jobs on workers that did this; 0 when this process did it.
        lost: Jobs that were lost with their worker; others did the rest of their work, if it is done.
        lost_because: Why the last of them was lost.
    """

    reused: int = 0
    rescored: int = 0
    called: int = 0
    replayed: int = 0
    sent: int = 0
    shared: int = 0
    warm_ups: int = 0
    edited: int = 0
    # Most runs have none, and the report of one with workers has a sentence on them.
    workers: int = field(default=0, repr=False)
    lost: int = field(default=0, repr=False)
    lost_because: str = field(default="", repr=False)


def _codes_of_final_outcomes(parent: type[LLMError]) -> Iterator[str]:
    if not parent.retryable:
        yield parent.code
    for child in parent.__subclasses__():
        yield from _codes_of_final_outcomes(child)


# The model has answered, and the answer cannot be used: that is its result.
FINAL_CODES = frozenset(_codes_of_final_outcomes(LLMUnusableAnswer))
