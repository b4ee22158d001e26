"""Records of calls in the store, and their telemetry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from llmkit.batch.task_guard import start_session_task
from llmkit.calls.call import Call
from llmkit.calls.liveness import current_owner
from llmkit.calls.request_hash import CanonicalRequest
from llmkit.errors import LLMAllRoutesFailed, LLMError, LLMStoreError
from llmkit.ports import AttemptLog, KeyTaken, LLMRunRepo, RunFailure, RunStart, RunSuccess
from llmkit.providers import collect_secrets
from llmkit.redaction import preview, request_preview
from llmkit.router import plan_as_json
from llmkit.settings import LLMSettings
from llmkit.telemetry import RunEvent, Telemetry
from llmkit.types import (
    RESERVED_METADATA_KEYS,
    LLMRequest,
    LLMResponse,
    RoutePlan,
    RunStatus,
    ServedFrom,
    copy_with,
    utc_now,
)

__all__ = ["CallRecorder", "finish_despite_cancellation"]

T = TypeVar("T")


class CallRecorder:
    """Writes calls into the repository, if there is one, and emits their telemetry.

    A write that has begun is finished even if the caller is cancelled meanwhile; the cancellation is raised afterwards.

    Args:
        runs: Where calls are recorded; None to record nothing.
        settings: `store_payloads`, and the keys that must not be shown.
        telemetry: Receives an event for each finished call.
    """

    def __init__(self, runs: LLMRunRepo | None, settings: LLMSettings, telemetry: Telemetry) -> None:
        self._runs = runs
        self._stores_payloads = settings.store_payloads
        self._telemetry = telemetry
        self._started: set[UUID] = set()
        self._unwritten: dict[UUID, RunSuccess | RunFailure] = {}
        self._secrets = collect_secrets(settings)

    def run_id(self, call: Call) -> UUID | None:
        """Return the id of the call's row; None when nothing is recorded."""
        return call.run_id if self._runs is not None else None

    async def start(self, call: Call, flight_key: str | None) -> bool:
        """Write the call as STARTED; False when another run has one of its keys.

        Raises:
            LLMStoreError: It could not be written.
        """
        if self._runs is None:
            return True
        # Mark as started first, so that a cancelled call still gets its row.
        self._started.add(call.run_id)
        try:
            await finish_despite_cancellation(self._runs.create_started(self._start(call, flight_key)))
        except KeyTaken:
            self._started.discard(call.run_id)
            return False
        except LLMStoreError:
            self._started.discard(call.run_id)
            raise
        return True

    def make_success(self, call: Call, response: LLMResponse, plan_record: dict[str, Any]) -> RunSuccess | None:
        """Return the outcome to write for a started call; None when nothing is recorded."""
        if self._runs is None:
            return None
        return self._success(call, response, plan_record, self._payload(response))

    async def succeed(self, call: Call, response: LLMResponse, outcome: RunSuccess | None) -> None:
        """Write the outcome of a started call.

        Raises:
            LLMStoreError: It could not be written; the answer is its `response`.
        """
        try:
            if outcome is not None:
                await self._write(outcome)
        except LLMStoreError as error:
            error.response = response
            raise
        finally:
            self._started.discard(call.run_id)
            self._emit(call, RunStatus.SUCCEEDED, response)

    async def fail(
        self,
        call: Call,
        code: str,
        message: str,
        plan: RoutePlan | None,
        log: AttemptLog,
        error: LLMError | None = None,
    ) -> None:
        """Write that the call failed, which may be before it started; the message is redacted.

        Raises:
            LLMStoreError: It could not be written.
        """
        try:
            if self._runs is not None:
                outcome = self._failure(call, code, message, plan, log, error)
                if call.run_id in self._started:
                    await self._write(outcome)
                else:
                    start = self._start(call, flight_key=None)
                    await finish_despite_cancellation(self._runs.record_unsent(start, outcome))
        finally:
            self._started.discard(call.run_id)
            self._emit(call, RunStatus.FAILED, error=error, error_code=code, log=log)

    async def annotate(self, workspace_id: str, run_id: UUID, request: LLMRequest) -> None:
        """Replace the metadata of a call that is over by those of a request.

        Raises:
            LLMStoreError: It could not be written.
        """
        if self._runs is not None:
            await self._runs.annotate(workspace_id, run_id, _metadata(request, CanonicalRequest(request)))

    async def _write(self, outcome: RunSuccess | RunFailure) -> None:
        assert self._runs is not None
        try:
            if isinstance(outcome, RunSuccess):
                await finish_despite_cancellation(self._runs.mark_succeeded(outcome))
            else:
                await finish_despite_cancellation(self._runs.mark_failed(outcome))
        except LLMStoreError as error:
            self._keep_unwritten(outcome, error)
            raise
        except asyncio.CancelledError as cancelled:
            # The caller was cancelled and the write failed too. The outcome must not be lost with the error.
            if isinstance(cancelled.__cause__, LLMStoreError):
                self._keep_unwritten(outcome, cancelled.__cause__)
            raise

    def _keep_unwritten(self, outcome: RunSuccess | RunFailure, error: LLMStoreError) -> None:
        self._unwritten[outcome.run_id] = outcome
        error.run_id, error.attempts = outcome.run_id, outcome.attempts

    async def write_again(self, run_id: UUID) -> bool:
        """Write the outcome of a started run that the store could not take before; False when there is none.

        Raises:
            LLMStoreError: It still cannot.
        """
        outcome = self._unwritten.pop(run_id, None)
        if outcome is not None:
            await self._write(outcome)
        return outcome is not None

    async def write_all_again(self) -> None:
        """Write all outcomes that the store could not take before, for the last time.

        Raises:
            LLMStoreError: It still cannot take one.
        """
        while self._unwritten:
            try:
                await self.write_again(next(iter(self._unwritten)))
            except LLMStoreError as error:
                lost = len(self._unwritten)
                self._unwritten.clear()
                raise LLMStoreError(f"The outcomes of {lost} calls could not be recorded. {error}") from None

    async def serve(
        self, call: Call, origin: LLMResponse, served_from: ServedFrom, *, keyed: bool = True
    ) -> LLMResponse | None:
        """Hand out an answer that was paid for earlier, and record that it was served.

        None when another run took the call's key meanwhile.
        """
        response = self.as_served(call, origin, served_from)
        try:
            await self._record_served(call, response, keyed=keyed)
        except KeyTaken:
            return None
        except LLMStoreError as error:
            error.run_id, error.response = call.run_id, response
            raise
        self._emit(call, RunStatus.SUCCEEDED, response)
        return response

    def as_served(self, call: Call, origin: LLMResponse, served_from: ServedFrom) -> LLMResponse:
        """Return the answer of an earlier call as the answer of this one.

        Args:
            call: The one that is answered.
            origin: The answer as it was found.
            served_from: Where it was found.
        """
        return copy_with(
            origin,
            run_id=self.run_id(call),
            served_from=served_from,
            source_run_id=origin.source_run_id or origin.run_id,
            requested_route=call.request.route,
            attempts=(),
            plan=None,
        )

    async def _record_served(self, call: Call, response: LLMResponse, *, keyed: bool) -> None:
        if self._runs is None:
            return
        # No previews: the billed run has the same ones, and making them takes a third of a replay.
        start = self._start(call, flight_key=None, keyed=keyed, with_preview=False)
        if start.idempotency_key is None:
            await self._runs.record_served(start, self._success(call, response, None, None, start.created_at_utc))
        else:
            success = self._success(call, response, None, self._payload(response), start.created_at_utc)
            await self._runs.save_result_for_idempotency_key(start, success)

    def _start(self, call: Call, flight_key: str | None, *, keyed: bool = True, with_preview: bool = True) -> RunStart:
        request = call.request
        return RunStart(
            id=call.run_id,
            workspace_id=call.workspace_id,
            prompt_sha256=call.prompt_sha256,
            created_at_utc=utc_now(),
            owner=current_owner(),
            profile=call.profile,
            epoch=request.epoch,
            pipeline_run_id=call.pipeline_run_id,
            stage=call.stage,
            requested_route=None if request.route is None else str(request.route),
            idempotency_key=request.idempotency_key if keyed else None,
            flight_key=flight_key,
            request_preview=request_preview(request, self._secrets) if with_preview else "",
            metadata=_metadata(request, call.canonical) if with_preview else _own(request.metadata),
        )

    def _success(
        self,
        call: Call,
        response: LLMResponse,
        plan_record: dict[str, Any] | None,
        result_json: str | None,
        finished_at_utc: datetime | None = None,
    ) -> RunSuccess:
        billed, logprobs = response.billed, response.logprobs
        return RunSuccess(
            run_id=call.run_id,
            finished_at_utc=finished_at_utc or utc_now(),
            latency_ms=response.latency_ms if billed else call.elapsed_ms(),
            route=response.route,
            response_model=response.response_model,
            usage=response.usage,
            finish_reason=response.finish_reason,
            result_json=result_json,
            response_preview=preview(response.text, secrets=self._secrets) if billed else "",
            served_from=response.served_from,
            source_run_id=response.source_run_id,
            cost_usd=response.cost_usd if billed else None,
            plan=plan_record,
            attempts=response.attempts if billed else (),
            logprob_mean=None if logprobs is None else logprobs.mean,
            logprob_min=None if logprobs is None else logprobs.min,
            first_token_ms=response.first_token_ms if billed else None,
        )

    def _failure(
        self, call: Call, code: str, message: str, plan: RoutePlan | None, log: AttemptLog, error: LLMError | None
    ) -> RunFailure:
        failures = error.errors if isinstance(error, LLMAllRoutesFailed) else () if error is None else (error,)
        return RunFailure(
            run_id=call.run_id,
            finished_at_utc=utc_now(),
            latency_ms=call.measure(log),
            error_code=code,
            error_message=preview(message, secrets=self._secrets),
            plan=plan_as_json(plan, failures) if plan is not None else None,
            attempts=log.attempts,
            first_token_ms=call.measure_first_token(log),
        )

    def _payload(self, response: LLMResponse) -> str | None:
        if not self._stores_payloads:
            return None
        return response.as_stored()

    def _emit(
        self,
        call: Call,
        status: RunStatus,
        response: LLMResponse | None = None,
        error: LLMError | None = None,
        error_code: str | None = None,
        log: AttemptLog | None = None,
    ) -> None:
        if not self._telemetry.is_enabled:
            return
        route = response.route if response else call.request.route
        provider = route.provider if route else error.provider if error else None
        model = route.model if route else error.model if error else None
        if response is not None:
            sent = response.attempts if response.billed else ()
            first_token_ms = response.first_token_ms if response.billed else None
        else:
            sent, first_token_ms = (log.attempts, call.measure_first_token(log)) if log else ((), None)
        self._telemetry.run_finished(
            RunEvent(
                llm_run_id=call.run_id if self._runs is not None else None,
                workspace_id=call.workspace_id or None,
                status=str(status),
                served_from=str(response.served_from) if response else "none",
                latency_ms=call.elapsed_ms(),
                profile=call.profile,
                provider=str(provider) if provider else None,
                model=model,
                stage=call.stage,
                error_code=error_code,
                usage=response.usage if response else None,
                requests=len(sent),
                is_streamed=call.sink is not None,
                first_token_ms=first_token_ms,
            )
        )


async def finish_despite_cancellation(work: Awaitable[T]) -> T:
    """Await work that must not be torn by a cancellation: it ends first, then the cancellation is raised.

    Raises:
        asyncio.CancelledError: The caller was cancelled. Its cause is what the work raised, if it failed.
    """
    # A task, unless it is a future already, such as the journal's.
    future = start_session_task(work) if asyncio.iscoroutine(work) else asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            if future.cancelled():
                raise
            cancelled = error
        except Exception:  # noqa: BLE001 - raised below, by result()
            break
    if cancelled is not None:
        raise cancelled from None if future.cancelled() else future.exception()
    return future.result()


def _own(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata without the reserved keys, which have their own columns."""
    return (
        {} if not metadata else {name: value for name, value in metadata.items() if name not in RESERVED_METADATA_KEYS}
    )


def _metadata(request: LLMRequest, canonical: CanonicalRequest) -> dict[str, Any]:
    """Return the caller's metadata, with the request's parameters under `parameters`."""
    own, parameters = _own(request.metadata), canonical.parameters()
    return {"parameters": parameters, **own} if parameters else own
