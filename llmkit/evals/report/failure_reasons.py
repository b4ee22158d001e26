"""Why samples have no score: the reasons, each once for a variant with how many it befell."""

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
# What differs between two messages of one kind: numbers, and what is quoted of an answer.
_PARTICULARS = re.compile(r"\d+|'[^']*'|\"[^\"]*\"")
_VERBS = {FAILED: "samples failed", SCORER_FAILED: "answers could not be scored"}


@dataclass(frozen=True, slots=True)
class FailureReason:
    """One reason why results of a variant have no score.

    Attributes:
        variant: Label of the variant.
        status: FAILED or SCORER_FAILED.
        error_code: Of a failed sample; None for a scorer's failure.
        results: How many results it befell. Messages that differ in numbers and quotations only are one reason.
        message: One of the messages, in one line, cut at 300 characters.
    """

    variant: str
    status: str
    error_code: str | None
    results: int
    message: str


def group_failures(results: Sequence[EvalResult], variants: Sequence[str]) -> list[FailureReason]:
    """All reasons, by variant in the given order, the most frequent first."""
    told = Counter(
        (result.route, result.status, result.error_code, _said(result)) for result in results if _has_failed(result)
    )
    kinds: dict[tuple[str, str, str | None, str], list[tuple[str, int]]] = defaultdict(list)
    for (variant, status, code, said), count in told.items():
        message = _one_line(said)
        kinds[variant, status, code, _PARTICULARS.sub("#", message)].append((message, count))
    found = [
        FailureReason(variant, status, code, sum(count for _, count in alike), _cut(min(alike)[0]))
        for (variant, status, code, _), alike in kinds.items()
    ]
    order = {variant: number for number, variant in enumerate(variants)}
    return sorted(found, key=lambda each: (order[each.variant], -each.results, each.status, each.message))


def find_top_reasons(results: Sequence[EvalResult], variants: Sequence[str]) -> Iterator[FailureReason]:
    """At most three reasons of each variant."""
    for _route, own in groupby(group_failures(results, variants), key=lambda reason: reason.variant):
        yield from islice(own, MAX_REASONS)


def describe_reasons(results: Sequence[EvalResult], variants: Sequence[str]) -> Iterator[str]:
    """The most frequent reasons of each variant in words, and how many results have others."""
    totals = Counter(result.route for result in results)
    for variant, group in groupby(group_failures(results, variants), key=lambda reason: reason.variant):
        own = list(group)
        for reason in own[:MAX_REASONS]:
            yield f"{reason.results:,} of {totals[variant]:,} {_VERBS[reason.status]} on {variant}: {reason.message}"
        if rest := own[MAX_REASONS:]:
            befallen = sum(reason.results for reason in rest)
            yield f"{befallen:,} of {totals[variant]:,} on {variant} for {len(rest):,} other reasons: see samples()."


def _has_failed(result: EvalResult) -> bool:
    return result.status in _VERBS


def _said(result: EvalResult) -> str:
    if result.status == FAILED:
        return result.error_message or result.error_code or "unknown"
    return "; ".join(f"{name}: {text}" for name, text in sorted(result.scorer_errors.items()))


def _one_line(text: str) -> str:
    # A server's words may hold what a terminal would obey.
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _cut(message: str) -> str:
    return message if len(message) <= LONGEST_REASON else f"{message[: LONGEST_REASON - 3]}..."
