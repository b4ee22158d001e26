"""Calls that are interrupted, and stores that fail under them: no run is left as if somebody worked on it."""

from __future__ import annotations

import asyncio
import math
from itertools import count
from pathlib import Path

import pytest

from llmkit.errors import LLMAuthenticationError, LLMBadRequest, LLMConfigurationError, LLMInProgress, LLMStoreError
from llmkit.persistence.content_cache import DiskContentCache
from llmkit.ports import RunFailure, RunStart, RunSuccess
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing.in_memory import InMemoryLLMRunRepo
from llmkit.testing.scripted_client import ScriptedClient, reply
from llmkit.types import LLMResponse, RequestContext, RunStatus, ToolDefinition
from tests.support.gated_client import GatedClient
from tests.support.repositories import JournalHome
from tests.support.workers import HERE, ask

QUESTION = {"idempotency_key": "k"}


class SteppedRepo(InMemoryLLMRunRepo):
    """Counts the moments at which its caller waits, and interrupts the caller at one of them.

    Each operation waits before and after it is carried out, as a database does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.task: asyncio.Task[object] | None = None
        self.interrupt_at = -1
        self.moments = 0

    async def moment(self) -> None:
        if self.task is not None:
            if self.moments == self.interrupt_at:
                self.task.cancel()
            self.moments += 1
        await asyncio.sleep(0)

    async def get_by_idempotency_key(self, *args: object) -> object:
        await self.moment()
        found = await super().get_by_idempotency_key(*args)
        await self.moment()
        return found

    async def get_by_flight_key(self, *args: object) -> object:
        await self.moment()
        found = await super().get_by_flight_key(*args)
        await self.moment()
        return found

    async def create_started(self, start: RunStart) -> None:
        await self.moment()
        await super().create_started(start)
        await self.moment()

    async def mark_succeeded(self, success: RunSuccess) -> bool:
        await self.moment()
        changed = await super().mark_succeeded(success)
        await self.moment()
        return changed

    async def mark_failed(self, failure: RunFailure) -> bool:
        await self.moment()
        changed = await super().mark_failed(failure)
        await self.moment()
        return changed


class SteppedClient(ScriptedClient):
    """Has moments of its own."""

    def __init__(self, runs: SteppedRepo, *args: object) -> None:
        super().__init__(*args)
        self._runs = runs

    async def call(self, *args: object, **options: object) -> object:
        await self._runs.moment()
        answer = await super().call(*args, **options)
        await self._runs.moment()
        return answer


class Bench:
    """One service, whose store can be told to fail."""

    def __init__(
        self, client: ScriptedClient | list[object] = (), *, cache: bool = True, folder: str = "cache"
    ) -> None:
        self.runs = SteppedRepo()
        self.client = client if isinstance(client, ScriptedClient) else SteppedClient(self.runs, client)
        settings = load_settings(cache_enabled=cache)
        self.cache = DiskContentCache(Path(folder), ttl_s=60, size_limit_bytes=10**8)
        router = LLMRouter(settings, self.client)
        self.service = LLMService(router=router, settings=settings, runs=self.runs, cache=self.cache)

    async def chat(self, text: str = "q", **fields: object) -> LLMResponse:
        return await self.service.chat(ask(text, **fields), HERE)

    def fail(self, method: str) -> object:
        """Make a method of the store fail until the returned function is called."""
        works = getattr(self.runs, method)

        async def fails(*_args: object) -> object:
            raise LLMStoreError("disk full")

        setattr(self.runs, method, fails)
        return lambda: setattr(self.runs, method, works)


@pytest.mark.parametrize(
    ("script", "fewest_moments"),
    [([reply("yes")], 10), ([LLMAuthenticationError("no")], 9)],
    ids=["answered", "failed"],
)
async def test_a_call_interrupted_at_any_moment_ends_and_frees_its_key(
    script: list[object], fewest_moments: int
) -> None:
    for moment in count():
        bench = Bench(script, folder=f"cache-{moment}")
        runs = bench.runs
        runs.interrupt_at = moment
        runs.task = asyncio.create_task(bench.chat(**QUESTION))
        (outcome,) = await asyncio.gather(runs.task, return_exceptions=True)
        if runs.moments <= moment:
            break
        assert isinstance(outcome, asyncio.CancelledError), (moment, outcome)
        statuses = [run.status for run in runs.runs]
        assert RunStatus.STARTED not in statuses, moment
        assert not bench.service._flights
        assert not bench.service._heartbeat._pulses
        # What was sent is on record.
        assert sum(len(run.attempts) for run in runs.runs) == len(bench.client.calls)
        # And the key is not blocked: a success is replayed, anything else is asked again.
        runs.task = None
        bench.client._answers = [reply("yes")]
        again = await bench.chat(**QUESTION)
        assert again.served_from in (("replay",) if RunStatus.SUCCEEDED in statuses else ("provider", "cache"))
    assert moment >= fewest_moments


# --- stores that fail -----------------------------------------------------------------------------------------------


async def test_an_unrecorded_answer_is_recorded_at_the_next_request() -> None:
    """By the same idempotency key."""
    bench = Bench(ScriptedClient([reply("paid")]), cache=False)
    mend = bench.fail("mark_succeeded")
    with pytest.raises(LLMStoreError) as caught:
        await bench.chat(**QUESTION)
    assert (caught.value.response.text, len(caught.value.attempts)) == ("paid", 1)
    with pytest.raises(LLMStoreError, match="disk full"):
        await bench.chat(**QUESTION)
    mend()
    again = await bench.chat(**QUESTION)
    assert (again.text, again.served_from, again.source_run_id) == ("paid", "replay", caught.value.run_id)
    assert len(bench.client.calls) == 1
    assert [len(run.attempts) for run in bench.runs.runs] == [1, 0]


async def test_a_failure_that_could_not_be_recorded_does_not_block_its_key() -> None:
    bench = Bench(ScriptedClient([LLMAuthenticationError("no"), reply("yes")]), cache=False)
    mend = bench.fail("mark_failed")
    with pytest.raises(LLMStoreError) as caught:
        await bench.chat(**QUESTION)
    assert isinstance(caught.value.__context__, LLMAuthenticationError)
    assert len(caught.value.attempts) == 1
    mend()
    assert (await bench.chat(**QUESTION)).text == "yes"
    assert [(run.status, run.error_code) for run in bench.runs.runs] == [
        ("FAILED", "authentication"),
        ("SUCCEEDED", None),
    ]


async def test_an_equal_question_does_not_wait_for_a_call_whose_end_could_not_be_recorded() -> None:
    bench = Bench(ScriptedClient([LLMAuthenticationError("no"), reply("yes")]))
    mend = bench.fail("mark_failed")
    with pytest.raises(LLMStoreError):
        await bench.chat()
    mend()
    assert (await asyncio.wait_for(bench.chat(), 60)).text == "yes"


async def test_a_cancellation_stays_one_when_it_cannot_be_recorded() -> None:
    bench = Bench(GatedClient())
    mend = bench.fail("mark_failed")
    task = asyncio.create_task(bench.chat(**QUESTION))
    await bench.client.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    mend()
    bench.client.gate.set()
    assert (await bench.chat(**QUESTION)).billed
    assert [run.error_code for run in bench.runs.runs] == ["cancelled", None]


async def test_an_answer_from_the_cache_that_cannot_be_recorded_is_in_the_error() -> None:
    bench = Bench()
    await bench.chat()
    bench.fail("record_served")
    with pytest.raises(LLMStoreError) as caught:
        await bench.chat()
    assert caught.value.response.served_from == "cache"


async def test_a_failing_claim_sends_nothing_and_leaves_nothing_in_flight() -> None:
    bench = Bench()
    mend = bench.fail("create_started")
    with pytest.raises(LLMStoreError):
        await bench.chat(**QUESTION)
    assert not bench.client.calls
    mend()
    assert (await bench.chat(**QUESTION)).billed


@pytest.mark.parametrize("damaged", ["{", "{}", '{"text": 1}', '{"text": "x", "route": "ollama/x", "new": 1}'])
async def test_a_stored_answer_that_cannot_be_read_is_one_clear_error(damaged: str, sqlite_url: str) -> None:
    settings = load_settings(cache_enabled=False)
    with JournalHome(sqlite_url) as home:
        client = ScriptedClient()
        service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=home.repo)
        answer = await service.chat(ask("q", **QUESTION), HERE)
        with home.journal.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE llm_runs SET result_json = ?", (damaged,))
        with pytest.raises(LLMStoreError, match=f"{answer.run_id} is damaged"):
            await service.chat(ask("q", **QUESTION), HERE)
    assert len(client.calls) == 1


# --- values that do not fit -----------------------------------------------------------------------------------------


async def test_half_a_character_in_an_answer_costs_neither_the_answer_nor_its_record(database_url: str) -> None:
    settings = load_settings()
    cache = DiskContentCache(Path("cache"), ttl_s=60, size_limit_bytes=10**8)
    with JournalHome(database_url) as home:
        client = ScriptedClient([reply("grinning \ud83d, whole \U0001f600, nothing \x00")])
        service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=home.repo, cache=cache)
        first = await service.chat(ask("q", **QUESTION), HERE)
        assert first.text == "grinning \ufffd, whole \U0001f600, nothing \x00"
        assert (await service.chat(ask("q", **QUESTION), HERE)).text == first.text
        assert (await service.chat(ask("q"), HERE)).text == first.text
        # Of those served from the store, rows may be written later.
        assert {run["status"] for run in home.runs()} == {"SUCCEEDED"}
    cache.close()
    assert len(client.calls) == 1


@pytest.mark.parametrize("value", [math.nan, {1, 2}, object()], ids=["nan", "set", "object"])
async def test_a_tool_that_is_not_json_is_refused_before_anything_is_sent(value: object) -> None:
    bench = Bench()
    tool = ToolDefinition(name="t", parameters={"type": "object", "default": value})
    with pytest.raises(LLMBadRequest, match="not JSON"):
        await bench.chat(tools=(tool,))
    assert not bench.runs.runs


@pytest.mark.parametrize("name", [" lab", "lab\n", "x" * 256, "a\nb"])
async def test_names_in_metadata_are_held_to_the_rules_of_the_context(name: str) -> None:
    bench = Bench()
    with pytest.raises(ValueError, match="workspace_id"):
        RequestContext(workspace_id=name)
    with pytest.raises(LLMConfigurationError, match="workspace_id"):
        await bench.service.chat(ask("q", metadata={"workspace_id": name}))
    assert not bench.runs.runs


# --- another journal ------------------------------------------------------------------------------------------------


async def test_a_call_in_flight_elsewhere_is_in_progress_until_it_ends(database_url: str) -> None:
    settings = load_settings(cache_enabled=False)
    with JournalHome(database_url) as home, JournalHome(database_url) as other:
        client = GatedClient()
        router = LLMRouter(settings, client)
        leader = asyncio.create_task(
            LLMService(router=router, settings=settings, runs=home.repo).chat(ask("q", **QUESTION), HERE)
        )
        await client.arrived.wait()
        elsewhere = LLMService(router=router, settings=settings, runs=other.repo)
        with pytest.raises(LLMInProgress):
            await elsewhere.chat(ask("q", **QUESTION), HERE)
        client.gate.set()
        await leader
        assert (await elsewhere.chat(ask("q", **QUESTION), HERE)).served_from == "replay"


async def test_closing_writes_the_outcomes_that_could_not_be_written() -> None:
    bench = Bench([reply("yes")])
    works_again = bench.fail("mark_succeeded")
    with pytest.raises(LLMStoreError, match="disk full"):
        await bench.chat(**QUESTION)
    works_again()
    await bench.service.close()
    assert [run.status for run in bench.runs.runs] == ["SUCCEEDED"]


async def test_closing_reports_the_outcomes_that_still_cannot_be_written() -> None:
    bench = Bench([reply("yes")])
    bench.fail("mark_succeeded")
    with pytest.raises(LLMStoreError, match="disk full"):
        await bench.chat(**QUESTION)
    with pytest.raises(LLMStoreError, match=r"The outcomes of 1 calls could not be recorded\. disk full"):
        await bench.service.close()
    await bench.service.close()
