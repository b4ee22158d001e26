"""A budget that processes share: real statements in simulated time, with deaths at every step."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmkit.evals.budget import NOTHING, Amount, Budget
from llmkit.evals.run.shared_budget import OwnSpending, SharedBudget
from scripts.simulate_many_machines import Shape, SimulatedLeases, SimulatedLoop, SimulatedStore, simulate_budget

LIMIT, LARGEST = 250, 100


class Process:
    """A process with requests under way, by what each may use."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.leases = SimulatedLeases(world.store, name)
        self.budget = SharedBudget(
            self.leases, "run", Budget(max_tokens=LIMIT), world, world.loop.time, world.is_seen_dead
        )
        self.under_way: list[int] = []


class World(RuleBasedStateMachine):
    """A run: what is recorded as spent, and the processes that spend it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = SimulatedLoop()
        self.store = SimulatedStore(self.loop, random.Random(0))
        self.alive: list[Process] = []
        self.spent: defaultdict[str, int] = defaultdict(int)
        self.doubtful: defaultdict[str, int] = defaultdict(int)
        self.seen_dead: set[str] = set()
        self.born = self.lost = 0

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def is_seen_dead(self, share: Any) -> bool:
        return share.owner in self.seen_dead or share.read_at_utc > share.expires_at_utc

    async def read_earlier(self) -> Amount:
        return Amount(sum(self.spent.values()) + LARGEST * sum(self.doubtful.values()), 0)

    async def read_of_owner(self, owner: str) -> OwnSpending:
        under_way = self.doubtful[owner] * LARGEST
        return OwnSpending(Amount(self.spent[owner] + under_way, 0), Amount(under_way, 0))

    @rule()
    @precondition(lambda self: len(self.alive) < 4)
    def join(self) -> None:
        process = Process(self, f"p{self.born}")
        self.born += 1
        self.run(process.budget.join())
        self.alive.append(process)

    @rule(which=st.integers(0, 9), most=st.integers(20, LARGEST))
    @precondition(lambda self: self.alive)
    def reserve(self, which: int, most: int) -> None:
        process = self.alive[which % len(self.alive)]
        wish = Amount(most, 0)
        if process.budget.reserve(wish) or (self.run(process.budget.take(wish, 3)) and process.budget.reserve(wish)):
            process.under_way.append(most)
            self.doubtful[process.name] += 1

    @rule(which=st.integers(0, 9), share=st.floats(0, 1))
    @precondition(lambda self: any(process.under_way for process in self.alive))
    def settle(self, which: int, share: float) -> None:
        busy = [process for process in self.alive if process.under_way]
        process = busy[which % len(busy)]
        most = process.under_way.pop(0)
        used = int(most * share)
        process.budget.books.settle(Amount(most, 0), Amount(used, 0))
        self.spent[process.name] += used
        self.doubtful[process.name] -= 1

    @rule(which=st.integers(0, 9), is_seen=st.booleans(), has_asked=st.booleans())
    @precondition(lambda self: self.alive)
    def kill(self, which: int, is_seen: bool, has_asked: bool) -> None:
        process = self.alive.pop(which % len(self.alive))
        self.lost += sum(process.under_way)
        if has_asked:  # It dies before it hears the answer.
            self.run(process.budget.take(Amount(LARGEST, 0)))
        if is_seen:
            self.seen_dead.add(process.name)

    @rule(which=st.integers(0, 9))
    @precondition(lambda self: self.alive)
    def renew(self, which: int) -> None:
        self.run(self.alive[which % len(self.alive)].budget.take(NOTHING))

    @rule(which=st.integers(0, 9))
    @precondition(lambda self: any(not process.under_way for process in self.alive))
    def close(self, which: int) -> None:
        idle = [process for process in self.alive if not process.under_way]
        process = idle[which % len(idle)]
        self.alive.remove(process)
        self.run(process.budget.close())

    @rule(seconds=st.sampled_from([1.0, 20.0, 59.0]))
    def wait(self, seconds: float) -> None:
        """Every living process renews its part in time."""
        self.loop._simulated.now_s += seconds
        for process in self.alive:
            self.run(process.budget.take(NOTHING))

    @invariant()
    def is_within_the_limit(self) -> None:
        """Also if every request under way uses all it can, those of the dead included."""
        under_way = sum(sum(process.under_way) for process in self.alive)
        assert sum(self.spent.values()) + under_way + self.lost <= LIMIT

    def teardown(self) -> None:
        """The whole rest can be used by one that comes when all others are gone."""
        try:
            self.loop._simulated.now_s += 200.0
            self.alive = []
            last = Process(self, "last")
            self.run(last.budget.join())
            rest = LIMIT - self.run(self.read_earlier()).tokens
            if rest > 0:
                assert self.run(last.budget.take(Amount(rest, 0)))
                assert not self.run(last.budget.take(Amount(rest + 1, 0)))
            self.run(last.budget.close())
            assert self.store.count_rows() == 0
        finally:
            self.store.close()
            self.loop.close()


TestSharedBudget = World.TestCase
TestSharedBudget.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_provider(seed: int) -> None:
    outcome = simulate_budget(seed, Shape(workers=4, limit=60, seconds=60.0, usd=0.2))
    assert 0.05 < outcome.billed_usd <= outcome.bound_usd
    assert outcome.most_requests <= 60
