"""The limits of every provider, and a place among them for each call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from llmkit.errors import LLMError, LLMQuotaExhausted, LLMStoreError, LLMTimeout, LLMUnusableAnswer
from llmkit.ports import AttemptLog, BeforeSend, ClientReply, Leases, NotSent, Send
from llmkit.providers import ProviderSpec, estimate_prompt_tokens
from llmkit.settings import LLMSettings
from llmkit.transport.limits.adaptive_concurrency import AdaptiveLimit, Concurrency, FixedLimit, Ticket
from llmkit.transport.limits.daily_quota import Parking
from llmkit.transport.limits.rate_limits import RateReservation, Rates
from llmkit.transport.limits.resizable_semaphore import ResizableSemaphore
from llmkit.transport.limits.shared_pauses import SharedPauses
from llmkit.transport.limits.sliding_window import SlidingWindow
from llmkit.types import LLMProvider, LLMRequest, Route, utc_now

if TYPE_CHECKING:
    from llmkit.transport.limits.leased_rates import LeasedRates, LeasedReservation

__all__ = ["Admission", "Limits"]

# Too many requests (429); a full queue, at Ollama and others (503); overload at Anthropic and others (529).
_REFUSALS = frozenset({429, 503, 529})
_TOO_MANY = 429
# How long one process that met a used-up quota keeps the others from asking, in seconds.
LONGEST_SHARED_QUOTA_S = 900.0


class Limits:
    """Limits on requests in progress, overall and per provider. Belongs to one event loop.

    Args:
        settings: `concurrency_limit`, `adaptive_concurrency` and what the providers read from it.
        providers: What differs between providers.
        leases: Shares limits per minute and pauses with other processes; None for limits of this process.
        clock: Seconds on a clock that never goes back.
        now: The time of day.
    """

    def __init__(
        self,
        settings: LLMSettings,
        providers: Mapping[LLMProvider, ProviderSpec],
        leases: Leases | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._all = ResizableSemaphore(lambda: settings.concurrency_limit)
        self._now = now
        self._pauses = None if leases is None else SharedPauses(leases, clock, settings.retry_max_wait_s)
        self._providers = {
            name: _Provider(
                spec,
                _concurrency(spec, settings),
                _rates(spec, settings, leases, clock),
                Parking(spec.quota_zone),
                self._pauses,
                settings.retry_max_wait_s,
            )
            for name, spec in providers.items()
        }

    async def close(self) -> None:
        """Return what other processes may use. Idempotent."""
        for provider in self._providers.values():
            await provider.rates.close()
        if self._pauses is not None:
            await self._pauses.close()

    def concurrency(self, provider: LLMProvider) -> int:
        """Return the number of concurrent requests that the provider may get now."""
        return self._providers[provider].concurrency.limit

    def place(self, route: Route, request: LLMRequest, log: AttemptLog) -> Admission:
        """Return a place at the route's provider, for one call with its retries, to be entered with `async with`.

        First come, first served. A retry that waits keeps its place while no request is answered: then others queue
        instead of joining in. After a failure among answers, and after a refusal for being one too many, it gives its
        place up, and is the next to get one when there is room again.
        """
        return Admission(self._providers[route.provider], self._all, self._now, route, request, log)


class Admission:
    """A place at a provider, kept by one call from `async with` to its end.

    Raises:
        LLMQuotaExhausted: The route's quota of the day is used up when the place is entered; nothing was sent.
    """

    def __init__(
        self,
        provider: _Provider,
        everywhere: ResizableSemaphore,
        now: Callable[[], datetime],
        route: Route,
        request: LLMRequest,
        log: AttemptLog,
    ) -> None:
        self._provider = provider
        self._everywhere = everywhere
        self._now = now
        self._route = route
        self._request = request
        self._log = log
        self._is_inside = False
        self._reservation: RateReservation | LeasedReservation | None = None

    async def __aenter__(self) -> Admission:
        self.check_quota()
        await self.enter()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    async def enter(self, *, first: bool = False) -> None:
        """Wait for the place."""
        began_s = time.perf_counter()
        await self._provider.semaphore.enter(first=first)
        self._is_inside = True
        self._log.queued_ms += (time.perf_counter() - began_s) * 1000

    def leave(self) -> None:
        """Give the place up. Idempotent."""
        if self._is_inside:
            self._is_inside = False
            self._provider.semaphore.leave()

    async def send(self, work: Send) -> ClientReply | NotSent:
        """Do the work, one request, when the limits over all and per minute allow it, and learn from how it ends.

        Raises:
            LLMQuotaExhausted: The route's quota of the day was used up meanwhile; nothing was sent.
            LLMError: What the work raised.
        """
        if not self._is_inside:
            await self.enter(first=True)
        began_s = time.perf_counter()
        await self._wait_for_pause()
        try:
            reservation = await self._provider.rates.reserve(self._tokens)
        except LLMStoreError as error:
            return NotSent(error)
        try:
            await self._everywhere.enter()
        except BaseException:
            reservation.release()
            raise
        self._log.queued_ms += (time.perf_counter() - began_s) * 1000
        try:
            self.check_quota()
            self._reservation = reservation
            return await self._send_and_learn(work, reservation)
        finally:
            self._reservation = None
            reservation.release()
            self._everywhere.leave()

    async def confirm(self, before_send: BeforeSend) -> NotSent | None:
        """Await `before_send`, and count the request from now on, since it leaves now.

        The store may have been away for a minute: the place in the minute that was reserved before may be over.
        """
        not_sent = await before_send()
        if not_sent is None and self._reservation is not None:
            reservation, self._reservation = self._reservation, None
            try:
                await reservation.confirm()
            except LLMStoreError as error:
                return NotSent(error)
        return not_sent

    async def _wait_for_pause(self) -> None:
        remaining_s = 0.0 if self._provider.pauses is None else await self._provider.pauses.wait(self._route)
        if remaining_s > 0:
            raise self._make_quota_error(self._now() + timedelta(seconds=remaining_s), remaining_s)

    async def _send_and_learn(
        self, work: Send, reservation: RateReservation | LeasedReservation
    ) -> ClientReply | NotSent:
        ticket, sent_before = self._provider.begin(), len(self._log.attempts)
        try:
            reply = await work()
            if self._reservation is not None and isinstance(reply, ClientReply):
                # Work that confirms nothing has sent its request some time ago.
                await self._reservation.confirm()
        except LLMError as error:
            self._learn(ticket, sent_before, error)
            raise
        except BaseException:
            self._provider.note_failure(ticket)
            raise
        if isinstance(reply, NotSent):
            # The provider has not seen this call, so there is nothing to learn from it.
            self._provider.note_failure(ticket)
            return reply
        self._learn(ticket, sent_before)
        usage = reply.usage
        reservation.settle(usage.total_tokens if self._provider.spec.answers_count else usage.input_tokens)
        return reply

    def _learn(self, ticket: Ticket, sent_before: int, error: LLMError | None = None) -> None:
        attempts = self._log.attempts[sent_before:]
        failed_alone, self._provider.answers = self._provider.answers and error is not None, error is None
        self._share_pause(error)
        if isinstance(error, LLMQuotaExhausted):
            self._park(error)
        elif error is not None and error.status_code in _REFUSALS:
            earlier = self._log.attempts[:sent_before]
            again = any(each.route == self._route and each.status_code in _REFUSALS for each in earlier)
            self._provider.note_refusal(ticket, again=again)
            self.leave()
            return
        if attempts and (error is None or isinstance(error, LLMTimeout | LLMUnusableAnswer)):
            # What took too long, or was no answer, still took its time.
            self._provider.note_answer(ticket, attempts[-1].latency_ms / 1000)
        else:
            self._provider.note_failure(ticket)
        if failed_alone:
            self.leave()

    def _park(self, error: LLMQuotaExhausted) -> None:
        if error.status_code == _TOO_MANY and error.is_temporary:  # An unpaid bill is no matter of time.
            now = self._now()
            until = self._provider.parking.park(self._route, now, error.retry_after_s)
            error.retry_after_s = (until - now).total_seconds()
            if self._provider.pauses is not None:
                # A quota may be raised: then a new session, or another process, finds it out.
                self._provider.pauses.begin(self._route, min(error.retry_after_s, LONGEST_SHARED_QUOTA_S))

    def _share_pause(self, error: LLMError | None) -> None:
        """Let all processes wait as long as this call will, when the provider asked for it."""
        retry_after_s = getattr(error, "retry_after_s", None)
        if error is None or retry_after_s is None or isinstance(error, LLMQuotaExhausted):
            return
        if self._provider.pauses is not None and error.status_code in _REFUSALS and retry_after_s > 0:
            self._provider.pauses.begin(self._route, min(retry_after_s, self._provider.longest_pause_s))

    def _tokens(self) -> int:
        """Estimate the tokens of the request before it is sent."""
        answer = self._request.max_output_tokens if self._provider.spec.answers_count else None
        return estimate_prompt_tokens(self._request) + (answer or 0)

    def check_quota(self) -> None:
        """Refuse the call while its route's quota of the day is used up."""
        now = self._now()
        until = self._provider.parking.until(self._route, now)
        if until is not None:
            raise self._make_quota_error(until, (until - now).total_seconds())

    def _make_quota_error(self, until: datetime, remaining_s: float) -> LLMQuotaExhausted:
        return LLMQuotaExhausted(
            f"The quota of {self._provider.spec.label} for {self._route.model} is used up until "
            f"{until:%Y-%m-%d %H:%M} UTC; nothing was sent. Try again then, ask another model, or raise the quota "
            "and open a new session.",
            provider=self._route.provider,
            model=self._route.model,
            retry_after_s=remaining_s,
        )


@dataclass
class _Provider:
    """The limits of one provider."""

    spec: ProviderSpec
    concurrency: Concurrency
    rates: Rates | LeasedRates
    parking: Parking
    pauses: SharedPauses | None
    longest_pause_s: float
    semaphore: ResizableSemaphore = field(init=False)
    answers: bool = field(init=False, default=False)
    """Whether the last request that ended was answered."""

    def __post_init__(self) -> None:
        self.semaphore = ResizableSemaphore(lambda: self.concurrency.limit)

    def begin(self) -> Ticket:
        return self.concurrency.begin(self.semaphore.inside)

    def note_answer(self, ticket: Ticket, latency_s: float) -> None:
        self.concurrency.note_answer(ticket, latency_s)
        self.semaphore.admit_waiting()

    def note_failure(self, ticket: Ticket) -> None:
        self.concurrency.note_failure(ticket)
        self.semaphore.admit_waiting()

    def note_refusal(self, ticket: Ticket, *, again: bool) -> None:
        self.concurrency.note_refusal(ticket, again=again)


def _concurrency(spec: ProviderSpec, settings: LLMSettings) -> Concurrency:
    own = spec.parallel(settings)
    if own is not None or not settings.adaptive_concurrency:
        # A server that llmkit runs itself has as many slots as it was given: there is nothing to find out.
        return FixedLimit(min(own or settings.concurrency_limit, settings.concurrency_limit))
    return AdaptiveLimit(settings.concurrency_limit)


def _rates(
    spec: ProviderSpec, settings: LLMSettings, leases: Leases | None, clock: Callable[[], float]
) -> Rates | LeasedRates:
    requests, tokens = spec.per_minute(settings)
    if leases is not None and (requests is not None or tokens is not None):
        # Imported here: most endpoints have no such limit.
        from llmkit.transport.limits.leased_rates import LeasedRates

        # By the endpoint's name: limits are those of an account, whichever workspaces use it.
        return LeasedRates(leases, f"rate/{spec.provider}", requests, tokens, clock)
    return Rates(_window(requests), _window(tokens), clock)


def _window(limit: int | None) -> SlidingWindow | None:
    return None if limit is None else SlidingWindow(limit)
