"""The results of a run as numbers: frames with fixed columns, and paired comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import DigestSeen, EvalResult, EvalRun, RecordedCall, Spent
from llmkit.evals.budget import BudgetUse
from llmkit.evals.call_names import require_unedited
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.provenance import short_facts
from llmkit.evals.report.aggregate import COMPARISON_COLUMNS, SUMMARY_COLUMNS, Cluster, comparison_rows, summary_rows
from llmkit.evals.report.failure_reasons import reason_sentences
from llmkit.evals.report.frames import SAMPLE_COLUMNS, SCORE_PREFIX, frame_of, sample_row
from llmkit.evals.report.notes import (
    asked_differently,
    budget_notes,
    digest_notes,
    direction_notes,
    doubt_notes,
    failure_notes,
    fallback_notes,
    stop_notes,
    work_notes,
)
from llmkit.evals.report.repeats_missing import (
    ATTEMPT_COLUMNS,
    MISSING_COLUMNS,
    REPEAT_COLUMNS,
    attempt_rows,
    missing_rows,
    repeat_rows,
)
from llmkit.evals.results import STATUSES, SUCCEEDED, Work
from llmkit.ports import StoredRun

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Findings"]


@dataclass(frozen=True, repr=False)
class Findings:
    """Results of a run, and every number that they give: means, comparisons, repeats, what is missing.

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
        """Names of all scores in the order of the scorers, those that only failed included.

        While no answer has come to a scorer, those of the scorers themselves.
        """
        order = list(self.run.spec.get("scorers", ()))
        names = {name for result in self.results for name in (*result.scores, *result.scorer_errors)} or set(order)
        return tuple(sorted(names, key=lambda name: (_place(name, order), name)))

    @property
    def lower_is_better(self) -> frozenset[str]:
        """The metrics of which less is better, as their scorers declare it; parts go with their scorer."""
        declared = self.run.spec.get("lower_is_better", ())
        return frozenset(m for m in self.metrics if any(m == name or m.startswith(f"{name}.") for name in declared))

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
    def what_was_run(self) -> dict[str, str]:
        """The short form of `provenance`, by name: task, hashes, commit, versions of packages, digests of models."""
        return {"task": self.run.task_name, **dict(short_facts(self.provenance))}

    @property
    def counts(self) -> dict[str, int]:
        """How many results have each status."""
        statuses = [result.status for result in self.results]
        return {status: statuses.count(status) for status in STATUSES}

    @property
    def why_failed(self) -> tuple[str, ...]:
        """Why results have no score: a sentence for each of a route's three most frequent reasons, and for the rest."""
        return tuple(reason_sentences(self.results, self.routes))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What puts a comparison of the routes in doubt: that they were asked different things."""
        return asked_differently(self.results, self.routes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers has to know, one sentence each; the warnings are among them."""
        return (*work_notes(self.work), *budget_notes(self.budget), *self.lasting_notes)

    @property
    def lasting_notes(self) -> tuple[str, ...]:
        """The notes but for what was done now."""
        why = self.why_failed
        failures = (*failure_notes(self.results), *why, *stop_notes(self.stopped, why))
        without_score = (*failures, *doubt_notes(len(self.in_doubt)))
        moved = (*fallback_notes(self.results), *digest_notes(self.digests))
        return (*without_score, *self.warnings, *moved, *direction_notes(sorted(self.lower_is_better)))

    def summary(self, by: Literal["route", "served_route"] = "route") -> pd.DataFrame:
        """One row for each route and metric, with the columns and dtypes of `SUMMARY_COLUMNS`.

        `mean` and its 95 % interval are over scored samples, errors excluded; `mean_failures_as_zero` counts FAILED as
        0, or where less is better (`lower_is_better`) as 1, if all scores are within 0 and 1: else the worst is not
        known, and nor is this mean. A scorer's own failure, NOT_RUN and IN_PROGRESS are left out of both. `interval`
        names the method: with repeats or groups it is clustered. `valid_first_try` is a share of the samples that got
        an answer; so are `first_try`, `repaired` and `reasked`, and what is left of them got no valid output. Tokens
        are sums over what is known, latencies are of samples with a valid output.

        Args:
            by: `route` groups as assigned, `served_route` by who answered.
        """
        groups: dict[str, list[EvalResult]] = {label: [] for label in self.routes} if by == "route" else {}
        for result in self.results:
            label = result.route if by == "route" else result.served_route
            if label is not None:
                groups.setdefault(label, []).append(result)
        return frame_of(summary_rows(groups, self.metrics, self.clusters, self.lower_is_better), SUMMARY_COLUMNS)

    def samples(self) -> pd.DataFrame:
        """One row for each result: `SAMPLE_COLUMNS`, then a float64 column `score_NAME` for each metric.

        Input, target, output, scorer errors, score details (why, by scorer) and warnings are text or JSON text; what is
        unknown is missing, never 0.
        """
        columns = {**SAMPLE_COLUMNS, **{f"{SCORE_PREFIX}{name}": "float64" for name in self.metrics}}
        return frame_of((sample_row(result, self.dataset) for result in self.results), columns)

    def attempts(self) -> pd.DataFrame:
        """Every request that was sent for the results, judges' included, with the columns of `ATTEMPT_COLUMNS`.

        `route` is the label that the sample was asked on, `sent_to` who got the request, `stage` is `sample` or
        `judge`. Read from the store each time; empty for an imported run, whose calls are in another.

        Raises:
            LLMStoreError: The store cannot be read.
        """
        return frame_of(attempt_rows(self.results, self.recorded()), ATTEMPT_COLUMNS)

    def repeats(self, k: int, *, right_from: float | None = None) -> pd.DataFrame:
        """Chances over epochs: one row for each route and metric, with the columns of `REPEAT_COLUMNS`.

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
        rows = repeat_rows(self._by_route(), self.metrics, self.clusters, k, right_from, self.lower_is_better)
        return frame_of(rows, REPEAT_COLUMNS)

    def missing(self) -> pd.DataFrame:
        """What results without a score could change: one row for each route and metric, columns of `MISSING_COLUMNS`.

        Every result counts that is not scored, whatever the reason. Three views: `mean_excluded` without them,
        `mean_as_failures` with 0 for them, each with its 95 % interval; and between `worst` (0 for all) and `best` (1
        for all) lies the mean whatever they would have been. Where less is better, 0 and 1 change places. For scores
        outside of 0 to 1 only the first is known.
        """
        return frame_of(
            missing_rows(self._by_route(), self.metrics, self.clusters, self.lower_is_better), MISSING_COLUMNS
        )

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
        self, a: str, b: str | None = None, metric: str | None = None, *, baseline: Findings | None = None
    ) -> pd.DataFrame:
        """Route `a` minus route `b` on the same samples: one row for each metric, columns of `COMPARISON_COLUMNS`.

        Pairs are the samples and epochs that both have a score for; `left_out` counts the others. Zeros and ones on
        independent samples get McNemar's exact test, anything else a paired t test, clustered by group, or by sample
        over its epochs. The difference is that of the numbers, also where less is better (`lower_is_better`). `p_holm`
        is adjusted for the number of metrics in the frame, `effect` is Cohen's d_z. The frame's `attrs["warnings"]`
        lists what puts the comparison in doubt.

        Args:
            a: Label of a route.
            b: Label of another; `a` again when None, which needs a baseline.
            metric: Only this one.
            baseline: Take `b` from this report instead.

        Raises:
            LLMEvaluationError: A route or metric is unknown, both sides are the same, or samples of one id were edited
                between the two runs.
        """
        other = self if baseline is None else baseline
        b = a if b is None else b
        if other is self and a == b:
            raise LLMEvaluationError(f"Name two routes to compare; there are: {', '.join(self.routes)}.")
        metrics = [name for name in self.metrics if name in other.metrics]
        if metric is not None:
            metrics = [_known("metric", metric, metrics)]
        ours, theirs = self.of(a), other.of(b)
        require_unedited(ours, theirs)
        rows = comparison_rows(ours, theirs, metrics, {**other.clusters, **self.clusters}, self.lower_is_better)
        frame = frame_of(({**row, "a": a, "b": b} for row in rows), COMPARISON_COLUMNS)
        frame.attrs["warnings"] = list(_comparison_warnings(self, ours, theirs, other))
        return frame


def _place(metric: str, scorers: Sequence[str]) -> int:
    """Place of a metric's scorer, of which it is the name or `name.part`; the end for one that is gone."""
    owners = [name for name in scorers if metric == name or metric.startswith(f"{name}.")]
    return scorers.index(max(owners, key=len)) if owners else len(scorers)


def _known(what: str, name: str, known: Sequence[str]) -> str:
    if name not in known:
        raise LLMEvaluationError(f"There is no {what} {name!r}; there are: {', '.join(known) or 'none'}.")
    return name


def _comparison_warnings(
    report: Findings, ours: Sequence[EvalResult], theirs: Sequence[EvalResult], other: Findings
) -> tuple[str, ...]:
    if other is not report:
        theirs = [replace(result, route=f"{result.route} of {other.run.name}") for result in theirs]
    return asked_differently([*ours, *theirs], ())
