"""Store operations that evaluations need, as values and a protocol. See `ports`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from llmkit.ports import Leases, StoredRun
from llmkit.types import Attempt, Route, RunStatus, ServedFrom

__all__ = [
    "MOST_PLAUSIBLE_TOKENS",
    "STEP_METADATA",
    "CallKey",
    "CallUnderWay",
    "DigestSeen",
    "EvalOutcome",
    "EvalResult",
    "EvalRun",
    "EvalSpending",
    "EvalStore",
    "HostDigest",
    "HostUse",
    "RecordedCall",
    "ResultCount",
    "read_step",
]


# More than the context window of any model, the largest of which has ten million tokens. Some servers report 10**12.
MOST_PLAUSIBLE_TOKENS = 20_000_000
# The key of a row's metadata that has the number and the name of a step of a solve function.
STEP_METADATA = "solve"


@dataclass(frozen=True, slots=True)
class EvalRun:
    """One named evaluation of a workspace, and its definition, by which a later process recognises it.

    Attributes:
        spec: JSON-able description for people: routes, epochs, scorers, versions. Not compared.
        task_sha256: Hash of prompts, output schema and parameters.
        dataset_sha256: Hash of all samples.
    """

    id: UUID
    workspace_id: str
    name: str
    task_name: str
    task_sha256: str
    dataset_sha256: str
    created_at_utc: datetime
    spec: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvalResult:
    """The outcome of one sample on one route in one epoch.

    Attributes:
        route: Label of the route or variant as assigned.
        served_route: The route that answered; None without an answer.
        status: `SUCCEEDED` (a valid output, scored), `FAILED` (provider error or invalid output), `SCORER_FAILED`.
        output_json: The validated output as JSON, as its type serialises it: the form for people and reports.
        answer_json: The JSON text that was validated, from which the output can be built again; None where
            `output_json` is the same JSON, and in results of version 0.1.0.
        scores: Scorer name to score; a scorer that failed is absent here and in `scorer_errors`.
        valid_first_try: Whether the first answer fitted the output type; None when there was no answer.
        outcome: `first_try`, `repaired` or `reasked`: what it took to get a valid output; None when there is none.
        schema_sha256: Hash of the output schema that the answering provider got; None when it got none.
        sample_group: Group of the sample, by which standard errors are clustered.
        score_details: Scorer name to the reason for its score, in words; empty ones are left out.
        latency_ms: Wall time over all steps of the sample; that of the recorded calls when they were replayed.
        content_digest: Short hash of the sample's content that the scores are of; None in results of version 0.1.0,
            whose calls have it in their names.
        logprob_mean: Mean log-probability of the tokens of the answer that was validated; None when unknown.
        logprob_min: Smallest log-probability of one of them.
        field_logprobs: `mean` and `min` over the tokens of each value, by its dotted path; empty when unknown.
    """

    eval_run_id: UUID
    route: str
    sample_id: str
    epoch: int
    status: str
    finished_at_utc: datetime
    pipeline_run_id: str
    served_route: str | None = None
    output_json: str | None = None
    output_mode: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    scorer_errors: dict[str, str] = field(default_factory=dict)
    score_details: dict[str, str] = field(default_factory=dict)
    valid_first_try: bool | None = None
    outcome: str | None = None
    schema_sha256: str | None = None
    sample_group: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    latency_ms: float | None = None
    requests: int = 0
    warnings: tuple[str, ...] = ()
    answer_json: str | None = None
    content_digest: str | None = None
    logprob_mean: float | None = None
    logprob_min: float | None = None
    field_logprobs: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DigestSeen:
    """A digest, or version, of the model behind a route, with the time and the number of requests that recorded it."""

    route: Route
    digest: str
    first_at_utc: datetime
    requests: int


class HostDigest(NamedTuple):
    """The digest, or version, of the model behind a route as one machine has it."""

    host: str
    route: Route
    digest: str


class HostUse(NamedTuple):
    """Requests of an evaluation that one machine sent to one route, those that load its models included.

    Attributes:
        host: None for requests of versions of llmkit that did not record it.
        mean_latency_ms: Of requests that were answered; None when none was.
        last_at_utc: When the last one was sent.
    """

    host: str | None
    route: Route
    requests: int
    mean_latency_ms: float | None
    last_at_utc: datetime


@dataclass(frozen=True, slots=True)
class EvalSpending:
    """Spending of an evaluation on one route. Refused requests are not billed and not included.

    Attributes:
        input_tokens: Of all requests that the provider counted the tokens of. A count of 0, or one that no request can
            have, is unknown.
        output_tokens: Of the same.
        cost_usd: Of those of them that have a price; 0 when none has.
        unpriced: How many of those have none.
        uncounted: How many others there are: of unknown counts, cut off, cancelled or too late, so that they may have
            been billed.
    """

    route: Route
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0
    uncounted: int = 0


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A call of an evaluation as it was recorded, and every request that was sent for it.

    Attributes:
        stage: `sample` for an answer, `judge` for a verdict.
        prompt: Redacted and shortened, the latest message first; empty when the answer came from the store.
        answer: Redacted and shortened; empty when the answer came from the store, None when there was none.
        step: Name of the step of a solve function, or its number; None for other calls.
    """

    pipeline_run_id: str
    stage: str | None
    status: RunStatus
    served_from: ServedFrom | None
    prompt: str
    answer: str | None
    error_code: str | None
    error_message: str | None
    attempts: tuple[Attempt, ...]
    step: str | None = None


def read_step(metadata: Mapping[str, Any]) -> str | None:
    """Return the name or number of the step of a solve function in the metadata of its call; None for other calls."""
    step = metadata.get(STEP_METADATA)
    return str(step.get("name", step.get("step"))) if isinstance(step, Mapping) else None


class EvalOutcome(NamedTuple):
    """Fields of a stored result that a resumed run needs. `scores` lists the names of its scores."""

    sample_id: str
    route: str
    epoch: int
    status: str
    error_code: str | None
    finished_at_utc: datetime
    pipeline_run_id: str
    has_output: bool
    scores: frozenset[str]
    content_digest: str | None = None


class ResultCount(NamedTuple):
    """Number of the results of a run on one route with one outcome, and of the requests that were sent for them.

    `is_old` tells whether they were made up to a given time.
    """

    route: str
    status: str
    error_code: str | None
    is_old: bool
    results: int
    requests: int


class CallKey(NamedTuple):
    """The idempotency key of a call, how far the call is, and when it began."""

    key: str
    status: RunStatus
    error_code: str | None
    created_at_utc: datetime


class CallUnderWay(NamedTuple):
    """A call that has started and not finished, the process that runs it, and its last heartbeat.

    Attributes:
        read_at_utc: When this was read, by the clock that `heartbeat_at_utc` is of.
    """

    pipeline_run_id: str
    owner: str
    heartbeat_at_utc: datetime
    read_at_utc: datetime


class EvalStore(Protocol):
    """Evaluations and their results. Every method raises `LLMStoreError` when the database fails."""

    @property
    def leases(self) -> Leases | None:
        """Where processes share the budget of a run; None for budgets of this process alone."""
        ...

    async def open_run(self, run: EvalRun) -> EvalRun:
        """Insert the run, or return the one that its workspace has under this name; two callers get the same one."""
        ...

    async def get_run(self, workspace_id: str, name: str) -> EvalRun | None:
        """Return the run of this name, or None."""
        ...

    async def update_run(self, run: EvalRun) -> None:
        """Replace `dataset_sha256` and `spec` of a stored run. Durable on return."""
        ...

    async def list_runs(self, workspace_id: str) -> tuple[EvalRun, ...]:
        """Return all runs of the workspace, newest first."""
        ...

    async def save_result(self, result: EvalResult) -> None:
        """Insert the result, or replace an earlier one of the same run, route, sample and epoch. Durable on return."""
        ...

    async def list_results(self, eval_run_id: UUID) -> tuple[EvalResult, ...]:
        """Return all results of a run, ordered by sample, route and epoch."""
        ...

    async def get_result(self, eval_run_id: UUID, sample_id: str, route: str, epoch: int) -> EvalResult | None:
        """Return one result, or None."""
        ...

    async def list_outcomes(self, eval_run_id: UUID) -> list[EvalOutcome]:
        """Return all results of a run in no order, without outputs, errors and reasons, which would fill the memory."""
        ...

    async def note_shared_call(self, call_id: UUID, *, is_stopped: bool) -> None:
        """Note that workers take part in a call of `evaluate` or `map`, or that it was stopped. Durable on return."""
        ...

    async def is_call_stopped(self, call_id: UUID) -> bool | None:
        """Return whether such a call was stopped; None if this store does not know it."""
        ...

    async def list_call_keys(self, workspace_id: str, pipeline_run_id: str) -> list[CallKey]:
        """Return the calls of one pipeline run that have an idempotency key."""
        ...

    async def count_results(self, eval_run_id: UUID, old_until_utc: datetime) -> list[ResultCount]:
        """Count the results of a run by route and outcome, and by whether they were made up to a time."""
        ...

    async def list_calls_under_way(self, workspace_id: str, pipeline_run_id_prefix: str) -> list[CallUnderWay]:
        """Return the calls of an evaluation that are STARTED, in any process."""
        ...

    async def list_called_names(self, workspace_id: str, pipeline_run_id_prefix: str) -> list[str]:
        """Return the names of an evaluation's calls for samples that are STARTED or SUCCEEDED, oldest first."""
        ...

    async def list_calls_in_doubt(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[StoredRun, ...]:
        """Return the calls of an evaluation that are STARTED or abandoned: they may have been billed."""
        ...

    async def list_digests(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[DigestSeen, ...]:
        """Return every model digest that was recorded with an evaluation, by route and first appearance."""
        ...

    async def list_hosts(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[HostUse, ...]:
        """Return which machine sent how many requests to which route, by host and route."""
        ...

    async def note_digests(self, eval_run_id: UUID, digests: Sequence[HostDigest]) -> None:
        """Keep the digests that a machine has, in place of those that it had before."""
        ...

    async def list_host_digests(self, eval_run_id: UUID) -> tuple[HostDigest, ...]:
        """Return the digests of all machines that work on an evaluation, by route and host."""
        ...

    async def sum_spending(
        self, workspace_id: str, pipeline_run_id_prefix: str, owner: str | None = None
    ) -> tuple[EvalSpending, ...]:
        """Sum the spending of an evaluation by route, or that of one process. Calls in doubt have none recorded yet."""
        ...

    async def list_calls(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[RecordedCall, ...]:
        """Return every call of an evaluation, judges' included, oldest first."""
        ...
