"""Scores by slice: by group, and by fields of the metadata that divide the samples into a few parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llmkit.evals.report.explain import explain_mean
from llmkit.evals.report.frames import to_plain_rows
from llmkit.evals.report.html.cells import Cell, CountCell, FaintText, Figure, Section, Table
from llmkit.evals.report.slices import SMALL_SLICE, find_natural_slices
from llmkit.evals.report.terminal import format_mean

if TYPE_CHECKING:
    from llmkit.evals.report.analysis import Analysis

__all__ = ["build_slices_section"]

# A page with a table for each of many fields hides the ones that matter.
MOST_FIELDS = 4


def build_slices_section(report: Analysis, metrics: Sequence[str]) -> Iterator[Section]:
    """Build a table for each field and main metric: a row for each slice, a column for each variant."""
    tables: list[Table] = []
    natural = list(find_natural_slices(report.clusters, report.dataset)) if metrics else []
    for by in natural[:MOST_FIELDS]:
        sizes = {name: len(part.clusters) for name, part in report.slices(by).items()}
        rows = to_plain_rows(report.summary(by))
        for metric in metrics:
            cells = {(row["slice"], row["variant"]): row for row in rows if row["metric"] == metric}
            body: list[Sequence[Cell]] = []
            for name, size in sizes.items():
                found = [cells.get((name, label)) for label in report.variants]
                means = [None if row is None else Figure(format_mean(row), explain_mean(row)) for row in found]
                samples = CountCell(size, "Samples of this slice. Few of them make a mean uncertain.")
                body.append((name, samples, "few" if size < SMALL_SLICE else None, *means))
            headings = (by, "Samples", "", *report.variants)
            tables.append(Table.from_rows(headings, body, caption=f"{metric} by {by}: mean [95 %]"))
    if tables:
        lead = FaintText(
            "The intervals are those of each slice by itself. With many slices, one of them looks different by chance: "
            f"compare(by=...) adjusts for that. Slices of fewer than {SMALL_SLICE} samples are marked."
        )
        yield Section("slices", "Slices", (lead, *tables))
