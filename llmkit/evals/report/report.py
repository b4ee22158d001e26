"""The report of an evaluation: its analysis, and its forms as JSON, HTML, table, plot and file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmkit.errors import LLMEvaluationError
from llmkit.evals.report.aggregate import COMPARISON_COLUMNS, SUMMARY_COLUMNS
from llmkit.evals.report.analysis import Analysis
from llmkit.evals.report.failure_reasons import find_top_reasons
from llmkit.evals.report.frames import SAMPLE_COLUMNS, SCORE_PREFIX, to_json_rows, to_plain_rows
from llmkit.evals.report.repeats_missing import ATTEMPT_COLUMNS, MISSING_COLUMNS, REPEAT_COLUMNS
from llmkit.evals.report.terminal import format_mean
from llmkit.evals.results import IN_PROGRESS, NOT_RUN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

    from llmkit.evals.report.plots import PlotKind, Prices

__all__ = [
    "ATTEMPT_COLUMNS",
    "COMPARISON_COLUMNS",
    "MISSING_COLUMNS",
    "REPEAT_COLUMNS",
    "SAMPLE_COLUMNS",
    "SCORE_PREFIX",
    "SUMMARY_COLUMNS",
    "EvalReport",
    "strip_volatile",
]

JSON_FORM = "llmkit-evaluation-1"


@dataclass(frozen=True, repr=False)
class EvalReport(Analysis):
    """A report that can be shown, written and drawn. Its attributes and numbers are those of `Analysis`."""

    def to_json(self, *, stable: bool = False) -> dict[str, Any]:
        """Return the report as JSON-able data; unknown values are null.

        Keys: `form`, `run` (id, name, workspace_id, task, task_sha256, dataset_sha256, created_at_utc), `counts`
        (status to number), `coverage` (variant to finished, total, in_progress, not_run), `work` (reused, rescored,
        called, replayed, sent, shared, warm_ups; null for a report from the store), `summary` (rows of `summary()`),
        `comparisons` (rows of `compare(a, b)` for all pairs of variants), `stopped` (variant to reason), `in_doubt`
        (ids of calls), `judges` (metric to route, prompt, criteria, scale, parameters), `budget` (budget with its
        limits, tokens, cost_usd, uncounted, stopped_by, why; null without one), `failures` (the three most frequent
        reasons of each variant: variant, status, error_code, results, message), `notes`, `warnings` (the notes that put
        a comparison in doubt), `provenance` (see there).

        Args:
            stable: Leave out what differs between two runs with the same answers: `run.id`, `run.created_at_utc`,
                `work`, `in_doubt`, latencies, and digits of numbers after the twelfth.
        """
        run = self.run
        document = {
            "form": JSON_FORM,
            "run": {
                "id": str(run.id),
                "name": run.name,
                "workspace_id": run.workspace_id,
                "task": run.task_name,
                "task_sha256": run.task_sha256,
                "dataset_sha256": run.dataset_sha256,
                "created_at_utc": run.created_at_utc.isoformat(),
            },
            "counts": self.counts,
            "coverage": {
                label: {
                    "finished": each.finished,
                    "total": each.total,
                    "in_progress": each.in_progress,
                    "not_run": each.not_run,
                }
                for label, each in self.coverage.items()
            },
            "work": asdict(self.work) if self.work else None,
            "summary": to_json_rows(self.summary()),
            "comparisons": [row for a, b in _pair_labels(self.variants) for row in to_json_rows(self.compare(a, b))],
            "stopped": dict(self.stopped),
            "in_doubt": [str(call.id) for call in self.in_doubt],
            "judges": self.judges,
            "budget": asdict(self.budget) if self.budget else None,
            "failures": [asdict(reason) for reason in find_top_reasons(self.results, self.variants)],
            "notes": list(self.stable_notes if stable else self.notes),
            "warnings": list(self.warnings),
            "provenance": self.provenance,
        }
        return strip_volatile(document) if stable else document

    def to_html(self, file: str | Path, *, stable: bool = False) -> None:
        """Write the report with every sample to one HTML file that needs no network. An earlier file is replaced.

        The file contains inputs, targets, prompts and answers as far as they are available: see
        `docs/evaluation.md`. The calls are read from the store; those of a replaying session exist until it is closed.

        Args:
            file: Path of the file.
            stable: As for `to_json`: the same answers give the same bytes.

        Raises:
            LLMEvaluationError: The file cannot be written.
            LLMStoreError: The calls behind the results cannot be read.
        """
        from llmkit.evals.report.html import render_page

        text = render_page(self, stable=stable)
        try:
            Path(file).expanduser().write_text(text, encoding="utf-8", errors="replace", newline="\n")
        except OSError as error:
            raise LLMEvaluationError(f"{file} cannot be written: {error.strerror or error}") from None

    def export(self, file: str | Path) -> None:
        """Write the run and its stored results to a new `.jsonl` or `.parquet` file, for `Session.import_run`.

        Raises:
            LLMEvaluationError: The file exists, cannot be written, or is of another kind.
            LLMConfigurationError: A Parquet file, and no pyarrow.
        """
        from llmkit.evals.export import export_run

        stored = [result for result in self.results if result.status not in (NOT_RUN, IN_PROGRESS)]
        export_run(self.run, stored, file)

    def plot(
        self,
        kind: PlotKind = "score",
        *,
        metric: str | Sequence[str] | None = None,
        prices: Prices | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw the variants side by side. Nothing is shown and no default of matplotlib changed.

        A notebook shows the figure at the end of its cell, a script saves it by `ax.figure.savefig(...)`. A hollow mark
        has no interval. A variant without a score, or with an unknown latency, token count or cost, has no mark; its
        label says what is missing. Nothing unknown is drawn as 0.

        Args:
            kind: `score`: means with 95 % intervals by variant and metric. `latency`, `tokens`, `cost`: one metric
                against the latency of a sample in ms, its tokens, or the cost of 1,000 samples in USD.
            metric: Metrics to draw, of one scale; all when None. Other kinds draw only the first.
            prices: For `cost`: by variant, what a million tokens of prompts and of answers cost in USD.
            ax: Axes to draw into; a new figure when None.

        Raises:
            LLMConfigurationError: matplotlib is not installed (`pip install 'llmkit-research[plot]'`).
            LLMEvaluationError: The kind, a metric or variant is unknown; the message lists the known ones.
        """
        from llmkit.evals.report.plots import plot_report

        return plot_report(self, kind, metric, prices, ax)

    def table(self) -> Table:
        """Build the summary for a terminal, with the notes below; 80 columns suffice for one metric."""
        from llmkit.evals.report.terminal import build_summary_table

        return build_summary_table(self.run, to_plain_rows(self.summary()), self.notes)

    def _repr_html_(self) -> str:
        from llmkit.evals.report.notebook import render_report

        return render_report(self)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items() if count) or "nothing yet"
        rows = [row for row in to_plain_rows(self.summary()) if row["metric"]]
        coverage = self.coverage
        scores = [
            f"  {row['variant']}: {row['metric']} {format_mean(row)}"
            + (f" ({coverage[row['variant']].text})" if coverage[row["variant"]].is_partial else "")
            for row in rows
        ]
        why = [f"  {reason}" for reason in self.failure_summary]
        return "\n".join([f"EvalReport({self.run.name!r}, task {self.run.task_name}: {counts})", *scores, *why])


def _pair_labels(labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    for number, a in enumerate(labels):
        for b in labels[number + 1 :]:
            yield a, b


# Machines add up in different orders, which affects the last digits.
DIGITS: Final = 12


def strip_volatile(document: Mapping[str, Any]) -> dict[str, Any]:
    """Remove ids, clock times and latencies from `EvalReport.to_json()`, and round numbers to twelve digits."""
    stable = _drop(document, ("work", "in_doubt"))
    stable["run"] = _drop(document["run"], ("id", "created_at_utc"))
    stable["summary"] = [_drop(row, ("latency_p50_ms", "latency_p95_ms")) for row in document["summary"]]
    return {name: _round(part) for name, part in stable.items()}


def _drop(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _round(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _round(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_round(part) for part in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
