"""Requests, tokens, money and time by variant. The judges' share stands apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from llmkit.eval_ports import RecordedCall
from llmkit.evals.report.explain import explain_latency, explain_tokens
from llmkit.evals.report.html.cells import Cell, CountCell, Figure, Scale, Section, Table, make_figure
from llmkit.evals.report.steps import WHOLE, build_step_rows
from llmkit.types import Attempt, AttemptStatus

if TYPE_CHECKING:
    from llmkit.evals.report.analysis import Analysis

__all__ = ["build_cost_section"]

JUDGE_STAGE: Final = "judge"

# What is added up for each variant.
COUNTED: Final = ("requests", "input tokens", "output tokens")


def build_cost_section(
    report: Analysis, rows: Sequence[Mapping[str, Any]], calls: Sequence[RecordedCall], *, stable: bool
) -> Section:
    """Build the tables of cost and, unless the page must be stable, of latency."""
    # Requests, tokens and latencies belong to the variant, so the rows of all its metrics have the same ones.
    first_rows: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        first_rows.setdefault(row["variant"], row)
    headings = ("Variant", "Requests", "of them failed", "Input tokens", "Output tokens", "Cost in USD")
    cells = _build_cost_cells(report, first_rows, calls)
    blocks = [Table.from_rows(headings, cells, caption="Requests, tokens and cost")]
    if not stable:
        blocks.append(_build_latency_table(first_rows.values()))
    steps = list(build_step_rows(report.results, calls))
    if steps:
        blocks.append(_build_step_table(steps, stable=stable))
    return Section("cost", "Cost" if stable else "Cost and latency", tuple(blocks))


def _build_step_table(rows: Sequence[Mapping[str, Any]], *, stable: bool) -> Table:
    requests, inputs, outputs = map(explain_tokens, COUNTED)
    headings = (
        "Variant",
        "Step",
        "Calls",
        "of them failed",
        "Requests",
        "Input tokens",
        "Output tokens",
        "Cost in USD",
    )
    return Table.from_rows(
        headings if stable else (*headings, "Mean latency in ms"),
        (
            (
                row["variant"],
                "whole sample" if row["step"] == WHOLE else row["step"],
                CountCell(row["calls"], "Calls of this step, without answers from the store."),
                CountCell(row["failed"], "Calls that failed; the function may have handled that."),
                CountCell(row["requests"], requests),
                _make_count(row["input_tokens"], inputs),
                _make_count(row["output_tokens"], outputs),
                make_figure(row["cost_usd"], ".6f", "Sum of the prices of the requests."),
                *(
                    ()
                    if stable
                    else (
                        make_figure(row["latency_ms"], ",.0f", "Mean: of whole samples, or of the calls of the step."),
                    )
                ),
            )
            for row in rows
        ),
        caption="Steps of a sample",
    )


def _build_cost_cells(
    report: Analysis, rows: Mapping[str, Mapping[str, Any]], calls: Sequence[RecordedCall]
) -> Iterator[Sequence[Cell]]:
    variant_by_call = {result.pipeline_run_id: result.route for result in report.results}
    sent: dict[str, list[Attempt]] = {label: [] for label in report.variants}
    judged: list[Attempt] = []
    for call in calls:
        label = variant_by_call.get(call.pipeline_run_id)
        if label is not None:
            (judged if call.stage == JUDGE_STAGE else sent[label]).extend(call.attempts)
    for label, row in rows.items():
        if sent[label]:
            yield label, *_sum_attempts(sent[label])
        else:  # an imported run: its calls are in another store, and its results have the totals
            counts = (row["requests"], row["input_tokens"], row["output_tokens"])
            requests, inputs, outputs = (
                # Without a request there was no call: the answers were supplied, and what they took is unknown.
                _make_count(count or None, explain_tokens(what))
                for count, what in zip(counts, COUNTED, strict=True)
            )
            yield label, requests, None, inputs, outputs, None
    if judged:
        yield "judges", *_sum_attempts(judged)


def _sum_attempts(attempts: Sequence[Attempt]) -> Iterator[Cell]:
    prices = [attempt.cost_usd for attempt in attempts if attempt.cost_usd is not None]
    requests, inputs, outputs = map(explain_tokens, COUNTED)
    failed = sum(attempt.status is not AttemptStatus.SUCCEEDED for attempt in attempts)
    yield CountCell(len(attempts), requests)
    yield CountCell(failed, "Requests that the provider refused or that broke off; the others were answered.")
    yield _make_count(_sum_known(attempt.usage.input_tokens for attempt in attempts), inputs)
    yield _make_count(_sum_known(attempt.usage.output_tokens for attempt in attempts), outputs)
    unpriced = len(attempts) - len(prices)
    note = f" without {unpriced:,} requests of unknown price" if unpriced else ""
    why = "Sum of the prices of the requests, as the provider or LiteLLM's list states them."
    yield Figure(f"{sum(prices):.6f}{note}", why) if prices else None


def _make_count(count: int | None, why: str) -> CountCell | None:
    return None if count is None else CountCell(count, why)


def _sum_known(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _build_latency_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    listed = list(rows)
    slowest = max((row["latency_p95_ms"] or 0.0 for row in listed), default=0.0)
    scale = Scale(0.0, slowest or 1.0)
    cells = (
        (
            row["variant"],
            make_figure(row["latency_p50_ms"], ",.0f", explain_latency(row["variant"], row["latency_p50_ms"], "Half")),
            make_figure(row["latency_p95_ms"], ",.0f", explain_latency(row["variant"], row["latency_p95_ms"], "95 %")),
            scale.draw_bar(row["latency_p50_ms"], row["latency_p95_ms"], "from the median to the 95th percentile"),
        )
        for row in listed
    )
    headings = ("Variant", "Median ms", "95 % below, ms", scale.draw_scale(" ms"))
    return Table.from_rows(headings, cells, caption="Latency of samples with a valid output")
