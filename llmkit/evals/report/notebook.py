"""The HTML of a report in a notebook: the verdict, one row for each variant and metric, and the notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmkit.display.html import Explained, render_table
from llmkit.evals.report.explain import (
    explain_count,
    explain_first_try,
    explain_latency,
    explain_mean,
    explain_tokens,
)
from llmkit.evals.report.frames import to_plain_rows
from llmkit.evals.report.terminal import format_mean, format_scored
from llmkit.evals.report.verdict import describe_verdict

if TYPE_CHECKING:
    from llmkit.evals.report.analysis import Analysis

__all__ = ["render_report"]

_HEADINGS = ("variant", "metric", "mean [95 % interval]", "scored", "failed", "first try", "tokens", "median ms")


def render_report(report: Analysis) -> str:
    """Render verdict, summary and notes as HTML, with every value escaped."""
    run = report.run
    title = run.name if run.name == run.task_name else f"{run.name} ({run.task_name})"
    rows = [_build_cells(row) for row in to_plain_rows(report.summary())]
    return render_table(
        _HEADINGS, rows, caption=title, lead=describe_verdict(report) if report.results else (), notes=report.notes
    )


def _build_cells(row: Mapping[str, Any]) -> tuple[Any, ...]:
    first_try = row["valid_first_try"]
    tokens = " + ".join("?" if row[name] is None else f"{row[name]:,}" for name in ("input_tokens", "output_tokens"))
    median = row["latency_p50_ms"]
    scored = format_scored(row) if row["not_run"] or row["in_progress"] else row["scored"]
    return (
        row["variant"],
        row["metric"] or "",
        Explained(format_mean(row), explain_mean(row)) if row["metric"] else "",
        Explained(scored, explain_count(row, "scored")),
        Explained(row["failed"], explain_count(row, "failed")),
        "" if first_try is None else Explained(f"{first_try:.0%}", explain_first_try()),
        Explained(tokens, explain_tokens("input and output tokens")),
        "" if median is None else Explained(f"{median:,.0f}", explain_latency(row["variant"], median, "Half")),
    )
