"""Analysis of a run: frames with fixed columns, paired comparisons and notes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Self

from llmkit.errors import LLMEvaluationError, describe_exception
from llmkit.eval_ports import DigestSeen, EvalResult, EvalRun, EvalSpending, HostDigest, HostUse, RecordedCall
from llmkit.evals.budget import BudgetUse
from llmkit.evals.call_names import require_unedited
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.decide.stopping import DECIDED_CODE, Decision
from llmkit.evals.provenance import short_facts
from llmkit.evals.report.aggregate import (
    COMPARISON_COLUMNS,
    SUMMARY_COLUMNS,
    Cluster,
    build_comparison_rows,
    build_summary_rows,
)
from llmkit.evals.report.coverage import Coverage, measure_coverage, note_coverage, note_limit
from llmkit.evals.report.dataset_metrics import (
    RELIABILITY_COLUMNS,
    AnswerSet,
    DatasetComparison,
    build_confusion,
    build_dataset_rows,
    build_reliability_rows,
    collect_answer_set,
    compare_dataset_metric,
    subtract_all,
)
from llmkit.evals.report.failure_reasons import describe_reasons
from llmkit.evals.report.frames import (
    SAMPLE_COLUMNS,
    SCORE_PREFIX,
    build_frame,
    build_sample_row,
    find_raw_answers,
    sort_results,
    to_plain_rows,
)
from llmkit.evals.report.notes import (
    describe_request_differences,
    note_budget,
    note_decision,
    note_different_hosts,
    note_digests,
    note_direction,
    note_dominant_group,
    note_doubt,
    note_failures,
    note_fallbacks,
    note_hosts,
    note_stops,
    note_supplied,
    note_work,
)
from llmkit.evals.report.repeats_missing import (
    ATTEMPT_COLUMNS,
    MISSING_COLUMNS,
    REPEAT_COLUMNS,
    build_attempt_rows,
    build_missing_rows,
    build_repeat_rows,
)
from llmkit.evals.report.slices import (
    GROUP,
    SMALL_SLICE,
    SliceBy,
    assign_slices,
    name_slicing,
    note_slices,
    order_slices,
)
from llmkit.evals.report.steps import STEP_COLUMNS, build_step_rows
from llmkit.evals.results import NOT_RUN, STATUSES, SUCCEEDED, Work
from llmkit.evals.scorers.dataset_metric import Calibration, ClassMetric, DatasetMetric
from llmkit.evals.tasks.task import Task
from llmkit.ports import StoredRun

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SLICE_COLUMNS", "SLICE_COMPARISON_COLUMNS", "Analysis"]

SLICE_COLUMNS: Mapping[str, str] = {"slice": "str", "is_small": "bool", **SUMMARY_COLUMNS}
SLICE_COMPARISON_COLUMNS: Mapping[str, str] = {"slice": "str", "is_small": "bool", **COMPARISON_COLUMNS}


@dataclass(frozen=True, repr=False)
class Analysis:
    """Results of a run and the numbers derived from them: means, comparisons, repeats, missing data.

    Attributes:
        run: The run as stored.
        results: All results, with placeholders (NOT_RUN or IN_PROGRESS) for samples that this call did not finish.
        dataset: Samples by id; empty when the dataset was not available.
        in_doubt: Calls that started but never finished, so they may have been billed.
        work: The work of this call; None for a report from the store.
        stopped: Routes that are no longer called, and why.
        digests: The models behind the routes, as far as their servers identify them.
        hosts: Requests of each machine to each route.
        host_digests: The models as each machine has them.
        budget: Use of the budget; None without one, and for a report from the store.
        decision: State of the stop rule; None without one.
        spent: Tokens and money by answering route, judges included; only for a report from the store.
        load_calls: Reads the calls behind the results from the store when they are needed.
        slice_of: What the slice was made by, and its name; None for the report of a whole run.
        task: The task, whose metrics over the data set are computed; None for a report without it. Copies and pickles
            of a report have none, because a task may have functions that cannot be copied.
    """

    run: EvalRun
    results: tuple[EvalResult, ...]
    dataset: Mapping[str, Sample] = field(default_factory=dict)
    in_doubt: tuple[StoredRun, ...] = ()
    work: Work | None = None
    stopped: Mapping[str, str] = field(default_factory=dict)
    digests: tuple[DigestSeen, ...] = ()
    hosts: tuple[HostUse, ...] = ()
    host_digests: tuple[HostDigest, ...] = ()
    budget: BudgetUse | None = None
    decision: Decision | None = None
    spent: tuple[EvalSpending, ...] = ()
    load_calls: Callable[[], Sequence[RecordedCall]] = field(default=tuple, compare=False)
    slice_of: tuple[str, str] | None = None
    task: Task | None = field(default=None, compare=False)
    # A bootstrap takes a moment, and a page needs its numbers several times. Not copied by `replace`.
    _estimates: dict[str, Any] = field(default_factory=dict, init=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "task": None, "_estimates": {}}

    @property
    def has_failures(self) -> bool:
        """Whether any result is not a valid, scored output. Samples that a decision made unnecessary do not count."""
        return any(
            result.status != SUCCEEDED and not (result.status == NOT_RUN and result.error_code == DECIDED_CODE)
            for result in self.results
        )

    @property
    def variants(self) -> tuple[str, ...]:
        """Labels of all variants, in the order in which they were first named."""
        present = dict.fromkeys(result.route for result in self.results)
        named = [label for label in self.run.spec.get("routes", ()) if label in present]
        return tuple(dict.fromkeys([*named, *present]))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all scores in the order of the scorers, including those that only failed.

        These are the names of the scorers until the first answer was scored.
        """
        order = list(self.run.spec.get("scorers", ()))
        names = {name for result in self.results for name in (*result.scores, *result.scorer_errors)} or set(order)
        return tuple(sorted(names, key=lambda name: (_rank_metric(name, order), name)))

    @property
    def lower_is_better(self) -> frozenset[str]:
        """The metrics of which less is better, as declared by their scorers; parts follow their scorer."""
        declared = self.run.spec.get("lower_is_better", ())
        return frozenset(m for m in self.metrics if any(m == name or m.startswith(f"{name}.") for name in declared))

    @property
    def judges(self) -> dict[str, Any]:
        """Route, prompt, criteria, scale and parameters of each judge, by the name of its metric."""
        return dict(self.run.spec.get("judges", {}))

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, hashes and settings of the run, without secrets, addresses and paths.

        Keys: `task_sha256`, `dataset_sha256`, `scorers_sha256`, `samples` (in the dataset), `epochs`, `routes` (label
        of a variant to route, prompt and parameters with the seed, to which each epoch adds one), `models` (route,
        digest, requests; only of servers that identify them), and `python`, `platform`, `packages`, `commit`,
        `settings` and `options` of the process that started the run. Keys that were not recorded are absent.
        """
        spec = self.run.spec
        known = {name: spec[name] for name in ("scorers_sha256", "samples", "epochs", "routes") if name in spec}
        models = [{"route": str(s.route), "digest": s.digest, "requests": s.requests} for s in self.digests]
        hashes = {"task_sha256": self.run.task_sha256, "dataset_sha256": self.run.dataset_sha256}
        return {**hashes, **known, "models": models, **spec.get("made_with", {})}

    @property
    def provenance_summary(self) -> dict[str, str]:
        """The short form of `provenance`, by name: task, hashes, commit, versions of packages, digests of models."""
        return {"task": self.run.task_name, **dict(short_facts(self.provenance))}

    @property
    def counts(self) -> dict[str, int]:
        """Number of results by status."""
        statuses = [result.status for result in self.results]
        counts = {status: statuses.count(status) for status in STATUSES}
        # A report from the store has no placeholders for samples that did not run.
        return counts | {NOT_RUN: sum(each.not_run for each in self.coverage.values())}

    @property
    def coverage(self) -> dict[str, Coverage]:
        """The number of samples with a result, and of those to run, by variant."""
        return measure_coverage(self.run, self._group_by_variant())

    @property
    def failure_summary(self) -> tuple[str, ...]:
        """Sentences on the three most frequent failure reasons of each variant, and on the rest."""
        return tuple(describe_reasons(self.results, self.variants))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings that put a comparison in doubt: the variants were sent different requests."""
        return describe_request_differences(self.results, self.variants)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes that a reader of the numbers needs, one sentence each, including the warnings."""
        return (*note_work(self.work), *note_budget(self.budget), *self.stable_notes)

    @property
    def stable_notes(self) -> tuple[str, ...]:
        """The notes without those on the work of this call."""
        why = self.failure_summary
        is_supplied = bool(self.run.spec.get("supplied"))
        read = (*note_supplied(self.run), *note_limit(self.run), *note_coverage(self.coverage, is_supplied=is_supplied))
        failures = (*read, *note_failures(self.results), *why, *note_stops(self.stopped, why))
        without_score = (*failures, *note_doubt(len(self.in_doubt)))
        moved = (*note_fallbacks(self.results), *note_digests(self.digests))
        moved = (*moved, *note_hosts(self.hosts), *note_different_hosts(self.host_digests))
        lower = sorted(self.lower_is_better) + [m.name for m in self._list_dataset_metrics() if m.lower_is_better]
        reading = (*note_direction(lower), *note_dominant_group(self.clusters), *self._note_dataset_metrics())
        return (*note_decision(self.decision), *without_score, *self.warnings, *moved, *reading)

    def _note_dataset_metrics(self) -> Iterator[str]:
        """Note the metrics over the data set that raised something."""
        problems: dict[str, None] = {}
        for label in self.variants:
            for metric in self._list_dataset_metrics():
                try:
                    if metric.over == "samples":
                        metric(self._get_answers(label).exclude_failed().get_for(metric))
                except Exception as error:  # noqa: BLE001 (the user's function may raise anything)
                    problems[f"The metric {metric.name} failed on {label}: {describe_exception(error)}"] = None
        yield from problems

    def summary(self, by: SliceBy = "variant") -> pd.DataFrame:
        """Return one row for each variant and metric, with the columns and dtypes of `SUMMARY_COLUMNS`.

        `mean` and its 95 % interval are over scored samples, errors excluded; `mean_failures_as_zero` counts FAILED as
        0, or where less is better (`lower_is_better`) as 1, if all scores are within 0 and 1: else the worst is not
        known, and nor is this mean. A scorer's own failure, NOT_RUN and IN_PROGRESS are left out of both. `interval`
        names the method: with repeats or groups it is clustered. `valid_first_try` is a share of the samples that got
        an answer; so are `first_try`, `repaired` and `reasked`, and what is left of them got no valid output. Tokens
        are sums over what is known, latencies are of samples with a valid output.

        Args:
            by: `variant` groups results as assigned, `served_route` by the route that answered. Anything else makes
                slices, as for `slices`: a row for each slice, variant and metric, with the columns of `SLICE_COLUMNS`.
                `is_small` marks slices of fewer than 20 samples.

        Raises:
            LLMEvaluationError: There are no such slices.
        """
        if by not in ("variant", "served_route"):
            rows: list[dict[str, Any]] = []
            for name, part in self.slices(by).items():
                own = {"slice": name, "is_small": len(part.clusters) < SMALL_SLICE}
                rows += [own | row for row in to_plain_rows(part.summary())]
            return build_frame(rows, SLICE_COLUMNS)
        groups: dict[str, list[EvalResult]] = {label: [] for label in self.variants} if by == "variant" else {}
        totals = {label: each.total for label, each in self.coverage.items()} if by == "variant" else {}
        for result in self.results:
            label = result.route if by == "variant" else result.served_route
            if label is not None:
                groups.setdefault(label, []).append(result)
        of_all = {label: self._build_dataset_rows(label) for label in groups} if by == "variant" else {}
        return build_frame(
            build_summary_rows(groups, self.metrics, self.clusters, self.lower_is_better, totals, of_all),
            SUMMARY_COLUMNS,
        )

    @property
    def dataset_metrics(self) -> tuple[str, ...]:
        """Names of the metrics over the data set and their parts; none without the task (`report(name, task=...)`)."""
        names = (row["metric"] for label in self.variants for row in self._build_dataset_rows(label))
        return tuple(dict.fromkeys(names))

    @property
    def main_dataset_metrics(self) -> tuple[str, ...]:
        """Those of them that are no parts of another."""
        return tuple(metric.name for metric in self._list_dataset_metrics())

    def _list_dataset_metrics(self) -> tuple[DatasetMetric, ...]:
        return self.task.dataset_metrics if self.task is not None and self.dataset else ()

    def _get_answers(self, variant: str) -> AnswerSet:
        assert self.task is not None
        key = f"answers of {variant}"
        if key not in self._estimates:
            self._estimates[key] = collect_answer_set(self.of(variant), self.dataset, self.clusters, self.task)
        found: AnswerSet = self._estimates[key]
        return found

    def _build_dataset_rows(self, variant: str) -> list[dict[str, Any]]:
        key = f"rows of {variant}"
        if key not in self._estimates:
            self._estimates[key] = [
                row
                for metric in self._list_dataset_metrics()
                for row in build_dataset_rows(metric, self._get_answers(variant))
            ]
        rows: list[dict[str, Any]] = self._estimates[key]
        return rows

    def compare_dataset_metrics(
        self, a: str, b: str, baseline: Analysis | None = None, *, failed: bool = False
    ) -> dict[str, DatasetComparison]:
        """Compare the metrics over the data set of two variants, by name; empty without the task.

        Args:
            a: Label of a variant.
            b: Label of another.
            baseline: Take `b` from this report instead.
            failed: Count FAILED answers as answers of None, instead of leaving them out.
        """
        other = self if baseline is None else baseline
        if other.task is None or not other.dataset:
            return {}
        ours, theirs = self._get_answers(a), other._get_answers(b)  # noqa: SLF001 (another object of the class)
        if not failed:
            ours, theirs = ours.exclude_failed(), theirs.exclude_failed()
        found: dict[str, DatasetComparison] = {}
        for metric in self._list_dataset_metrics():
            with suppress(LLMEvaluationError):  # stated in the notes, and another metric may work
                found |= compare_dataset_metric(metric, ours, theirs)
        return found

    def _subtract_dataset_metrics(self, a: str, b: str, other: Analysis) -> dict[str, float]:
        ours, theirs = self._get_answers(a), other._get_answers(b)
        found: dict[str, float] = {}
        for metric in self._list_dataset_metrics():
            found |= subtract_all(metric, ours, theirs)
        return found

    def confusion(self, variant: str | None = None, *, field: str | None = None) -> pd.DataFrame:
        """Return how often each class of the targets (rows) got each class of answers (columns).

        The column `(failed)` counts answers without a valid output.

        Args:
            variant: Label of a variant; None for the only one.
            field: Name or dotted path of the class; None for that of the first class metric of the task, or for an
                output type with one field.

        Raises:
            LLMEvaluationError: The variant is unknown, or the task is not at hand.
        """
        import pandas as pd

        label = self._choose_variant(variant)
        known = [each for each in self._list_dataset_metrics() if isinstance(each, ClassMetric)]
        metric = known[0] if field is None and known else ClassMetric("confusion", (field,) if field else ())
        self._require_task("confusion")
        classes, columns, counts = build_confusion(metric, self._get_answers(label))
        index = pd.Index(classes, name="target", dtype="str")
        return pd.DataFrame(counts, index=index, columns=pd.Index(columns, name="answer", dtype="str"), dtype="int64")

    def reliability(self, *, field: str | None = None, metric: str | None = None, bins: int = 10) -> pd.DataFrame:
        """Return how often answers of each stated confidence were right: a row for each variant and bin.

        Args:
            field: Field of the confidence; None for that of the task's `calibration`, or else `confidence`.
            metric: Score of which 1 means right; the first one when None.
            bins: Number of bins of equal width.

        Raises:
            LLMEvaluationError: The task is not at hand, or a confidence is not within 0 and 1.
        """
        self._require_task("reliability")
        known = [each for each in self._list_dataset_metrics() if isinstance(each, Calibration)]
        made = Calibration("reliability", (field or "confidence",), metric=metric, bins=bins)
        chosen = known[0] if known and field is None and metric is None else made
        try:
            rows = [
                row
                for label in self.variants
                for row in build_reliability_rows(chosen, label, self._get_answers(label))
            ]
        except (ValueError, TypeError) as error:
            raise LLMEvaluationError(f"There is no confidence to read: {error}.") from None
        return build_frame(rows, RELIABILITY_COLUMNS)

    def _require_task(self, what: str) -> None:
        if self.task is None or not self.dataset:
            raise LLMEvaluationError(f"{what} needs the samples: session.report(name, task=task).")

    def _choose_variant(self, variant: str | None) -> str:
        if variant is None and len(self.variants) == 1:
            return self.variants[0]
        if variant is None:
            raise LLMEvaluationError(f"Name a variant; there are: {', '.join(self.variants)}.")
        return _require_known("variant", variant, self.variants)

    def slices(self, by: SliceBy) -> dict[str, Self]:
        """Return a report for each slice of the samples, by name.

        Samples of one group depend on each other, so that intervals are clustered by group. A slice that is one group
        is about that group alone: there, samples count as independent.

        Args:
            by: `group`; a field, such as `metadata.language` or `input.kind`; or a function of the sample. All but
                groups need the samples: `session.report(name, task=task)`.

        Raises:
            LLMEvaluationError: There is no such field, or the samples are not at hand.
        """
        slice_by_id = assign_slices(self.clusters, self.dataset, by)
        what = name_slicing(by)
        parts: dict[str, Self] = {}
        for name in order_slices(tuple(slice_by_id.values())):
            ids = {sample_id for sample_id, own in slice_by_id.items() if own == name}
            spec = {**self.run.spec, "samples": len(ids)} if "samples" in self.run.spec else self.run.spec
            parts[name] = replace(
                self,
                run=replace(self.run, spec=spec),
                results=tuple(result for result in self.results if result.sample_id in ids),
                dataset={sample_id: sample for sample_id, sample in self.dataset.items() if sample_id in ids},
                work=None,
                in_doubt=(),
                budget=None,
                decision=None,
                slice_of=(what, name),
            )
        return parts

    def samples(self) -> pd.DataFrame:
        """Return one row for each result: `SAMPLE_COLUMNS`, then a float64 column `score_NAME` for each metric.

        Samples are in the order of the dataset; without it (`report(name, task=...)` adds it) they are ordered by id.
        Input, target, output, scorer errors, score details (why, by scorer) and warnings are text or JSON text; unknown
        values are missing, never 0. `raw_answer` is what the model answered where no valid output came of it, redacted
        and shortened as in `Session.runs`.

        Raises:
            LLMStoreError: An answer failed, and the calls cannot be read from the store.
        """
        columns = {**SAMPLE_COLUMNS, **{f"{SCORE_PREFIX}{name}": "float64" for name in self.metrics}}
        answers = find_raw_answers(self.results, self.load_calls)
        rows = (
            build_sample_row(result, self.dataset) | {"raw_answer": answers.get(result.pipeline_run_id)}
            for result in sort_results(self.results, self.dataset, self.variants)
        )
        return build_frame(rows, columns)

    def attempts(self) -> pd.DataFrame:
        """Return every request sent for the results, including judges', with the columns of `ATTEMPT_COLUMNS`.

        `variant` is the label that was evaluated, `sent_to` the route that got the request, `stage` is `sample` or
        `judge`. `status` is that of the request: an answered one SUCCEEDED, even if no valid output came of it.
        `sample_status` and `sample_error_code` are those of the sample. Read from the store each time; empty for an
        imported run, whose calls are in another.

        Raises:
            LLMStoreError: The store cannot be read.
        """
        return build_frame(build_attempt_rows(self.results, self.load_calls()), ATTEMPT_COLUMNS)

    def steps(self) -> pd.DataFrame:
        """Return what the calls of a solve function took, by variant and step, with the columns of `STEP_COLUMNS`.

        The step `all` is the whole sample: its `latency_ms` is the mean over samples, that of the others the mean over
        calls. A step is named by `step=`, or numbered. Read from the store each time; empty for other tasks, and for an
        imported run.

        Raises:
            LLMStoreError: The store cannot be read.
        """
        return build_frame(build_step_rows(self.results, self.load_calls()), STEP_COLUMNS)

    def repeats(self, k: int, *, right_from: float | None = None) -> pd.DataFrame:
        """Return chances over epochs: one row for each variant and metric, with the columns of `REPEAT_COLUMNS`.

        `pass_at_k` is the chance that at least one of `k` repeats of a sample is right, `pass_hat_k` that all are:
        unbiased estimates by sample, averaged, with 95 % intervals over samples. An answer that FAILED is a wrong one;
        `left_out` counts samples with fewer than `k` repeats.

        Args:
            k: How many repeats, at most the number of epochs.
            right_from: The score from which a repeat is right, or where less is better down from which; 1 and 0 when
                None.

        Raises:
            LLMEvaluationError: `k` is below 1.
        """
        if k < 1:
            raise LLMEvaluationError(f"repeats(k) needs k of at least 1; got {k}.")
        rows = build_repeat_rows(
            self._group_by_variant(), self.metrics, self.clusters, k, right_from, self.lower_is_better
        )
        return build_frame(rows, REPEAT_COLUMNS)

    def missing(self) -> pd.DataFrame:
        """Return the effect of results without a score: a row for each variant and metric, `MISSING_COLUMNS`.

        Every result counts that is not scored, whatever the reason. Three views: `mean_excluded` without them,
        `mean_as_failures` with 0 for them, each with its 95 % interval; and between `worst` (0 for all) and `best` (1
        for all) lies the mean whatever they would have been. Where less is better, 0 and 1 change places. For scores
        outside of 0 to 1 only the first is known.
        """
        groups, totals = self._group_by_variant(), {label: each.total for label, each in self.coverage.items()}
        return build_frame(
            build_missing_rows(groups, self.metrics, self.clusters, self.lower_is_better, totals),
            MISSING_COLUMNS,
        )

    @property
    def clusters(self) -> dict[str, Cluster]:
        """The cluster of each sample: its group, or the sample itself over its epochs."""
        groups = self.run.spec.get("groups", {})
        clusters: dict[str, Cluster] = {}
        for result in self.results:
            sample = self.dataset.get(result.sample_id)
            group = sample.group if sample else groups.get(result.sample_id)
            if self.slice_of is not None and self.slice_of[0] == GROUP:
                group = None
            clusters[result.sample_id] = ("sample", result.sample_id) if group is None else ("group", group)
        return clusters

    def of(self, variant: str) -> list[EvalResult]:
        """Return the results of one variant.

        Raises:
            LLMEvaluationError: There is no such variant; the message lists the known ones.
        """
        _require_known("variant", variant, self.variants)
        return [result for result in self.results if result.route == variant]

    def _group_by_variant(self) -> dict[str, list[EvalResult]]:
        groups: dict[str, list[EvalResult]] = {label: [] for label in self.variants}
        for result in self.results:
            groups[result.route].append(result)
        return groups

    def compare(
        self,
        a: str | None = None,
        b: str | None = None,
        metric: str | Sequence[str] | None = None,
        *,
        baseline: Analysis | None = None,
        by: SliceBy | None = None,
    ) -> pd.DataFrame:
        """Compare `a` minus `b` on the same samples: one row for each metric, columns of `COMPARISON_COLUMNS`.

        Without `a` and `b` all pairs of variants are compared, or with a baseline each variant with that of its name.

        Pairs are the samples and epochs that both have a score for; `left_out` counts the others. Zeros and ones on
        independent samples get McNemar's exact test, anything else a paired t test, clustered by group, or by sample
        over its epochs. The difference is not turned round where less is better (`lower_is_better`). `p_holm`
        is adjusted for the number of rows in the frame, `effect` is Cohen's d_z. The frame's `attrs["warnings"]`
        lists what puts the comparison in doubt.

        Args:
            a: Label of a variant.
            b: Label of another; defaults to `a`, which needs a baseline.
            metric: Only this one, or these.
            baseline: Take `b` from this report instead.
            by: Compare within each slice, as for `slices`: the columns of `SLICE_COMPARISON_COLUMNS`, with `p_holm`
                adjusted for all rows.

        Raises:
            LLMEvaluationError: A variant, metric or slice is unknown, both sides are the same, there is only one
                variant, or samples were edited between the two runs.
        """
        from llmkit.evals.statistics import adjust_holm

        if by is not None:
            return self._compare_slices(a, b, metric, baseline, by)
        other = self if baseline is None else baseline
        metrics = [name for name in self.metrics if name in other.metrics]
        of_all = list(self.main_dataset_metrics)
        if metric is not None:
            wanted = (metric,) if isinstance(metric, str) else metric
            of_all = [name for name in wanted if name in self.dataset_metrics]
            metrics = [_require_known("metric", name, metrics) for name in wanted if name not in of_all]
        clusters = {**other.clusters, **self.clusters}
        rows: list[dict[str, Any]] = []
        warnings: list[str] = []
        for first, second in self._choose_pairs(a, b, other):
            ours, theirs = self.of(first), other.of(second)
            require_unedited(ours, theirs)
            own = build_comparison_rows(ours, theirs, metrics, clusters, self.lower_is_better)
            if of_all:
                strict = self.compare_dataset_metrics(first, second, baseline)
                lenient = self._subtract_dataset_metrics(first, second, other)
                own += [
                    {**strict[name].row, "difference_failures_as_zero": lenient.get(name, math.nan)}
                    for name in of_all
                    if name in strict
                ]
            rows += [{**row, "a": first, "b": second} for row in own]
            warnings += _find_comparison_warnings(self, ours, theirs, other)
        adjusted = adjust_holm([row["p_value"] for row in rows])
        frame = build_frame(
            ({**row, "p_holm": float(value)} for row, value in zip(rows, adjusted, strict=True)), COMPARISON_COLUMNS
        )
        frame.attrs["warnings"] = list(dict.fromkeys(warnings))
        return frame

    def _compare_slices(
        self,
        a: str | None,
        b: str | None,
        metric: str | Sequence[str] | None,
        baseline: Analysis | None,
        by: SliceBy,
    ) -> pd.DataFrame:
        from llmkit.evals.statistics import adjust_holm

        parts, others = self.slices(by), None if baseline is None else baseline.slices(by)
        rows: list[dict[str, Any]] = []
        warnings: list[str] = []
        for name, part in parts.items():
            if others is not None and name not in others:
                warnings.append(f"The baseline has no slice {name}.")
                continue
            found = part.compare(a, b, metric, baseline=None if others is None else others[name])
            own = {"slice": name, "is_small": len(part.clusters) < SMALL_SLICE}
            rows += [own | row for row in to_plain_rows(found)]
            warnings += found.attrs["warnings"]
        adjusted = adjust_holm([row["p_value"] for row in rows])
        frame = build_frame(
            ({**row, "p_holm": float(value)} for row, value in zip(rows, adjusted, strict=True)),
            SLICE_COMPARISON_COLUMNS,
        )
        warnings += note_slices(by, {name: len(part.clusters) for name, part in parts.items()}, len(rows))
        frame.attrs["warnings"] = list(dict.fromkeys(warnings))
        return frame

    def _choose_pairs(self, a: str | None, b: str | None, other: Analysis) -> list[tuple[str, str]]:
        if a is None and b is None:
            if other is not self:
                pairs = [(label, label) for label in self.variants if label in other.variants]
            else:
                pairs = list(combinations(self.variants, 2))
            if pairs:
                return pairs
        first = b if a is None else a
        second = a if b is None else b
        if first is None or second is None or (other is self and first == second):
            raise LLMEvaluationError(f"Name two variants to compare; there are: {', '.join(self.variants)}.")
        return [(first, second)]


def _rank_metric(metric: str, scorers: Sequence[str]) -> int:
    """Return the position of the scorer that owns a metric (`name` or `name.part`); the end if it is gone."""
    owners = [name for name in scorers if metric == name or metric.startswith(f"{name}.")]
    return scorers.index(max(owners, key=len)) if owners else len(scorers)


def _require_known(what: str, name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise LLMEvaluationError(f"There is no {what} {name!r}; there are: {', '.join(known) or 'none'}.")
    return name


def _find_comparison_warnings(
    report: Analysis, ours: Sequence[EvalResult], theirs: Sequence[EvalResult], other: Analysis
) -> tuple[str, ...]:
    if other is not report:
        theirs = [replace(result, route=f"{result.route} of {other.run.name}") for result in theirs]
    return describe_request_differences([*ours, *theirs], ())
