"""What a process makes of what others do at its run, each rule by itself; whole processes are in `test_sharing`."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from llmkit.calls.liveness import current_owner
from llmkit.eval_ports import CallUnderWay
from llmkit.evals import Sample
from llmkit.evals.run.coordination import Coordinator, Patience
from llmkit.evals.run.plan import Plan
from llmkit.evals.run.progress import Tally
from llmkit.evals.run.work_queue import WorkQueue
from llmkit.types import utc_now
from tests.support.eval_fakes import FakeExtract, FakeService, MemoryStore, run, sentiment_task

A = "ollama/a"
SAMPLES = tuple(Sample(f"good {number}", "positive", id=f"s{number}") for number in range(8))
TASK = sentiment_task(dataset=SAMPLES)
EAGER = Patience(least_s=0, usual_s=0, recent_s=60, result_s=60, silence_s=60)


class Claims:
    """A process that joins a run whose results all are at hand, to be put into its store one by one."""

    def __init__(self, patience=EAGER):
        self.plan = Plan.make(TASK, A, FakeService(), {"progress": False})
        self.store, self.before = MemoryStore(), {}
        self.queue, self.tally = WorkQueue(self.plan.total), Tally(self.plan.turns, self.plan.total)
        self.run = self.plan.new_run("w", "run")
        self.coordinator = Coordinator(self.plan, self.run, self.store, self.queue, self.tally, self.before, patience)

    async def __aenter__(self):
        elsewhere = MemoryStore()
        await run(TASK, store=elsewhere, extract=FakeExtract())
        self.results = {
            self.plan.position_of(each.sample_id, each.route, each.epoch): replace(each, eval_run_id=self.run.id)
            for each in elsewhere.rows.values()
        }
        return self

    async def __aexit__(self, *_):
        return None

    def name(self, cell):
        return self.results[cell].pipeline_run_id

    async def arrives(self, cell):
        """Another process stores its result."""
        await self.store.save_result(self.results[cell])

    def under_way(self, *queue, owner=None, heartbeat=None):
        now = utc_now()
        calls = [CallUnderWay(self.name(cell), owner or current_owner(), heartbeat or now, now) for cell in queue]
        self.store.begun = calls


async def test_shared_result_settles_once():
    """A result of another process counts as shared."""
    async with Claims() as claims:
        await claims.arrives(2)
        await claims.coordinator.look()
        await claims.coordinator.look()
        assert claims.queue.is_settled(2)
        assert claims.tally.work().shared == 1
        assert claims.tally.progress().done == 1


async def test_a_result_of_its_own_is_not_taken_for_another_s():
    async with Claims() as claims:
        claims.coordinator.begin_call(claims.name(2))
        await claims.arrives(2)
        await claims.coordinator.look()
        assert not claims.queue.is_settled(2)
        assert claims.tally.work().shared == 0


async def test_replaceable_result_settles_nothing():
    """A result that will be replaced settles nothing until another takes its place."""
    async with Claims() as claims:
        claims.before[2] = claims.results[2].finished_at_utc
        await claims.arrives(2)
        await claims.coordinator.look()
        assert not claims.queue.is_settled(2)
        claims.results[2] = replace(claims.results[2], finished_at_utc=utc_now() + timedelta(seconds=1))
        await claims.arrives(2)
        await claims.coordinator.look()
        assert claims.queue.is_settled(2)


async def test_living_call_is_left_to_its_process():
    """It is waited for."""
    async with Claims() as claims:
        claims.under_way(2)
        await claims.coordinator.wait_for(2, claims.name(2))
        assert claims.coordinator.waits
        assert claims.coordinator.are_others_at_work
        assert claims.coordinator.list_left_behind() == []
        assert claims.coordinator.silent == set()
        await claims.arrives(2)
        claims.under_way()
        await claims.coordinator.look()
        assert not claims.coordinator.waits
        assert claims.coordinator.list_left_behind() == []


async def test_at_the_end_calls_of_others_are_looked_up_one_by_one(monkeypatch):
    """Reading every result of a long run would take longer than what it waits for."""
    async with Claims() as claims:
        claims.under_way(2, 3)
        for position in (2, 3):
            await claims.coordinator.wait_for(position, claims.name(position))
        monkeypatch.setattr(claims.store, "list_outcomes", None)
        await claims.arrives(2)
        claims.under_way(3)
        await claims.coordinator.look_at_awaited()
        assert (claims.queue.is_settled(2), claims.queue.is_settled(3)) == (True, False)
        await claims.arrives(3)
        claims.under_way()
        await claims.coordinator.look_at_awaited()
        assert not claims.coordinator.waits
        assert claims.tally.work().shared == 2


async def test_recent_call_is_left_to_its_scorer():
    """A call that has just ended may still be scored, and is not repeated at once."""
    async with Claims() as claims:
        claims.under_way()
        await claims.coordinator.wait_for(2, claims.name(2))
        await claims.coordinator.look()
        assert claims.coordinator.list_left_behind() == []
    async with Claims(replace(EAGER, result_s=0.0)) as claims:
        await claims.coordinator.wait_for(2, claims.name(2))
        await claims.coordinator.look()
        assert claims.coordinator.list_left_behind() == [2]
        assert not claims.coordinator.waits


async def test_a_call_of_a_process_that_is_dead_is_called_again_at_once():
    async with Claims() as claims:
        world = current_owner().rpartition("|")[0].rpartition("|")[0]
        claims.under_way(2, owner=f"{world}|999999999|1")
        await claims.coordinator.wait_for(2, claims.name(2))
        assert claims.coordinator.list_left_behind() == [2]


async def test_silent_call_of_another_machine():
    """A call of another machine without a sign of life counts as silent at last."""
    async with Claims(replace(EAGER, silence_s=0.05)) as claims:
        claims.under_way(2, owner="elsewhere|1|2", heartbeat=utc_now() + timedelta(minutes=1))
        await claims.coordinator.wait_for(2, claims.name(2))
        assert claims.coordinator.waits
        await asyncio.sleep(0.1)
        await claims.coordinator.look()
        assert claims.coordinator.silent == {2}
        assert not claims.coordinator.waits


async def test_what_was_given_up_once_is_not_waited_for_afresh():
    async with Claims(replace(EAGER, result_s=0.0, silence_s=0.05)) as claims:
        await claims.coordinator.wait_for(2, claims.name(2))
        await claims.coordinator.look()
        assert claims.coordinator.list_left_behind() == [2]
        assert not await claims.coordinator.is_anothers(2, claims.name(2))
        await asyncio.sleep(0.1)
        await claims.coordinator.wait_for(2, claims.name(2))
        await claims.coordinator.look()
        assert claims.coordinator.silent == {2}


async def test_stored_answer_is_shared_only_while_another_works():
    """An answer from the store counts as that of another process only while one is working."""
    async with Claims() as claims:
        claims.coordinator.begin_call(claims.name(2))
        assert not await claims.coordinator.is_anothers(2, claims.name(2))
        claims.under_way(3)
        await claims.coordinator.look()
        assert await claims.coordinator.is_anothers(4, claims.name(4))
        assert claims.coordinator.waits
        await claims.arrives(5)
        assert await claims.coordinator.is_anothers(5, claims.name(5))


@pytest.mark.parametrize("others", [(0,), (0, 1)])
async def test_who_joins_walks_where_nobody_is(others):
    async with Claims() as claims:
        claims.under_way(*others)
        await claims.coordinator.begin()
        assert claims.queue.take() not in (*others, max(others) + 1)
    async with Claims() as claims:
        await claims.coordinator.begin()
        assert claims.queue.take() == 0
