"""The service's contract, on the in-memory store and a scripted client."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from pathlib import Path

import pytest

from llmkit.calls.call import open_call
from llmkit.errors import (
    LLMAuthenticationError,
    LLMConfigurationError,
    LLMIdempotencyConflict,
    LLMInProgress,
    LLMStoreError,
    LLMUnavailable,
)
from llmkit.persistence.content_cache import DiskContentCache
from llmkit.ports import KeyTaken, RunStart
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing.in_memory import InMemoryLLMRunRepo, InMemoryRun
from llmkit.testing.scripted_client import ScriptedClient, reply
from llmkit.types import LLMProfile, LLMRequest, LLMResponse, RequestContext, RunStatus, ServedFrom, utc_now

HERE = RequestContext(workspace_id="here", pipeline_run_id="p1", stage="test")
ELSEWHERE = "another-boot|pid:[1]|7|99"


def ask(text: str = "hi", **fields: object) -> LLMRequest:
    return LLMRequest(messages=text, **{"route": "ollama/llama3.2", **fields})


def _by_id(bench: Bench, run_id: object) -> InMemoryRun:
    return next(run for run in bench.runs.runs if run.start.id == run_id)


class Bench:
    """A service with its parts at hand."""

    def __init__(self, client: ScriptedClient | None = None, *, cache: bool = False, **settings: object) -> None:
        self.settings = load_settings(**settings)
        self.client = client or ScriptedClient()
        self.runs = InMemoryLLMRunRepo()
        self.cache = DiskContentCache(Path("cache"), ttl_s=60, size_limit_bytes=10**8) if cache else None
        self.service = self.another_service()

    def another_service(self) -> LLMService:
        router = LLMRouter(self.settings, self.client)
        return LLMService(router=router, settings=self.settings, runs=self.runs, cache=self.cache)

    async def ask(self, text: str = "hi", **fields: object) -> LLMResponse:
        return await self.service.chat(ask(text, **fields), HERE)


async def test_a_call_is_recorded_with_its_outcome_and_attempts() -> None:
    bench = Bench()
    response = await bench.ask()
    run = await bench.runs.get_run("here", response.run_id)
    assert run.status is RunStatus.SUCCEEDED
    assert response.text == "ok"
    assert response.served_from is ServedFrom.PROVIDER
    assert [attempt.number for attempt in response.attempts] == [1]
    assert response.usage.input_tokens == 3


async def test_a_key_that_turns_out_not_to_be_new_is_answered_from_the_store() -> None:
    """Another process may have used the key since its owner looked."""
    bench = Bench()
    first = await bench.ask(idempotency_key="k")
    again = await bench.service.chat(ask(idempotency_key="k"), HERE, is_new_key=True)
    assert (again.served_from, again.source_run_id) == (ServedFrom.REPLAY, first.run_id)
    assert len(bench.client.calls) == 1


async def test_no_workspace_is_refused_before_anything_is_sent_or_written() -> None:
    bench = Bench()
    with pytest.raises(LLMConfigurationError, match="workspace"):
        await bench.service.chat(ask())
    assert not bench.client.calls
    assert not bench.runs.runs


async def test_workspace_may_come_from_metadata_and_two_that_disagree_are_an_error() -> None:
    bench = Bench()
    await bench.service.chat(ask(metadata={"workspace_id": "there"}))
    with pytest.raises(LLMConfigurationError, match="disagree"):
        await bench.service.chat(ask(metadata={"workspace_id": "there"}), HERE)
    assert len(bench.client.calls) == 1


async def test_without_persistence_no_workspace_is_needed() -> None:
    client = ScriptedClient()
    settings = load_settings(persist_runs=False)
    service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=None)
    response = await service.chat(ask())
    assert (response.text, response.run_id) == ("ok", None)


def test_persistence_without_a_repository_is_refused() -> None:
    settings = load_settings()
    with pytest.raises(LLMConfigurationError, match="LLM_PERSIST_RUNS"):
        LLMService(router=LLMRouter(settings, ScriptedClient()), settings=settings, runs=None)


# --- section 8, row by row ------------------------------------------------------------------------------------------


async def test_the_same_key_and_request_replays_and_sends_nothing() -> None:
    bench = Bench()
    first = await bench.ask(idempotency_key="k")
    again = await bench.ask(idempotency_key="k")
    assert len(bench.client.calls) == 1
    assert again.served_from is ServedFrom.REPLAY
    assert (again.text, again.usage, again.latency_ms) == (first.text, first.usage, first.latency_ms)
    assert again.source_run_id == first.run_id


@pytest.mark.parametrize("other", [{"temperature": 1.0}, {"epoch": 1}, {"route": "ollama/other"}])
async def test_a_succeeded_key_with_another_request_is_a_conflict(other: dict[str, object]) -> None:
    bench = Bench()
    await bench.ask(idempotency_key="k")
    with pytest.raises(LLMIdempotencyConflict):
        await bench.ask(idempotency_key="k", **other)
    assert len(bench.client.calls) == 1


async def test_a_key_in_flight_is_in_progress_with_run_and_age() -> None:
    bench = Bench(ScriptedClient(latency_s=1.0))
    leader = asyncio.create_task(bench.ask(idempotency_key="k"))
    while not bench.client.calls:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    with pytest.raises(LLMInProgress) as caught:
        await bench.ask(idempotency_key="k")
    with pytest.raises(LLMIdempotencyConflict):
        await bench.ask("another question", idempotency_key="k")
    response = await leader
    assert caught.value.run_id == response.run_id
    assert caught.value.age_s >= 0
    assert len(bench.client.calls) == 1


async def _leave_started(bench: Bench, request: LLMRequest, age_s: float) -> RunStart:
    """A run whose process on another machine was last heard of `age_s` ago."""
    call = open_call(request, HERE, LLMProfile.BALANCED, recorded=True)
    created_at_utc = utc_now() - timedelta(seconds=age_s)
    start = bench.service._recorder._start(call, None)._replace(owner=ELSEWHERE, created_at_utc=created_at_utc)
    await bench.runs.create_started(start)
    return start


async def test_a_started_run_younger_than_the_limit_blocks_and_an_older_one_is_abandoned() -> None:
    bench = Bench(abandoned_after_s=60)
    young = await _leave_started(bench, ask("a", idempotency_key="young"), age_s=50)
    old = await _leave_started(bench, ask("b", idempotency_key="old"), age_s=70)
    with pytest.raises(LLMInProgress):
        await bench.ask("a", idempotency_key="young")
    response = await bench.ask("b", idempotency_key="old")
    assert response.billed
    assert (await bench.runs.get_run("here", old.id)).status is RunStatus.FAILED
    assert (await bench.runs.get_run("here", young.id)).status is RunStatus.STARTED
    assert _by_id(bench, old.id).error_code == "abandoned"


async def test_a_failed_run_keeps_its_row_and_never_blocks_a_retry() -> None:
    bench = Bench(ScriptedClient([LLMAuthenticationError("no"), reply("yes")]))
    with pytest.raises(LLMAuthenticationError) as caught:
        await bench.ask(idempotency_key="k")
    assert (await bench.ask(idempotency_key="k")).text == "yes"
    assert _by_id(bench, caught.value.run_id).error_code == "authentication"
    assert len(bench.runs.runs) == 2


async def test_a_lost_claim_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    create, lost = bench.runs.create_started, []

    async def lose_once(start: RunStart) -> None:
        if not lost:
            lost.append(start)
            raise KeyTaken
        await create(start)

    monkeypatch.setattr(bench.runs, "create_started", lose_once)
    assert (await bench.ask(idempotency_key="k")).text == "ok"


async def test_a_replay_needs_the_stored_answer() -> None:
    bench = Bench(store_payloads=False)
    await bench.ask(idempotency_key="k")
    with pytest.raises(LLMStoreError, match="LLM_STORE_PAYLOADS"):
        await bench.ask(idempotency_key="k")


# --- cache and flights ----------------------------------------------------------------------------------------------


async def test_equal_requests_hit_the_cache_and_epochs_do_not() -> None:
    bench = Bench(cache=True)
    first = await bench.ask()
    hit = await bench.ask()
    repeat = await bench.ask(epoch=1)
    assert (hit.served_from, hit.source_run_id) == (ServedFrom.CACHE, first.run_id)
    assert repeat.served_from is ServedFrom.PROVIDER
    assert len(bench.client.calls) == 2


async def test_workspaces_do_not_share_cached_answers() -> None:
    bench = Bench(cache=True)
    await bench.ask()
    other = await bench.service.chat(ask(), RequestContext(workspace_id="other"))
    assert other.served_from is ServedFrom.PROVIDER


async def test_a_cache_hit_under_a_key_is_stored_under_the_key_too() -> None:
    bench = Bench(cache=True)
    await bench.ask()
    assert (await bench.ask(idempotency_key="k")).served_from is ServedFrom.CACHE
    assert (await bench.ask(idempotency_key="k")).served_from is ServedFrom.REPLAY
    assert len(bench.client.calls) == 1


async def test_equal_requests_in_flight_are_one_call() -> None:
    bench = Bench(ScriptedClient(latency_s=0.05), cache=True)
    responses = await asyncio.gather(*(bench.ask() for _ in range(20)))
    assert len(bench.client.calls) == 1
    assert sorted(response.served_from for response in responses) == ["provider"] + ["shared"] * 19
    assert len(bench.runs.runs) == 20


async def test_equal_requests_of_two_services_on_one_store_are_one_call() -> None:
    bench = Bench(ScriptedClient(latency_s=0.1), cache=True)
    services = [bench.another_service() for _ in range(4)]
    responses = await asyncio.gather(*(service.chat(ask(), HERE) for service in services for _ in range(8)))
    assert len(bench.client.calls) == 1
    assert {response.text for response in responses} == {"ok"}


async def test_when_the_leader_is_cancelled_another_one_takes_its_turn() -> None:
    bench = Bench(ScriptedClient(latency_s=0.5), cache=True)
    leader = asyncio.create_task(bench.ask())
    while not bench.client.calls:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    follower = asyncio.create_task(bench.ask())
    await asyncio.sleep(0.02)
    leader.cancel()
    assert (await follower).served_from is ServedFrom.PROVIDER
    assert len(bench.client.calls) == 2


async def test_followers_share_the_leaders_error_and_each_is_a_row() -> None:
    bench = Bench(ScriptedClient([LLMAuthenticationError("no")], latency_s=0.5), cache=True)
    outcomes = await asyncio.gather(*(bench.ask() for _ in range(5)), return_exceptions=True)
    assert all(isinstance(outcome, LLMAuthenticationError) for outcome in outcomes)
    assert len(bench.client.calls) == 1
    assert [run.error_code for run in bench.runs.runs] == ["authentication"] * 5


async def test_a_fallbacks_answer_is_not_served_for_the_first_choice() -> None:
    def script(route: object, request: object) -> object:
        return LLMUnavailable("down") if str(route).startswith("ollama") and len(bench.client.calls) < 2 else reply()

    bench = Bench(ScriptedClient(script), cache=True, gemini_api_key="k", router_policy="by_profile")
    assert (await bench.ask(route=None)).route.provider == "gemini"
    assert (await bench.ask(route=None)).route.provider == "ollama"


# --- cancellation and failing stores --------------------------------------------------------------------------------


async def test_a_cancelled_call_is_recorded_with_what_it_had_sent() -> None:
    bench = Bench(ScriptedClient(latency_s=100))
    task = asyncio.create_task(bench.ask(idempotency_key="k"))
    while not bench.client.calls:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (run,) = bench.runs.runs
    assert (run.status, run.error_code) == (RunStatus.FAILED, "cancelled")
    assert [attempt.status for attempt in run.attempts] == ["CANCELLED"]


async def test_a_cancellation_while_the_claim_is_written_leaves_no_started_run(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    create = bench.runs.create_started

    async def slowly(start: RunStart) -> None:
        await asyncio.sleep(0.05)
        await create(start)

    monkeypatch.setattr(bench.runs, "create_started", slowly)
    task = asyncio.create_task(bench.ask())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [run.status for run in bench.runs.runs] == [RunStatus.FAILED]
    assert not bench.client.calls


async def test_an_answer_that_cannot_be_recorded_is_in_the_error_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()

    async def fail(success: object) -> bool:
        raise LLMStoreError("disk full")

    monkeypatch.setattr(bench.runs, "mark_succeeded", fail)
    with caplog.at_level(logging.INFO, "llmkit"), pytest.raises(LLMStoreError) as caught:
        await bench.ask()
    assert caught.value.response.text == "ok"
    assert caught.value.run_id is not None
    assert [record.status for record in caplog.records] == ["SUCCEEDED"]


async def test_an_unrecorded_answer_is_kept_for_the_next_caller() -> None:
    """Its own caller was cancelled."""
    bench = Bench()
    writing, mark = asyncio.Event(), bench.runs.mark_succeeded

    async def fail_slowly(success: object) -> bool:
        writing.set()
        await asyncio.sleep(0.02)
        raise LLMStoreError("disk full")

    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(bench.runs, "mark_succeeded", fail_slowly)
        task = asyncio.create_task(bench.ask(idempotency_key="k"))
        await writing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert bench.runs.mark_succeeded == mark
    assert (await bench.ask(idempotency_key="k")).served_from is ServedFrom.REPLAY
    assert len(bench.client.calls) == 1


async def test_a_long_call_keeps_its_heart_beating() -> None:
    bench = Bench(ScriptedClient(latency_s=1.0), abandoned_after_s=0.2)
    task = asyncio.create_task(bench.ask(idempotency_key="k"))
    while not bench.client.calls:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    (first,) = [run.heartbeat_at_utc for run in bench.runs.runs]
    await task
    (last,) = [run.heartbeat_at_utc for run in bench.runs.runs]
    assert last > first
