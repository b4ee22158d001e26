"""What a reader of the numbers has to know, one sentence each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from llmkit.eval_ports import DigestSeen, EvalResult
from llmkit.evals.budget import BudgetUse
from llmkit.evals.results import FAILED, IN_PROGRESS, NOT_RUN, SCORER_FAILED, Work, fell_back
from llmkit.types import Route

__all__ = [
    "describe_request_differences",
    "note_budget",
    "note_digests",
    "note_direction",
    "note_doubt",
    "note_failures",
    "note_fallbacks",
    "note_stops",
    "note_work",
]


def note_work(work: Work | None) -> Iterator[str]:
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


def note_budget(use: BudgetUse | None) -> Iterator[str]:
    """What the run has used of its budget, and why it was stopped; nothing without one."""
    if use is None:
        return
    if use.text:
        yield f"The run has spent {use.text}."
    if use.uncounted:
        yield f"{_many(use.uncounted, 'earlier request')} with an unknown end counted as the most that one may take."
    if use.why is not None:
        yield use.why


def note_stops(stopped: Mapping[str, str], told: Sequence[str]) -> Iterator[str]:
    """Routes that are no longer called, and why, unless that is told already."""
    for label, reason in stopped.items():
        is_told = any(note.endswith(f"on {label}: {reason}") for note in told)
        yield f"{label} is no longer called." if is_told else f"{label} is no longer called: {reason}"


def note_failures(results: Sequence[EvalResult]) -> Iterator[str]:
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


def note_doubt(calls: int) -> Iterator[str]:
    """How many calls are in doubt."""
    if calls:
        yield f"{_many(calls, 'call')} in doubt: begun and never ended, perhaps billed."


def note_direction(lower: Sequence[str]) -> Iterator[str]:
    """Of which metrics less is better."""
    if lower:
        yield f"Less is better: {', '.join(lower)}."


def note_fallbacks(results: Sequence[EvalResult]) -> Iterator[str]:
    """How many samples another model answered than the one that was asked first."""
    moved = sum(fell_back(result) for result in results)
    if moved:
        yield f"{_many(moved, 'sample')} answered by a fallback; summary(by='served_route') shows who answered."


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


SHOWN_DIGITS = 7


Asked: TypeAlias = tuple[str, str | None]


SampleKey: TypeAlias = tuple[str, int]


def describe_request_differences(results: Iterable[EvalResult], variants: Sequence[str]) -> tuple[str, ...]:
    """A warning when variants were sent different requests about the same sample; none when they were not.

    Only valid outputs count: of the others it is not known what was asked last.

    Args:
        results: Of all variants, or of the two that are compared.
        variants: Labels in the order in which they are named.
    """
    by_sample: dict[SampleKey, set[Asked]] = {}
    by_variant: dict[str, dict[Asked, None]] = {label: {} for label in variants}
    for result in results:
        # A result without an outcome is of a version that kept no hash.
        if result.output_mode is not None and result.outcome is not None:
            asked = (result.output_mode, result.schema_sha256)
            by_sample.setdefault((result.sample_id, result.epoch), set()).add(asked)
            by_variant.setdefault(result.route, {})[asked] = None
    differing = sum(len(asked) > 1 for asked in by_sample.values())
    if not differing:
        return ()
    told = "; ".join(f"{label}: {', '.join(map(_shown, asked))}" for label, asked in by_variant.items() if asked)
    warning = (
        f"The variants were sent different requests on {differing:,} of {len(by_sample):,} samples, so their difference "
        f"is not the models' alone ({told})."
    )
    return (warning,)


def _shown(asked: Asked) -> str:
    mode, schema = asked
    return f"{mode}, {f'schema {schema[:SHOWN_DIGITS]}' if schema else 'no schema sent'}"


SHOWN_CHARS = 12


def note_digests(seen: Iterable[DigestSeen]) -> Iterator[str]:
    """One sentence for each route behind which there was more than one model.

    Args:
        seen: The digests by first appearance within a route.
    """
    by_route: dict[Route, list[DigestSeen]] = {}
    for each in seen:
        by_route.setdefault(each.route, []).append(each)
    for route, digests in by_route.items():
        if len(digests) > 1:
            told = ", then ".join(
                f"{each.digest[:SHOWN_CHARS]} ({each.requests:,} {'request' if each.requests == 1 else 'requests'})"
                for each in digests
            )
            yield f"The model behind {route} changed during the run: {told}. Its results are not of one model."
