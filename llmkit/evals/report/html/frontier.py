"""Section of the page: which variants are worth their cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from llmkit.evals.decide.forecast import Against
from llmkit.evals.report.decisions import build_frontier_frame
from llmkit.evals.report.frames import to_plain_rows
from llmkit.evals.report.html.cells import Cell, Figure, Section, Table, format_interval, make_figure

if TYPE_CHECKING:
    from llmkit.evals.report.analysis import Analysis

__all__ = ["build_frontier_section"]

AGAINST: Final[tuple[Against, ...]] = ("cost", "tokens")
HEADINGS: Final[Mapping[Against, tuple[str, int, str]]] = {
    "cost": ("USD for 1,000 samples", 1_000, ",.4f"),
    "tokens": ("Tokens of a sample", 1, ",.0f"),
}
CAPTION: Final = (
    "{metric} against {against}. A variant is dominated where another one needs no more on these samples and the 95 % "
    "interval of the paired difference shows that its score is better. A failure counts as the worst score."
)


def build_frontier_section(report: Analysis, metrics: tuple[str, ...]) -> Iterator[Section]:
    """Build the section for the first metric, against cost or, where no cost is known, tokens; none for one variant."""
    if len(report.variants) < 2 or not metrics:
        return
    for against in AGAINST:
        table = _build_table(report, metrics[0], against)
        if table is not None:
            yield Section("frontier", "Worth its cost", (table,))
            return


def _build_table(report: Analysis, metric: str, against: Against) -> Table | None:
    frame = build_frontier_frame(report, {}, metric=metric, against=against, prices={}, runs=())
    rows = to_plain_rows(frame)
    if all(row["value"] is None for row in rows):
        return None
    heading, factor, form = HEADINGS[against]
    cells: list[tuple[Cell, ...]] = [
        (
            row["policy"],
            Figure(
                format_interval(row["mean"], row["ci_low"], row["ci_high"]),
                f"Mean {metric} of {row['policy']} on the samples of this table, with its 95 % interval.",
            ),
            make_figure(
                None if row["value"] is None else factor * row["value"],
                form,
                f"{heading} of {row['policy']}, as far as it is known.",
            ),
            row["dominated_by"] or ("no" if row["on_frontier"] else None),
        )
        for row in rows
    ]
    caption = CAPTION.format(metric=metric, against=against)
    return Table.from_rows(("Variant", "Mean [95 %]", heading, "Dominated by"), cells, caption=caption)
