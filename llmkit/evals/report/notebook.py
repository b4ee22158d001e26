"""The HTML of a report in a notebook: one row for each variant and metric, and the notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmkit.display.html import render_table
from llmkit.evals.report.terminal import format_mean, format_scored

if TYPE_CHECKING:
    from llmkit.evals.report.analysis import Analysis

__all__ = ["render_report"]

_HEADINGS = ("variant", "metric", "mean [95 % interval]", "scored", "failed", "first try", "tokens", "median ms")


def render_report(report: Analysis) -> str:
    """Render summary and notes as HTML, with every value escaped."""
    run = report.run
    title = run.name if run.name == run.task_name else f"{run.name} ({run.task_name})"
    rows = [_build_cells(row) for row in report.summary().astype(object).to_dict("records")]
    return render_table(_HEADINGS, rows, caption=title, notes=report.notes)


def _build_cells(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    from pandas import isna

    known = {name: None if isna(value) else value for name, value in row.items()}
    first_try = "" if known["valid_first_try"] is None else f"{known['valid_first_try']:.0%}"
    tokens = " + ".join(
        "?" if known[name] is None else f"{known[name]:,}" for name in ("input_tokens", "output_tokens")
    )
    median = "" if known["latency_p50_ms"] is None else f"{known['latency_p50_ms']:,.0f}"
    mean = format_mean(known) if known["metric"] else ""
    scored = format_scored(known) if known["not_run"] or known["in_progress"] else known["scored"]
    return (known["variant"], known["metric"] or "", mean, scored, known["failed"], first_try, tokens, median)
