"""Simulate workers on many machines that share limits through one store, in simulated time.

The real statements run on an SQLite database in memory whose clock is that of the simulation, and the real limits run
in an event loop that jumps from one moment to the next. Workers have clocks of their own, die without a word and are
replaced; the store is away now and then.

    python -m scripts.simulate_many_machines --runs 100
    python -m scripts.simulate_many_machines --workers 1000 --limit 60000 --seconds 300 --deaths 0 --runs 1
    python -m scripts.simulate_many_machines --usd 1 --runs 100

With `--usd` the workers are at one evaluation with a budget, at a hostile provider: it refuses with Retry-After, leaves
counts out or makes them up, and bills requests that time out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import random
import selectors
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any, TypeVar

from llmkit.errors import LLMBudgetExhausted, LLMStoreError
from llmkit.evals.budget import NOTHING, PARTS_PER_USD, Amount, Budget, amount
from llmkit.evals.run.budget_guard import BudgetGuard
from llmkit.evals.run.shared_budget import OwnSpending, SharedBudget
from llmkit.persistence.compiled_statements import sqlite_statements
from llmkit.persistence.connections import SqliteWriter
from llmkit.persistence.lease_operations import CloseShares, ListShares, PauseRoute, TakeShares, TakeWindow
from llmkit.persistence.writer import Operation
from llmkit.ports import (
    AttemptLog,
    BudgetReply,
    BudgetShare,
    ClientReply,
    ClosedShare,
    HeldShare,
    NotSent,
    SpentBlock,
    WindowReply,
    WindowShare,
)
from llmkit.pricing import ListPrice
from llmkit.providers import compute_max_prompt_tokens
from llmkit.transport.limits.leased_rates import LeasedRates
from llmkit.types import Attempt, AttemptStatus, LLMRequest, Route, TokenUsage

T = TypeVar("T")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class _JumpingSelector(selectors.SelectSelector):
    """Waits by moving the clock."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        """Move the clock instead of waiting; no file of a simulation is ever ready."""
        if timeout is None:
            raise RuntimeError("the simulation waits for something that never happens")
        self.now_s += max(0.0, timeout)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop in simulated time."""

    def __init__(self) -> None:
        self._simulated = _JumpingSelector()
        super().__init__(self._simulated)

    def time(self) -> float:
        """Return the simulated time in seconds."""
        return self._simulated.now_s


class SimulatedStore:
    """Leases in a database whose clock is that of the loop.

    Args:
        loop: Has the time.
        rng: Chooses latencies and outages.
        outage_every_s: Mean time between two outages of up to 20 s.
    """

    def __init__(self, loop: SimulatedLoop, rng: random.Random, outage_every_s: float = math.inf) -> None:
        self._loop, self._rng = loop, rng
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.create_function("strftime", 2, self._format_now)
        schema = json.loads((files("llmkit.persistence") / "sqlite_schema.json").read_text("utf-8"))
        for statement in schema["statements"]:
            self._connection.execute(statement)
        self._writer, self._statements = SqliteWriter(self._connection), sqlite_statements()
        self._outage_every_s = outage_every_s
        self._away_until_s = 0.0
        self._next_outage_s = rng.expovariate(1 / outage_every_s) if outage_every_s < math.inf else math.inf
        self.operations = 0
        self.busy_s = 0.0

    def _format_now(self, _form: str, _now: str) -> str:
        at = BEGIN + timedelta(seconds=self._loop.time())
        return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03}000"

    async def apply(self, operation: Operation) -> Any:
        """Apply one operation, after and before a way through the network."""
        await asyncio.sleep(self._rng.uniform(0.0005, 0.01))
        await self._wait_while_away()
        began_s = time.process_time()
        operation.prepare(self._statements)
        self._writer.begin()
        outcome = type(operation).apply_all(self._writer, self._statements, [operation])[0]
        self._writer.commit()
        self.busy_s += time.process_time() - began_s
        self.operations += 1
        await asyncio.sleep(self._rng.uniform(0.0005, 0.01))
        return outcome

    async def _wait_while_away(self) -> None:
        now_s = self._loop.time()
        if now_s >= self._next_outage_s:
            self._away_until_s = now_s + self._rng.uniform(1, 20)
            self._next_outage_s = self._away_until_s + self._rng.expovariate(1 / self._outage_every_s)
        if now_s < self._away_until_s:
            await asyncio.sleep(self._away_until_s - now_s)
            if self._rng.random() < 0.1:
                raise LLMStoreError("the store was away for too long")

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def count_rows(self) -> int:
        """Return the number of leases."""
        return int(self._connection.execute("SELECT count(*) FROM llm_leases").fetchone()[0])


class SimulatedLeases:
    """`Leases` of one worker; after its death no answer reaches it, although what it sent may be done."""

    def __init__(self, store: SimulatedStore, owner: str) -> None:
        self._store, self._owner = store, owner
        self.is_dead = False

    async def _apply(self, operation: Operation) -> Any:
        if self.is_dead:
            await asyncio.sleep(math.inf)
        outcome = await self._store.apply(operation)
        if self.is_dead:
            await asyncio.sleep(math.inf)
        return outcome

    async def take_window(
        self, shares: Sequence[WindowShare], spent: Sequence[SpentBlock], valid_s: float
    ) -> WindowReply:
        """See `Leases`."""
        reply: WindowReply = await self._apply(TakeWindow(self._owner, shares, spent, valid_s))
        return reply

    async def take_shares(self, shares: Sequence[BudgetShare], valid_s: float) -> BudgetReply:
        """See `Leases`."""
        reply: BudgetReply = await self._apply(TakeShares(self._owner, shares, valid_s))
        return reply

    async def close_shares(self, shares: Sequence[ClosedShare]) -> None:
        """See `Leases`."""
        await self._apply(CloseShares(shares))

    async def list_shares(self, pools: Sequence[str]) -> list[HeldShare]:
        """See `Leases`."""
        shares: list[HeldShare] = await self._apply(ListShares(pools))
        return shares

    async def pause(self, route: Route, seconds: float) -> None:
        """See `Leases`."""
        await self._apply(PauseRoute(route, seconds))

    async def read_pause_s(self, route: Route) -> float:
        """See `Leases`."""
        del route
        return 0.0


@dataclass
class Server:
    """A provider that counts what reaches it, and the most in any minute."""

    loop: SimulatedLoop
    window_s: float = 60.0
    requests: int = 0
    tokens: int = 0
    most_requests: int = 0
    most_tokens: int = 0
    _recent: deque[tuple[float, int]] = field(default_factory=deque)
    _recent_tokens: int = 0

    def receive(self, tokens: int) -> None:
        """Count one request."""
        now_s = self.loop.time()
        while self._recent and self._recent[0][0] <= now_s - self.window_s:
            self._recent_tokens -= self._recent.popleft()[1]
        self._recent.append((now_s, tokens))
        self._recent_tokens += tokens
        self.requests += 1
        self.tokens += tokens
        self.most_requests = max(self.most_requests, len(self._recent))
        self.most_tokens = max(self.most_tokens, self._recent_tokens)


@dataclass(frozen=True)
class Shape:
    """A simulation to run.

    Attributes:
        workers: Processes, each on a machine of its own.
        concurrency: Calls that each has under way.
        limit: Requests per minute of all.
        tokens: Tokens per minute of all.
        seconds: Simulated time.
        death_every_s: Mean time between two deaths of workers.
        outage_every_s: Mean time between two outages of the store.
        latency_s: Of an answer.
        usd: Budget of all, in US dollars; None for calls without one.
    """

    workers: int = 8
    concurrency: int = 4
    limit: int = 60
    tokens: int | None = None
    seconds: float = 400.0
    death_every_s: float = 15.0
    outage_every_s: float = 60.0
    latency_s: float = 1.0
    usd: float | None = None


@dataclass(frozen=True)
class Outcome:
    """Counts of one run."""

    requests: int
    most_requests: int
    most_tokens: int
    operations: int
    rows: int
    store_s: float


class _Worker:
    """A process with calls that never end, until it is killed."""

    def __init__(self, name: str, shape: Shape, store: SimulatedStore, server: Server, rng: random.Random) -> None:
        loop, offset_s = server.loop, rng.uniform(-1e6, 1e6)
        self._leases = SimulatedLeases(store, name)
        # Its clock agrees with no other, and counts seconds alike.
        self._rates = LeasedRates(
            self._leases, "rate/simulated", shape.limit, shape.tokens, lambda: loop.time() + offset_s
        )
        self._shape, self._server, self._rng = shape, server, rng
        self._calls = [loop.create_task(self._call_for_ever()) for _ in range(shape.concurrency)]

    async def _call_for_ever(self) -> None:
        rng = self._rng
        while True:
            tokens = rng.randint(50, 400)
            try:
                reservation = await self._rates.reserve(lambda: tokens)  # noqa: B023
                # The STARTED record of the call, which waits for the store now and then.
                await asyncio.sleep(rng.uniform(0.001, 0.02) if rng.random() < 0.98 else rng.uniform(1, 30))
                await reservation.confirm()
            except LLMStoreError:
                continue
            try:
                await asyncio.sleep(rng.uniform(0.001, 0.3))
                self._server.receive(tokens)
                await asyncio.sleep(rng.expovariate(1 / self._shape.latency_s))
                # A provider that counts less than was estimated, or nothing at all.
                reservation.settle(tokens if rng.random() < 0.8 else None)
            finally:
                reservation.release()

    async def kill(self) -> None:
        """Stop everything at once; what was sent to the store may still be done."""
        self._leases.is_dead = True
        for call in self._calls:
            call.cancel()
        await asyncio.wait(self._calls)


async def _run(shape: Shape, rng: random.Random, loop: SimulatedLoop) -> Outcome:
    with closing(SimulatedStore(loop, rng, shape.outage_every_s)) as store:
        return await _run_on(store, shape, rng, loop)


async def _run_on(store: SimulatedStore, shape: Shape, rng: random.Random, loop: SimulatedLoop) -> Outcome:
    server = Server(loop)
    workers = [_Worker(f"worker {number}", shape, store, server, rng) for number in range(shape.workers)]
    born = shape.workers
    while loop.time() < shape.seconds:
        await asyncio.sleep(min(rng.expovariate(1 / shape.death_every_s), shape.seconds - loop.time() + 0.001))
        if loop.time() < shape.seconds:
            place = rng.randrange(len(workers))
            await workers[place].kill()
            workers[place] = _Worker(f"worker {born}", shape, store, server, rng)
            born += 1
    rows = store.count_rows()
    for worker in workers:
        await worker.kill()
    return Outcome(server.requests, server.most_requests, server.most_tokens, store.operations, rows, store.busy_s)


# --- a budget ---------------------------------------------------------------------------------------------------------

ROUTE = Route.parse("gemini/simulated")
# A prompt of 3,000 bytes and its answer cost up to a cent.
PRICE = ListPrice(2.5e-6, 10e-6, 2.5e-6, 10e-6)
MOST_ANSWER = 300
PROMPT_BYTES = (100, 500, 1_500, 3_000)


def _measure_most(request: LLMRequest) -> Amount:
    prompt, answer = compute_max_prompt_tokens(request), request.max_output_tokens or 0
    return amount(prompt + answer, PRICE.most(prompt, answer))


LARGEST = _measure_most(LLMRequest(messages="x" * max(PROMPT_BYTES), max_output_tokens=MOST_ANSWER))


@dataclass(eq=False)
class _RecordedCall:
    """A call as the store has it, and how many requests were sent for it."""

    owner: str
    sent: int = 0
    is_over: bool = False
    used: list[Amount | None] = field(default_factory=list)


class Records:
    """The records of calls, which are `Spending` too."""

    def __init__(self) -> None:
        self.calls: list[_RecordedCall] = []

    def _sum(self, calls: Sequence[_RecordedCall]) -> OwnSpending:
        doubtful = LARGEST.times(sum(not call.is_over for call in calls))
        total = doubtful
        for used in (used for call in calls for used in call.used):
            total = total.plus(LARGEST if used is None else used)
        return OwnSpending(total, doubtful)

    async def read_earlier(self) -> Amount:
        """See `Spending`."""
        return self._sum(self.calls).total

    async def read_of_owner(self, owner: str) -> OwnSpending | None:
        """See `Spending`."""
        return self._sum([call for call in self.calls if call.owner == owner])

    def count_unrecorded(self) -> int:
        """Return the requests of killed calls beyond the one that the budget counts of each."""
        return sum(max(0, call.sent - 1) for call in self.calls if not call.is_over)


class _HostileProvider:
    """Bills what it answers, and what times out; refuses some, and miscounts others."""

    def __init__(self, server: Server, rng: random.Random) -> None:
        self.server, self._rng = server, rng
        self.billed = NOTHING

    def answer(self, request: LLMRequest) -> tuple[Attempt, float]:
        """Return what the client sees of one request, and how long it takes."""
        self.server.receive(0)
        rng, kind = self._rng, self._rng.random()
        if kind < 0.15:
            return self._attempt(429, TokenUsage()), 0.05
        taken = rng.randint(compute_max_prompt_tokens(request) // 5, compute_max_prompt_tokens(request))
        given = rng.randint(1, MOST_ANSWER)
        self.billed = self.billed.plus(amount(taken + given, PRICE.most(taken, given)))
        latency_s = rng.expovariate(1 / 2)
        if kind < 0.25:
            return self._attempt(None, TokenUsage()), 10.0  # It timed out.
        if kind < 0.45:
            absurd = rng.choice([None, 0, -5, 10**12, 10**30])
            return self._attempt(200, TokenUsage(input_tokens=absurd, output_tokens=absurd)), latency_s
        return self._attempt(200, TokenUsage(input_tokens=taken, output_tokens=given)), latency_s

    def _attempt(self, status: int | None, usage: TokenUsage) -> Attempt:
        return Attempt(
            route=ROUTE,
            number=1,
            status=AttemptStatus.SUCCEEDED if status == 200 else AttemptStatus.FAILED,
            started_at_utc=BEGIN,
            latency_ms=1.0,
            usage=usage,
            status_code=status,
        )


class _BudgetWorker:
    """A process at an evaluation with a budget, until that is used up or the process is killed."""

    def __init__(
        self,
        name: str,
        shape: Shape,
        store: SimulatedStore,
        provider: _HostileProvider,
        records: Records,
        seen_dead: set[str],
        rng: random.Random,
    ) -> None:
        loop, offset_s = provider.server.loop, rng.uniform(-1e6, 1e6)
        self.name, self._shape, self._provider, self._records, self._rng = name, shape, provider, records, rng
        self._leases = SimulatedLeases(store, name)
        self._rates = LeasedRates(self._leases, "rate/simulated", shape.limit, None, lambda: loop.time() + offset_s)
        shared = SharedBudget(
            self._leases,
            "run",
            Budget(max_cost_usd=shape.usd),
            records,
            lambda: loop.time() + offset_s,
            lambda share: share.owner in seen_dead or share.read_at_utc > share.expires_at_utc,
        )
        self.guard = BudgetGuard(
            Budget(max_cost_usd=shape.usd),
            price_of=lambda _route: PRICE,
            shared=shared,
            clock=lambda: loop.time() + offset_s,
        )
        self.task = loop.create_task(self._work())

    async def _work(self) -> None:
        while True:
            try:
                async with self.guard.at_work():
                    await asyncio.gather(*(self._call_on() for _ in range(self._shape.concurrency)))
                return
            except LLMStoreError:  # while it joined
                continue

    async def _call_on(self) -> None:
        while self.guard.stopped_by is None:
            text = "x" * self._rng.choice(PROMPT_BYTES)
            request = LLMRequest(messages=text, max_output_tokens=self._rng.randint(50, MOST_ANSWER))
            call, log = _RecordedCall(self.name), AttemptLog()
            is_started = False
            for _ in range(3):
                try:
                    outcome = await self.guard.send(ROUTE, request, log, lambda: self._send(request, call, log))  # noqa: B023
                except LLMBudgetExhausted:
                    break
                if isinstance(outcome, NotSent):
                    break
                is_started = True
                if log.attempts[-1].status_code == 200:
                    break
                await asyncio.sleep(self._rng.uniform(1, 5))
            if is_started:
                await asyncio.sleep(self._rng.uniform(0.001, 0.5))
                call.used = [used for attempt in log.attempts if (used := _use_recorded(attempt)) != NOTHING]
                call.is_over = True

    async def _send(self, request: LLMRequest, call: _RecordedCall, log: AttemptLog) -> ClientReply | NotSent:
        try:
            reservation = await self._rates.reserve(lambda: 0)
        except LLMStoreError as error:
            return NotSent(error)
        try:
            await asyncio.sleep(self._rng.uniform(0.001, 0.05))
            if not call.sent:
                self._records.calls.append(call)
            await reservation.confirm()
            await asyncio.sleep(self._rng.uniform(0.001, 0.3))
            attempt, latency_s = self._provider.answer(request)
            call.sent += attempt.status_code != 429
            await asyncio.sleep(latency_s)
            log.add(attempt)
            return ClientReply("", (), "stop", attempt.usage, None)
        except LLMStoreError as error:
            return NotSent(error)
        finally:
            reservation.release()

    async def kill(self) -> None:
        """Stop everything at once; what was sent to the store may still be done."""
        self._leases.is_dead = True
        while not self.task.done():
            self.task.cancel()
            await asyncio.sleep(0)


def _use_recorded(attempt: Attempt) -> Amount | None:
    """Return what the records have of a request; None when that is unknown. As `EvalStore.sum_spending` has it."""
    taken, given = attempt.usage.input_tokens, attempt.usage.output_tokens
    if attempt.status_code == 429:
        return NOTHING
    if taken is None or given is None or not 1 <= taken <= 10**7:
        return None
    return amount(taken + given, PRICE.most(taken, given))


@dataclass(frozen=True)
class BudgetOutcome:
    """Counts of one run with a budget, in US dollars.

    Attributes:
        billed_usd: By the provider.
        counted_usd: By the records, those that are unknown at their most.
        bound_usd: The most that may be billed.
        seconds: Until all workers had stopped.
    """

    requests: int
    most_requests: int
    billed_usd: float
    counted_usd: float
    bound_usd: float
    seconds: float
    deaths: int
    operations: int
    rows: int


async def _run_budget(shape: Shape, rng: random.Random, loop: SimulatedLoop) -> BudgetOutcome:
    with closing(SimulatedStore(loop, rng, shape.outage_every_s)) as store:
        return await _run_budget_on(store, shape, rng, loop)


async def _run_budget_on(store: SimulatedStore, shape: Shape, rng: random.Random, loop: SimulatedLoop) -> BudgetOutcome:
    server, records = Server(loop), Records()
    provider, seen_dead = _HostileProvider(server, rng), set[str]()

    def start(number: int) -> _BudgetWorker:
        return _BudgetWorker(f"worker {number}", shape, store, provider, records, seen_dead, rng)

    workers, born = [start(number) for number in range(shape.workers)], shape.workers
    while open_workers := [worker for worker in workers if not worker.task.done()]:
        tasks = [worker.task for worker in open_workers]
        await asyncio.wait(tasks, timeout=rng.expovariate(1 / shape.death_every_s))
        victim = rng.choice(open_workers)
        if loop.time() < shape.seconds and not victim.task.done():
            await victim.kill()
            if rng.random() < 0.5:  # The others are on the same machine.
                seen_dead.add(victim.name)
            workers[workers.index(victim)] = start(born)
            born += 1
    for worker in workers:
        if not worker.task.cancelled() and worker.task.exception() is not None:
            raise RuntimeError("a worker failed") from worker.task.exception()
    unrecorded = LARGEST.times(records.count_unrecorded())
    counted = (await records.read_earlier()).money / PARTS_PER_USD
    return BudgetOutcome(
        requests=server.requests,
        most_requests=server.most_requests,
        billed_usd=provider.billed.money / PARTS_PER_USD,
        counted_usd=counted,
        bound_usd=(shape.usd or 0.0) + unrecorded.money / PARTS_PER_USD,
        seconds=loop.time(),
        deaths=born - shape.workers,
        operations=store.operations,
        rows=store.count_rows(),
    )


def simulate_budget(seed: int, shape: Shape) -> BudgetOutcome:
    """Simulate one run with a budget."""
    return _run_in_simulated_time(lambda loop: _run_budget(shape, random.Random(seed), loop))


def simulate(seed: int, shape: Shape) -> Outcome:
    """Simulate one run."""
    return _run_in_simulated_time(lambda loop: _run(shape, random.Random(seed), loop))


def _run_in_simulated_time(work: Callable[[SimulatedLoop], Coroutine[Any, Any, T]]) -> T:
    loop = SimulatedLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(work(loop))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        asyncio.set_event_loop(None)
        loop.close()


def main() -> int:
    """Simulate runs and print what was the most that any of them sent in a minute; 1 if that was above the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--deaths", type=float, default=15.0, help="mean seconds between deaths; 0 for none")
    parser.add_argument("--outages", type=float, default=60.0, help="mean seconds between outages; 0 for none")
    parser.add_argument("--usd", type=float, help="a budget of all workers")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # outages are meant
    shape = Shape(
        arguments.workers,
        arguments.concurrency,
        arguments.limit,
        arguments.tokens,
        arguments.seconds,
        arguments.deaths or 1e9,
        arguments.outages or math.inf,
        usd=arguments.usd,
    )
    if shape.usd is not None:
        return _show_budgets(arguments.runs, shape)
    worst = 0
    for seed in range(arguments.runs):
        began_s = time.process_time()
        outcome = simulate(seed, shape)
        worst = max(worst, outcome.most_requests)
        share = outcome.requests / (shape.limit * shape.seconds / 60)
        each_us = outcome.store_s / max(1, outcome.operations) * 1e6
        print(
            f"run {seed}: {outcome.requests} requests ({share:.0%} of the limit), at most {outcome.most_requests} "
            f"requests and {outcome.most_tokens} tokens in a minute; {outcome.operations / shape.seconds:.1f} "
            f"operations a second, {outcome.rows} rows, {each_us:.0f} us an operation, "
            f"{time.process_time() - began_s:.1f} s of CPU"
        )
    print(f"most in any minute: {worst} of {shape.limit}")
    return int(worst > shape.limit)


def _show_budgets(runs: int, shape: Shape) -> int:
    worst, most_requests, are_exceeded = 0.0, 0, False
    for seed in range(runs):
        outcome = simulate_budget(seed, shape)
        worst, most_requests = max(worst, outcome.billed_usd), max(most_requests, outcome.most_requests)
        are_exceeded |= outcome.billed_usd > outcome.bound_usd or outcome.most_requests > shape.limit
        print(
            f"run {seed}: {outcome.requests} requests in {outcome.seconds:.0f} s, {outcome.deaths} deaths, at most "
            f"{outcome.most_requests} in a minute; ${outcome.billed_usd:.4f} billed, ${outcome.counted_usd:.4f} "
            f"counted, bound ${outcome.bound_usd:.4f}; {outcome.operations} operations, {outcome.rows} rows"
        )
    print(f"most in any minute: {most_requests} of {shape.limit}; most billed: ${worst:.4f} of ${shape.usd}")
    return int(are_exceeded)


if __name__ == "__main__":
    raise SystemExit(main())
