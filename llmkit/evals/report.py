"""What an evaluation found, as a value: frames with fixed columns, paired comparisons, a table, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import DigestSeen, EvalResult, EvalRun, RecordedCall, Spent
from llmkit.evals.aggregate import COMPARISON_COLUMNS, SUMMARY_COLUMNS, Cluster, comparison_rows, summary_rows
from llmkit.evals.asked import asked_differently
from llmkit.evals.budget import BudgetUse
from llmkit.evals.dataset import Sample
from llmkit.evals.digests import digest_notes
from llmkit.evals.result import FAILED, IN_PROGRESS, NOT_RUN, SCORER_FAILED, STATUSES, SUCCEEDED, Work, fell_back
from llmkit.evals.steady import steady
from llmkit.evals.terminal import mean_text
from llmkit.evals.views import ATTEMPT_COLUMNS, MISSING_COLUMNS, REPEAT_COLUMNS, attempt_rows, missing_rows, repeat_rows
from llmkit.ports import StoredRun

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from rich.table import Table

    from llmkit.evals.plots import PlotKind, Prices

__all__ = [
    "ATTEMPT_COLUMNS",
    "COMPARISON_COLUMNS",
    "MISSING_COLUMNS",
    "REPEAT_COLUMNS",
    "SAMPLE_COLUMNS",
    "SCORE_PREFIX",
    "SUMMARY_COLUMNS",
    "EvalReport",
]

JSON_FORM = "llmkit-evaluation-1"
SCORE_PREFIX = "score_"

SAMPLE_COLUMNS: Mapping[str, str] = {
    "sample_id": "str",
    "group": "str",
    "route": "str",
    "served_route": "str",
    "fallback": "bool",
    "epoch": "int64",
    "status": "str",
    "error_code": "str",
    "error_message": "str",
    "input": "str",
    "target": "str",
    "output": "str",
    "output_mode": "str",
    "valid_first_try": "boolean",
    "outcome": "str",
    "schema_sha256": "str",
    "scorer_errors": "str",
    "score_details": "str",
    "input_tokens": "Int64",
    "output_tokens": "Int64",
    "latency_ms": "float64",
    "requests": "int64",
    "warnings": "str",
    "finished_at_utc": "datetime64[us, UTC]",
    "pipeline_run_id": "str",
}


@dataclass(frozen=True, repr=False)
class EvalReport:
    """Results of a run and what they mean.

    Attributes:
        run: The run as stored.
        results: All results; those that this call could not get have the status NOT_RUN or IN_PROGRESS.
        dataset: The samples by id, as far as the dataset was at hand.
        in_doubt: Calls that began and never ended, so that they may have been billed.
        work: What was done now; None for a report from the store.
        stopped: Routes that are no longer called, and why.
        digests: The models behind the routes, as far as their servers identify them.
        budget: How much of its budget the run has used; None without one, and for a report from the store.
        spent: What all requests of the run have taken, judges' included, by who answered; of a report from the store.
        recorded: Reads the calls behind the results from the store; it is called when they are needed.
    """

    run: EvalRun
    results: tuple[EvalResult, ...]
    dataset: Mapping[str, Sample] = field(default_factory=dict)
    in_doubt: tuple[StoredRun, ...] = ()
    work: Work | None = None
    stopped: Mapping[str, str] = field(default_factory=dict)
    digests: tuple[DigestSeen, ...] = ()
    budget: BudgetUse | None = None
    spent: tuple[Spent, ...] = ()
    recorded: Callable[[], Sequence[RecordedCall]] = field(default=tuple, compare=False)

    @property
    def has_failures(self) -> bool:
        """Whether any result is not a valid and scored output."""
        return any(result.status != SUCCEEDED for result in self.results)

    @property
    def routes(self) -> tuple[str, ...]:
        """Labels of all routes, in the order in which they were first named."""
        present = dict.fromkeys(result.route for result in self.results)
        named = [label for label in self.run.spec.get("routes", ()) if label in present]
        return tuple(dict.fromkeys([*named, *present]))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all scores in the order of the scorers, those that only failed included."""
        names = {name for result in self.results for name in (*result.scores, *result.scorer_errors)}
        order = list(self.run.spec.get("scorers", ()))
        return tuple(sorted(names, key=lambda name: (_place(name, order), name)))

    @property
    def judges(self) -> dict[str, Any]:
        """Route, prompt, criteria, scale and parameters of each judge, by the name of its metric."""
        return dict(self.run.spec.get("judges", {}))

    @property
    def provenance(self) -> dict[str, Any]:
        """What was run, without secrets, addresses and paths; parts that were not recorded are absent.

        Keys: `task_sha256`, `dataset_sha256`, `scorers_sha256`, `samples` (in the dataset), `epochs`, `routes` (label
        to route, prompt and parameters with the seed, to which each epoch adds one), `models` (route, digest,
        requests; of servers that identify them), and `python`, `platform`, `packages`, `commit`, `settings` and
        `options` of the process that began the run.
        """
        spec = self.run.spec
        known = {name: spec[name] for name in ("scorers_sha256", "samples", "epochs", "routes") if name in spec}
        models = [{"route": str(s.route), "digest": s.digest, "requests": s.requests} for s in self.digests]
        hashes = {"task_sha256": self.run.task_sha256, "dataset_sha256": self.run.dataset_sha256}
        return {**hashes, **known, "models": models, **spec.get("made_with", {})}

    @property
    def counts(self) -> dict[str, int]:
        """How many results have each status."""
        statuses = [result.status for result in self.results]
        return {status: statuses.count(status) for status in STATUSES}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What puts a comparison of the routes in doubt: that they were asked different things."""
        return asked_differently(self.results, self.routes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers has to know, one sentence each; the warnings are among them."""
        return (*_work_notes(self), *_budget_notes(self.budget), *self.lasting_notes)

    @property
    def lasting_notes(self) -> tuple[str, ...]:
        """The notes but for what was done now."""
        own = (*_failure_notes(self), *self.warnings, *_fallback_notes(self))
        return (*own, *digest_notes(self.digests))

    def summary(self, by: Literal["route", "served_route"] = "route") -> pd.DataFrame:
        """One row for each route and metric, with the columns and dtypes of `SUMMARY_COLUMNS`.

        `mean` and its 95 % interval are over scored samples, errors excluded; `mean_failures_as_zero` counts FAILED as
        0. A scorer's own failure, NOT_RUN and IN_PROGRESS are left out of both. `interval` names the method: with
        repeats or groups it is clustered. `valid_first_try` is a share of the samples that got an answer; so are
        `first_try`, `repaired` and `reasked`, and what is left of them got no valid output. Tokens are sums over what
        is known, latencies are of samples with a valid output.

        Args:
            by: `route` groups as assigned, `served_route` by who answered.
        """
        groups: dict[str, list[EvalResult]] = {label: [] for label in self.routes} if by == "route" else {}
        for result in self.results:
            label = result.route if by == "route" else result.served_route
            if label is not None:
                groups.setdefault(label, []).append(result)
        return _frame(summary_rows(groups, self.metrics, self.clusters), SUMMARY_COLUMNS)

    def samples(self) -> pd.DataFrame:
        """One row for each result: `SAMPLE_COLUMNS`, then a float64 column `score_NAME` for each metric.

        Input, target, output, scorer errors, score details (why, by scorer) and warnings are text or JSON text; what is
        unknown is missing, never 0.
        """
        columns = {**SAMPLE_COLUMNS, **{f"{SCORE_PREFIX}{name}": "float64" for name in self.metrics}}
        return _frame((_sample_row(result, self.dataset) for result in self.results), columns)

    def attempts(self) -> pd.DataFrame:
        """Every request that was sent for the results, judges' included, with the columns of `ATTEMPT_COLUMNS`.

        `route` is the label that the sample was asked on, `sent_to` who got the request, `stage` is `sample` or
        `judge`. Read from the store each time; empty for an imported run, whose calls are in another.

        Raises:
            LLMStoreError: The store cannot be read.
        """
        return _frame(attempt_rows(self.results, self.recorded()), ATTEMPT_COLUMNS)

    def repeats(self, k: int, *, right_from: float = 1.0) -> pd.DataFrame:
        """Chances over epochs: one row for each route and metric, with the columns of `REPEAT_COLUMNS`.

        `pass_at_k` is the chance that at least one of `k` repeats of a sample is right, `pass_hat_k` that all are:
        unbiased estimates by sample, averaged, with 95 % intervals over samples. An answer that FAILED is a wrong one;
        `left_out` counts samples with fewer than `k` repeats.

        Args:
            k: How many repeats, at most the number of epochs.
            right_from: The score from which a repeat is right.

        Raises:
            LLMEvaluationError: `k` is below 1.
        """
        if k < 1:
            raise LLMEvaluationError(f"repeats(k) needs k of at least 1; got {k}.")
        rows = repeat_rows(self._by_route(), self.metrics, self.clusters, k, right_from)
        return _frame(rows, REPEAT_COLUMNS)

    def missing(self) -> pd.DataFrame:
        """What results without a score could change: one row for each route and metric, columns of `MISSING_COLUMNS`.

        Every result counts that is not scored, whatever the reason. Three views: `mean_excluded` without them,
        `mean_as_failures` with 0 for them, each with its 95 % interval; and between `worst` (0 for all) and `best` (1
        for all) lies the mean whatever they would have been. For scores outside of 0 to 1 only the first is known.
        """
        return _frame(missing_rows(self._by_route(), self.metrics, self.clusters), MISSING_COLUMNS)

    @property
    def clusters(self) -> dict[str, Cluster]:
        """What each sample is not independent of: its group, or only itself over its epochs."""
        groups = self.run.spec.get("groups", {})
        clusters: dict[str, Cluster] = {}
        for result in self.results:
            sample = self.dataset.get(result.sample_id)
            group = sample.group if sample else groups.get(result.sample_id)
            clusters[result.sample_id] = ("sample", result.sample_id) if group is None else ("group", group)
        return clusters

    def of(self, route: str) -> list[EvalResult]:
        """The results of one route.

        Raises:
            LLMEvaluationError: There is no such route; the message lists those that there are.
        """
        _known("route", route, self.routes)
        return [result for result in self.results if result.route == route]

    def _by_route(self) -> dict[str, list[EvalResult]]:
        groups: dict[str, list[EvalResult]] = {label: [] for label in self.routes}
        for result in self.results:
            groups[result.route].append(result)
        return groups

    def compare(
        self, a: str, b: str | None = None, metric: str | None = None, *, baseline: EvalReport | None = None
    ) -> pd.DataFrame:
        """Route `a` minus route `b` on the same samples: one row for each metric, columns of `COMPARISON_COLUMNS`.

        Pairs are the samples and epochs that both have a score for; `left_out` counts the others. Zeros and ones on
        independent samples get McNemar's exact test, anything else a paired t test, clustered by group, or by sample
        over its epochs. `p_holm` is adjusted for the number of metrics in the frame, `effect` is Cohen's d_z. The
        frame's `attrs["warnings"]` lists what puts the comparison in doubt.

        Args:
            a: Label of a route.
            b: Label of another; `a` again when None, which needs a baseline.
            metric: Only this one.
            baseline: Take `b` from this report instead.

        Raises:
            LLMEvaluationError: A route or metric is unknown, both sides are the same, or samples of one id were edited
                between the two runs.
        """
        from llmkit.evals.plan import require_unedited

        other = self if baseline is None else baseline
        b = a if b is None else b
        if other is self and a == b:
            raise LLMEvaluationError(f"Name two routes to compare; there are: {', '.join(self.routes)}.")
        metrics = [name for name in self.metrics if name in other.metrics]
        if metric is not None:
            metrics = [_known("metric", metric, metrics)]
        ours, theirs = self.of(a), other.of(b)
        require_unedited(ours, theirs)
        rows = comparison_rows(ours, theirs, metrics, {**other.clusters, **self.clusters})
        frame = _frame(({**row, "a": a, "b": b} for row in rows), COMPARISON_COLUMNS)
        frame.attrs["warnings"] = list(_comparison_warnings(self, ours, theirs, other))
        return frame

    def to_json(self, *, stable: bool = False) -> dict[str, Any]:
        """The report as JSON-able data; what is unknown is null.

        Keys: `form`, `run` (id, name, workspace_id, task, task_sha256, dataset_sha256, created_at_utc), `counts`
        (status to number), `work` (reused, rescored, called, replayed, sent, shared, warm_ups; null for a report from
        the store), `summary` (rows of `summary()`), `comparisons` (rows of `compare(a, b)` for all pairs of routes),
        `stopped` (route to reason), `in_doubt` (ids of calls), `judges` (metric to route, prompt, criteria, scale,
        parameters), `budget` (budget with its limits, tokens, cost_usd, uncounted, stopped_by, why; null without one),
        `notes`, `warnings` (those of the notes that put a comparison in doubt), `provenance` (see there).

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
            "work": asdict(self.work) if self.work else None,
            "summary": _json_rows(self.summary()),
            "comparisons": [row for a, b in _pairs(self.routes) for row in _json_rows(self.compare(a, b))],
            "stopped": dict(self.stopped),
            "in_doubt": [str(call.id) for call in self.in_doubt],
            "judges": self.judges,
            "budget": asdict(self.budget) if self.budget else None,
            "notes": list(self.lasting_notes if stable else self.notes),
            "warnings": list(self.warnings),
            "provenance": self.provenance,
        }
        return steady(document) if stable else document

    def to_html(self, file: str | Path, *, stable: bool = False) -> None:
        """Write the report with every sample to one HTML file that needs no network, over an earlier one.

        It holds inputs, targets, prompts and answers as far as they are at hand: see `docs/evaluation.md`. The calls
        are read from the store; those of a replaying session are there until it is closed.

        Args:
            file: Where to.
            stable: As for `to_json`: the same answers give the same bytes.

        Raises:
            LLMEvaluationError: The file cannot be written.
            LLMStoreError: The calls behind the results cannot be read.
        """
        from llmkit.evals.html_report import report_page

        text = report_page(self, stable=stable)
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
        from llmkit.evals.interchange import export_run

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
        """Draw the routes side by side. Nothing is shown and no default of matplotlib changed.

        A notebook shows the figure at the end of its cell, a script saves it by `ax.figure.savefig(...)`. A hollow mark
        has no interval. A route without a score, or with an unknown latency, token count or cost, has no mark and is
        named with what is missing: nothing unknown is drawn as 0.

        Args:
            kind: `score`: means with 95 % intervals by route and metric. `latency`, `tokens`, `cost`: one metric
                against the latency of a sample in ms, its tokens, or the cost of 1,000 samples in USD.
            metric: Those to draw, of one scale; all when None. Against something else it is the first of them.
            prices: For `cost`: by route, what a million tokens of prompts and of answers cost in USD.
            ax: Axes to draw into; a new figure when None.

        Raises:
            LLMConfigurationError: matplotlib is not installed (`pip install 'llmkit[plot]'`).
            LLMEvaluationError: The kind, a metric or a route of `prices` is unknown; the message lists those known.
        """
        from llmkit.evals.plots import plot_report

        return plot_report(self, kind, metric, prices, ax)

    def table(self) -> Table:
        """The summary for a terminal, the notes below it; 80 columns are enough for one metric."""
        from llmkit.evals.terminal import summary_table

        return summary_table(self.run, plain_rows(self.summary()), self.notes)

    def _repr_html_(self) -> str:
        from llmkit.evals.notebook import report_html

        return report_html(self)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items() if count) or "nothing yet"
        rows = [row for row in plain_rows(self.summary()) if row["metric"]]
        scores = [f"  {row['route']}: {row['metric']} {mean_text(row)}" for row in rows]
        return "\n".join([f"EvalReport({self.run.name!r}, task {self.run.task_name}: {counts})", *scores])


def _place(metric: str, scorers: Sequence[str]) -> int:
    """Place of a metric's scorer, of which it is the name or `name.part`; the end for one that is gone."""
    owners = [name for name in scorers if metric == name or metric.startswith(f"{name}.")]
    return scorers.index(max(owners, key=len)) if owners else len(scorers)


def _known(what: str, name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise LLMEvaluationError(f"There is no {what} {name!r}; there are: {', '.join(known) or 'none'}.")
    return name


def _pairs(labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    for number, a in enumerate(labels):
        for b in labels[number + 1 :]:
            yield a, b


def _sample_row(result: EvalResult, dataset: Mapping[str, Sample]) -> dict[str, Any]:
    sample = dataset.get(result.sample_id)
    row: dict[str, Any] = {name: getattr(result, name) for name in SAMPLE_COLUMNS if hasattr(result, name)}
    row |= {
        "group": sample.group if sample else None,
        "input": _as_text(sample.input) if sample else None,
        "target": _as_text(sample.target) if sample else None,
        "output": result.output_json,
        "fallback": fell_back(result),
        "scorer_errors": _as_text(result.scorer_errors) if result.scorer_errors else None,
        "score_details": _as_text(result.score_details) if result.score_details else None,
        "warnings": "\n".join(result.warnings) or None,
        "finished_at_utc": None if result.status in (NOT_RUN, IN_PROGRESS) else result.finished_at_utc,
    }
    return row | {f"{SCORE_PREFIX}{name}": value for name, value in result.scores.items()}


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _frame(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """Exactly these columns, in this order and with these dtypes, also when there are no rows."""
    import pandas as pd

    listed = list(rows)
    return pd.DataFrame(
        {name: pd.Series([row.get(name) for row in listed], dtype=dtype) for name, dtype in columns.items()}
    )


def plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with None for everything that is missing."""
    return [
        {str(name): None if _is_missing(value) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _is_missing(value: Any) -> bool:
    from pandas import isna

    return bool(isna(value))


def _json_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        for row in plain_rows(frame)
    ]


def _work_notes(report: EvalReport) -> Iterator[str]:
    work = report.work
    if work is None:
        return
    total = work.reused + work.called + work.shared
    reused = f"{work.reused:,} of {total:,} results were there already; " if work.reused else ""
    yield f"{reused}{_many(work.sent, 'request')} sent."
    if work.shared:
        yield f"{_many(work.shared, 'result')} made by another process meanwhile."
    if work.rescored:
        yield f"{_many(work.rescored, 'stored output')} scored again without a call."
    if work.replayed:
        yield f"{_many(work.replayed, 'answer')} came from the store."


def _budget_notes(use: BudgetUse | None) -> Iterator[str]:
    if use is None:
        return
    if use.text:
        yield f"The run has spent {use.text}."
    if use.uncounted:
        yield f"{_many(use.uncounted, 'earlier request')} with an unknown end counted as the most that one may take."
    if use.why is not None:
        yield use.why


def _failure_notes(report: EvalReport) -> Iterator[str]:
    counts = report.counts
    for label, reason in report.stopped.items():
        yield f"{label} is no longer called: {reason}"
    if counts[FAILED]:
        codes = [result.error_code or "unknown" for result in report.results if result.status == FAILED]
        listed = ", ".join(f"{code} {codes.count(code)}" for code in sorted(set(codes)))
        yield f"{_many(counts[FAILED], 'sample')} failed ({listed})."
    if counts[SCORER_FAILED]:
        yield f"{_many(counts[SCORER_FAILED], 'answer')} could not be scored: see scorer_errors."
    if counts[NOT_RUN]:
        yield f"{_many(counts[NOT_RUN], 'sample')} did not run; the same name again calls them."
    if counts[IN_PROGRESS]:
        yield f"{_many(counts[IN_PROGRESS], 'sample')} under way in another process."
    if report.in_doubt:
        yield f"{_many(len(report.in_doubt), 'call')} in doubt: begun and never ended, perhaps billed."


def _fallback_notes(report: EvalReport) -> Iterator[str]:
    moved = sum(fell_back(result) for result in report.results)
    if moved:
        yield f"{_many(moved, 'sample')} answered by a fallback; summary(by='served_route') shows who answered."


def _comparison_warnings(
    report: EvalReport, ours: Sequence[EvalResult], theirs: Sequence[EvalResult], other: EvalReport
) -> tuple[str, ...]:
    if other is not report:
        theirs = [replace(result, route=f"{result.route} of {other.run.name}") for result in theirs]
    return asked_differently([*ours, *theirs], ())


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
