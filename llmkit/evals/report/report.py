"""The report of an evaluation: its analysis, and its forms as JSON, HTML, table, plot and file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmkit.errors import LLMEvaluationError
from llmkit.evals.report.aggregate import COMPARISON_COLUMNS, SUMMARY_COLUMNS
from llmkit.evals.report.analysis import Analysis
from llmkit.evals.report.failure_reasons import find_top_reasons
from llmkit.evals.report.frames import SAMPLE_COLUMNS, SCORE_PREFIX, to_json_rows, to_plain_rows
from llmkit.evals.report.repeats_missing import ATTEMPT_COLUMNS, MISSING_COLUMNS, REPEAT_COLUMNS
from llmkit.evals.report.steps import STEP_COLUMNS
from llmkit.evals.report.terminal import format_mean
from llmkit.evals.results import IN_PROGRESS, NOT_RUN

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from rich.table import Table

    from llmkit.evals.decide.forecast import Against
    from llmkit.evals.policies import Policy
    from llmkit.evals.report.plots import PlotKind, Prices

__all__ = [
    "ATTEMPT_COLUMNS",
    "COMPARISON_COLUMNS",
    "MISSING_COLUMNS",
    "REPEAT_COLUMNS",
    "SAMPLE_COLUMNS",
    "SCORE_PREFIX",
    "STEP_COLUMNS",
    "SUMMARY_COLUMNS",
    "EvalReport",
    "strip_volatile",
]

JSON_FORM = "llmkit-evaluation-1"


@dataclass(frozen=True, repr=False)
class EvalReport(Analysis):
    """A report that can be shown, written and drawn. Its attributes and numbers are those of `Analysis`."""

    @property
    def verdict(self) -> tuple[str, ...]:
        """The result in words, for each of the first three metrics.

        Either which variant is better and by how much, by the interval of the difference, or that this is not decided
        and about how many more samples would do. A variant is called better only if its p-value, adjusted by Holm for
        all pairs and metrics, is below 0.05.
        """
        from llmkit.evals.report.verdict import describe_verdict

        return describe_verdict(self)

    def to_json(self, *, stable: bool = False) -> dict[str, Any]:
        """Return the report as JSON-able data; unknown values are null.

        Keys: `form`, `run` (id, name, workspace_id, task, task_sha256, dataset_sha256, created_at_utc), `counts`
        (status to number), `coverage` (variant to finished, total, in_progress, not_run), `work` (reused, rescored,
        called, replayed, sent, shared, warm_ups, edited, workers, lost, lost_because; null without a call), `summary`
        (`summary()`), `comparisons` (rows of `compare(a, b)` for all pairs of variants), `stopped` (variant to reason),
        `in_doubt` (ids of calls), `judges` (metric to route, prompt, criteria, scale, parameters), `budget` (budget
        with its limits, tokens, cost_usd, uncounted, stopped_by, why; null without one), `decision` (state of the stop
        rule: a, b, verdict, units, difference, low, high, problem, rule; null without one), `failures` (the three most
        frequent reasons of each variant: variant, status, error_code, results, message), `notes`, `warnings` (the notes
        that put a comparison in doubt), `provenance` (see there).

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
            "comparisons": to_json_rows(self.compare()) if len(self.variants) > 1 else [],
            "stopped": dict(self.stopped),
            "in_doubt": [str(call.id) for call in self.in_doubt],
            "judges": self.judges,
            "budget": asdict(self.budget) if self.budget else None,
            "decision": asdict(self.decision) if self.decision else None,
            "failures": [asdict(reason) for reason in find_top_reasons(self.results, self.variants)],
            "notes": list(self.stable_notes if stable else self.notes),
            "warnings": list(self.warnings),
            "provenance": self.provenance,
        }
        return strip_volatile(document) if stable else document

    def to_html(self, file: str | Path, *, stable: bool = False) -> Path:
        """Write the report with every sample to one HTML file that needs no network. An earlier file is replaced.

        The file contains inputs, targets, prompts and answers as far as they are available: see
        `docs/evaluation.md`. The calls are read from the store; those of a replaying session exist until it is closed.

        Args:
            file: Path of the file.
            stable: As for `to_json`: the same answers give the same bytes.

        Returns:
            The path of the file.

        Raises:
            LLMEvaluationError: The file cannot be written.
            LLMStoreError: The calls behind the results cannot be read.
        """
        from llmkit.evals.report.html import render_page

        text, path = render_page(self, stable=stable), Path(file).expanduser()
        try:
            path.write_text(text, encoding="utf-8", errors="replace", newline="\n")
        except OSError as error:
            raise LLMEvaluationError(f"{file} cannot be written: {error.strerror or error}") from None
        return path

    def export(self, file: str | Path) -> Path:
        """Write the run and its stored results to a new `.jsonl` or `.parquet` file, for `Session.import_run`.

        Returns:
            The path of the file.

        Raises:
            LLMEvaluationError: The file exists, cannot be written, or is of another kind.
            LLMConfigurationError: A Parquet file, and no pyarrow.
        """
        from llmkit.evals.export import export_run

        stored = [result for result in self.results if result.status not in (NOT_RUN, IN_PROGRESS)]
        return export_run(self.run, stored, file)

    def what_if(
        self,
        policies: Mapping[str, Policy] | None = None,
        *,
        metric: str | None = None,
        reference: str | None = None,
        prices: Prices | None = None,
        runs: Sequence[Analysis] = (),
    ) -> pd.DataFrame:
        """Return the scores, costs and latencies that routing policies would have had on these samples.

        Nothing is called: each policy is followed over the recorded results. One row for each variant and policy, with
        the columns of `WHAT_IF_COLUMNS`. A FAILED answer counts as the worst score; what a policy needs and was not
        recorded is `missing`, never guessed. `cost_usd`, tokens, `calls` and `escalated` (more than one call) are means
        per sample over what is known; latencies add up the calls of a sample. Open thresholds and choices
        (`Below("confidence")`, `Split("group", ["a", "b"])`) are cross-fitted: the clusters are dealt to five folds,
        and each fold is evaluated with the choices made on those before it. `mean` and `difference` are that honest
        figure, `mean_in_sample` and `difference_in_sample` the one with the choices made on the same samples, `fitted`
        the choices made on all.

        Args:
            policies: Policy by name; see `Cascade`, `Split`, `Mix`. None: the variants alone.
            metric: The score; defaults to the first one.
            reference: Variant or policy that `difference` is against; defaults to the first variant.
            prices: Variant to USD per million input and output tokens; by default the recorded costs of the calls.
            runs: Reports of other runs of the same dataset, whose variants take part. One whose label is taken is
                called `LABEL of RUN`.

        Raises:
            LLMEvaluationError: A name is unknown, or samples were edited between the runs.

        Example:
            >>> cascade = Cascade("ollama/small", "gemini/large", when=["repaired", "reasked"])
            >>> report.what_if({"careful": cascade}, prices={"gemini/large": (0.3, 2.5), "ollama/small": (0, 0)})
        """
        from llmkit.evals.report.decisions import build_what_if_frame

        return build_what_if_frame(
            self, policies or {}, metric=metric, reference=reference, prices=prices or {}, runs=runs
        )

    def fit_policy(
        self,
        policy: Policy,
        *,
        metric: str | None = None,
        prices: Prices | None = None,
        runs: Sequence[Analysis] = (),
    ) -> Policy:
        """Return the policy with its open thresholds and choices made on all samples, ready for `Session.policy`.

        Its honest forecast is that of the open policy in `what_if`: on the samples on which the choices were made, the
        fitted one looks better than it is.

        Args:
            policy: A policy with `Below("confidence")`, `Split("group", ["a", "b"])` and the like.
            metric: As for `what_if`.
            prices: As for `what_if`.
            runs: As for `what_if`.

        Raises:
            LLMEvaluationError: As for `what_if`.

        Example:
            >>> careful = report.fit_policy(Cascade("ollama/small", "gemini/large", when=Below("confidence")))
        """
        from llmkit.evals.report.decisions import fit_on_report

        return fit_on_report(self, policy, metric=metric, prices=prices or {}, runs=runs)

    def check_forecast(
        self,
        policies: Mapping[str, Policy],
        outcome: Analysis | None = None,
        *,
        metric: str | None = None,
        prices: Prices | None = None,
        runs: Sequence[Analysis] = (),
    ) -> pd.DataFrame:
        """Compare the forecast of policies with a run that followed them for real, on the same samples.

        Five rows for each policy, the columns of `CHECK_COLUMNS`: the score, cost, tokens and latency per sample.
        `forecast_low` and `forecast_high` are the 95 % interval for the mean of another run, from the forecast alone,
        and `contained` tells whether `outcome` lies within. `difference` is outcome minus forecast, with the interval
        of the paired difference, which is narrower: it contains 0 where the forecast was right up to noise.

        Args:
            policies: The policies by name, as for `what_if`: where choices were made by `fit_policy`, those with the
                choices still open, so that the forecast is the cross-fitted one.
            outcome: Report of the run that has the variants `policy:NAME`; this one when None.
            metric: As for `what_if`.
            prices: As for `what_if`.
            runs: As for `what_if`.

        Raises:
            LLMEvaluationError: A policy did not run, a name is unknown, or samples were edited between the runs.

        Example:
            >>> check = report.check_forecast({"careful": cascade}, s.evaluate(task, "policy:careful", name="again"))
        """
        from llmkit.evals.report.decisions import build_check_frame

        ran = self if outcome is None else outcome
        return build_check_frame(self, policies, ran, metric=metric, prices=prices or {}, runs=runs)

    def frontier(
        self,
        metric: str | None = None,
        against: Against = "cost",
        *,
        policies: Mapping[str, Policy] | None = None,
        prices: Prices | None = None,
        runs: Sequence[Analysis] = (),
    ) -> pd.DataFrame:
        """Return which variants and policies are worth their cost: one row each, the columns of `FRONTIER_COLUMNS`.

        `value` is the mean per sample of what `against` names: `cost` in USD, `latency` in ms, `tokens` of input and
        output. A policy is dominated (`dominated_by`) only where another needs no more on these samples and the 95 %
        interval of the paired difference shows that its score is better, or where both score the same on every sample.

        Args:
            metric: The score; defaults to the first one.
            against: `cost`, `latency` or `tokens`.
            policies: As for `what_if`.
            prices: As for `what_if`.
            runs: As for `what_if`.

        Raises:
            LLMEvaluationError: As for `what_if`.
        """
        from llmkit.evals.report.decisions import build_frontier_frame

        return build_frontier_frame(
            self, policies or {}, metric=metric, against=against, prices=prices or {}, runs=runs
        )

    def plot_frontier(
        self,
        metric: str | None = None,
        against: Against = "cost",
        *,
        policies: Mapping[str, Policy] | None = None,
        prices: Prices | None = None,
        runs: Sequence[Analysis] = (),
        ax: Axes | None = None,
    ) -> Axes:
        """Draw `frontier`: the score of each policy with its interval, those on the frontier joined, the others hollow.

        Args:
            metric: As for `frontier`.
            against: As for `frontier`.
            policies: As for `what_if`.
            prices: As for `what_if`.
            runs: As for `what_if`.
            ax: Axes to draw on; None for a new figure.

        Raises:
            LLMEvaluationError: As for `what_if`.
            LLMConfigurationError: matplotlib is not installed.
        """
        from llmkit.evals.report.frontier_plot import plot_frontier

        frame = self.frontier(metric, against, policies=policies, prices=prices, runs=runs)
        return plot_frontier(frame, self.run.name, ax)

    def plot_confusion(self, variant: str | None = None, *, field: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw `confusion`: a row for each class of the targets, coloured by the share of its answers.

        Args:
            variant: As for `confusion`.
            field: As for `confusion`.
            ax: Axes to draw on; None for a new figure.

        Raises:
            LLMEvaluationError: As for `confusion`.
            LLMConfigurationError: matplotlib is not installed.
        """
        from llmkit.evals.report.confusion_plot import plot_confusion

        label = self._choose_variant(variant)
        return plot_confusion(self.confusion(label, field=field), f"{self.run.name}: {label}", ax)

    def ranks(self, metric: str | None = None) -> pd.DataFrame:
        """Return the probability that each variant is the best one, and its rank: the columns of `RANK_COLUMNS`.

        For three or more variants, over the samples that all of them have a score for (`n`; FAILED answers count as the
        worst score). `rank_low` and `rank_high` are 95 % intervals that hold for all variants at once.

        Raises:
            LLMEvaluationError: The metric is unknown.
        """
        from llmkit.evals.report.decisions import build_rank_frame

        return build_rank_frame(self, metric)

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
