"""The one orchestrator: contract, idempotency, cache, run records, routing, telemetry.

The service never creates a database session and never commits: it is given a repository, and cannot tell whether that
writes into the caller's transaction or makes each operation durable by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from llmkit.canonical import prompt_sha256
from llmkit.errors import (
    CANCELLED_CODE,
    LLMConfigurationError,
    LLMError,
    LLMIdempotencyConflict,
    LLMInProgress,
    LLMStoreError,
)
from llmkit.ledger import Call, Ledger
from llmkit.liveness import BEATS_PER_LIMIT, Heartbeat, looks_abandoned
from llmkit.ports import (
    AttemptLog,
    CacheKey,
    ContentCache,
    KeyTaken,
    LLMRunRepo,
    StoredRun,
)
from llmkit.router import LLMRouter, Routed, plan_as_json
from llmkit.settings import LLMSettings
from llmkit.telemetry import Telemetry
from llmkit.types import (
    RESERVED_METADATA_KEYS,
    LLMRequest,
    LLMResponse,
    RequestContext,
    RoutePlan,
    RunStatus,
    ServedFrom,
    utc_now,
)

__all__ = ["LLMService"]

# How often a call that waits for an equal one in another process looks for its end, in seconds.
FLIGHT_POLL_S = (0.02, 0.05, 0.1, 0.2, 0.5)

CLAIM_TRIES = 100

T = TypeVar("T")


class LLMService:
    """Answers requests: from the store, from the cache, or from a provider, and records which.

    Args:
        router: Chooses and calls providers.
        settings: `persist_runs`, `store_payloads`, `cache_enabled`, `default_profile` and `abandoned_after_s` are used.
        runs: Where calls are recorded; required when `settings.persist_runs` is on.
        cache: Content cache; None for none.
        telemetry: Where finished calls are told.

    Raises:
        LLMConfigurationError: Runs are to be persisted and there is no repository.
    """

    def __init__(
        self,
        *,
        router: LLMRouter,
        settings: LLMSettings,
        runs: LLMRunRepo | None,
        cache: ContentCache | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        if settings.persist_runs and runs is None:
            raise LLMConfigurationError("LLM_PERSIST_RUNS is on: give the service a repository, or switch it off")
        self._router = router
        self._settings = settings
        self._runs = runs if settings.persist_runs else None
        self._cache = cache if settings.cache_enabled and settings.store_payloads else None
        self._ledger = Ledger(self._runs, settings, telemetry or Telemetry())
        self._flights: dict[str, asyncio.Future[LLMResponse]] = {}
        self._heartbeat = (
            Heartbeat(self._runs.heartbeat, settings.abandoned_after_s / BEATS_PER_LIMIT) if self._runs else None
        )

    @property
    def router(self) -> LLMRouter:
        """The router, for `explain()` and its facts about models."""
        return self._router

    async def chat(self, request: LLMRequest, context: RequestContext | None = None) -> LLMResponse:
        """Answer one request.

        Args:
            request: What is asked.
            context: Who asks; the workspace may instead be in `request.metadata["workspace_id"]`.

        Raises:
            LLMConfigurationError: No workspace, or two that disagree. Nothing was sent or written.
            LLMIdempotencyConflict: The key belongs to another request. Nothing was sent.
            LLMInProgress: The key's call is under way elsewhere. Nothing was sent.
            LLMStoreError: The database failed; when that happened after the answer, the answer is its `response`.
            LLMError: What the provider or the router raised, with `run_id` and `attempts`.
        """
        call = self._open(request, context)
        for _ in range(CLAIM_TRIES):
            stored = await self._replay(call)
            if stored is not None:
                return stored
            plan = self._router.explain(call.request)
            cached = self._from_cache(call, plan)
            try:
                if cached is not None:
                    return await self._ledger.serve(call, cached, ServedFrom.CACHE)
                return await self._fly(call, plan)
            except KeyTaken:
                # Somebody else was faster. What they hold decides: look again.
                continue
        raise LLMStoreError("The call's key keeps changing hands between other callers; try again")

    # --- contract -----------------------------------------------------------------------------------------------

    def _open(self, request: LLMRequest, context: RequestContext | None) -> Call:
        who = _resolve_context(request, context)
        if self._runs is not None and who["workspace_id"] is None:
            raise LLMConfigurationError(
                "No workspace: pass RequestContext(workspace_id=...), or metadata={'workspace_id': ...}; "
                "or switch LLM_PERSIST_RUNS off"
            )
        profile = request.profile or self._settings.default_profile
        return Call(
            request=request,
            workspace_id=who["workspace_id"] or "",
            pipeline_run_id=who["pipeline_run_id"],
            stage=who["stage"],
            profile=str(profile),
            prompt_sha256=prompt_sha256(request, profile),
        )

    # --- idempotency --------------------------------------------------------------------------------------------

    async def _replay(self, call: Call) -> LLMResponse | None:
        """The stored answer of the call's key; None when the key is free."""
        key = call.request.idempotency_key
        if key is None or self._runs is None:
            return None
        while (stored := await self._runs.get_by_idempotency_key(call.workspace_id, key)) is not None:
            if (stored.prompt_sha256, stored.epoch) != (call.prompt_sha256, call.request.epoch):
                raise _conflict(key, stored)
            if stored.status is RunStatus.SUCCEEDED:
                return await self._serve_stored(call, stored, ServedFrom.REPLAY)
            if not self._is_abandoned(stored):
                raise _in_progress(key, stored)
            await self._runs.mark_abandoned(stored)
        return None

    def _is_abandoned(self, stored: StoredRun) -> bool:
        return looks_abandoned(stored.owner, stored.heartbeat_at_utc, self._settings.abandoned_after_s)

    async def _serve_stored(self, call: Call, stored: StoredRun, served_from: ServedFrom) -> LLMResponse:
        if stored.result_json is None:
            raise LLMStoreError(
                f"Run {stored.id} succeeded, but its answer was not stored (LLM_STORE_PAYLOADS is off), "
                "so it cannot be replayed; use another idempotency key to pay for it again"
            )
        origin = LLMResponse.model_validate_json(stored.result_json)
        return await self._ledger.serve(call, origin, served_from, keyed=served_from is not ServedFrom.REPLAY)

    # --- content cache and equal calls in flight ----------------------------------------------------------------

    def _cache_key(self, call: Call, plan: RoutePlan) -> CacheKey | None:
        """Name of the answer of the route that would be asked first; None when the call may not share answers."""
        if self._cache is None or not call.request.use_cache or not plan.candidates:
            return None
        return CacheKey(call.workspace_id, call.prompt_sha256, plan.candidates[0], call.profile, call.request.epoch)

    def _from_cache(self, call: Call, plan: RoutePlan) -> LLMResponse | None:
        key = self._cache_key(call, plan)
        return self._cache.get(key) if self._cache is not None and key is not None else None

    def _keep(self, call: Call, plan: RoutePlan, response: LLMResponse) -> None:
        # A fallback's answer is kept under its own name: when the first choice recovers, it is asked again.
        key = self._cache_key(call, plan)
        if self._cache is not None and key is not None:
            own = CacheKey(key.workspace_id, key.prompt_sha256, response.route, key.profile, key.epoch)
            self._cache.put(own, response)

    async def _fly(self, call: Call, plan: RoutePlan) -> LLMResponse:
        """Call the provider, unless an equal call is in flight already: then share its answer."""
        key = self._cache_key(call, plan)
        if key is None:
            return await self._run(call, plan, flight_key=None)
        name = key.text()
        leader = self._flights.get(name)
        if leader is not None:
            return await self._follow(call, plan, leader)
        flight: asyncio.Future[LLMResponse] = asyncio.get_running_loop().create_future()
        self._flights[name] = flight
        try:
            response = await self._lead(call, plan, name)
            flight.set_result(response)
            return response
        except LLMError as error:
            flight.set_exception(error)
            flight.exception()  # nobody may be following
            raise
        finally:
            del self._flights[name]
            flight.cancel()  # no effect when it has a result

    async def _follow(self, call: Call, plan: RoutePlan, leader: asyncio.Future[LLMResponse]) -> LLMResponse:
        await asyncio.wait((leader,))
        if leader.cancelled():  # the leading call was cancelled or lost its key: this one takes its turn
            return await self._fly(call, plan)
        error = leader.exception()
        if isinstance(error, LLMError):
            await self._record_shared_failure(call, plan, error)
            raise error
        return await self._ledger.serve(call, leader.result(), ServedFrom.SHARED)

    async def _record_shared_failure(self, call: Call, plan: RoutePlan, error: LLMError) -> None:
        await self._ledger.start(call, flight_key=None)
        await self._ledger.fail(call, error.code, str(error), plan, AttemptLog(), error)

    async def _lead(self, call: Call, plan: RoutePlan, flight_key: str) -> LLMResponse:
        """Run the call, or wait while another process runs an equal one."""
        polls = 0
        while self._runs is not None:
            other = await self._runs.get_by_flight_key(call.workspace_id, flight_key)
            if other is None:
                break
            if self._is_abandoned(other):
                await self._runs.mark_abandoned(other)
                continue
            await asyncio.sleep(FLIGHT_POLL_S[min(polls, len(FLIGHT_POLL_S) - 1)])
            polls += 1
            ended = await self._runs.get_run(call.workspace_id, other.id)
            if ended is not None and ended.status is RunStatus.SUCCEEDED and ended.result_json is not None:
                return await self._serve_stored(call, ended, ServedFrom.SHARED)
        return await self._run(call, plan, flight_key)

    # --- one billed call ----------------------------------------------------------------------------------------

    async def _run(self, call: Call, plan: RoutePlan, flight_key: str | None) -> LLMResponse:
        """Claim, call, record. STARTED is written before anything is sent, the outcome before it is returned."""
        await self._claim(call, flight_key)
        if flight_key is not None and (cached := self._from_cache(call, plan)) is not None:
            # An equal call ended between the look into the cache and the claim.
            return await self._end_with(call, plan, cached)
        log = AttemptLog()
        try:
            routed = await self._execute(call, plan, log)
        except asyncio.CancelledError:
            await _to_the_end(self._ledger.fail(call, CANCELLED_CODE, "cancelled by the caller", plan, log))
            raise
        except LLMError as error:
            error.run_id = self._ledger.run_id(call)
            error.attempts = log.attempts
            await _to_the_end(self._ledger.fail(call, error.code, str(error), plan, log, error))
            raise
        except Exception as error:
            await _to_the_end(self._ledger.fail(call, LLMError.code, f"{type(error).__name__} in llmkit", plan, log))
            raise
        response = self._response(call, plan, routed, log)
        # Before the outcome is written, because that ends the flight and lets an equal call look into the cache.
        self._keep(call, plan, response)
        await _to_the_end(self._ledger.succeed(call, response, routed.plan_record))
        return response

    async def _claim(self, call: Call, flight_key: str | None) -> None:
        try:
            await _to_the_end(self._ledger.start(call, flight_key))
        except asyncio.CancelledError:
            await _to_the_end(
                self._ledger.fail(call, CANCELLED_CODE, "cancelled before anything was sent", None, AttemptLog())
            )
            raise

    async def _end_with(self, call: Call, plan: RoutePlan, cached: LLMResponse) -> LLMResponse:
        response = self._ledger.as_served(call, cached, ServedFrom.CACHE)
        await _to_the_end(self._ledger.succeed(call, response, plan_as_json(plan)))
        return response

    async def _execute(self, call: Call, plan: RoutePlan, log: AttemptLog) -> Routed:
        if self._heartbeat is None:
            return await self._router.execute(call.request, plan, log)
        with self._heartbeat.alive(call.run_id):
            return await self._router.execute(call.request, plan, log)

    def _response(self, call: Call, plan: RoutePlan, routed: Routed, log: AttemptLog) -> LLMResponse:
        reply = routed.reply
        return LLMResponse(
            text=reply.text,
            tool_calls=reply.tool_calls,
            finish_reason=reply.finish_reason,
            usage=reply.usage,
            route=routed.route,
            requested_route=call.request.route,
            response_model=reply.response_model,
            latency_ms=call.elapsed_ms() - log.queued_ms,
            cost_usd=reply.cost_usd,
            run_id=self._ledger.run_id(call),
            attempts=log.attempts,
            plan=plan,
            warnings=reply.warnings,
        )


def _resolve_context(request: LLMRequest, context: RequestContext | None) -> dict[str, str | None]:
    """Workspace, pipeline run and stage, from the context object or the reserved metadata keys.

    Raises:
        LLMConfigurationError: The two disagree, or a reserved key holds something else than a name.
    """
    found: dict[str, str | None] = {}
    for name in RESERVED_METADATA_KEYS:
        in_context = getattr(context, name) if context is not None else None
        in_metadata = request.metadata.get(name)
        if in_metadata is not None and (not isinstance(in_metadata, str) or not in_metadata.strip()):
            raise LLMConfigurationError(f"metadata[{name!r}] must be a non-empty text")
        if in_context is not None and in_metadata is not None and in_context != in_metadata:
            raise LLMConfigurationError(
                f"The context's {name} and metadata[{name!r}] disagree; give one of them, or the same in both"
            )
        found[name] = in_context or in_metadata
    return found


def _conflict(key: str, stored: StoredRun) -> LLMIdempotencyConflict:
    error = LLMIdempotencyConflict(
        f"The idempotency key {key!r} belongs to run {stored.id} of a different request "
        f"({stored.status}); use a new key, or send the same request"
    )
    error.run_id = stored.id
    return error


def _in_progress(key: str, stored: StoredRun) -> LLMInProgress:
    age_s = max(0.0, (utc_now() - stored.created_at_utc).total_seconds())
    return LLMInProgress(
        f"A call with the idempotency key {key!r} is under way since {age_s:.0f} s (run {stored.id}); "
        "wait for it, or use another key",
        run_id=stored.id,
        age_s=age_s,
    )


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await work that must not be torn by a cancellation: it ends first, then the cancellation is raised."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except Exception:  # noqa: BLE001 - raised below, by result()
            break
    if cancelled is not None:
        if not task.cancelled():
            task.exception()
        raise cancelled
    return task.result()
