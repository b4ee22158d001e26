"""The worker pool: postponing, probing, resuming and giving up."""

import pytest

from llmkit.batch.route_health import RouteHealth
from llmkit.batch.worker_pool import WorkerPool
from llmkit.errors import LLMUnavailable


@pytest.fixture(autouse=True)
def short_rests(monkeypatch):
    monkeypatch.setattr("llmkit.batch.route_health.USUAL_REST_S", 0.0)


def make_pool(refuses, done, **options):
    """A pool over one route; `refuses(job)` says whether the route is left alone. The health has an earlier answer."""
    health = RouteHealth(answers=1)
    calls = []

    async def work(job):
        calls.append(job)
        if refuses(job, calls):
            assert pool.postpone_if_left_alone(job, LLMUnavailable("left alone"))
            return
        health.note_answer()
        done.append(job)

    options = {"health_of": lambda _job: "a", "key_of": lambda job: job, "concurrency": 1, **options}
    pool = WorkerPool(work, {"a": health}, **options)
    return pool, health, calls


async def test_jobs_behind_a_resting_route_are_done_after_a_probe():
    done = []
    pool, health, calls = make_pool(lambda _job, calls: len(calls) == 1, done)
    await pool.run(range(5))
    assert done == [0, 1, 2, 3, 4]
    assert calls == [0, 0, 1, 2, 3, 4]
    assert health.stopped_by is None


async def test_a_route_that_stays_silent_is_given_up(monkeypatch):
    monkeypatch.setattr("llmkit.batch.worker_pool.LONGEST_SILENCE_S", 3.0)
    done = []
    pool, health, calls = make_pool(lambda _job, _calls: True, done)
    await pool.run(range(5))
    assert done == []
    assert calls == [0, 0, 0, 0]  # the first call, and one probe for each second of silence
    assert health.stopped_by is not None


async def test_nothing_is_resumed_or_given_up_once_all_work_is_to_end():
    done = []
    pool, health, calls = make_pool(lambda _job, calls: True, done, is_stopped=lambda: bool(calls))
    await pool.run(range(5))
    assert calls == [0]
    assert health.stopped_by is None


async def test_a_job_without_a_route_is_done_whatever_rests():
    done = []
    pool, health, _calls = make_pool(lambda _job, _calls: False, done, health_of=lambda _job: None)
    health.resting_after = LLMUnavailable("rests")
    await pool.run(range(2))
    assert done == [0, 1]


async def test_the_first_error_is_raised_as_itself():
    async def work(_job):
        raise KeyError("x")

    pool = WorkerPool(work, {"a": RouteHealth()}, health_of=lambda _: "a", key_of=str, concurrency=3)
    with pytest.raises(KeyError):
        await pool.run(range(5))
