"""The summary of a report as text: a line, or a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from llmkit.eval_ports import EvalRun

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["build_summary_table", "format_mean", "format_scored"]

UNKNOWN = "-"
# With at least this many samples a third decimal is meaningful.
MANY_SAMPLES = 1_000

SummaryRow: TypeAlias = Mapping[str, Any]


def format_mean(row: SummaryRow) -> str:
    """Format mean and interval of a summary row, such as `0.60 [0.46, 0.73]`."""
    places = 3 if row["n"] >= MANY_SAMPLES else 2
    if row["mean"] is None:
        return UNKNOWN
    if row["ci_low"] is None:
        return f"{row['mean']:.{places}f}"
    return f"{row['mean']:.{places}f} [{row['ci_low']:.{places}f}, {row['ci_high']:.{places}f}]"


def format_scored(row: SummaryRow) -> str:
    """Format the number of scored results, such as `6 of 60` while samples are still to run."""
    is_partial = row["not_run"] or row["in_progress"]
    return f"{row['scored']:,} of {row['n']:,}" if is_partial else f"{row['scored']:,}"


def build_summary_table(run: EvalRun, rows: Sequence[SummaryRow], notes: Sequence[str]) -> Table:
    """Build the table of `EvalReport.summary()`. Numbers stay whole, and so do names in any terminal that has room."""
    from rich.markup import escape
    from rich.text import Text

    from llmkit.display.fitting_table import FittingTable

    title = escape(run.name if run.name == run.task_name else f"{run.name} ({run.task_name})")
    table = FittingTable(title=title, box=None, pad_edge=False, padding=(0, 1), title_justify="left")
    table.caption, table.caption_justify = Text("\n".join(notes)), "left"
    layout = _Layout.from_rows(rows)
    for number, heading in enumerate(layout.build_headings()):
        numeric = number > layout.has_metric_column
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    previous = None
    for row in rows:
        table.add_row(*(escape(cell) for cell in layout.build_cells(row, again=row["variant"] == previous)))
        previous = row["variant"]
    return table


@dataclass(frozen=True, slots=True)
class _Layout:
    """The layout of the table, derived from its rows.

    Attributes:
        metric: The only metric, or None when there are several or none.
        has_metric_column: Whether there is a column of metrics.
        in_seconds: Whether latencies are long enough to show as seconds.
    """

    metric: str | None
    has_metric_column: bool
    in_seconds: bool

    @classmethod
    def from_rows(cls, rows: Sequence[SummaryRow]) -> _Layout:
        metrics = {row["metric"] for row in rows} - {None}
        slowest = max((row["latency_p95_ms"] or 0.0 for row in rows), default=0.0)
        return cls(next(iter(metrics)) if len(metrics) == 1 else None, len(metrics) > 1, slowest >= 1_000)

    def build_headings(self) -> Iterator[str]:
        yield "Variant"
        if self.has_metric_column:
            yield "Metric"
        yield f"{self.metric or 'Mean'}\n[95 %]"
        unit = "s" if self.in_seconds else "ms"
        yield from ("Scored", "Errors", "Valid\n1st try", "Tokens\nin/out", f"p50/p95\n{unit}")

    def build_cells(self, row: SummaryRow, *, again: bool) -> Iterator[str]:
        """Format one row; facts about the variant as a whole appear only in its first row."""
        yield "" if again else row["variant"]
        if self.has_metric_column:
            yield row["metric"] or UNKNOWN
        yield from (format_mean(row), format_scored(row), f"{row['failed'] + row['scorer_failed']:,}")
        if again:
            yield from ("", "", "")
            return
        yield UNKNOWN if row["valid_first_try"] is None else f"{row['valid_first_try']:.0%}"
        yield f"{_format_rounded(row['input_tokens'])}/{_format_rounded(row['output_tokens'])}"
        yield f"{self._format_latency(row['latency_p50_ms'])}/{self._format_latency(row['latency_p95_ms'])}"

    def _format_latency(self, milliseconds: float | None) -> str:
        if milliseconds is None:
            return UNKNOWN
        return f"{milliseconds / 1_000:.1f}" if self.in_seconds else f"{milliseconds:.0f}"


def _format_rounded(count: int | None) -> str:
    """Format with at most three digits, such as 995, 7.4k or 12M."""
    if count is None:
        return UNKNOWN
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}" if count < 10 * size else f"{count / size:.0f}{unit}"
    return str(count)
