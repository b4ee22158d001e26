"""What a reader of the numbers has to know, one sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from llmkit.eval_ports import EvalResult
from llmkit.evals.budget import BudgetUse
from llmkit.evals.result import FAILED, IN_PROGRESS, NOT_RUN, SCORER_FAILED, Work, fell_back

__all__ = [
    "budget_notes",
    "direction_notes",
    "doubt_notes",
    "failure_notes",
    "fallback_notes",
    "stop_notes",
    "work_notes",
]


def work_notes(work: Work | None) -> Iterator[str]:
    """What was done now; nothing of a report from the store."""
    if work is None:
        return
    total = work.reused + work.called + work.shared
    reused = f"{work.reused:,} of {total:,} results were there already; " if work.reused else ""
    yield f"{reused}{_many(work.sent, 'request')} sent."
    if work.shared:
        yield f"{_many(work.shared, 'result')} made by another process meanwhile."
    if work.rescored:
        yield f"{_many(work.rescored, 'stored output')} scored again without a call."
    if work.replayed:
        yield f"{_many(work.replayed, 'answer')} came from the store."


def budget_notes(use: BudgetUse | None) -> Iterator[str]:
    """What the run has used of its budget, and why it was stopped; nothing without one."""
    if use is None:
        return
    if use.text:
        yield f"The run has spent {use.text}."
    if use.uncounted:
        yield f"{_many(use.uncounted, 'earlier request')} with an unknown end counted as the most that one may take."
    if use.why is not None:
        yield use.why


def stop_notes(stopped: Mapping[str, str], told: Sequence[str]) -> Iterator[str]:
    """Routes that are no longer called, and why, unless that is told already."""
    for label, reason in stopped.items():
        is_told = any(note.endswith(f"on {label}: {reason}") for note in told)
        yield f"{label} is no longer called." if is_told else f"{label} is no longer called: {reason}"


def failure_notes(results: Sequence[EvalResult]) -> Iterator[str]:
    """What has no score, and why."""
    statuses = [result.status for result in results]
    counts = {status: statuses.count(status) for status in (FAILED, SCORER_FAILED, NOT_RUN, IN_PROGRESS)}
    if counts[FAILED]:
        codes = [result.error_code or "unknown" for result in results if result.status == FAILED]
        listed = ", ".join(f"{code} {codes.count(code)}" for code in sorted(set(codes)))
        yield f"{_many(counts[FAILED], 'sample')} failed ({listed})."
    if counts[SCORER_FAILED]:
        yield f"{_many(counts[SCORER_FAILED], 'answer')} could not be scored: see scorer_errors."
    if counts[NOT_RUN]:
        yield f"{_many(counts[NOT_RUN], 'sample')} did not run; the same name again calls them."
    if counts[IN_PROGRESS]:
        yield f"{_many(counts[IN_PROGRESS], 'sample')} under way in another process."


def doubt_notes(calls: int) -> Iterator[str]:
    """How many calls are in doubt."""
    if calls:
        yield f"{_many(calls, 'call')} in doubt: begun and never ended, perhaps billed."


def direction_notes(lower: Sequence[str]) -> Iterator[str]:
    """Of which metrics less is better."""
    if lower:
        yield f"Less is better: {', '.join(lower)}."


def fallback_notes(results: Sequence[EvalResult]) -> Iterator[str]:
    """How many samples another model answered than the one that was asked first."""
    moved = sum(fell_back(result) for result in results)
    if moved:
        yield f"{_many(moved, 'sample')} answered by a fallback; summary(by='served_route') shows who answered."


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
