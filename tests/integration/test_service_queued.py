"""A call that waits for its turn under the limits has written nothing: it is neither in doubt nor in the way."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from uuid_utils.compat import uuid7

from llmkit import Session
from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMIdempotencyConflict, LLMStoreError
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing import OllamaServer, Reply
from llmkit.testing.in_memory import InMemoryLLMRunRepo
from llmkit.testing.server_load import Load
from llmkit.types import LLMRequest
from tests.support.repositories import JournalHome
from tests.support.workers import HERE, ask

LIMIT = 4
HANG_BOUND_S = 60


@asynccontextmanager
async def a_busy_service(repo):
    """A service with one place at its server, taken by a call that does not end; and that server."""
    with OllamaServer(Reply("answer"), load=Load(latency_s=HANG_BOUND_S)) as server:
        settings = load_settings(ollama_api_base=server.url, concurrency_limit=1, cache_enabled=False)
        client = LiteLLMClient(settings)
        service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=repo)
        busy = asyncio.create_task(service.chat(ask("the first", idempotency_key="first"), HERE))
        assert await asyncio.to_thread(server.wait_until_in_flight, 1, HANG_BOUND_S)
        try:
            yield service, server, busy
        finally:
            busy.cancel()
            await asyncio.gather(busy, return_exceptions=True)
            await client.close()


async def queued(service: LLMService, *requests: LLMRequest) -> list[asyncio.Task]:
    """Calls that stand in the queue."""
    tasks = [asyncio.create_task(service.chat(request, HERE)) for request in requests]
    for _ in range(20):
        await asyncio.sleep(0)
    return tasks


async def test_of_many_calls_at_once_only_those_that_left_are_started(database_url: str) -> None:
    with (
        OllamaServer(Reply("answer"), load=Load(latency_s=HANG_BOUND_S)) as server,
        JournalHome(database_url) as home,
        Session("lab", database_url=database_url, ollama_api_base=server.url, concurrency_limit=LIMIT) as session,
    ):
        asked = [asyncio.create_task(session.achat(f"q {n}", route="ollama/llama3.2")) for n in range(40)]
        assert await asyncio.to_thread(server.wait_until_in_flight, LIMIT, HANG_BOUND_S)
        await asyncio.sleep(0.05)
        # What a process that dies now would leave behind.
        assert [run["status"] for run in home.runs()] == ["STARTED"] * LIMIT
        # Those in the queue first: each place that is given back lets the next one go.
        for each in reversed(asked):
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        server.load = Load()
    with JournalHome(database_url) as home:
        assert {run["status"] for run in home.runs()} == {"FAILED"}
        assert len(home.runs()) == 40
        assert len(home.attempts()) == LIMIT


async def test_a_call_cancelled_in_the_queue_is_recorded_and_frees_its_key() -> None:
    runs = InMemoryLLMRunRepo()
    async with a_busy_service(runs) as (service, server, _busy):
        (waiting,) = await queued(service, ask("q", idempotency_key="k"))
        assert [run.start.idempotency_key for run in runs.runs] == ["first"]
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        (run,) = [run for run in runs.runs if run.start.idempotency_key == "k"]
        assert (run.status, run.error_code, run.attempts) == ("FAILED", "cancelled", ())
        assert run.failure.error_message == "cancelled before anything was sent"
        assert await runs.get_by_idempotency_key("lab", "k") is None
        assert server.call_count == 1


async def test_of_two_calls_with_one_key_in_the_queue_one_is_sent() -> None:
    runs = InMemoryLLMRunRepo()
    async with a_busy_service(runs) as (service, server, busy):
        pair = await queued(service, *[ask("q", idempotency_key="k")] * 2)
        server.load = Load()
        busy.cancel()
        answers = await asyncio.gather(*pair, return_exceptions=True)
        assert sorted(type(answer).__name__ for answer in answers) in (
            ["LLMInProgress", "LLMResponse"],
            ["LLMResponse", "LLMResponse"],
        )
        assert server.call_count == 2


async def test_a_key_used_while_the_call_waited_is_refused() -> None:
    """At the call's turn."""
    runs = InMemoryLLMRunRepo()
    async with a_busy_service(runs) as (service, server, busy):
        (waiting,) = await queued(service, ask("q", idempotency_key="k"))
        (first,) = runs.runs
        await runs.create_started(first.start._replace(id=uuid7(), idempotency_key="k"))
        server.load = Load()
        busy.cancel()
        with pytest.raises(LLMIdempotencyConflict):
            await waiting
        assert server.call_count == 1
        assert len(runs.runs) == 2


async def test_a_store_that_fails_at_the_turn_sends_nothing_and_says_so_once() -> None:
    runs = InMemoryLLMRunRepo()
    async with a_busy_service(runs) as (service, server, busy):
        (waiting,) = await queued(service, ask("q", idempotency_key="k"))
        tries = 0

        async def fails(_start: object) -> None:
            nonlocal tries
            tries += 1
            raise LLMStoreError("disk full")

        runs.create_started = fails
        server.load = Load()
        busy.cancel()
        with pytest.raises(LLMStoreError, match="disk full"):
            await waiting
        assert (server.call_count, tries) == (1, 1)
