"""Sentences that explain the numbers of a report to a reader who knows no statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = [
    "explain_chances",
    "explain_count",
    "explain_difference",
    "explain_failures",
    "explain_first_try",
    "explain_latency",
    "explain_mean",
    "explain_missing",
    "explain_p_value",
    "explain_tokens",
]

Row = Mapping[str, Any]

_METHODS: Final[Mapping[str, str]] = {
    "wilson": "Wilson's interval",
    "clustered wilson": "Wilson's interval, with groups or repeats counted as what they are",
    "gaffke": "Gaffke's bounds",
    "clustered gaffke": "Gaffke's bounds, with groups or repeats counted as what they are",
    "t": "Student's t",
    "clustered t": "Student's t, with groups or repeats counted as what they are",
}
_TESTS: Final[Mapping[str, str]] = {
    "mcnemar": "McNemar's exact test",
    "paired t": "a paired t test",
    "clustered paired t": "a paired t test that counts groups and repeats as what they are",
    "no spread seen": "Gaffke's bounds, because all differences are equal",
}
INTERVAL: Final = "95 % interval: on other samples of the same kind, the true {} is plausibly between {} and {}"


def explain_mean(row: Row) -> str:
    """Explain a mean with its interval."""
    if row["mean"] is None:
        return f"{row['variant']} has no score yet."
    direction = "less is better" if row["lower_is_better"] else "more is better"
    text = f"{row['variant']} scores {row['mean']:.3g} on average on {_count(row['scored'], 'result')} ({direction})."
    if row["ci_low"] is None:
        return f"{text} Too few or too equal results for an interval."
    method = _METHODS.get(row["interval"], row["interval"])
    return f"{text} {INTERVAL.format('mean', _number(row['ci_low']), _number(row['ci_high']))} ({method})."


def explain_failures(row: Row) -> str:
    """Explain the mean with failures counted as the worst score."""
    worst = 1 if row["lower_is_better"] else 0
    return f"The mean if each of the {_count(row['failed'], 'failed answer')} counts as {worst}, the worst score."


def explain_count(row: Row, kind: str) -> str:
    """Explain a number of results: `scored`, `failed` or `unscored`."""
    if kind == "scored":
        return f"{row['scored']:,} of {_count(row['n'], 'result')} have a score; the mean is over these."
    if kind == "failed":
        return f"{_count(row['failed'], 'result')} got no valid output from the model, and so no score."
    reasons = {"could not be scored": "scorer_failed", "not run": "not_run", "in progress elsewhere": "in_progress"}
    parts = [f"{row[name]:,} {words}" for words, name in reasons.items() if row[name]]
    return f"Results without a score that did not fail: {', '.join(parts) or 'none'}."


def explain_first_try() -> str:
    """Explain the share of answers that were valid at once."""
    return "Share of the answered samples whose first answer fitted the output type, without a repair or a reask."


def explain_tokens(what: str) -> str:
    """Explain a sum of tokens or requests, such as `input tokens`."""
    return f"Sum of the {what} of all requests for this variant, as far as they are known; reasks and retries included."


def explain_latency(variant: str, ms: float | None, share: str) -> str:
    """Explain a percentile of the latency."""
    return f"{share} of the valid answers of {variant} took at most {_number(ms)} ms, all their calls included."


def explain_difference(row: Row) -> str:
    """Explain a paired difference with its interval."""
    if row["difference"] is None:
        return f"{row['a']} and {row['b']} have no scored result in common."
    text = (
        f"{row['a']} minus {row['b']} is {row['difference']:+.3g} on average on the {_count(row['pairs'], 'result')} "
        "that both have a score for."
    )
    if row["ci_low"] is None:
        return f"{text} Too few for an interval."
    return f"{text} {INTERVAL.format('difference', _signed(row['ci_low']), _signed(row['ci_high']))}."


def explain_p_value(row: Row, comparisons: int) -> str:
    """Explain an adjusted p-value."""
    test = _TESTS.get(row["method"], row["method"])
    adjusted = f", adjusted for the {comparisons} comparisons on this page" if comparisons > 1 else ""
    return (
        f"If the two were equally good, a difference at least as large would be seen with probability "
        f"{row['p_holm']:.3g} (p-value of {test}{adjusted}). Below 0.05 counts as a difference."
    )


def explain_missing(row: Row, kind: str) -> str:
    """Explain one of the views on results without a score: `excluded`, `as_failures` or `bounds`."""
    return {
        "excluded": "Mean of the scored results, with its 95 % interval: right if scores are missing by chance.",
        "as_failures": "Mean if every missing score were the worst one, with its 95 % interval.",
        "bounds": f"The mean is between these, whatever the {_count(row['missing'], 'missing score')} would have been.",
    }[kind]


def explain_chances(row: Row, kind: str) -> str:
    """Explain a chance over repeats: `pass_at_k` or `pass_hat_k`."""
    what = "at least one" if kind == "pass_at_k" else "every one"
    return (
        f"Chance that {what} of {row['k']} answers to a sample is right, averaged over "
        f"{_count(row['samples'], 'sample')}, with its 95 % interval."
    )


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:,.3g}" if abs(value) < 1_000 else f"{value:,.0f}"


def _signed(value: float) -> str:
    return f"{value:+.3g}" if value else "0"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
