"""What an evaluation found, as a value: frames with fixed columns, paired comparisons, a table, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llmkit.errors import LLMEvaluationError
from llmkit.evals.dataset import Sample
from llmkit.ports import EvalResult, EvalRun, StoredRun

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

__all__ = [
    "COMPARISON_COLUMNS",
    "FAILED",
    "FALLBACK_WARNING",
    "IN_PROGRESS",
    "NOT_RUN",
    "SAMPLE_COLUMNS",
    "SCORER_FAILED",
    "STATUSES",
    "SUCCEEDED",
    "SUMMARY_COLUMNS",
    "EvalReport",
    "ResultKey",
    "Work",
    "key_of",
]

SUCCEEDED = "SUCCEEDED"
FAILED = "FAILED"
SCORER_FAILED = "SCORER_FAILED"
NOT_RUN = "NOT_RUN"
IN_PROGRESS = "IN_PROGRESS"
STATUSES = (SUCCEEDED, FAILED, SCORER_FAILED, NOT_RUN, IN_PROGRESS)

FALLBACK_WARNING = "fallback:"
SCORE_PREFIX = "score_"
JSON_FORM = "llmkit-evaluation-1"

SUMMARY_COLUMNS: Mapping[str, str] = {
    "route": "str",
    "metric": "str",
    "n": "int64",
    "scored": "int64",
    "failed": "int64",
    "scorer_failed": "int64",
    "not_run": "int64",
    "in_progress": "int64",
    "mean": "float64",
    "ci_low": "float64",
    "ci_high": "float64",
    "standard_error": "float64",
    "interval": "str",
    "mean_failures_as_zero": "float64",
    "valid_first_try": "float64",
    "fallbacks": "int64",
    "requests": "int64",
    "input_tokens": "Int64",
    "output_tokens": "Int64",
    "latency_p50_ms": "float64",
    "latency_p95_ms": "float64",
}

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
    "scorer_errors": "str",
    "input_tokens": "Int64",
    "output_tokens": "Int64",
    "latency_ms": "float64",
    "requests": "int64",
    "warnings": "str",
    "finished_at_utc": "datetime64[us, UTC]",
    "pipeline_run_id": "str",
}

COMPARISON_COLUMNS: Mapping[str, str] = {
    "metric": "str",
    "a": "str",
    "b": "str",
    "pairs": "int64",
    "left_out": "int64",
    "mean_a": "float64",
    "mean_b": "float64",
    "difference": "float64",
    "ci_low": "float64",
    "ci_high": "float64",
    "standard_error": "float64",
    "p_value": "float64",
    "p_holm": "float64",
    "effect": "float64",
    "method": "str",
    "clusters": "int64",
    "difference_failures_as_zero": "float64",
}


class ResultKey(NamedTuple):
    """Which result: one sample on one route in one epoch."""

    sample_id: str
    route: str
    epoch: int


def key_of(result: EvalResult) -> ResultKey:
    """The key of a result."""
    return ResultKey(result.sample_id, result.route, result.epoch)


@dataclass(frozen=True, slots=True)
class Work:
    """What one call of `evaluate` did.

    Attributes:
        reused: Results that were there already.
        rescored: Stored outputs that were scored again.
        called: Samples asked now, replayed ones included.
        replayed: Of those, answered wholly from the store.
        sent: Requests sent to providers.
    """

    reused: int = 0
    rescored: int = 0
    called: int = 0
    replayed: int = 0
    sent: int = 0


@dataclass(frozen=True)
class EvalReport:
    """Results of a run and what they mean.

    Attributes:
        run: The run as stored.
        results: All results; those that this call could not get have the status NOT_RUN or IN_PROGRESS.
        samples: The samples by id, as far as the dataset was at hand.
        in_doubt: Calls that began and never ended, so that they may have been billed.
        work: What was done now; None for a report from the store.
        stopped: Routes that are no longer called, and why.
    """

    run: EvalRun
    results: tuple[EvalResult, ...]
    samples: Mapping[str, Sample] = field(default_factory=dict, repr=False)
    in_doubt: tuple[StoredRun, ...] = ()
    work: Work | None = None
    stopped: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every result is a valid output that was scored."""
        return all(result.status == SUCCEEDED for result in self.results)

    @property
    def routes(self) -> tuple[str, ...]:
        """Labels of all routes, in the order in which they were named."""
        named = dict.fromkeys(self.run.spec.get("routes", ()))
        present = dict.fromkeys(result.route for result in self.results)
        return tuple(dict.fromkeys([*(label for label in named if label in present), *present]))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all scores, those that only failed included."""
        names = dict.fromkeys(name for result in self.results for name in (*result.scores, *result.scorer_errors))
        return tuple(sorted(names, key=self._metric_order))

    def _metric_order(self, name: str) -> tuple[int, str]:
        scorers = list(self.run.spec.get("scorers", ()))
        scorer = max((known for known in scorers if name == known or name.startswith(f"{known}.")), key=len, default="")
        return (scorers.index(scorer) if scorer else len(scorers), name)

    @property
    def counts(self) -> dict[str, int]:
        """How many results have each status."""
        statuses = [result.status for result in self.results]
        return {status: statuses.count(status) for status in STATUSES}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers has to know, one sentence each."""
        return tuple(_notes(self))

    def cluster_of(self, sample_id: str) -> tuple[str, str]:
        """What the sample's results are independent of: its group, or the sample itself over its epochs."""
        sample = self.samples.get(sample_id)
        group = sample.group if sample else self.run.spec.get("groups", {}).get(sample_id)
        return ("sample", sample_id) if group is None else ("group", group)

    def summary(self, by: Literal["route", "served_route"] = "route") -> pd.DataFrame:
        """One row for each route and metric, with the columns and dtypes of `SUMMARY_COLUMNS`.

        `mean` and its 95 % interval are over scored samples, errors excluded. `mean_failures_as_zero` counts FAILED as 0; a
        scorer's own failure, NOT_RUN and IN_PROGRESS are left out of both. `interval` names the method; with repeats or
        groups it is clustered. `valid_first_try` is a share of the samples that got an answer. Latencies are of samples
        with a valid output.

        Args:
            by: `route` groups as assigned, `served_route` by who answered.
        """
        labels = self.routes if by == "route" else _served_labels(self.results)
        return _frame(_summary_rows(self, labels, by), SUMMARY_COLUMNS)

    def samples_frame(self) -> pd.DataFrame:
        """As `samples_table`; see there."""
        return self.table_of_samples()

    def table_of_samples(self) -> pd.DataFrame:
        """One row for each result."""
        return _frame([], SAMPLE_COLUMNS)
