"""Random operations on several workspaces: the journal against the fake in memory, step by step."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from llmkit.ports import KeyTaken, LLMRunRepo, RunStart, StoredRun
from llmkit.testing.in_memory import InMemoryLLMRunRepo
from tests.support.repositories import JournalHome
from tests.support.run_values import a_failure, a_start, a_success, served

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

WORKSPACES = ("lab", "other lab", "LAB", "läb")
KEYS = (None, "k1", "k2", "K1")


def _without_times(outcome: Any) -> Any:
    """The two have clocks of their own."""
    if not isinstance(outcome, StoredRun):
        return outcome
    return outcome._replace(heartbeat_at_utc=outcome.created_at_utc, read_at_utc=outcome.created_at_utc)


class Twins:
    """The same operation on two repositories; any difference is a failure."""

    def __init__(self, real: LLMRunRepo, model: InMemoryLLMRunRepo, seed: int) -> None:
        self.real = real
        self.model = model
        self.random = random.Random(seed)
        self.starts: list[RunStart] = []

    async def both(self, act: Callable[[LLMRunRepo], Awaitable[Any]]) -> Any:
        outcomes = []
        for repo in (self.real, self.model):
            try:
                outcomes.append(_without_times(await act(repo)))
            except KeyTaken:
                outcomes.append(KeyTaken)
        assert outcomes[0] == outcomes[1]
        return outcomes[0]

    def a_key(self) -> str | None:
        return self.random.choice(KEYS)

    async def create(self) -> None:
        start = a_start(
            workspace_id=self.random.choice(WORKSPACES), idempotency_key=self.a_key(), flight_key=self.a_key()
        )
        if await self.both(lambda repo: repo.create_started(start)) is None:
            self.starts.append(start)

    async def save(self) -> None:
        start = a_start(workspace_id=self.random.choice(WORKSPACES), idempotency_key=self.a_key())
        success = served(start.id)
        if await self.both(lambda repo: repo.save_result_for_idempotency_key(start, success)) is None:
            self.starts.append(start)

    async def succeed(self) -> None:
        success = a_success(self.random.choice(self.starts).id)
        await self.both(lambda repo: repo.mark_succeeded(success))

    async def fail(self) -> None:
        failure = a_failure(self.random.choice(self.starts).id)
        await self.both(lambda repo: repo.mark_failed(failure))

    async def abandon(self) -> None:
        start = self.random.choice(self.starts)
        has_stirred = self.random.random() < 0.3

        async def act(repo: LLMRunRepo) -> bool:
            seen = await repo.get_run(start.workspace_id, start.id)
            assert seen is not None
            earlier = seen._replace(heartbeat_at_utc=seen.heartbeat_at_utc - timedelta(hours=1))
            return await repo.mark_abandoned(earlier if has_stirred else seen)

        await self.both(act)

    async def beat(self) -> None:
        ids = [start.id for start in self.random.sample(self.starts, k=min(3, len(self.starts)))]
        await self.both(lambda repo: repo.heartbeat(ids))

    async def look(self) -> None:
        workspace_id, key = self.random.choice(WORKSPACES), self.a_key() or "k1"
        for method in ("get_by_idempotency_key", "get_by_flight_key"):
            found: StoredRun | None = await self.both(lambda repo, name=method: getattr(repo, name)(workspace_id, key))
            assert found is None or found.workspace_id == workspace_id

    async def look_over_the_fence(self) -> None:
        start = self.random.choice(self.starts)
        for workspace_id in WORKSPACES:
            found = await self.both(lambda repo, other=workspace_id: repo.get_run(other, start.id))
            assert (found is not None) == (workspace_id == start.workspace_id)

    async def step(self) -> None:
        steps = [self.create, self.create, self.save, self.look]
        if self.starts:
            steps += [self.succeed, self.fail, self.abandon, self.beat, self.look_over_the_fence]
        await self.random.choice(steps)()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_ten_thousand_operations_cross_no_fence(sqlite_url: str, seed: int) -> None:
    """2,500 for each seed; reads and writes of every kind, and every answer the same as the model's."""

    async def run(home: JournalHome) -> None:
        twins = Twins(home.repo, InMemoryLLMRunRepo(), seed)
        for _ in range(2_500):
            await twins.step()
        assert {run["id"] for run in home.runs()} == {run.start.id for run in twins.model.runs}
        for stored in home.attempts():
            owner = twins.model._runs[stored["run_id"]]
            assert stored["workspace_id"] == owner.start.workspace_id
        assert len(home.attempts()) == sum(len(run.attempts) for run in twins.model.runs)

    with JournalHome(sqlite_url) as home:
        asyncio.run(run(home))


def test_the_same_on_postgresql(postgres_url: str) -> None:
    async def run(home: JournalHome) -> None:
        twins = Twins(home.repo, InMemoryLLMRunRepo(), 99)
        for _ in range(250):
            await twins.step()

    with JournalHome(postgres_url) as home:
        asyncio.run(run(home))
