"""Keeps an evaluation within its budget: sets aside what a request may take before it leaves, and stops the run."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress

from llmkit.errors import LLMBadRequest, LLMBudgetExhausted, LLMEvaluationError, LLMStoreError
from llmkit.eval_ports import MOST_PLAUSIBLE_TOKENS, EvalRun, EvalStore
from llmkit.evals.budget import NOTHING, PARTS_PER_USD, Amount, Books, Budget, BudgetUse, Kind, amount
from llmkit.evals.run.plan import Plan
from llmkit.evals.run.recorded_spending import NOTHING_EARLIER, Earlier, RecordedSpending
from llmkit.evals.run.request_costs import PriceOf, compute_most, explain_unknown_price
from llmkit.evals.run.shared_budget import SharedBudget
from llmkit.ports import DOUBTFUL_STATUSES, AttemptLog, ClientReply, NotSent, Send, use_guard
from llmkit.pricing import FREE, ListPrice, list_price
from llmkit.providers import compute_max_prompt_tokens, compute_min_prompt_tokens
from llmkit.providers.prompt_tokens import MOST_CHARS_PER_TOKEN
from llmkit.types import Attempt, LLMRequest, Route, TokenUsage

__all__ = ["BudgetGuard"]

# Counts may be this many times above or below the bounds of a request: templates of servers and hidden reasoning are in
# the first, a prompt that a server has cached in the second.
TOLERANCE = 10
AGAIN = "The same name with a larger budget goes on; finished calls are not repeated."


class BudgetGuard:
    """Guards all requests of one evaluation. Belongs to the event loop in which it is made, and counts no other's.

    Args:
        budget: The limits.
        earlier: What the run spent before, of which `uncounted` requests are contained at their most, since their real
            use is unknown.
        price_of: The price of a route's tokens; None when it is not known.
        shared: The part of the budget that this process has, if others share it.
        clock: Seconds on a clock that never goes back.
    """

    def __init__(
        self,
        budget: Budget,
        earlier: Earlier = NOTHING_EARLIER,
        *,
        price_of: PriceOf = list_price,
        shared: SharedBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = budget
        self._earlier = earlier
        self._shared = shared
        self._books = Books.of(budget, earlier.spent) if shared is None else shared.books
        self._has_joined = False
        self._price_of = price_of
        self._prices: dict[Route, ListPrice | None] = {}
        self._clock = clock
        self._ends_s = math.inf
        self._slowest_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._settled = asyncio.Event()
        self._stopped: tuple[Kind, str] | None = None

    @classmethod
    async def of(cls, plan: Plan, run: EvalRun, store: EvalStore) -> BudgetGuard:
        """Return the guard of a run's budget, of which earlier calls of `evaluate` have spent what the store knows of.

        Raises:
            LLMEvaluationError: The price of something that was sent before is not known.
        """
        if not plan.budget.counts_requests:
            return cls(plan.budget)
        recorded = RecordedSpending(plan, run, store)
        earlier = await recorded.read()
        shared = None
        if store.leases is not None:
            shared = SharedBudget(store.leases, str(run.id), plan.budget, recorded, time.monotonic)
        return cls(plan.budget, earlier, price_of=recorded.price_of, shared=shared)

    @property
    def stopped_by(self) -> Kind | None:
        """Which limit stopped the run."""
        return self._stopped[0] if self._stopped else None

    @property
    def why(self) -> str:
        """The reason why the run was stopped, and the remedy; empty when no limit stopped it."""
        return self._stopped[1] if self._stopped else ""

    @property
    def use(self) -> BudgetUse | None:
        """How much of the budget is used, other processes included as far as they reported it; None without one."""
        if self._budget == Budget():
            return None
        return BudgetUse(
            self._budget,
            tokens=self._spent("tokens") if "tokens" in self._books.accounts else None,
            cost_usd=self._spent("cost") / PARTS_PER_USD if "cost" in self._books.accounts else None,
            uncounted=self._earlier.uncounted,
            stopped_by=self.stopped_by,
            why=self.why or None,
        )

    def _spent(self, kind: Kind) -> int:
        if self._shared is None:
            return self._books.accounts[kind].spent
        return self._shared.spent(kind) if self._has_joined else self._earlier.spent.of(kind)

    async def read_use(self) -> BudgetUse | None:
        """Return how much of the budget the run has used, also when only other processes have sent anything."""
        if self._shared is not None and not self._has_joined:
            # Another process may have called a route whose price is not known here, and the report must come.
            with suppress(LLMEvaluationError):
                self._earlier = self._earlier._replace(spent=await self._shared.read_earlier())
        return self.use

    def note_stopped(self, kind: Kind, why: str) -> None:
        """Note that a worker was stopped by a limit."""
        self._stop(kind, why)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Guard what is sent in this block, and end it when the time is over: what is under way is cancelled."""
        seconds = self._budget.max_time_s
        async with self._share():
            self._ends_s = math.inf if seconds is None else self._clock() + seconds
            try:
                async with asyncio.timeout(seconds) as deadline:
                    with nullcontext() if self._budget == Budget() else use_guard(self):
                        yield
            except TimeoutError:
                if not deadline.expired():
                    raise
                self._stop("time", f"Stopped by the time budget of {seconds:g} s. {AGAIN}")

    @asynccontextmanager
    async def _share(self) -> AsyncIterator[None]:
        """Have a part of the shared budget, and give back what is left of it in the end."""
        if self._shared is None:
            yield
            return
        await self._shared.join()
        self._has_joined = True
        renewing = asyncio.create_task(self._renew_for_ever(self._shared))
        try:
            yield
        finally:
            renewing.cancel()
            with suppress(asyncio.CancelledError):
                await renewing
            # Without the store it is given back by the others, who take it for that of a dead process.
            with suppress(LLMStoreError):
                await self._shared.take(NOTHING)  # What the others have spent by now is in the report.
                await self._shared.close()

    async def _renew_for_ever(self, shared: SharedBudget) -> None:
        while True:
            await asyncio.sleep(shared.renew_s)
            async with self._turn:
                with suppress(LLMStoreError):  # The next request will say so.
                    await shared.take(NOTHING)
                self._stop_with_others(shared)

    async def send(self, route: Route, request: LLMRequest, log: AttemptLog, send: Send) -> ClientReply | NotSent:
        """Reserve the most that the request may use, send it, and settle what it used. See `ports.Guard`.

        If there is no room, it waits as long as the settlement of requests in progress may make some.

        Raises:
            LLMBudgetExhausted: There is no room for it any more, and the run is stopped.
            LLMBadRequest: The request has no output limit.
        """
        if asyncio.get_running_loop() is not self._loop:
            # A scorer's own session, in another loop, where the lock and the event below cannot be awaited.
            return await send()
        began_s = time.perf_counter()
        most = self._most(route, request)
        try:
            await self._reserve(most)
        except LLMStoreError as error:
            return NotSent(error)
        log.queued_ms += (time.perf_counter() - began_s) * 1000
        sent_before = len(log.attempts)
        answer = ""
        try:
            reply = await send()
            answer = reply.text if isinstance(reply, ClientReply) else ""
            return reply
        finally:
            # Also after an error or a cancellation: the request may have been billed, and others wait for its
            # settlement.
            sent = log.attempts[sent_before:]
            self._slowest_s = max(self._slowest_s, *(attempt.latency_ms / 1000 for attempt in sent), 0.0)
            plausible = [_is_plausible(attempt.usage, request, answer) for attempt in sent]
            self._books.settle(most, self._measure_use(route, sent, plausible, most))
            self._settled.set()

    async def _reserve(self, most: Amount) -> None:
        # A request is in one of four states: waiting for its turn, waiting for room, reserved, settled. One at a time
        # waits for room, in order of arrival, so that small requests do not overtake a large one for ever.
        self._waiting += 1
        try:
            async with self._turn:
                while True:
                    self._require_time()
                    if self._stopped is not None:
                        raise LLMBudgetExhausted(self._stopped[1])
                    if self._has_room(most) or (self._shared is not None and await self._take(self._shared, most)):
                        return
                    lacking = self._find_lacking(most)
                    if lacking is not None:
                        # No settlement can make room any more. The next turn of the loop raises, here and for all who
                        # wait.
                        self._stop(lacking, self._refusal(lacking, most))
                        continue
                    await self._wait_for_room()
        finally:
            self._waiting -= 1

    def _has_room(self, most: Amount) -> bool:
        return self._books.reserve(most) if self._shared is None else self._shared.reserve(most)

    async def _take(self, shared: SharedBudget, most: Amount) -> bool:
        """Ask the store for room, and reserve it; return whether there is any."""
        await shared.take(most, self._waiting)
        # A settlement may have made room meanwhile, also when the store had none.
        return self._has_room(most)

    def _find_lacking(self, most: Amount) -> Kind | None:
        return self._books.lacking(most) if self._shared is None else self._shared.used_up

    async def _wait_for_room(self) -> None:
        # No other task runs between the last look for room and this line, so no settlement is missed.
        self._settled.clear()
        pause_s = None if self._shared is None else self._shared.pause_s
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._settled.wait()

    def _stop_with_others(self, shared: SharedBudget) -> None:
        """Stop when another process found that the budget is used up."""
        kind = shared.used_up
        if kind is not None:
            self._stop(kind, self._refusal(kind, None))
            self._settled.set()

    def _require_time(self) -> None:
        """Stop the run when what is left would not do for the slowest request so far."""
        if self._clock() + self._slowest_s > self._ends_s:
            self._stop(
                "time",
                f"Stopped by the time budget of {self._budget.max_time_s:g} s: the slowest request took "
                f"{self._slowest_s:.1f} s, and less is left. {AGAIN}",
            )

    def _stop(self, kind: Kind, why: str) -> None:
        self._stopped = self._stopped or (kind, why)

    def _refusal(self, kind: Kind, most: Amount | None) -> str:
        spent = f"{_format_limit(kind, self._spent(kind))} were spent when the next request"
        if most is None:
            spent += " of another process did not fit"
        else:
            spent += f" might have taken {_format_limit(kind, most.of(kind))}"
        limit = Books.of(self._budget).accounts[kind].limit
        return f"Stopped by the budget of {_format_limit(kind, limit)}: {spent}. {AGAIN}"

    def _most(self, route: Route, request: LLMRequest) -> Amount:
        if not self._budget.counts_requests:
            return NOTHING
        if request.max_output_tokens is None:
            raise LLMBadRequest("A request that counts against a budget needs max_output_tokens: the most it may take.")
        return compute_most(request, self._price(route))

    def _price(self, route: Route) -> ListPrice:
        if self._budget.max_cost_usd is None:
            return FREE
        if route not in self._prices:
            self._prices[route] = self._price_of(route)
        price = self._prices[route]
        if price is None:
            self._stop("cost", explain_unknown_price(route))
            raise LLMBudgetExhausted(explain_unknown_price(route))
        return price

    def _has_own_price(self, route: Route) -> bool:
        return self._budget.max_cost_usd is not None and self._price(route).is_own

    def _measure_use(self, route: Route, sent: Sequence[Attempt], plausible: Sequence[bool], most: Amount) -> Amount:
        total = NOTHING
        for attempt, is_plausible in zip(sent, plausible, strict=True):
            total = total.plus(self._measure_attempt(route, attempt, most, is_plausible=is_plausible))
        return total

    def _measure_attempt(self, route: Route, attempt: Attempt, most: Amount, *, is_plausible: bool) -> Amount:
        usage, status = attempt.usage, attempt.status_code
        taken, given = usage.input_tokens or 0, usage.output_tokens
        # As `EvalStore.sum_spending` has it.
        is_recorded = 1 <= taken <= MOST_PLAUSIBLE_TOKENS and given is not None and 0 <= given <= MOST_PLAUSIBLE_TOKENS
        if given is not None and is_recorded and not usage.estimated:
            cost = attempt.cost_usd
            if cost is None or not 0 <= cost < math.inf or self._has_own_price(route):
                cost = self._price(route).most(taken, given)
            if is_plausible:
                return amount(taken + given, cost)
        refused = status is not None and status >= 400 and status not in DOUBTFUL_STATUSES
        return NOTHING if refused else most


def _is_plausible(usage: TokenUsage, request: LLMRequest, answer: str) -> bool:
    """Return whether a request can have these counts.

    A server that reports 0 tokens for ten kilobytes, or 10**12, does not know. Taken as they are, the first would let
    a run go on for ever, and the second would stop it at once; as unknown, the request counts as the most it can take.

    Args:
        usage: Counts of one of its attempts.
        request: What was sent.
        answer: Text of the answer; empty when there is none.
    """
    taken, given = usage.input_tokens, usage.output_tokens
    if taken is None or given is None or usage.estimated:
        return False
    least_taken = max(1, compute_min_prompt_tokens(request) // TOLERANCE)
    least_given = max(bool(answer), len(answer) // MOST_CHARS_PER_TOKEN // TOLERANCE)
    most_given = TOLERANCE * request.max_output_tokens if request.max_output_tokens else MOST_PLAUSIBLE_TOKENS
    return least_taken <= taken <= min(
        MOST_PLAUSIBLE_TOKENS, TOLERANCE * compute_max_prompt_tokens(request)
    ) and least_given <= given <= min(MOST_PLAUSIBLE_TOKENS, most_given)


def _format_limit(kind: Kind, part: int) -> str:
    return f"{part:,} tokens" if kind == "tokens" else f"${part / PARTS_PER_USD:,.4f}"
