"""Repositories in memory, with the contract of the real ones: one suite of tests runs on both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from llmkit.errors import ABANDONED_CODE
from llmkit.eval_ports import (
    MOST_PLAUSIBLE_TOKENS,
    CallKey,
    CallUnderWay,
    DigestSeen,
    EvalOutcome,
    EvalResult,
    EvalRun,
    EvalSpending,
    HostDigest,
    HostUse,
    RecordedCall,
    ResultCount,
    read_step,
)
from llmkit.ports import DOUBTFUL_STATUSES, KeyTaken, RunFailure, RunStart, RunSuccess, StoredRun
from llmkit.redaction import tool_preview
from llmkit.types import Attempt, AttemptStatus, Route, RunStatus, utc_now

__all__ = ["InMemoryEvalStore", "InMemoryLLMRunRepo", "InMemoryRun", "count_outcomes", "get_outcome"]


@dataclass(frozen=True, slots=True)
class InMemoryRun:
    """A run as the store keeps it: how it began, where it stands, how it ended, and every request sent for it."""

    start: RunStart
    status: RunStatus
    heartbeat_at_utc: datetime
    success: RunSuccess | None = None
    failure: RunFailure | None = None
    attempts: tuple[Attempt, ...] = field(default=())

    @property
    def error_code(self) -> str | None:
        """The error code of a failed run."""
        return None if self.failure is None else self.failure.error_code

    def as_stored_run(self) -> StoredRun:
        """Return the run as a repository returns it."""
        start = self.start
        return StoredRun(
            id=start.id,
            workspace_id=start.workspace_id,
            status=self.status,
            prompt_sha256=start.prompt_sha256,
            epoch=start.epoch,
            owner=start.owner,
            created_at_utc=start.created_at_utc,
            heartbeat_at_utc=self.heartbeat_at_utc,
            result_json=None if self.success is None else self.success.result_json,
            read_at_utc=utc_now(),
        )

    def as_recorded_call(self) -> RecordedCall:
        """Return the call as an evaluation report shows it."""
        success, failure = self.success, self.failure
        text = None if success is None else success.response_preview
        return RecordedCall(
            pipeline_run_id=self.start.pipeline_run_id or "",
            stage=self.start.stage,
            status=self.status,
            served_from=None if success is None else success.served_from,
            prompt=self.start.request_preview,
            answer=text or tool_preview(None if success is None else success.result_json) or text,
            error_code=None if failure is None else failure.error_code,
            error_message=None if failure is None else failure.error_message,
            attempts=self.attempts,
            step=read_step(self.start.metadata),
        )


class InMemoryLLMRunRepo:
    """`LLMRunRepo` in a dictionary, for one event loop. `runs` shows everything, in the order of creation."""

    def __init__(self) -> None:
        self._runs: dict[UUID, InMemoryRun] = {}

    @property
    def runs(self) -> tuple[InMemoryRun, ...]:
        """All runs of all workspaces."""
        return tuple(self._runs.values())

    async def get_by_idempotency_key(self, workspace_id: str, idempotency_key: str) -> StoredRun | None:
        """Implement `LLMRunRepo`."""
        holder = self._key_holder(workspace_id, idempotency_key)
        return None if holder is None else holder.as_stored_run()

    async def get_by_flight_key(self, workspace_id: str, flight_key: str) -> StoredRun | None:
        """Implement `LLMRunRepo`."""
        holder = self._flight_holder(workspace_id, flight_key)
        return None if holder is None else holder.as_stored_run()

    async def get_run(self, workspace_id: str, run_id: UUID) -> StoredRun | None:
        """Implement `LLMRunRepo`."""
        run = self._runs.get(run_id)
        return run.as_stored_run() if run is not None and run.start.workspace_id == workspace_id else None

    async def create_started(self, start: RunStart) -> None:
        """Implement `LLMRunRepo`."""
        self._refuse_taken(start)
        self._runs[start.id] = InMemoryRun(start, RunStatus.STARTED, start.created_at_utc)

    async def mark_succeeded(self, success: RunSuccess) -> bool:
        """Implement `LLMRunRepo`."""
        run = self._add_attempts(success.run_id, success.attempts)
        if run is None or run.status is not RunStatus.STARTED:
            return False
        self._runs[success.run_id] = replace(run, status=RunStatus.SUCCEEDED, success=success)
        return True

    async def mark_failed(self, failure: RunFailure) -> bool:
        """Implement `LLMRunRepo`."""
        run = self._add_attempts(failure.run_id, failure.attempts)
        if run is None or run.status is not RunStatus.STARTED:
            return False
        self._runs[failure.run_id] = replace(run, status=RunStatus.FAILED, failure=failure)
        return True

    async def record_unsent(self, start: RunStart, failure: RunFailure) -> None:
        """Implement `LLMRunRepo`."""
        self._runs[start.id] = InMemoryRun(start, RunStatus.FAILED, start.created_at_utc, failure=failure)

    async def mark_abandoned(self, run: StoredRun) -> bool:
        """Implement `LLMRunRepo`."""
        found = self._runs.get(run.id)
        if found is None or found.heartbeat_at_utc != run.heartbeat_at_utc:
            return False
        return await self.mark_failed(RunFailure(run.id, utc_now(), 0.0, ABANDONED_CODE, "abandoned"))

    async def save_result_for_idempotency_key(self, start: RunStart, success: RunSuccess) -> None:
        """Implement `LLMRunRepo`."""
        self._refuse_taken(start._replace(flight_key=None))
        self._runs[start.id] = InMemoryRun(start, RunStatus.SUCCEEDED, start.created_at_utc, success=success)
        self._add_attempts(start.id, success.attempts)

    async def record_served(self, start: RunStart, success: RunSuccess) -> None:
        """Implement `LLMRunRepo`."""
        await self.save_result_for_idempotency_key(start, success)

    async def annotate(self, workspace_id: str, run_id: UUID, metadata: Mapping[str, Any]) -> None:
        """Implement `LLMRunRepo`."""
        run = self._runs.get(run_id)
        if run is not None and run.start.workspace_id == workspace_id:
            self._runs[run_id] = replace(run, start=run.start._replace(metadata=dict(metadata)))

    async def heartbeat(self, run_ids: Sequence[UUID]) -> None:
        """Implement `LLMRunRepo`."""
        for run_id in run_ids:
            run = self._runs.get(run_id)
            if run is not None and run.status is RunStatus.STARTED:
                self._runs[run_id] = replace(run, heartbeat_at_utc=utc_now())

    def _add_attempts(self, run_id: UUID, attempts: Sequence[Attempt]) -> InMemoryRun | None:
        run = self._runs.get(run_id)
        if run is None:
            return None
        known = {attempt.number for attempt in run.attempts}
        added = tuple(attempt for attempt in attempts if attempt.number not in known)
        self._runs[run_id] = run = replace(run, attempts=run.attempts + added)
        return run

    def _refuse_taken(self, start: RunStart) -> None:
        holders = (
            start.idempotency_key and self._key_holder(start.workspace_id, start.idempotency_key),
            start.flight_key and self._flight_holder(start.workspace_id, start.flight_key),
        )
        if any(holders):
            raise KeyTaken("another run of the workspace has the key")

    def _key_holder(self, workspace_id: str, key: str) -> InMemoryRun | None:
        live = (run for run in self._of(workspace_id) if run.status is not RunStatus.FAILED)
        return next((run for run in live if run.start.idempotency_key == key), None)

    def _flight_holder(self, workspace_id: str, key: str) -> InMemoryRun | None:
        flying = (run for run in self._of(workspace_id) if run.status is RunStatus.STARTED)
        return next((run for run in flying if run.start.flight_key == key), None)

    def _of(self, workspace_id: str) -> Iterable[InMemoryRun]:
        return (run for run in self._runs.values() if run.start.workspace_id == workspace_id)


def count_outcomes(results: Iterable[EvalResult], old_until_utc: datetime) -> list[ResultCount]:
    """Count results by route, status, error code and age, as a store does."""
    results = list(results)
    keys = [(each.route, each.status, each.error_code, each.finished_at_utc <= old_until_utc) for each in results]
    requests: Counter[tuple[str, str, str | None, bool]] = Counter()
    for key, each in zip(keys, results, strict=True):
        requests[key] += each.requests
    return [ResultCount(*key, count, requests[key]) for key, count in Counter(keys).items()]


def get_outcome(result: EvalResult) -> EvalOutcome:
    """Return the part of a result that `EvalStore.outcomes` tells."""
    return EvalOutcome(
        sample_id=result.sample_id,
        route=result.route,
        epoch=result.epoch,
        status=result.status,
        error_code=result.error_code,
        finished_at_utc=result.finished_at_utc,
        pipeline_run_id=result.pipeline_run_id,
        has_output=result.output_json is not None,
        scores=frozenset(result.scores),
        content_digest=result.content_digest,
    )


class InMemoryEvalStore:
    """`EvalStore` in dictionaries.

    Args:
        runs: Where the calls of the evaluations are recorded, for `in_doubt`.
    """

    def __init__(self, runs: InMemoryLLMRunRepo | None = None) -> None:
        self._calls = runs or InMemoryLLMRunRepo()
        self._runs: dict[tuple[str, str], EvalRun] = {}
        self._shared_calls: dict[UUID, bool] = {}
        self._results: dict[tuple[UUID, str, str, int], EvalResult] = {}
        self._digests: dict[tuple[UUID, str, Route], HostDigest] = {}

    @property
    def leases(self) -> None:
        """No process shares it."""

    async def open_run(self, run: EvalRun) -> EvalRun:
        """Implement `EvalStore`."""
        return self._runs.setdefault((run.workspace_id, run.name), run)

    async def get_run(self, workspace_id: str, name: str) -> EvalRun | None:
        """Implement `EvalStore`."""
        return self._runs.get((workspace_id, name))

    async def update_run(self, run: EvalRun) -> None:
        """Implement `EvalStore`."""
        stored = self._runs[run.workspace_id, run.name]
        changed = replace(stored, dataset_sha256=run.dataset_sha256, spec=run.spec)
        self._runs[run.workspace_id, run.name] = changed

    async def list_runs(self, workspace_id: str) -> tuple[EvalRun, ...]:
        """Implement `EvalStore`."""
        mine = [run for run in self._runs.values() if run.workspace_id == workspace_id]
        return tuple(sorted(mine, key=lambda run: (run.created_at_utc, run.id), reverse=True))

    async def save_result(self, result: EvalResult) -> None:
        """Implement `EvalStore`."""
        self._results[result.eval_run_id, result.route, result.sample_id, result.epoch] = result

    async def list_results(self, eval_run_id: UUID) -> tuple[EvalResult, ...]:
        """Implement `EvalStore`."""
        mine = [result for result in self._results.values() if result.eval_run_id == eval_run_id]
        return tuple(sorted(mine, key=lambda result: (result.sample_id, result.route, result.epoch)))

    async def get_result(self, eval_run_id: UUID, sample_id: str, route: str, epoch: int) -> EvalResult | None:
        """Implement `EvalStore`."""
        return self._results.get((eval_run_id, route, sample_id, epoch))

    async def list_outcomes(self, eval_run_id: UUID) -> list[EvalOutcome]:
        """Implement `EvalStore`."""
        return [get_outcome(result) for result in self._results.values() if result.eval_run_id == eval_run_id]

    async def note_shared_call(self, call_id: UUID, *, is_stopped: bool) -> None:
        """Implement `EvalStore`."""
        self._shared_calls[call_id] = is_stopped

    async def is_call_stopped(self, call_id: UUID) -> bool | None:
        """Implement `EvalStore`."""
        return self._shared_calls.get(call_id)

    async def list_call_keys(self, workspace_id: str, pipeline_run_id: str) -> list[CallKey]:
        """Implement `EvalStore`."""
        return [
            CallKey(run.start.idempotency_key, run.status, run.error_code, run.start.created_at_utc)
            for run in self._calls_of(workspace_id, pipeline_run_id)
            if run.start.pipeline_run_id == pipeline_run_id and run.start.idempotency_key is not None
        ]

    async def count_results(self, eval_run_id: UUID, old_until_utc: datetime) -> list[ResultCount]:
        """Implement `EvalStore`."""
        return count_outcomes(
            (each for each in self._results.values() if each.eval_run_id == eval_run_id), old_until_utc
        )

    async def list_calls_under_way(self, workspace_id: str, pipeline_run_id_prefix: str) -> list[CallUnderWay]:
        """Implement `EvalStore`."""
        return [
            CallUnderWay(run.start.pipeline_run_id or "", run.start.owner, run.heartbeat_at_utc, utc_now())
            for run in self._calls_of(workspace_id, pipeline_run_id_prefix)
            if run.status is RunStatus.STARTED
        ]

    async def list_called_names(self, workspace_id: str, pipeline_run_id_prefix: str) -> list[str]:
        """Implement `EvalStore`."""
        prefixed = self._calls_of(workspace_id, pipeline_run_id_prefix)
        calls = [run for run in prefixed if run.start.stage == "sample" and run.status is not RunStatus.FAILED]
        ordered = sorted(calls, key=lambda run: (run.start.created_at_utc, run.start.id))
        return [run.start.pipeline_run_id or "" for run in ordered]

    async def list_calls_in_doubt(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[StoredRun, ...]:
        """Implement `EvalStore`."""
        prefixed = self._calls_of(workspace_id, pipeline_run_id_prefix)
        doubtful = [run for run in prefixed if run.status is RunStatus.STARTED or run.error_code == ABANDONED_CODE]
        ordered = sorted(doubtful, key=lambda run: (run.start.created_at_utc, run.start.id))
        return tuple(run.as_stored_run() for run in ordered)

    async def list_digests(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[DigestSeen, ...]:
        """Implement `EvalStore`."""
        prefixed = self._calls_of(workspace_id, pipeline_run_id_prefix)
        times: dict[tuple[Route, str], list[datetime]] = {}
        for attempt in (attempt for run in prefixed for attempt in run.attempts):
            if attempt.model_digest is not None:
                times.setdefault((attempt.route, attempt.model_digest), []).append(attempt.started_at_utc)
        seen = [DigestSeen(route, digest, min(at), len(at)) for (route, digest), at in times.items()]
        return tuple(sorted(seen, key=lambda each: (each.route.provider, each.route.model, each.first_at_utc)))

    async def list_hosts(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[HostUse, ...]:
        """Implement `EvalStore`."""
        prefixed = self._calls_of(workspace_id, pipeline_run_id_prefix)
        sent: dict[tuple[str | None, Route], list[Attempt]] = {}
        for attempt in (attempt for run in prefixed for attempt in run.attempts):
            sent.setdefault((attempt.host, attempt.route), []).append(attempt)
        uses = [_host_use(host, route, attempts) for (host, route), attempts in sent.items()]
        return tuple(sorted(uses, key=lambda use: (use.host or "", use.route.provider, use.route.model)))

    async def note_digests(self, eval_run_id: UUID, digests: Sequence[HostDigest]) -> None:
        """Implement `EvalStore`."""
        for each in digests:
            self._digests[eval_run_id, each.host, each.route] = each

    async def list_host_digests(self, eval_run_id: UUID) -> tuple[HostDigest, ...]:
        """Implement `EvalStore`."""
        mine = [each for (run_id, _host, _route), each in self._digests.items() if run_id == eval_run_id]
        return tuple(sorted(mine, key=lambda each: (each.route.provider, each.route.model, each.host)))

    async def sum_spending(
        self, workspace_id: str, pipeline_run_id_prefix: str, owner: str | None = None
    ) -> tuple[EvalSpending, ...]:
        """Implement `EvalStore`."""
        spent: dict[Route, EvalSpending] = {}
        prefixed = self._calls_of(workspace_id, pipeline_run_id_prefix)
        for run in (run for run in prefixed if owner is None or run.start.owner == owner):
            for attempt in run.attempts:
                spent[attempt.route] = _with(spent.get(attempt.route, EvalSpending(attempt.route)), attempt)
        return tuple(spent[route] for route in sorted(spent, key=lambda route: (route.provider, route.model)))

    async def list_calls(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[RecordedCall, ...]:
        """Implement `EvalStore`."""
        mine = self._calls_of(workspace_id, pipeline_run_id_prefix)
        ordered = sorted(mine, key=lambda run: (run.start.created_at_utc, run.start.id))
        return tuple(run.as_recorded_call() for run in ordered)

    def _calls_of(self, workspace_id: str, prefix: str) -> list[InMemoryRun]:
        mine = [run for run in self._calls.runs if run.start.workspace_id == workspace_id]
        return [run for run in mine if (run.start.pipeline_run_id or "").startswith(prefix)]


def _host_use(host: str | None, route: Route, attempts: Sequence[Attempt]) -> HostUse:
    answered = [each.latency_ms for each in attempts if each.status is AttemptStatus.SUCCEEDED]
    mean_ms = sum(answered) / len(answered) if answered else None
    return HostUse(host, route, len(attempts), mean_ms, max(each.started_at_utc for each in attempts))


def _with(spent: EvalSpending, attempt: Attempt) -> EvalSpending:
    usage, status = attempt.usage, attempt.status_code
    taken, given = usage.input_tokens or 0, usage.output_tokens
    is_counted = 1 <= taken <= MOST_PLAUSIBLE_TOKENS and given is not None and given <= MOST_PLAUSIBLE_TOKENS
    if given is None or not is_counted or usage.estimated:
        doubtful = status is None or status < 400 or status in DOUBTFUL_STATUSES
        return replace(spent, uncounted=spent.uncounted + doubtful)
    return replace(
        spent,
        input_tokens=spent.input_tokens + taken,
        output_tokens=spent.output_tokens + given,
        cost_usd=spent.cost_usd + (attempt.cost_usd or 0.0),
        unpriced=spent.unpriced + (attempt.cost_usd is None),
    )
