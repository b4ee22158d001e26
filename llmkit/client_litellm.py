"""The model client: one call on one route through LiteLLM, with retries, a deadline and errors of our own.

The request paths know LiteLLM; this knows when to call, when to call again, and what came of it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from llmkit.errors import (
    CANCELLED_CODE,
    LLMConfigurationError,
    LLMContextOverflow,
    LLMEmptyReply,
    LLMError,
    LLMMalformedReply,
    LLMModelNotFound,
    LLMPromptTruncated,
    LLMTimeout,
    LLMUnavailable,
)
from llmkit.ports import (
    AnswerSink,
    AttemptLog,
    BeforeSend,
    ClientReply,
    Leases,
    ModelServer,
    NotSent,
    Send,
    StreamPiece,
    allow_sending,
    apply_guard,
)
from llmkit.providers import PROVIDERS, ProviderSpec, explain_unknown_endpoint, load_endpoints
from llmkit.redaction import redact
from llmkit.settings import LLMSettings
from llmkit.transport.context_window import CallWindow, MeasuredPrompts
from llmkit.transport.http.error_mapping import failure
from llmkit.transport.http.exchange import Exchange
from llmkit.transport.http.replies import read_prompt_usage, read_reply, verdict
from llmkit.transport.limits import Admission, Limits
from llmkit.transport.paths.select import RequestPaths, load_here
from llmkit.transport.stream_forms import StreamForms
from llmkit.types import Attempt, AttemptStatus, LLMProvider, LLMRequest, Route, TokenUsage

__all__ = ["LiteLLMClient"]

FIRST_WAIT_S = 0.5
# An answer that cannot be used was billed anyway: one more try, however many are allowed for silence.
RETRIES_OF_UNUSABLE = 1
# The clock of a request starts when it leaves; before that LiteLLM may load parts of itself.
PREPARATION_S = 60.0


class LiteLLMClient:
    """Calls models through LiteLLM. Belongs to one event loop, in which it is used and closed.

    Args:
        settings: Limits, addresses and keys.
        servers: Model servers that llmkit runs itself, started on the first call to their provider.
        providers: Every endpoint by name; None for those of the settings.
        leases: Shares limits per minute and pauses with other processes; None for limits of this process.
        sleep: How to wait between two tries, in seconds.
    """

    def __init__(
        self,
        settings: LLMSettings,
        servers: Mapping[LLMProvider, ModelServer] = MappingProxyType({}),
        *,
        providers: Mapping[LLMProvider, ProviderSpec] | None = None,
        leases: Leases | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._servers = servers
        self._providers = load_endpoints(settings) if providers is None else providers
        self._sleep = sleep
        self._limits = Limits(settings, self._providers, leases)
        self._paths = RequestPaths(settings.request_path, settings.max_reply_mb)
        self._measured_prompts = MeasuredPrompts()
        self._stream_forms = StreamForms()

    async def preload(self) -> None:
        """Load litellm, so that the first call does not wait for it. Takes 3 to 6 s, all in a worker thread."""
        await self._paths.rehearse(self._rehearsal())

    def preload_here(self) -> None:
        """Run `preload` in the calling thread, which must have no running event loop."""
        load_here(self._settings.request_path, self._rehearsal())

    def _rehearsal(self) -> Exchange:
        spec, request = PROVIDERS[LLMProvider.OLLAMA], LLMRequest(messages="rehearsal")
        route = Route(provider=LLMProvider.OLLAMA, model="rehearsal")
        return Exchange(spec=spec, arguments=spec.call_arguments(self._settings, route, request, None))

    async def call(
        self,
        route: Route,
        request: LLMRequest,
        log: AttemptLog,
        before_send: BeforeSend = allow_sending,
        *,
        sink: AnswerSink | None = None,
    ) -> ClientReply | NotSent:
        """Send the request, again after a retryable failure, and add every request that left to `log`.

        Waits for a place under the limits first, see `llmkit.transport.limits`, and then awaits `before_send`. With a
        `sink`, the pieces of the answer go there while it is being written, if the server can stream; the reply is the
        same.

        Raises:
            LLMError: Of the class that says what went wrong, after `max_retries` further tries.
        """
        spec = self._callable_provider(route)
        async with self._limits.place(route, request, log) as place:
            began_s = time.perf_counter()
            await self._load_paths(spec, route)
            # Several seconds in a new process, which say nothing of the provider.
            log.queued_ms += (time.perf_counter() - began_s) * 1000
            window = CallWindow(spec, route, request, self._measured_prompts)
            confirm = partial(place.confirm, before_send)
            once = apply_guard(route, request, log, partial(self._request_once, window, log, confirm, sink))
            send = partial(_send_in_window, place, once, window, sink)
            first = await _try_once(send)
            # Most calls need no retry, and its machinery is a third of all the work that is done here.
            return await self._retry(first, send, spec, sink) if isinstance(first, LLMError) else first

    async def _load_paths(self, spec: ProviderSpec, route: Route) -> None:
        try:
            await self._paths.load()
        except Exception as error:  # litellm reads SSL_CERT_FILE while it is imported
            hint = "set SSL_CERT_FILE to a file of PEM certificates, or unset it" if isinstance(error, OSError) else ""
            raise LLMConfigurationError(
                f"{spec.label} cannot be called: LiteLLM cannot be loaded ({type(error).__name__}). {hint}".strip(),
                provider=route.provider,
                model=route.model,
            ) from error

    async def _retry(
        self, failed: LLMError, send: Send, spec: ProviderSpec, sink: AnswerSink | None
    ) -> ClientReply | NotSent:
        """Go on after the first try, which counts as one."""
        outcomes: Iterator[LLMError] = iter((failed,))

        async def attempt() -> ClientReply | NotSent:
            error = next(outcomes, None)
            if error is not None:
                raise error
            return await send()

        return await self._retrying(spec, sink)(attempt)

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._limits.close()
        await self._paths.close()

    def _callable_provider(self, route: Route) -> ProviderSpec:
        spec = self._providers.get(route.provider)
        if spec is None:
            raise explain_unknown_endpoint(route.provider, self._providers, self._settings)
        problem = spec.configuration_problem(self._settings)
        if problem is not None:
            raise LLMConfigurationError(
                f"{spec.label} cannot be called: {problem}", provider=route.provider, model=route.model
            )
        unknown = spec.model_problem(self._settings, route.model)
        if unknown is not None:
            raise LLMModelNotFound(unknown, provider=route.provider, model=route.model)
        return spec

    def _retrying(self, spec: ProviderSpec, sink: AnswerSink | None) -> AsyncRetrying:
        return AsyncRetrying(
            stop=self._enough,
            wait=self._wait_s,
            retry=retry_if_exception(partial(self._is_worth_a_retry, spec, sink)),
            sleep=self._sleep,
            reraise=True,
        )

    def _is_worth_a_retry(self, spec: ProviderSpec, sink: AnswerSink | None, error: BaseException) -> bool:
        """Return whether the same call should try the route again."""
        if sink is not None and sink.has_begun:
            return False  # The reader would see two answers in one.
        if isinstance(error, LLMTimeout) and not spec.retries_timeouts:
            return False
        # A server of llmkit's own is started again before the next try; any other stays where it is: nowhere.
        if isinstance(error, LLMUnavailable) and not error.retries_in_call and spec.provider not in self._servers:
            return False
        return isinstance(error, LLMError) and error.retryable

    def _enough(self, state: RetryCallState) -> bool:
        unusable = isinstance(_error_of(state), LLMEmptyReply | LLMMalformedReply)
        retries = min(self._settings.max_retries, RETRIES_OF_UNUSABLE) if unusable else self._settings.max_retries
        return state.attempt_number > retries

    def _wait_s(self, state: RetryCallState) -> float:
        """Return the wait: exponential with full jitter, at least `Retry-After`, at most `retry_max_wait_s`."""
        longest = self._settings.retry_max_wait_s
        own = float(wait_random_exponential(multiplier=FIRST_WAIT_S, max=longest)(state))
        retry_after_s = getattr(_error_of(state), "retry_after_s", None)
        if retry_after_s is None:
            return own
        # With jitter on top: many calls get the same Retry-After at once, and must not return at once.
        return min(longest, float(retry_after_s) + random.uniform(0, FIRST_WAIT_S))  # noqa: S311

    async def _request_once(
        self, window: CallWindow, log: AttemptLog, before_send: BeforeSend, sink: AnswerSink | None
    ) -> ClientReply | NotSent:
        spec, route, request = window.spec, window.route, window.request
        server = self._servers.get(route.provider)
        # Before every try, because a server that llmkit runs may have died in the last one.
        endpoint = await server.ensure_running() if server is not None else None
        not_sent = await before_send()
        if not_sent is not None:
            return not_sent
        arguments = window.fit(spec.call_arguments(self._settings, route, request, endpoint))
        timeout_s = request.timeout_s or self._settings.default_timeout_s
        exchange = Exchange(spec=spec, arguments=arguments, sink=sink)
        if sink is not None:
            exchange.stream = self._stream_forms.choose(spec, route)
            exchange.silence_s = self._settings.stream_chunk_timeout_s
            exchange.piece_wait_s = max(timeout_s, exchange.silence_s)
        record = _Record(route, exchange, log, spec.secrets(self._settings), self._settings.host)
        try:
            outcome = await self._outcome(exchange, request, timeout_s)
        except asyncio.CancelledError:
            record.add(AttemptStatus.CANCELLED, usage=read_prompt_usage(exchange))
            raise
        if isinstance(outcome, Exception):
            error = failure(exchange, request, outcome, timeout_s)
            record.add(AttemptStatus.FAILED, error=error)
            if self._stream_forms.note_refusal(route, exchange):
                return await self._request_once(window, log, before_send, sink)
            raise error
        reply, unusable = outcome
        record.add(AttemptStatus.FAILED if unusable else AttemptStatus.SUCCEEDED, reply, unusable)
        if unusable is not None:
            raise unusable
        if sink is not None and sink.has_begun and reply.text and not sink.partial_text:
            # Reasoning that turned out to be the answer, see `providers.ollama`.
            await sink.put((StreamPiece("text", reply.text),))
        return reply

    async def _outcome(
        self, exchange: Exchange, request: LLMRequest, timeout_s: float
    ) -> tuple[ClientReply, LLMError | None] | Exception:
        """Return the reply and the error that it amounts to, or any exception of the request as a value.

        As a value, so that the error raised for it is not chained to one that may contain a key. The reply is judged
        here too: whatever a hostile reply makes the code below raise, its attempt is recorded.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(PREPARATION_S + timeout_s) as deadline:
                exchange.on_leaving = lambda: deadline.reschedule(loop.time() + timeout_s)
                # An answer may take any time to be written, as long as pieces of it arrive: see `StreamReading`.
                exchange.on_first_piece = lambda: deadline.reschedule(None)
                reply = read_reply(await self._paths.complete(exchange, timeout_s), exchange, request)
                if exchange.has_broken:
                    # Read anyway, for the token counts that did arrive.
                    error = failure(exchange, request, ConnectionError(), timeout_s)
                    return replace(reply, finish_reason="unknown"), error
                return reply, verdict(reply, exchange, request)
        except Exception as error:  # noqa: BLE001 - several of LiteLLM's classes share no base
            return error


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None


async def _send_in_window(
    place: Admission, once: Send, window: CallWindow, sink: AnswerSink | None
) -> ClientReply | NotSent:
    """Send the request, and once more when the prompt did not fit into a window that the model can widen."""
    try:
        return await place.send(once)
    except (LLMContextOverflow, LLMPromptTruncated):
        if (sink is not None and sink.has_begun) or not window.widen():
            raise
    reply = await place.send(once)
    if isinstance(reply, ClientReply):
        window.note_reply(reply)
    return reply


async def _try_once(send: Send) -> ClientReply | NotSent | LLMError:
    try:
        return await send()
    except LLMError as error:
        return error


@dataclass(frozen=True, slots=True)
class _Record:
    """Adds the attempt of one exchange to the log, if the request left at all."""

    route: Route
    exchange: Exchange
    log: AttemptLog
    secrets: tuple[str, ...]
    host: str

    def add(
        self,
        status: AttemptStatus,
        reply: ClientReply | None = None,
        error: LLMError | None = None,
        usage: TokenUsage | None = None,
    ) -> None:
        exchange = self.exchange
        if exchange.sent_at_utc is None:
            return
        cancelled = CANCELLED_CODE if status is AttemptStatus.CANCELLED else None
        self.log.add(
            Attempt(
                route=self.route,
                number=self.log.next_number,
                status=status,
                started_at_utc=exchange.sent_at_utc,
                latency_ms=exchange.elapsed_ms,
                first_token_ms=exchange.first_token_ms,
                params_sha256=exchange.params_sha256,
                schema_sha256=exchange.schema_sha256,
                usage=usage or (reply.usage if reply else TokenUsage()),
                finish_reason=reply.finish_reason if reply else None,
                response_model=reply.response_model if reply else None,
                model_digest=exchange.model_digest,
                cost_usd=reply.cost_usd if reply else None,
                status_code=exchange.status,
                error_code=error.code if error else cancelled,
                error_message=redact(str(error), self.secrets) if error else None,
                host=self.host,
            )
        )
