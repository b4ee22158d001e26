"""Metrics over the data set: values with intervals, confusion matrices, and reliability of stated confidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmkit.errors import LLMEvaluationError
from llmkit.evals.report.explain import explain_mean
from llmkit.evals.report.frames import to_plain_rows
from llmkit.evals.report.html.cells import Cell, CountCell, FaintText, Figure, Section, Table, make_figure
from llmkit.evals.report.terminal import format_mean
from llmkit.evals.scorers.dataset_metric import Calibration, ClassMetric

if TYPE_CHECKING:
    from llmkit.evals.report.analysis import Analysis

__all__ = ["build_dataset_section"]

# A matrix of more classes does not fit the page; the data frame has it.
MOST_CLASSES = 15


def build_dataset_section(report: Analysis, rows: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    """Build the section; nothing for a task without such metrics."""
    names = report.dataset_metrics
    if not names or report.task is None:
        return
    cells = {(row["metric"], row["variant"]): row for row in rows}
    values: Iterator[Sequence[Cell]] = (
        (
            name,
            *(
                Figure(format_mean(row), explain_mean(row)) if (row := cells.get((name, label))) else None
                for label in report.variants
            ),
        )
        for name in names
    )
    lead = FaintText(
        "These numbers are of all answers together, so their intervals come from a bootstrap over clusters. FAILED "
        "answers are left out; the summary also counts them as wrong."
    )
    tables = [Table.from_rows(("Metric", *report.variants), values, caption="Value [95 %]")]
    metrics = report.task.dataset_metrics
    if any(isinstance(metric, ClassMetric) for metric in metrics):
        tables += [table for label in report.variants for table in _build_confusion(report, label)]
    if any(isinstance(metric, Calibration) for metric in metrics):
        tables += _build_reliability(report)
    yield Section("dataset-metrics", "Metrics over the data set", (lead, *tables))


def _build_confusion(report: Analysis, label: str) -> Iterator[Table]:
    frame = report.confusion(label)
    if not 0 < len(frame) <= MOST_CLASSES:
        return
    columns = [str(name) for name in frame.columns]
    body: Iterator[Sequence[Cell]] = (
        (
            str(target),
            *(
                CountCell(int(count), f"Samples of {target} that {label} answered with {name}.")
                for name, count in zip(columns, counts, strict=True)
            ),
        )
        for target, counts in zip(frame.index, frame.to_numpy().tolist(), strict=True)
    )
    yield Table.from_rows(("Target", *columns), body, caption=f"Answers of {label} by target")


def _build_reliability(report: Analysis) -> list[Table]:
    try:
        bins = [row for row in to_plain_rows(report.reliability()) if row["n"]]
    except LLMEvaluationError:  # stated in the notes
        return []
    why = "Mean of the stated confidence in this bin."
    right = "Share of right answers in this bin. It equals the confidence if that can be trusted."
    body = (
        (
            row["variant"],
            f"{row['bin_low']:.2g} to {row['bin_high']:.2g}",
            CountCell(row["n"], "Answers with a confidence in this range."),
            make_figure(row["confidence"], ".3f", why),
            Figure(format_mean({**row, "mean": row["accuracy"]}), right),
        )
        for row in bins
    )
    headings = ("Variant", "Confidence", "Answers", "Mean confidence", "Right [95 %]")
    return [Table.from_rows(headings, body, caption="Reliability of the stated confidence")]
