"""Workspaces side by side behave as each would alone (spec 5): the same random calls, mixed and apart, compared.

No row, replay, cache hit, conflict or erasure can cross without making the two differ.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import update

from llmkit.calls.call import open_call
from llmkit.errors import LLMAuthenticationError, LLMError
from llmkit.persistence.content_cache import DiskContentCache
from llmkit.persistence.retention import erase_workspace
from llmkit.persistence.statements import RUNS
from llmkit.ports import LLMRunRepo
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing.in_memory import InMemoryLLMRunRepo
from llmkit.testing.scripted_client import ScriptedClient, reply
from llmkit.types import LLMProfile, LLMRequest, RequestContext, Route, utc_now
from tests.support.repositories import JournalHome
from tests.support.workers import ask

# Alike for a store that compares carelessly: case, prefixes, wildcards, separators, the same letter in two forms.
WORKSPACES = ("lab", "Lab", "la", "lab%", "l_b", "lab\x1fq", "caf\u00e9", "cafe\u0301")
KEYS = ("k", "K", "k%", "k2", "k\x1fk", "_", "0", "lab")
TEXTS = ("q", "Q", "q?", "hello")
DEAD = "another-boot|pid:[1]|7|99"

_asking: ContextVar[str] = ContextVar("asking")


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of one workspace."""

    workspace: str
    kind: str
    text: str = "q"
    key: str | None = None
    epoch: int = 0
    use_cache: bool = True
    fails: bool = False


def _steps(chance: random.Random, count: int) -> Iterator[Step]:
    for _ in range(count):
        kind = chance.choices(("chat", "burst", "leave", "erase"), (82, 5, 9, 4))[0]
        yield Step(
            chance.choice(WORKSPACES),
            kind,
            chance.choices(TEXTS, (5, 1, 1, 1))[0],
            # Which of several at once gets a key is left to chance.
            None if kind == "burst" else chance.choice((None, *KEYS)),
            chance.choice((0, 0, 0, 0, 1)),
            chance.random() < 0.7,
            chance.random() < (0.5 if kind == "leave" else 0.1),
        )


class World:
    """A service for all workspaces, with a provider whose answers name who asked, and for the how manieth time."""

    def __init__(self, runs: LLMRunRepo, home: JournalHome | None, folder: Path) -> None:
        self._settings = load_settings()
        self._runs = runs
        self._home = home
        self._cache = DiskContentCache(folder, ttl_s=3600, size_limit_bytes=10**8)
        self._answers: dict[str, int] = {}
        self._fails = False
        self._owner_of: dict[UUID, str] = {}
        router = LLMRouter(self._settings, ScriptedClient(self._answer))
        self._service = LLMService(router=router, settings=self._settings, runs=runs, cache=self._cache)

    def _answer(self, _route: Route, _request: LLMRequest) -> object:
        if self._fails:
            return LLMAuthenticationError("no")
        workspace = _asking.get()
        self._answers[workspace] = self._answers.get(workspace, 0) + 1
        return reply(f"{workspace} #{self._answers[workspace]}")

    async def play(self, step: Step) -> object:
        """What the caller sees of the step, without anything that differs from run to run."""
        _asking.set(step.workspace)
        self._fails = step.fails
        if step.kind == "erase":
            return self._erase(step.workspace)
        if step.kind == "leave":
            return await self._leave_started(step)
        if step.kind == "burst":
            return sorted(await asyncio.gather(*(self._chat(step) for _ in range(3))))
        return await self._chat(step)

    async def _chat(self, step: Step) -> str:
        request = self._request(step)
        try:
            answer = await self._service.chat(request, RequestContext(workspace_id=step.workspace))
        except LLMError as error:
            self._own(error.run_id, step.workspace)
            return error.code
        self._own(answer.run_id, step.workspace)
        self._own(answer.source_run_id, step.workspace)
        assert answer.text.startswith(f"{step.workspace} #")
        return f"{answer.served_from}: {answer.text}"

    def _request(self, step: Step) -> LLMRequest:
        return ask(step.text, idempotency_key=step.key, epoch=step.epoch, use_cache=step.use_cache)

    def _own(self, run_id: UUID | None, workspace: str) -> None:
        """A run that one workspace was told of is never told to another."""
        if run_id is not None:
            assert self._owner_of.setdefault(run_id, workspace) == workspace

    async def _leave_started(self, step: Step) -> str:
        """A call of a process on another machine, which may have been silent for too long."""
        context = RequestContext(workspace_id=step.workspace)
        call = open_call(self._request(step), context, LLMProfile.BALANCED, recorded=True)
        if await self._runs.get_by_idempotency_key(step.workspace, step.key or "") is not None:
            return "held"
        start = self._service._recorder._start(call, None)._replace(owner=DEAD)
        await self._runs.create_started(start)
        if step.fails:
            self._age_heartbeat(start.id, utc_now() - timedelta(seconds=10**6))
        return "left"

    def _age_heartbeat(self, run_id: UUID, at_utc: datetime) -> None:
        if self._home is not None:
            with self._home.journal.engine.begin() as connection:
                connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(heartbeat_at_utc=at_utc))
        elif isinstance(self._runs, InMemoryLLMRunRepo):
            self._runs._runs[run_id] = replace(self._runs._runs[run_id], heartbeat_at_utc=at_utc)

    def _erase(self, workspace: str) -> str:
        self._cache.erase(workspace)
        if self._home is not None:
            erase_workspace(self._home.journal.engine, self._home.journal.address, workspace)
        elif isinstance(self._runs, InMemoryLLMRunRepo):
            gone = [run.start.id for run in self._runs.runs if run.start.workspace_id == workspace]
            for run_id in gone:
                del self._runs._runs[run_id]
        return "erased"

    async def play_all(self, steps: Sequence[Step]) -> list[tuple[Step, object]]:
        try:
            return [(step, await self.play(step)) for step in steps]
        finally:
            self._cache.close()


async def _compare(steps: Sequence[Step], mixed: World, alone: dict[str, World]) -> set[object]:
    together = await mixed.play_all(steps)
    for workspace, world in alone.items():
        seen = [(step, outcome) for step, outcome in together if step.workspace == workspace]
        assert await world.play_all([step for step, _ in seen]) == seen, workspace
    return {outcome.partition(":")[0] for _, outcome in together if isinstance(outcome, str)}


EVERYTHING = {"provider", "replay", "cache", "idempotency_conflict", "in_progress", "authentication", "erased", "left"}


@pytest.mark.parametrize("seed", range(8))
async def test_ten_thousand_random_operations_never_cross(seed: int, tmp_path: Path) -> None:
    """8 times 1,300 operations."""
    steps = list(_steps(random.Random(seed), 1_300))
    alone = {each: World(InMemoryLLMRunRepo(), None, tmp_path / f"alone-{n}") for n, each in enumerate(WORKSPACES)}
    outcomes = await _compare(steps, World(InMemoryLLMRunRepo(), None, tmp_path / "mixed"), alone)
    assert outcomes >= EVERYTHING


async def test_random_operations_never_cross_in_the_journal(database_url: str, tmp_path: Path) -> None:
    """Each workspace alone is played in memory: that the real store behaves the same is checked along the way."""
    steps = list(_steps(random.Random(100), 600))
    alone = {each: World(InMemoryLLMRunRepo(), None, tmp_path / f"alone-{n}") for n, each in enumerate(WORKSPACES)}
    with JournalHome(database_url) as home:
        outcomes = await _compare(steps, World(home.repo, home, tmp_path / "mixed"), alone)
    assert outcomes >= EVERYTHING
