"""Equal calls in flight: one request, whoever asks, and nobody waits for one who is gone (spec 9.4)."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from llmkit.calls.call import open_call
from llmkit.errors import LLMAllRoutesFailed, LLMAuthenticationError, LLMError, LLMStoreError, LLMUnavailable
from llmkit.persistence.content_cache import DiskContentCache
from llmkit.ports import RunFailure, RunStart, RunSuccess
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing import Fault, OllamaServer, Reply
from llmkit.testing.in_memory import InMemoryLLMRunRepo
from llmkit.testing.scripted_client import ScriptedClient, reply
from llmkit.testing.server_load import Load
from llmkit.types import LLMConstraints, LLMProfile, LLMResponse, RequestContext, Route, RunStatus, ServedFrom, utc_now
from tests.support.gated_client import GatedClient
from tests.support.repositories import JournalHome
from tests.support.workers import HERE, Nest, Worker, ask

PROCESSES, TASKS = 4, 8


class Bench:
    """Services on one store and one cache."""

    def __init__(self, client: ScriptedClient, **settings: object) -> None:
        self.client = client
        self.settings = load_settings(**settings)
        self.runs = InMemoryLLMRunRepo()
        self.cache = DiskContentCache(Path("cache"), ttl_s=60, size_limit_bytes=10**8)
        self.service = self.another_service()

    def another_service(self) -> LLMService:
        router = LLMRouter(self.settings, self.client)
        return LLMService(router=router, settings=self.settings, runs=self.runs, cache=self.cache)

    def chat(self, text: str = "q", **fields: object) -> asyncio.Task[LLMResponse]:
        return asyncio.create_task(self.service.chat(ask(text, **fields), HERE))

    @property
    def outcomes(self) -> list[tuple[str, str | None]]:
        return [(str(run.status), run.error_code) for run in self.runs.runs]


async def _settled(condition: object) -> None:
    """Let the loop run until nothing but the gate is waited for."""
    for _ in range(50):
        await asyncio.sleep(0)
    assert condition is None or condition()


# --- between processes ----------------------------------------------------------------------------------------------


def _crowd(stack: ExitStack, database: str, server: OllamaServer) -> list[Worker]:
    arguments = {"database": database, "url": server.url, "cache_dir": "cache", "tasks": TASKS}
    nest = stack.enter_context(Nest())
    workers = [stack.enter_context(nest.hatch("equal", **arguments)) for _ in range(PROCESSES)]
    for worker in workers:
        worker.wait_until_ready()
    for worker in workers:
        worker.tell()
    return workers


def test_processes_that_ask_the_same_make_one_request(database_url: str) -> None:
    with OllamaServer("the answer", load=Load(latency_s=0.3)) as server, ExitStack() as stack:
        answers = [answer for worker in _crowd(stack, database_url, server) for answer in worker.result()]
        assert server.call_count == 1
    assert {text for _, text in answers} == {"the answer"}
    served = Counter(served_from for served_from, _ in answers)
    assert (served["provider"], served.total()) == (1, PROCESSES * TASKS)
    with JournalHome(database_url) as home:
        assert Counter(run["served_from"] for run in home.runs()) == served
        assert len(home.attempts()) == 1


def test_when_the_leading_process_is_killed_one_more_request_is_made(database_url: str) -> None:
    with OllamaServer([Fault.hang(), Reply("the answer")]) as server, ExitStack() as stack:
        workers = _crowd(stack, database_url, server)
        assert server.wait_until_in_flight(1, 100)
        with JournalHome(database_url) as home:
            (started,) = home.runs()
            leader_pid = int(started["owner"].split("|")[-2])
            (leader,) = [worker for worker in workers if worker.pid == leader_pid]
            leader.kill()
            answers = [answer for worker in workers if worker is not leader for answer in worker.result()]
            assert server.call_count == 2
            assert {text for _, text in answers} == {"the answer"}
            assert len(answers) == (PROCESSES - 1) * TASKS
            billed = [run for run in home.runs() if run["served_from"] in (None, "provider")]
            assert [(run["status"], run["error_code"]) for run in billed] == [
                ("FAILED", "abandoned"),
                ("SUCCEEDED", None),
            ]


# --- who waits for whom ---------------------------------------------------------------------------------------------


async def _leave_in_flight(bench: Bench, **changes: object) -> RunStart:
    """A STARTED run of the same question, as somebody else left it."""
    call = open_call(ask("q"), HERE, LLMProfile.BALANCED, recorded=True)
    name = bench.service._flight_name(call, bench.service.router.explain(call.request))
    start = bench.service._recorder._start(call, name)._replace(**changes)
    await bench.runs.create_started(start)
    return start


async def test_nobody_waits_longer_for_a_leader_than_its_heart_may_be_silent() -> None:
    """Its process lives but does not work on it any more: the store failed when it was to write the end."""
    bench = Bench(ScriptedClient(), abandoned_after_s=0.1)
    await _leave_in_flight(bench)
    answer = await asyncio.wait_for(bench.chat(), 60)
    assert answer.billed
    assert [status for status, _ in bench.outcomes] == ["STARTED", "SUCCEEDED"]


async def test_a_leader_whose_clock_is_an_hour_ahead_is_not_waited_for_an_hour() -> None:
    bench = Bench(ScriptedClient(), abandoned_after_s=0.1)
    owner = "another-boot|pid:[1]|7|99"
    await _leave_in_flight(bench, owner=owner, created_at_utc=utc_now() + timedelta(hours=1))
    assert (await asyncio.wait_for(bench.chat(), 60)).billed


async def test_a_leader_whose_heart_beats_is_waited_for() -> None:
    bench = Bench(ScriptedClient(), abandoned_after_s=1.0)
    start = await _leave_in_flight(bench)
    follower = bench.chat()
    for _ in range(12):
        await asyncio.sleep(0.1)
        await bench.runs.heartbeat([start.id])
    assert not follower.done()
    await bench.runs.mark_failed(RunFailure(start.id, utc_now(), 1.0, "timeout", "no answer"))
    assert (await follower).billed


async def test_many_leaders_may_be_cancelled_one_after_the_other() -> None:
    bench = Bench(GatedClient())
    calls = [bench.chat() for _ in range(600)]
    for call in calls[:-1]:
        await bench.client.arrived.wait()
        bench.client.arrived.clear()
        call.cancel()
    bench.client.gate.set()
    assert (await calls[-1]).billed
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(outcome, asyncio.CancelledError) for outcome in done) == 599
    assert Counter(bench.outcomes) == {("FAILED", "cancelled"): 599, ("SUCCEEDED", None): 1}


async def test_a_leader_cancelled_after_its_answer_came_leaves_it_to_the_followers() -> None:
    bench = Bench(GatedClient())
    mark, marking, go_on = bench.runs.mark_succeeded, asyncio.Event(), asyncio.Event()

    async def slowly(success: RunSuccess) -> bool:
        marking.set()
        await go_on.wait()
        return await mark(success)

    bench.runs.mark_succeeded = slowly
    leader = bench.chat()
    await bench.client.arrived.wait()
    follower = bench.chat()
    bench.client.gate.set()
    await marking.wait()
    leader.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await leader
    assert (await follower).served_from is ServedFrom.CACHE
    assert len(bench.client.calls) == 1
    assert [status for status, _ in bench.outcomes] == ["SUCCEEDED", "SUCCEEDED"]


# --- what is shared -------------------------------------------------------------------------------------------------


def _only_gemini_is_up(route: Route, request: object) -> object:
    return reply("from gemini") if route.provider == "gemini" else LLMUnavailable("down")


@pytest.mark.parametrize(
    "limits",
    [{"allow_fallback": False}, {"local_only": True}, {"allowed_providers": frozenset({"ollama"})}],
    ids=lambda limits: next(iter(limits)),
)
async def test_an_answer_is_not_shared_with_a_call_that_forbids_its_route(limits: dict[str, object]) -> None:
    bench = Bench(GatedClient(_only_gemini_is_up), gemini_api_key="k", router_policy="prefer_local")
    free = bench.chat(route=None)
    await bench.client.arrived.wait()
    bound = bench.chat(route=None, constraints=LLMConstraints(**limits))
    await _settled(lambda: not bound.done())
    bench.client.gate.set()
    assert (await free).text == "from gemini"
    with pytest.raises(LLMUnavailable, match="down"):
        await bound


async def test_a_failure_is_not_shared_with_a_call_that_has_other_limits() -> None:
    bench = Bench(GatedClient(_only_gemini_is_up), gemini_api_key="k", router_policy="prefer_local")
    bound = bench.chat(route=None, constraints=LLMConstraints(allow_fallback=False))
    await bench.client.arrived.wait()
    others = [bench.chat(route=None), bench.chat(route=None, timeout_s=60)]
    await _settled(lambda: not any(other.done() for other in others))
    bench.client.gate.set()
    with pytest.raises(LLMUnavailable):
        await bound
    assert [(await other).text for other in others] == ["from gemini", "from gemini"]


@pytest.mark.parametrize(
    "error", [LLMAuthenticationError("no"), LLMAllRoutesFailed([LLMUnavailable("a"), LLMUnavailable("b")])]
)
async def test_followers_raise_an_error_of_their_own_with_their_row_and_nothing_sent(error: LLMError) -> None:
    bench = Bench(GatedClient([error]))
    calls = [bench.chat() for _ in range(5)]
    await bench.client.arrived.wait()
    bench.client.gate.set()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert {str(each) for each in errors} == {str(error)}
    assert len({id(each) for each in errors}) == 5
    assert {each.run_id for each in errors} == {run.start.id for run in bench.runs.runs}
    # So that requests which are counted by errors are counted once.
    assert sorted(len(each.attempts) for each in errors) == [0, 0, 0, 0, 1]
    assert sorted(len(run.attempts) for run in bench.runs.runs) == [0, 0, 0, 0, 1]


async def test_a_follower_cancelled_while_its_failure_is_written_leaves_no_started_run() -> None:
    bench = Bench(GatedClient([LLMAuthenticationError("no")]))
    leader = bench.chat()
    await bench.client.arrived.wait()
    follower = bench.chat(idempotency_key="k")
    await _settled(lambda: not follower.done())
    record = bench.runs.record_unsent

    async def record_and_interrupt(start: RunStart, failure: RunFailure) -> None:
        follower.cancel()
        await asyncio.sleep(0)
        await record(start, failure)

    bench.runs.record_unsent = record_and_interrupt
    bench.client.gate.set()
    with pytest.raises(LLMAuthenticationError):
        await leader
    with pytest.raises(asyncio.CancelledError):
        await follower
    assert bench.outcomes == [("FAILED", "authentication")] * 2


async def test_a_follower_with_a_key_gets_the_answer_under_its_key() -> None:
    bench = Bench(GatedClient())
    leader = bench.chat(idempotency_key="a")
    await bench.client.arrived.wait()
    follower = bench.chat(idempotency_key="b")
    bench.client.gate.set()
    assert [(await leader).served_from, (await follower).served_from] == ["provider", "shared"]
    assert (await bench.chat(idempotency_key="b")).served_from == "replay"


async def test_a_follower_whose_key_was_taken_meanwhile_replays() -> None:
    bench = Bench(GatedClient())
    leader = bench.chat()
    await bench.client.arrived.wait()
    follower = bench.chat(idempotency_key="k")
    await _settled(lambda: not follower.done())
    other = asyncio.create_task(bench.another_service().chat(ask("q", idempotency_key="k", use_cache=False), HERE))
    await _settled(None)
    bench.client.gate.set()
    answers = await asyncio.gather(leader, follower, other, return_exceptions=True)
    assert all(isinstance(answer, LLMResponse) for answer in answers), answers
    assert len(bench.client.calls) == 2
    assert [run.start.idempotency_key for run in bench.runs.runs].count("k") == 1


async def test_a_store_that_fails_under_the_leader_gives_every_follower_the_answer() -> None:
    bench = Bench(GatedClient([reply("paid")]))

    async def fail(success: object) -> bool:
        raise LLMStoreError("disk full")

    bench.runs.mark_succeeded = fail
    calls = [bench.chat() for _ in range(3)]
    await bench.client.arrived.wait()
    bench.client.gate.set()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in errors] == [LLMStoreError] * 3
    assert {error.response.text for error in errors} == {"paid"}
    assert len(bench.client.calls) == 1


async def test_nothing_is_left_in_flight_and_no_warning_when_all_fail() -> None:
    bench = Bench(ScriptedClient([LLMUnavailable("down")]))
    with pytest.raises(LLMUnavailable):
        await bench.chat()
    gc.collect()
    assert not bench.service._flights
    assert not bench.service._heartbeat._pulses


async def test_workspaces_in_flight_share_nothing() -> None:
    bench = Bench(GatedClient())
    other = RequestContext(workspace_id="other")
    calls = [bench.chat(), asyncio.create_task(bench.service.chat(ask("q"), other))]
    await _settled(None)
    bench.client.gate.set()
    assert [answer.served_from for answer in await asyncio.gather(*calls)] == ["provider", "provider"]
    assert all(run.status is RunStatus.SUCCEEDED for run in bench.runs.runs)
