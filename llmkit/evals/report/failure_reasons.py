"""Failures grouped by reason, with counts for each variant."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

from llmkit.eval_ports import EvalResult
from llmkit.evals.results import FAILED, SCORER_FAILED

__all__ = ["MAX_REASONS", "FailureReason", "describe_reasons", "find_top_reasons", "group_failures"]

MAX_REASONS = 3
LONGEST_REASON = 300
# Messages of one reason differ in these: numbers, and quotations from an answer.
_VARYING_PARTS = re.compile(r"\d+|'[^']*'|\"[^\"]*\"")
_VERBS = {FAILED: "samples failed", SCORER_FAILED: "answers could not be scored"}


@dataclass(frozen=True, slots=True)
class FailureReason:
    """A reason why results of a variant have no score.

    Attributes:
        variant: Label of the variant.
        status: FAILED or SCORER_FAILED.
        error_code: Error code of a failed sample; None for a scorer's failure.
        results: How many results it affects. Messages that differ only in numbers and quotations are one reason.
        message: One of the messages, in one line, cut at 300 characters.
    """

    variant: str
    status: str
    error_code: str | None
    results: int
    message: str


def group_failures(results: Sequence[EvalResult], variants: Sequence[str]) -> list[FailureReason]:
    """Group failures by reason: variants in the given order, the most frequent reason first."""
    messages = Counter(
        (result.route, result.status, result.error_code, _get_message(result))
        for result in results
        if result.status in _VERBS
    )
    kinds: dict[tuple[str, str, str | None, str], list[tuple[str, int]]] = defaultdict(list)
    for (variant, status, code, raw), count in messages.items():
        # A server's message may contain control characters that a terminal would obey.
        message = " ".join("".join(sign if sign.isprintable() else " " for sign in raw).split())
        kinds[variant, status, code, _VARYING_PARTS.sub("#", message)].append((message, count))
    reasons = []
    for (variant, status, code, _), alike in kinds.items():
        # The first in alphabetical order, so that the same results give the same report.
        example = min(alike)[0]
        if len(example) > LONGEST_REASON:
            example = f"{example[: LONGEST_REASON - 3]}..."
        reasons.append(FailureReason(variant, status, code, sum(count for _, count in alike), example))
    order = {variant: number for number, variant in enumerate(variants)}
    return sorted(reasons, key=lambda each: (order[each.variant], -each.results, each.status, each.message))


def find_top_reasons(results: Sequence[EvalResult], variants: Sequence[str]) -> Iterator[FailureReason]:
    """Return the most frequent reasons of each variant, at most three."""
    for _route, reasons in groupby(group_failures(results, variants), key=lambda reason: reason.variant):
        yield from islice(reasons, MAX_REASONS)


def describe_reasons(results: Sequence[EvalResult], variants: Sequence[str]) -> Iterator[str]:
    """Describe the most frequent reasons of each variant, one sentence each, and count the others."""
    totals = Counter(result.route for result in results)
    for variant, group in groupby(group_failures(results, variants), key=lambda reason: reason.variant):
        reasons = list(group)
        for reason in reasons[:MAX_REASONS]:
            yield f"{reason.results:,} of {totals[variant]:,} {_VERBS[reason.status]} on {variant}: {reason.message}"
        if rest := reasons[MAX_REASONS:]:
            affected = sum(reason.results for reason in rest)
            yield f"{affected:,} of {totals[variant]:,} on {variant} for {len(rest):,} other reasons: see samples()."


def _get_message(result: EvalResult) -> str:
    if result.status == FAILED:
        return result.error_message or result.error_code or "unknown"
    return "; ".join(f"{name}: {text}" for name, text in sorted(result.scorer_errors.items()))
