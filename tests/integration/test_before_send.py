"""The moment when a request is about to leave: STARTED is written then, or the request does not leave at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.calls.request_hash import prompt_sha256
from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMAuthenticationError, LLMError, LLMStoreError, LLMUnavailable
from llmkit.evals.budget import Budget
from llmkit.evals.run.budget_guard import BudgetGuard
from llmkit.persistence.content_cache import DiskContentCache
from llmkit.ports import AttemptLog, NotSent, apply_guard, use_guard
from llmkit.replay.cassette import Cassette, CassetteClient, Recording
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing import Fault, OllamaServer, Reply
from llmkit.testing.in_memory import InMemoryLLMRunRepo
from llmkit.testing.scripted_client import ScriptedClient, reply
from llmkit.types import LLMRequest, LLMResponse, Route
from tests.support.repositories import JournalHome
from tests.support.workers import HERE, ask

OLLAMA = Route.parse("ollama/llama3.2")
HI = LLMRequest(messages="Hi", route=OLLAMA, max_output_tokens=5)
STORED = NotSent(LLMResponse(text="stored", route=OLLAMA))
HANG_BOUND_S = 60


async def answer_instead() -> NotSent:
    return STORED


def real_client(server: OllamaServer, **settings: Any) -> LiteLLMClient:
    async def no_wait(_seconds: float) -> None: ...

    return LiteLLMClient(load_settings(ollama_api_base=server.url, **settings), sleep=no_wait)


def service_of(client: Any, runs: Any, **options: Any) -> LLMService:
    settings = load_settings(cache_enabled="cache" in options)
    return LLMService(router=LLMRouter(settings, client), settings=settings, runs=runs, **options)


def cassette_client() -> CassetteClient:
    settings = load_settings()
    key = prompt_sha256(HI, settings.default_profile)
    recording = Recording(prompt="Hi", profile="balanced", route=OLLAMA, prompt_sha256=key)
    return CassetteClient(Cassette([recording]), settings)


# --- clients, router and guard ---------------------------------------------------------------------------------------


async def test_the_client_awaits_it_before_every_request_and_returns_what_it_gives() -> None:
    answers = [None, None, STORED]

    async def before_send() -> NotSent | None:
        return answers.pop(0)

    with OllamaServer([Fault.status(500), Fault.status(500), Reply("late")]) as server:
        client, log = real_client(server, max_retries=5), AttemptLog()
        assert await client.call(OLLAMA, HI, log, before_send) is STORED
        assert (server.call_count, len(log.attempts), answers) == (2, 2, [])
        await client.close()


async def test_a_call_that_is_not_sent_gives_its_place_back() -> None:
    with OllamaServer(Reply("sent")) as server:
        client = real_client(server, concurrency_limit=1)
        for _ in range(3):
            assert await client.call(OLLAMA, HI, AttemptLog(), answer_instead) is STORED
        answer = await asyncio.wait_for(client.call(OLLAMA, HI, AttemptLog()), HANG_BOUND_S)
        assert (answer.text, server.call_count) == ("sent", 1)
        await client.close()


async def test_it_is_awaited_only_once_the_call_has_its_place() -> None:
    awaited: list[str] = []

    def note(name: str) -> Callable[[], Any]:
        async def before_send() -> None:
            awaited.append(name)

        return before_send

    with OllamaServer([Fault.hang(), Reply("sent")]) as server:
        client = real_client(server, concurrency_limit=1)
        first = asyncio.create_task(client.call(OLLAMA, HI, AttemptLog(), note("first")))
        assert await asyncio.to_thread(server.wait_until_in_flight, 1, HANG_BOUND_S)
        second = asyncio.create_task(client.call(OLLAMA, HI, AttemptLog(), note("second")))
        for _ in range(20):
            await asyncio.sleep(0)
        assert awaited == ["first"]
        first.cancel()
        assert (await asyncio.wait_for(second, HANG_BOUND_S)).text == "sent"
        assert awaited == ["first", "second"]
        await client.close()


@pytest.mark.parametrize("make", [ScriptedClient, cassette_client], ids=["scripted", "cassette"])
async def test_a_client_without_a_network_honours_it_too(make: Callable[[], Any]) -> None:
    log = AttemptLog()
    assert await make().call(OLLAMA, HI, log, answer_instead) is STORED
    assert log.attempts == ()


async def test_the_router_returns_it_without_trying_another_route() -> None:
    client = ScriptedClient()
    router = LLMRouter(load_settings(gemini_api_key="key"), client)
    assert await router.execute(LLMRequest(messages="Hi"), before_send=answer_instead) is STORED
    assert client.calls == []


async def test_a_failure_counts_although_a_later_call_was_not_sent() -> None:
    """For the circuit breaker."""
    router = LLMRouter(load_settings(cooldown_after_failures=2), ScriptedClient([LLMUnavailable("down")]))
    with pytest.raises(LLMError):
        await router.execute(HI)
    await router.execute(HI, before_send=answer_instead)
    with pytest.raises(LLMError):
        await router.execute(HI)
    assert router.explain(HI).candidates == ()


async def test_a_budget_books_nothing_for_a_call_that_was_not_sent() -> None:
    guard = BudgetGuard(Budget(max_tokens=10_000))
    with use_guard(guard):
        assert await apply_guard(OLLAMA, HI, AttemptLog(), answer_instead)() is STORED
    assert guard.use.tokens == 0


# --- the service -----------------------------------------------------------------------------------------------------


async def test_a_retried_call_is_started_once(sqlite_url: str) -> None:
    with OllamaServer([Fault.status(500), Reply("yes")]) as server, JournalHome(sqlite_url) as home:
        client = real_client(server)
        answer = await service_of(client, home.repo).chat(ask("q"), HERE)
        assert [run["status"] for run in home.runs()] == ["SUCCEEDED"]
        assert len(home.attempts()) == len(answer.attempts) == 2
        await client.close()


async def test_a_key_taken_at_the_last_moment_answers_with_the_other_calls_answer() -> None:
    runs = InMemoryLLMRunRepo()
    other = service_of(ScriptedClient([reply("the other")]), runs)

    class Late(ScriptedClient):
        async def call(self, route, request, log, before_send, *, sink=None):
            await other.chat(ask("q", idempotency_key="k"), HERE)
            return await super().call(route, request, log, before_send, sink=sink)

    late = Late()
    answer = await service_of(late, runs).chat(ask("q", idempotency_key="k"), HERE)
    assert (answer.text, answer.served_from, late.calls) == ("the other", "replay", [])
    assert [run.status for run in runs.runs] == ["SUCCEEDED", "SUCCEEDED"]


async def test_an_answer_cached_at_the_last_moment_is_served_and_recorded_once() -> None:
    runs, cache = InMemoryLLMRunRepo(), DiskContentCache(Path("cache"), ttl_s=60, size_limit_bytes=10**8)
    other = service_of(ScriptedClient([reply("the other")]), InMemoryLLMRunRepo(), cache=cache)

    class Late(ScriptedClient):
        async def call(self, route, request, log, before_send, *, sink=None):
            await other.chat(ask("q"), HERE)
            return await super().call(route, request, log, before_send, sink=sink)

    late = Late()
    answer = await service_of(late, runs, cache=cache).chat(ask("q"), HERE)
    assert (answer.text, answer.served_from, late.calls) == ("the other", "cache", [])
    assert [(run.status, run.attempts) for run in runs.runs] == [("SUCCEEDED", ())]
    cache.close()


async def test_a_store_that_fails_at_the_last_moment_is_no_failure_of_the_route() -> None:
    runs, client = InMemoryLLMRunRepo(), ScriptedClient()

    async def fail(_start: object) -> None:
        raise LLMStoreError("disk full")

    runs.create_started = fail
    settings = load_settings(cooldown_after_failures=1, gemini_api_key="key", cache_enabled=False)
    service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=runs)
    with pytest.raises(LLMStoreError, match="disk full") as caught:
        await service.chat(LLMRequest(messages="Hi"), HERE)
    assert (client.calls, caught.value.attempts, caught.value.provider, runs.runs) == ([], (), None, ())
    assert service.router.explain(LLMRequest(messages="Hi")).candidates


@pytest.mark.parametrize("path", ["fast", "reference"])
async def test_a_call_cancelled_between_started_and_sending_is_one_failed_row(path: str, sqlite_url: str) -> None:
    with OllamaServer(Reply("yes")) as server, JournalHome(sqlite_url) as home:
        client, stands = real_client(server, request_path=path), asyncio.Event()
        send = client._paths.complete

        async def stand_still(*_: object) -> None:
            stands.set()
            await asyncio.Event().wait()

        client._paths.complete = stand_still
        service = service_of(client, home.repo)
        task = asyncio.create_task(service.chat(ask("q", idempotency_key="k"), HERE))
        await stands.wait()
        assert [run["status"] for run in home.runs()] == ["STARTED"]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (run,) = home.runs()
        assert (run["status"], run["error_code"], run["attempts"]) == ("FAILED", "cancelled", 0)
        assert run["error_message"] == "cancelled before anything was sent"
        assert (server.call_count, home.attempts(), service._heartbeat._pulses) == (0, [], {})
        client._paths.complete = send
        assert (await service.chat(ask("q", idempotency_key="k"), HERE)).billed
        await client.close()


async def test_a_call_cancelled_while_started_is_written_is_one_failed_row(sqlite_url: str) -> None:
    client = ScriptedClient()
    with JournalHome(sqlite_url) as home:
        service = service_of(client, home.repo)
        create = home.repo.create_started

        def create_and_cancel(start: object) -> object:
            asyncio.current_task().cancel()
            return create(start)

        home.repo.create_started = create_and_cancel
        task = asyncio.create_task(service.chat(ask("q", idempotency_key="k"), HERE))
        with pytest.raises(asyncio.CancelledError):
            await task
        (run,) = home.runs()
    assert (run["status"], run["error_code"], run["attempts"], client.calls) == ("FAILED", "cancelled", 0, [])


async def test_a_call_that_fails_before_it_is_sent_is_one_failed_row_in_one_write() -> None:
    runs, writes = InMemoryLLMRunRepo(), []
    for name in ("create_started", "mark_failed", "record_unsent"):
        write = getattr(runs, name)
        setattr(runs, name, lambda *given, name=name, write=write: (writes.append(name), write(*given))[1])

    class Refusing(ScriptedClient):
        async def call(self, route, request, log, before_send, *, sink=None):
            raise LLMAuthenticationError("no key")

    with pytest.raises(LLMAuthenticationError):
        await service_of(Refusing(), runs).chat(ask("q", idempotency_key="k"), HERE)
    (run,) = runs.runs
    assert (writes, run.status, run.error_code) == (["record_unsent"], "FAILED", "authentication")


async def test_a_client_that_answers_without_sending_has_a_row_too() -> None:
    class Knowing(ScriptedClient):
        async def call(self, route, request, log, before_send, *, sink=None):
            return reply("known")

    runs = InMemoryLLMRunRepo()
    assert (await service_of(Knowing(), runs).chat(ask("q"), HERE)).text == "known"
    assert [(run.status, run.attempts) for run in runs.runs] == [("SUCCEEDED", ())]


@pytest.mark.parametrize("answer", [reply(), LLMAuthenticationError("no")], ids=["answered", "failed"])
async def test_a_client_that_does_not_await_it_gets_an_error(answer: object) -> None:
    """Its request is recorded."""

    class Hasty(ScriptedClient):
        async def call(self, route, request, log, before_send, *, sink=None):
            return await super().call(route, request, log, sink=sink)

    runs = InMemoryLLMRunRepo()
    with pytest.raises(LLMError) as caught:
        await service_of(Hasty([answer]), runs).chat(ask("q"), HERE)
    assert "without awaiting `before_send`" in str(caught.value.__cause__)
    (run,) = runs.runs
    assert run.status == "FAILED"
    assert len(caught.value.attempts) == len(run.failure.attempts) == 1
