"""Analysis of a run: frames with fixed columns, paired comparisons and notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import DigestSeen, EvalResult, EvalRun, EvalSpending, RecordedCall
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
from llmkit.evals.report.failure_reasons import describe_reasons
from llmkit.evals.report.frames import (
    SAMPLE_COLUMNS,
    SCORE_PREFIX,
    build_frame,
    build_sample_row,
    find_raw_answers,
    sort_results,
)
from llmkit.evals.report.notes import (
    describe_request_differences,
    note_budget,
    note_decision,
    note_digests,
    note_direction,
    note_dominant_group,
    note_doubt,
    note_failures,
    note_fallbacks,
    note_stops,
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
from llmkit.evals.results import NOT_RUN, STATUSES, SUCCEEDED, Work
from llmkit.ports import StoredRun

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Analysis"]


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
        budget: Use of the budget; None without one, and for a report from the store.
        decision: State of the stop rule; None without one.
        spent: Tokens and money by answering route, judges included; only for a report from the store.
        load_calls: Reads the calls behind the results from the store when they are needed.
    """

    run: EvalRun
    results: tuple[EvalResult, ...]
    dataset: Mapping[str, Sample] = field(default_factory=dict)
    in_doubt: tuple[StoredRun, ...] = ()
    work: Work | None = None
    stopped: Mapping[str, str] = field(default_factory=dict)
    digests: tuple[DigestSeen, ...] = ()
    budget: BudgetUse | None = None
    decision: Decision | None = None
    spent: tuple[EvalSpending, ...] = ()
    load_calls: Callable[[], Sequence[RecordedCall]] = field(default=tuple, compare=False)

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
        read = (*note_limit(self.run), *note_coverage(self.coverage))
        failures = (*read, *note_failures(self.results), *why, *note_stops(self.stopped, why))
        without_score = (*failures, *note_doubt(len(self.in_doubt)))
        moved = (*note_fallbacks(self.results), *note_digests(self.digests))
        reading = (*note_direction(sorted(self.lower_is_better)), *note_dominant_group(self.clusters))
        return (*note_decision(self.decision), *without_score, *self.warnings, *moved, *reading)

    def summary(self, by: Literal["variant", "served_route"] = "variant") -> pd.DataFrame:
        """Return one row for each variant and metric, with the columns and dtypes of `SUMMARY_COLUMNS`.

        `mean` and its 95 % interval are over scored samples, errors excluded; `mean_failures_as_zero` counts FAILED as
        0, or where less is better (`lower_is_better`) as 1, if all scores are within 0 and 1: else the worst is not
        known, and nor is this mean. A scorer's own failure, NOT_RUN and IN_PROGRESS are left out of both. `interval`
        names the method: with repeats or groups it is clustered. `valid_first_try` is a share of the samples that got
        an answer; so are `first_try`, `repaired` and `reasked`, and what is left of them got no valid output. Tokens
        are sums over what is known, latencies are of samples with a valid output.

        Args:
            by: `variant` groups results as assigned, `served_route` by the route that answered.
        """
        groups: dict[str, list[EvalResult]] = {label: [] for label in self.variants} if by == "variant" else {}
        totals = {label: each.total for label, each in self.coverage.items()} if by == "variant" else {}
        for result in self.results:
            label = result.route if by == "variant" else result.served_route
            if label is not None:
                groups.setdefault(label, []).append(result)
        return build_frame(
            build_summary_rows(groups, self.metrics, self.clusters, self.lower_is_better, totals), SUMMARY_COLUMNS
        )

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

        Raises:
            LLMEvaluationError: A variant or metric is unknown, both sides are the same, there is only one variant, or
                samples were edited between the two runs.
        """
        from llmkit.evals.statistics import adjust_holm

        other = self if baseline is None else baseline
        metrics = [name for name in self.metrics if name in other.metrics]
        if metric is not None:
            wanted = (metric,) if isinstance(metric, str) else metric
            metrics = [_require_known("metric", name, metrics) for name in wanted]
        clusters = {**other.clusters, **self.clusters}
        rows: list[dict[str, Any]] = []
        warnings: list[str] = []
        for first, second in self._choose_pairs(a, b, other):
            ours, theirs = self.of(first), other.of(second)
            require_unedited(ours, theirs)
            own = build_comparison_rows(ours, theirs, metrics, clusters, self.lower_is_better)
            rows += [{**row, "a": first, "b": second} for row in own]
            warnings += _find_comparison_warnings(self, ours, theirs, other)
        adjusted = adjust_holm([row["p_value"] for row in rows])
        frame = build_frame(
            ({**row, "p_holm": float(value)} for row, value in zip(rows, adjusted, strict=True)), COMPARISON_COLUMNS
        )
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
