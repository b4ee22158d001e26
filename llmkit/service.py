"""The one orchestrator: contract, idempotency, cache, run records, routing, telemetry.

The service never creates a database session and never commits: it is given a repository, and cannot tell whether that
writes into the caller's transaction or makes each operation durable by itself.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Protocol
from uuid import UUID

from pydantic import ValidationError

from llmkit.calls.call import Call, make_conflict, make_in_progress, open_call, resolve_caller
from llmkit.calls.liveness import BEATS_PER_LIMIT, Heartbeat, Listener, looks_abandoned
from llmkit.calls.recorder import CallRecorder
from llmkit.canonical_json import sha256_of
from llmkit.errors import (
    CANCELLED_CODE,
    LLMAuthenticationError,
    LLMBadRequest,
    LLMConfigurationError,
    LLMError,
    LLMStoreError,
)
from llmkit.ports import (
    AnswerSink,
    AttemptLog,
    BeforeSend,
    CacheKey,
    ContentCache,
    LLMRunRepo,
    ModelDiscovery,
    NotSent,
    RunSuccess,
    StoredRun,
)
from llmkit.providers import TELEMETRY_NAMES
from llmkit.router import LLMRouter, Routed, plan_as_json
from llmkit.settings import LLMSettings, describe_unused_key
from llmkit.telemetry import Telemetry
from llmkit.types import (
    LLMRequest,
    LLMResponse,
    RequestContext,
    RoutePlan,
    RunStatus,
    ServedFrom,
    ToolCall,
    drop_impossible_counts,
)

__all__ = ["ChatService", "LLMService"]

# How often a call that waits for an equal one in another process looks for its end, in seconds.
FLIGHT_POLL_S = (0.02, 0.05, 0.1, 0.2, 0.5)

CLAIM_TRIES = 100
# Errors that a key could have prevented.
CODES_OF_MISSING_KEYS = frozenset(
    {"configuration", "no_route", "authentication", "unavailable", "all_routes_failed", "unsupported"}
)
CHANGING_HANDS = "The call's key keeps changing hands between other callers; try again"


class ChatService(Protocol):
    """A service as extractions and agents use it: `LLMService`, or one that stands in front of it."""

    @property
    def router(self) -> LLMRouter:
        """See `LLMService`."""
        ...

    async def discover(self, request: LLMRequest) -> bool:
        """See `LLMService`."""
        ...

    async def annotate(self, response: LLMResponse, request: LLMRequest, context: RequestContext | None = None) -> None:
        """See `LLMService`."""
        ...

    async def chat(
        self, request: LLMRequest, context: RequestContext | None = None, *, sink: AnswerSink | None = None
    ) -> LLMResponse:
        """See `LLMService`."""
        ...


class LLMService:
    """Answers requests: from the store, from the cache, or from a provider, and records which.

    Used by any number of event loops at once, as far as its repository allows that.

    Args:
        router: Chooses and calls providers.
        settings: `persist_runs`, `store_payloads`, `cache_enabled`, `default_profile` and `abandoned_after_s` are used.
        runs: Where calls are recorded; required when `settings.persist_runs` is on.
        cache: Content cache; None for none.
        discovery: Looks models up before they are called; None to go by what is declared.
        telemetry: Receives a report of every finished call.

    Raises:
        LLMConfigurationError: Runs are to be persisted and there is no repository.

    Example:
        >>> from llmkit import LLMRequest, Message, RequestContext, load_settings
        >>> from llmkit.router import LLMRouter
        >>> from llmkit.testing.in_memory import InMemoryLLMRunRepo
        >>> from llmkit.testing.scripted_client import ScriptedClient, reply
        >>> settings, client = load_settings(cache_enabled=False), ScriptedClient([reply("Rome")])
        >>> service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=InMemoryLLMRunRepo())
        >>> request = LLMRequest(messages=[Message(role="user", content="Capital of Italy?")])
        >>> asyncio.run(service.chat(request, RequestContext(workspace_id="study"))).text
        'Rome'
    """

    def __init__(
        self,
        *,
        router: LLMRouter,
        settings: LLMSettings,
        runs: LLMRunRepo | None,
        cache: ContentCache | None = None,
        discovery: ModelDiscovery | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        if settings.persist_runs and runs is None:
            raise LLMConfigurationError("LLM_PERSIST_RUNS is on: give the service a repository, or switch it off")
        self._router = router
        self._discovery = discovery
        self._settings = settings
        self._runs = runs if settings.persist_runs else None
        self._cache = cache if settings.cache_enabled and settings.store_payloads else None
        self._recorder = CallRecorder(self._runs, settings, telemetry or Telemetry(TELEMETRY_NAMES))
        # By event loop: a future wakes only those who wait in its own.
        self._flights: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Future[LLMResponse]] = {}
        self._heartbeat = (
            Heartbeat(self._runs.heartbeat, settings.abandoned_after_s / BEATS_PER_LIMIT) if self._runs else None
        )

    @property
    def router(self) -> LLMRouter:
        """The router, for `explain()` and its facts about models."""
        return self._router

    @property
    def settings(self) -> LLMSettings:
        """The settings in force."""
        return self._settings

    async def discover(self, request: LLMRequest) -> bool:
        """Find out about the models that could answer, where their facts are out of date. `chat` does so by itself.

        Returns:
            Whether there was something to find out, so that another plan may come of it. Never raises.

        Example:
            >>> asyncio.run(service.discover(request))  # no model's facts are out of date
            False
        """
        discovery = self._discovery
        if discovery is None or not any(map(discovery.is_due, self._router.routes(request))):
            return False
        await discovery.discover(self._router.open_routes(request))
        return True

    async def annotate(self, response: LLMResponse, request: LLMRequest, context: RequestContext | None = None) -> None:
        """Replace the metadata in the row of an answer, with values that are known only after the answer was read.

        A write of its own: for what is rare. Does nothing when calls are not recorded.

        Args:
            response: What `chat` returned.
            request: The one that it answers, with what is added in its metadata.
            context: As for `chat`.

        Raises:
            LLMConfigurationError: Context and metadata disagree.
            LLMStoreError: The database failed; the answer is its `response`.

        Example:
            >>> answer = asyncio.run(service.chat(request, context))
            >>> rated = request.model_copy(update={"metadata": {"rating": 5}})
            >>> asyncio.run(service.annotate(answer, rated, context))
        """
        workspace_id = resolve_caller(request, context).workspace_id
        if response.run_id is None or workspace_id is None:
            return
        try:
            await self._recorder.annotate(workspace_id, response.run_id, request)
        except LLMStoreError as error:
            error.run_id, error.response = response.run_id, response
            raise

    async def close(self) -> None:
        """Write the outcomes of calls that the database could not take before. Idempotent; close the store afterwards.

        Raises:
            LLMStoreError: The database still cannot take them.

        Example:
            >>> asyncio.run(service.close())
        """
        await self._recorder.write_all_again()

    async def chat(
        self,
        request: LLMRequest,
        context: RequestContext | None = None,
        *,
        sink: AnswerSink | None = None,
        is_new_key: bool = False,
    ) -> LLMResponse:
        """Answer one request.

        Args:
            request: The request.
            context: Workspace and pipeline run; the workspace may instead be in `request.metadata["workspace_id"]`.
            sink: Receives the pieces of the answer while it is being written; an answer that is complete already
                arrives in it as a whole. What is returned, sent, stored and raised is the same as without one, except
                that nothing is retried, and no other candidate tried, once a piece has arrived.
            is_new_key: Whether the request's key is believed to be unused. It is then looked up only if it turns out
                to be taken, just before the request would leave.

        Raises:
            LLMConfigurationError: No workspace, or two that disagree. Nothing was sent or written.
            LLMBadRequest: A tool or a schema contains something that is not JSON. Nothing was sent or written. Or
                `sink` has an answer already, or the code behind it raised something, which is the cause.
            LLMIdempotencyConflict: The key belongs to another request. Nothing was sent.
            LLMInProgress: The key's call is under way elsewhere. Nothing was sent.
            LLMStoreError: The database failed; when that happened after the answer, the answer is its `response`.
            LLMError: What the provider or the router raised, with `run_id` and `attempts`, and with `partial_text` if
                the answer had begun to arrive.

        Example:
            >>> answer = asyncio.run(service.chat(request, context))
            >>> str(answer.route), answer.billed
            ('ollama/llama3.2', True)
        """
        if sink is not None and sink.has_begun:
            raise LLMBadRequest("This sink has an answer already: make one for each call")
        call = open_call(request, context, self._settings.default_profile, recorded=self._runs is not None, sink=sink)
        try:
            response = await self._answer(call, is_new_key=is_new_key)
            if sink is not None and not sink.has_begun:
                # After its row is written: what was paid for is not lost with its reader.
                await sink.put_answer(response)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if sink is None or sink.reader_error is None or (task is not None and task.cancelling()):
                raise
            failure = type(sink.reader_error).__name__
            error = LLMBadRequest(f"The code that receives the answer failed ({failure}): correct it")
            error.run_id, error.partial_text = self._recorder.run_id(call), sink.partial_text
            raise error from sink.reader_error
        return response

    async def _answer(self, call: Call, *, is_new_key: bool) -> LLMResponse:
        for number in range(CLAIM_TRIES):
            stored = None if is_new_key and number == 0 else await self._replay(call)
            if stored is not None:
                return stored
            plan = self._router.explain(call.request)
            cached = self._from_cache(call, plan)
            # A cached answer needs no server.
            if cached is None and await self.discover(call.request):
                plan = self._router.explain(call.request)
                cached = self._from_cache(call, plan)
            if cached is not None:
                response = await self._recorder.serve(call, cached, ServedFrom.CACHE)
            else:
                response = await self._fly(call, plan)
            if response is not None:
                return response
            # Another call took the key meanwhile. Its state decides, so look the key up again.
        raise LLMStoreError(CHANGING_HANDS)

    # --- idempotency --------------------------------------------------------------------------------------------

    async def _replay(self, call: Call) -> LLMResponse | None:
        """Return the stored answer of the call's key; None when the key is free."""
        key = call.request.idempotency_key
        if key is None or self._runs is None:
            return None
        for _ in range(CLAIM_TRIES):
            stored = await self._runs.get_by_idempotency_key(call.workspace_id, key)
            if stored is None:
                return None
            if (stored.prompt_sha256, stored.epoch) != (call.prompt_sha256, call.request.epoch):
                raise make_conflict(key, stored)
            if stored.status is RunStatus.SUCCEEDED:
                return await self._serve_stored(call, stored, ServedFrom.REPLAY)
            if not await self._end_if_abandoned(self._runs, stored):
                raise make_in_progress(key, stored)
        raise LLMStoreError(CHANGING_HANDS)

    async def _end_if_abandoned(self, runs: LLMRunRepo, started: StoredRun) -> bool:
        """End a started run that no process works on any more; False if one may."""
        if await self._recorder.write_again(started.id):
            return True
        limit_s = self._settings.abandoned_after_s
        if not looks_abandoned(started.owner, started.heartbeat_at_utc, limit_s, started.read_at_utc):
            return False
        await runs.mark_abandoned(started)
        return True

    async def _serve_stored(self, call: Call, stored: StoredRun, served_from: ServedFrom) -> LLMResponse | None:
        """Return the answer of a stored run; None when another call took this one's key meanwhile."""
        if stored.result_json is None:
            raise LLMStoreError(
                f"Run {stored.id} succeeded, but its answer was not stored (LLM_STORE_PAYLOADS is off), "
                "so it cannot be replayed; use another idempotency key to pay for it again"
            )
        try:
            origin = LLMResponse.model_validate_json(stored.result_json)
        except ValidationError:
            raise LLMStoreError(
                f"The stored answer of run {stored.id} is damaged, or of another version of llmkit; "
                "use another idempotency key to pay for it again"
            ) from None
        return await self._recorder.serve(call, origin, served_from, keyed=served_from is not ServedFrom.REPLAY)

    # --- content cache and equal calls in flight ----------------------------------------------------------------

    def _cache_key(self, call: Call, plan: RoutePlan) -> CacheKey | None:
        """Return the cache key of the first candidate's answer; None when the call may not share answers."""
        if self._cache is None or not call.request.use_cache or not plan.candidates:
            return None
        return CacheKey(call.workspace_id, call.prompt_sha256, plan.candidates[0], call.profile, call.request.epoch)

    def _from_cache(self, call: Call, plan: RoutePlan) -> LLMResponse | None:
        key = self._cache_key(call, plan)
        return self._cache.get(key) if self._cache is not None and key is not None else None

    def _keep(self, call: Call, plan: RoutePlan, response: LLMResponse) -> None:
        # A fallback's answer is cached under its own route: once the first choice recovers, it is called again.
        key = self._cache_key(call, plan)
        if self._cache is not None and key is not None:
            own = CacheKey(key.workspace_id, key.prompt_sha256, response.route, key.profile, key.epoch)
            self._cache.put(own, response)

    def _flight_name(self, call: Call, plan: RoutePlan) -> str | None:
        """Name shared by calls that may share an answer, or an error, that is not there yet."""
        key = self._cache_key(call, plan)
        if key is None:
            return None
        # Under other limits another route might answer, or this one fail.
        constraints = call.request.constraints
        limits = constraints.model_dump(mode="json", exclude={"allowed_providers"})
        limits["allowed_providers"] = sorted(constraints.allowed_providers or ())
        return f"{key.text()}\x1f{sha256_of([limits, call.request.timeout_s])}"

    async def _fly(self, call: Call, plan: RoutePlan) -> LLMResponse | None:
        """Call the provider, unless an equal call is in flight already: then share its answer.

        None when another call took this one's key.
        """
        name = self._flight_name(call, plan)
        if name is None:
            return await self._run(call, plan, flight_key=None)
        here = (asyncio.get_running_loop(), name)
        while (leader := self._flights.get(here)) is not None:
            await asyncio.wait((leader,))
            if not leader.cancelled():
                return await self._share(call, plan, leader)
            # The leading call was cancelled, lost its key, or broke in the middle of its stream: the first to see it
            # takes its turn.
        flight = self._flights[here] = here[0].create_future()
        try:
            response = await self._lead(call, plan, name)
            if response is not None:
                flight.set_result(response)
            return response
        except LLMError as error:
            # A stream that broke could not go on with another try, for its reader had seen a part of the answer. Those
            # who wait have not.
            if not (error.retryable and call.sink is not None and call.sink.has_begun):
                flight.set_exception(error)
                flight.exception()  # there may be no follower
            raise
        finally:
            del self._flights[here]
            flight.cancel()  # no effect when it has a result

    async def _share(self, call: Call, plan: RoutePlan, leader: asyncio.Future[LLMResponse]) -> LLMResponse | None:
        error = leader.exception()
        if not isinstance(error, LLMError):
            return await self._recorder.serve(call, leader.result(), ServedFrom.SHARED)
        own = _as_follower(error, self._recorder.run_id(call))
        if not isinstance(error, LLMStoreError):
            await self._recorder.fail(call, own.code, str(own), plan, AttemptLog(), own)
        raise own

    async def _lead(self, call: Call, plan: RoutePlan, flight_key: str) -> LLMResponse | None:
        """Run the call, or wait while another process runs an equal one."""
        polls = 0
        waited_for: UUID | None = None
        listener = Listener(self._settings.abandoned_after_s)
        while self._runs is not None:
            other = await self._runs.get_by_flight_key(call.workspace_id, flight_key)
            if waited_for is not None and (other is None or other.id != waited_for):
                # Looked up after its flight key is gone: it may have ended a moment after any earlier look.
                ended = await self._runs.get_run(call.workspace_id, waited_for)
                if ended is not None and ended.status is RunStatus.SUCCEEDED and ended.result_json is not None:
                    return await self._serve_stored(call, ended, ServedFrom.SHARED)
            if other is None:
                break
            waited_for = other.id
            if listener.is_silent(other.id, other.heartbeat_at_utc):
                # Its process lives, and no longer works on it: it could not write the end.
                return await self._run(call, plan, flight_key=None)
            if await self._end_if_abandoned(self._runs, other):
                continue
            await asyncio.sleep(FLIGHT_POLL_S[min(polls, len(FLIGHT_POLL_S) - 1)])
            polls += 1
        return await self._run(call, plan, flight_key)

    # --- one billed call ----------------------------------------------------------------------------------------

    async def _run(self, call: Call, plan: RoutePlan, flight_key: str | None) -> LLMResponse | None:
        """Call and record. STARTED is written when the first request leaves, the outcome before it is returned.

        None when another call took this one's key before anything was sent.
        """
        log = AttemptLog(may_send=False)
        before_send = partial(self._before_send, call, plan, flight_key, log)
        try:
            result = await self._send(call, plan, before_send, log)
        except asyncio.CancelledError:
            await self._record_cancellation(call, plan, log)
            raise
        except LLMError as error:
            error.run_id = self._recorder.run_id(call)
            error.attempts = log.attempts
            self._mention_unused_key(error)
            await self._recorder.fail(call, error.code, str(error), plan, log, error)
            raise
        except Exception as cause:
            # A defect of llmkit or of a custom client. What was sent is recorded anyway.
            defect = LLMError(f"{type(cause).__name__} in llmkit or in its model client; please report it")
            defect.run_id, defect.attempts = self._recorder.run_id(call), log.attempts
            await self._recorder.fail(call, defect.code, str(defect), plan, log)
            defect.partial_text = "" if call.sink is None else call.sink.partial_text
            raise defect from cause
        finally:
            if self._heartbeat is not None:
                self._heartbeat.end(call.run_id)
        if isinstance(result, NotSent):
            return await self._end_unsent(call, plan, result)
        response, outcome = result
        # Before the outcome is written, because that ends the flight and lets an equal call look into the cache.
        self._keep(call, plan, response)
        await self._recorder.succeed(call, response, outcome)
        return response

    def _mention_unused_key(self, error: LLMError) -> None:
        """Add to an error that a key which could have prevented it was set after the settings were read."""
        if error.code not in CODES_OF_MISSING_KEYS:
            return
        hint = describe_unused_key(self._settings, is_refused=error.code == LLMAuthenticationError.code)
        if hint is not None and hint not in error.message:
            error.message = f"{error.message.removesuffix('.')}. {hint}"
            error.args = (error.message,)

    async def _send(
        self, call: Call, plan: RoutePlan, before_send: BeforeSend, log: AttemptLog
    ) -> tuple[LLMResponse, RunSuccess | None] | NotSent:
        """Return the answer and its row.

        The row is built here, inside the error handling of `_run`: a value that cannot be stored must not leave the
        call STARTED.
        """
        routed = await self._router.execute(call.request, plan, before_send, log, sink=call.sink)
        if not isinstance(routed, NotSent):
            # A client that answers without sending anything need not have awaited it.
            routed = await before_send() or routed
        if isinstance(routed, NotSent):
            return routed
        response = self._response(call, plan, routed, log)
        return response, self._recorder.make_success(call, response, routed.plan_record)

    async def _before_send(
        self, call: Call, plan: RoutePlan, flight_key: str | None, log: AttemptLog
    ) -> NotSent | None:
        """Write STARTED before the first request leaves; do nothing before the others.

        At the last moment, so that a waiting call does not take its key, and a crash leaves none in doubt.
        """
        if log.may_send:
            return None
        try:
            if not await self._recorder.start(call, flight_key):
                return NotSent(None)
        except LLMStoreError as error:
            return NotSent(error)
        if flight_key is not None and (cached := self._from_cache(call, plan)) is not None:
            # An equal call ended after the cache was searched.
            return NotSent(cached)
        if self._heartbeat is not None:
            self._heartbeat.begin(call.run_id)
        log.may_send = True
        return None

    async def _end_unsent(self, call: Call, plan: RoutePlan, result: NotSent) -> LLMResponse | None:
        if isinstance(result.outcome, LLMResponse):
            response = self._recorder.as_served(call, result.outcome, ServedFrom.CACHE)
            outcome = self._recorder.make_success(call, response, plan_as_json(plan))
            await self._recorder.succeed(call, response, outcome)
            return response
        if result.outcome is not None:
            raise result.outcome
        return None

    async def _record_cancellation(self, call: Call, plan: RoutePlan, log: AttemptLog) -> None:
        message = "cancelled by the caller" if log.attempts else "cancelled before anything was sent"
        # The recorder keeps an outcome that the store rejects, and writes it later. The cancellation stays one.
        with suppress(LLMStoreError):
            await self._recorder.fail(call, CANCELLED_CODE, message, plan, log)

    def _response(self, call: Call, plan: RoutePlan, routed: Routed, log: AttemptLog) -> LLMResponse:
        reply = routed.reply
        return LLMResponse(
            text=_whole_characters(reply.text),
            tool_calls=tuple(
                ToolCall(
                    id=_whole_characters(tool.id),
                    name=_whole_characters(tool.name),
                    arguments=_whole_characters(tool.arguments),
                )
                for tool in reply.tool_calls
            ),
            finish_reason=reply.finish_reason,
            usage=drop_impossible_counts(reply.usage),
            route=routed.route,
            requested_route=call.request.route,
            response_model=reply.response_model and _whole_characters(reply.response_model),
            latency_ms=call.measure(log) if reply.latency_ms is None else reply.latency_ms,
            first_token_ms=call.measure_first_token(log),
            cost_usd=reply.cost_usd,
            logprobs=reply.logprobs,
            run_id=self._recorder.run_id(call),
            attempts=log.attempts,
            plan=plan,
            warnings=tuple(map(_whole_characters, reply.warnings)),
        )


def _whole_characters(text: str) -> str:
    """Return the text with half characters replaced.

    A model may stop inside one, and neither JSON nor a database takes it.
    """
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _as_follower(error: LLMError, run_id: UUID | None) -> LLMError:
    """Return a copy of the leading call's error for a follower, which has its own row and sent no request."""
    own = type(error).__new__(type(error), *error.args)
    vars(own).update(vars(error))
    own.run_id, own.attempts, own.has_begun, own.partial_text = run_id, (), False, ""
    return own
