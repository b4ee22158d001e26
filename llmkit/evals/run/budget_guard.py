"""Keeps an evaluation within its budget: sets aside what a request may take before it leaves, and stops the run."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext

from llmkit.errors import LLMBadRequest, LLMBudgetExhausted, LLMEvaluationError
from llmkit.eval_ports import MOST_PLAUSIBLE_TOKENS, EvalRun, EvalSpending, EvalStore
from llmkit.evals.budget import NOTHING, PARTS_PER_USD, Amount, Books, Budget, BudgetUse, Kind, amount
from llmkit.evals.call_names import name_prefix, warm_up_name
from llmkit.evals.run.plan import Plan
from llmkit.ports import DOUBTFUL_STATUSES, AttemptLog, ClientReply, NotSent, Send, use_guard
from llmkit.pricing import FREE, ListPrice, list_price
from llmkit.providers import compute_max_prompt_tokens, compute_min_prompt_tokens
from llmkit.providers.prompt_tokens import MOST_CHARS_PER_TOKEN
from llmkit.types import Attempt, LLMRequest, ResponseFormat, Route, TokenUsage

__all__ = ["BudgetGuard", "require_countable"]

PriceOf = Callable[[Route], ListPrice | None]

# Counts may be this many times above or below the bounds of a request: templates of servers and hidden reasoning are in
# the first, a prompt that a server has cached in the second.
TOLERANCE = 10
AGAIN = "The same name with a larger budget goes on; finished calls are not repeated."


class BudgetGuard:
    """Guards all requests of one evaluation. Belongs to the event loop in which it is made, and counts no other's.

    Args:
        budget: The limits.
        earlier: What the run spent before.
        counted: The part of it that providers counted.
        uncounted: How many requests of the past `earlier` contains at their most, since their real use is unknown.
        price_of: The price of a route's tokens; None when it is not known.
        clock: Seconds on a clock that never goes back.
    """

    def __init__(
        self,
        budget: Budget,
        earlier: Amount = NOTHING,
        *,
        counted: Amount = NOTHING,
        uncounted: int = 0,
        price_of: PriceOf = list_price,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = budget
        self._books = Books.of(budget, earlier)
        # What the store has of the run when only this guard sends, so that the rest is other processes'.
        self._recorded = counted
        self._uncounted = uncounted
        self._price_of = price_of
        self._prices: dict[Route, ListPrice | None] = {}
        self._clock = clock
        self._ends_s = math.inf
        self._slowest_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
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
        spent = await _read_spending(run, store)
        doubtful = await store.list_calls_in_doubt(run.workspace_id, name_prefix(run))
        uncounted = sum(each.uncounted for each in spent) + len(doubtful)
        counted = await asyncio.to_thread(_sum_counted, plan.budget, spent)
        largest = await asyncio.to_thread(_largest, plan) if uncounted else NOTHING
        earlier = Amount(counted.tokens + uncounted * largest.tokens, counted.money + uncounted * largest.money)
        return cls(plan.budget, earlier, counted=counted, uncounted=uncounted)

    @property
    def stopped_by(self) -> Kind | None:
        """Which limit stopped the run."""
        return self._stopped[0] if self._stopped else None

    @property
    def use(self) -> BudgetUse | None:
        """How much of the budget is used, as far as this guard knows; None without a budget."""
        return self._describe_use(NOTHING)

    async def read_use(self, run: EvalRun, store: EvalStore) -> BudgetUse | None:
        """Return how much of the budget the run has used, the requests of other processes included."""
        if not self._budget.counts_requests:
            return self.use
        try:
            counted = await asyncio.to_thread(_sum_counted, self._budget, await _read_spending(run, store))
        except LLMEvaluationError:  # another process calls a route without a price, and the report must come
            return self.use
        tokens, money = (max(0, now - known) for now, known in zip(counted, self._recorded, strict=True))
        return self._describe_use(Amount(tokens, money))

    def _describe_use(self, others: Amount) -> BudgetUse | None:
        if self._budget == Budget():
            return None
        accounts = self._books.accounts
        return BudgetUse(
            self._budget,
            tokens=accounts["tokens"].spent + others.tokens if "tokens" in accounts else None,
            cost_usd=(accounts["cost"].spent + others.money) / PARTS_PER_USD if "cost" in accounts else None,
            uncounted=self._uncounted,
            stopped_by=self.stopped_by,
            why=self._stopped[1] if self._stopped else None,
        )

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Guard what is sent in this block, and end it when the time is over: what is under way is cancelled."""
        seconds = self._budget.max_time_s
        self._ends_s = math.inf if seconds is None else self._clock() + seconds
        try:
            async with asyncio.timeout(seconds) as deadline:
                with nullcontext() if self._budget == Budget() else use_guard(self):
                    yield
        except TimeoutError:
            if not deadline.expired():
                raise
            self._stop("time", f"Stopped by the time budget of {seconds:g} s. {AGAIN}")

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
        await self._reserve(most)
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
        async with self._turn:
            while True:
                self._require_time()
                if self._stopped is not None:
                    raise LLMBudgetExhausted(self._stopped[1])
                if self._books.reserve(most):
                    return
                lacking = self._books.lacking(most)
                if lacking is not None:
                    # No settlement can make room any more. The next turn of the loop raises, here and for all who wait.
                    self._stop(lacking, self._refusal(lacking, most))
                    continue
                # No other task runs between the check above and this line, so no settlement is missed.
                self._settled.clear()
                await self._settled.wait()

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

    def _refusal(self, kind: Kind, most: Amount) -> str:
        account = self._books.accounts[kind]
        wanted = _format_limit(kind, most.tokens if kind == "tokens" else most.money)
        spent = f"{_format_limit(kind, account.spent)} were spent when the next request might have taken {wanted}"
        return f"Stopped by the budget of {_format_limit(kind, account.limit)}: {spent}. {AGAIN}"

    def _most(self, route: Route, request: LLMRequest) -> Amount:
        if not self._budget.counts_requests:
            return NOTHING
        if request.max_output_tokens is None:
            raise LLMBadRequest("A request that counts against a budget needs max_output_tokens: the most it may take.")
        return _most(request, self._price(route))

    def _price(self, route: Route) -> ListPrice:
        if self._budget.max_cost_usd is None:
            return FREE
        if route not in self._prices:
            self._prices[route] = self._price_of(route)
        price = self._prices[route]
        if price is None:
            self._stop("cost", _unknown_price(route))
            raise LLMBudgetExhausted(_unknown_price(route))
        return price

    def _measure_use(self, route: Route, sent: Sequence[Attempt], plausible: Sequence[bool], most: Amount) -> Amount:
        total = NOTHING
        for attempt, is_plausible in zip(sent, plausible, strict=True):
            taken = self._measure_attempt(route, attempt, most, is_plausible=is_plausible)
            total = Amount(total.tokens + taken.tokens, total.money + taken.money)
        return total

    def _measure_attempt(self, route: Route, attempt: Attempt, most: Amount, *, is_plausible: bool) -> Amount:
        usage, status = attempt.usage, attempt.status_code
        taken, given = usage.input_tokens or 0, usage.output_tokens
        # As `EvalStore.sum_spending` has it.
        is_recorded = 1 <= taken <= MOST_PLAUSIBLE_TOKENS and given is not None and 0 <= given <= MOST_PLAUSIBLE_TOKENS
        if given is not None and is_recorded and not usage.estimated:
            cost = attempt.cost_usd
            if cost is None or not 0 <= cost < math.inf:
                cost = self._price(route).most(taken, given)
            used = amount(taken + given, cost)
            self._recorded = Amount(self._recorded.tokens + used.tokens, self._recorded.money + used.money)
            if is_plausible:
                return used
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


def _most(request: LLMRequest, price: ListPrice) -> Amount:
    """Return the most that a request with an output limit may take."""
    prompt, answer = compute_max_prompt_tokens(request), request.max_output_tokens or 0
    return amount(prompt + answer, price.most(prompt, answer))


async def require_countable(plan: Plan) -> None:
    """Refuse a budget of tokens or cost that could not be kept, before anything is sent.

    Raises:
        LLMEvaluationError: Somebody has no output limit, or, with a limit of cost, no known price.
    """
    if not plan.budget.counts_requests:
        return
    judges = plan.judges()
    unlimited = [variant.label for variant in plan.variants if variant.parameters.get("max_output_tokens") is None]
    unlimited += [
        f"the scorer {name!r}"
        for name, judge in judges.items()
        if judge.get("parameters", {}).get("max_output_tokens") is None
    ]
    if unlimited:
        raise LLMEvaluationError(
            "A budget of tokens or cost is kept by setting aside the most that an answer may take: give the parameter "
            f"max_output_tokens, for example Task(..., parameters={{'max_output_tokens': 500}}). It is missing for "
            f"{', '.join(unlimited)}."
        )
    if plan.budget.max_cost_usd is not None:
        unknown = await asyncio.to_thread(lambda: [each for each in _routes(plan) if list_price(each) is None])
        if unknown:
            raise LLMEvaluationError(_unknown_price(unknown[0]))


def _unknown_price(route: Route) -> str:
    return (
        f"The price of {route} is not known, so that a budget in US dollars cannot be kept: limit tokens instead "
        "(max_tokens), or leave the route out."
    )


def _routes(plan: Plan) -> Iterator[Route]:
    """Everybody who may answer or judge."""
    for variant in plan.variants:
        routed = variant.service.router.explain(LLMRequest(messages="price", route=variant.route, **variant.parameters))
        yield from routed.candidates if variant.route is None else (variant.route,)
    for judge in plan.judges().values():
        if judge.get("route") is not None:
            yield Route.parse(judge["route"])
        else:
            yield from plan.service.router.explain(LLMRequest(messages="price")).candidates


async def _read_spending(run: EvalRun, store: EvalStore) -> tuple[EvalSpending, ...]:
    """Return the recorded spending of a run, that of loading its models included."""
    samples = await store.sum_spending(run.workspace_id, name_prefix(run))
    return samples + await store.sum_spending(run.workspace_id, warm_up_name(run))


def _sum_counted(budget: Budget, spent: Sequence[EvalSpending]) -> Amount:
    """Sum what providers counted. May load the price list."""
    costs = [_cost(each) for each in spent] if budget.max_cost_usd is not None else []
    return amount(sum(each.input_tokens + each.output_tokens for each in spent), math.fsum(costs))


def _cost(spent: EvalSpending) -> float:
    if not spent.unpriced:
        return spent.cost_usd
    price = list_price(spent.route)
    if price is None:
        raise LLMEvaluationError(_unknown_price(spent.route))
    return max(spent.cost_usd, price.most(spent.input_tokens, spent.output_tokens))


def _largest(plan: Plan) -> Amount:
    """Return the most that a first request of the plan may use, at which an uncounted earlier one is charged."""
    has_price = plan.budget.max_cost_usd is not None
    schema = ResponseFormat(json_schema=plan.task.output_type.model_json_schema())
    prices = [price for price in map(list_price, _routes(plan)) if price is not None] if has_price else [FREE]
    largest = NOTHING
    for variant in plan.variants:
        for sample in plan.selected:
            request = LLMRequest(messages=variant.messages(sample), response_format=schema, **variant.parameters)
            most = [_most(request, price) for price in prices]
            largest = Amount(
                max(largest.tokens, *(each.tokens for each in most)), max(largest.money, *(each.money for each in most))
            )
    return largest
