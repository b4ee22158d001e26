"""What each variant took: requests, tokens, money and time; what judges took stands apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.display.html import Html, html
from llmkit.eval_ports import RecordedCall
from llmkit.evals.report.html.svg import Scale, Section, number, section, table, unknown
from llmkit.types import Attempt, AttemptStatus

if TYPE_CHECKING:
    from llmkit.evals.report.analysis import Analysis

__all__ = ["spending"]

JUDGE_STAGE = "judge"


@dataclass(frozen=True, slots=True)
class _Bill:
    """What a provider was sent for one variant, as far as calls were recorded."""

    requests: int
    failed: int
    input_tokens: int | None
    output_tokens: int | None
    usd: float | None
    unpriced: int

    @classmethod
    def of(cls, attempts: Sequence[Attempt]) -> _Bill:
        prices = [attempt.cost_usd for attempt in attempts if attempt.cost_usd is not None]
        return cls(
            requests=len(attempts),
            failed=sum(attempt.status is not AttemptStatus.SUCCEEDED for attempt in attempts),
            input_tokens=_sum(attempt.usage.input_tokens for attempt in attempts),
            output_tokens=_sum(attempt.usage.output_tokens for attempt in attempts),
            usd=sum(prices) if prices else None,
            unpriced=len(attempts) - len(prices),
        )

    def cells(self) -> Iterable[Any]:
        """For a row of the table."""
        counts = (self.requests, self.failed, self.input_tokens, self.output_tokens)
        return (*(unknown if each is None else each for each in counts), self._price())

    def _price(self) -> Any:
        if self.usd is None:
            return unknown
        note = f" without {self.unpriced:,} requests of unknown price" if self.unpriced else ""
        return html('<span class="number">{}{}</span>', f"{self.usd:.6f}", note)


def _sum(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def spending(
    report: Analysis, rows: Sequence[Mapping[str, Any]], calls: Sequence[RecordedCall], *, stable: bool
) -> Section:
    """Cost, and latency unless it is to be left out."""
    headings = ("Variant", "Requests", "of them failed", "Input tokens", "Output tokens", "Cost in USD")
    parts = [table(headings, _bills(report, rows, calls), caption="Requests, tokens and cost")]
    if not stable:
        parts.append(_latency(rows))
    return section("cost", "Cost and latency" if not stable else "Cost", *parts)


def _bills(
    report: Analysis, rows: Sequence[Mapping[str, Any]], calls: Sequence[RecordedCall]
) -> Iterator[Sequence[Any]]:
    variant_of = {result.pipeline_run_id: result.route for result in report.results}
    sent: dict[str, list[Attempt]] = {label: [] for label in report.variants}
    judged: list[Attempt] = []
    for call in calls:
        label = variant_of.get(call.pipeline_run_id)
        if label is not None:
            (judged if call.stage == JUDGE_STAGE else sent[label]).extend(call.attempts)
    for row in _first_rows(rows):
        bill = _Bill.of(sent[row["variant"]])
        # Without recorded calls, what the results themselves say.
        cells = bill.cells() if bill.requests else _from_summary(row)
        yield row["variant"], *cells
    if judged:
        yield "judges", *_Bill.of(judged).cells()


def _from_summary(row: Mapping[str, Any]) -> Iterable[Any]:
    counts = (row["requests"], None, row["input_tokens"], row["output_tokens"], None)
    return tuple(unknown if each is None else each for each in counts)


def _latency(rows: Sequence[Mapping[str, Any]]) -> Html:
    variants = list(_first_rows(rows))
    slowest = max((row["latency_p95_ms"] or 0.0 for row in variants), default=0.0)
    scale = Scale(0.0, slowest or 1.0)
    cells = (
        (
            row["variant"],
            number(row["latency_p50_ms"], ",.0f"),
            number(row["latency_p95_ms"], ",.0f"),
            scale.span(row["latency_p50_ms"], row["latency_p95_ms"], "from the median to the 95th percentile"),
        )
        for row in variants
    )
    return table(
        ("Variant", "Median ms", "95 % below, ms", ""), cells, caption="Latency of samples with a valid output"
    )


def _first_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Requests, tokens and latencies are the variant's, so that every metric's row says the same."""
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault(row["variant"], row)
    return iter(first.values())
