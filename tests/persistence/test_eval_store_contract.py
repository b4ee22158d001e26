"""What every `EvalStore` promises."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from llmkit.eval_ports import EvalSpending, EvalStore, HostDigest, HostUse
from llmkit.evals.provenance import find_different_digests
from llmkit.persistence.eval_store import SqlEvalStore
from llmkit.ports import LLMRunRepo
from llmkit.testing.in_memory import InMemoryEvalStore, InMemoryLLMRunRepo, get_outcome
from llmkit.types import AttemptStatus, Route, TokenUsage, utc_now
from tests.support.repositories import JournalHome
from tests.support.run_values import (
    USAGE,
    a_failure,
    a_start,
    a_success,
    an_attempt,
    an_eval_result,
    an_eval_run,
    new_id,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["sqlite", "postgres", "memory"])
def stores(request: pytest.FixtureRequest) -> Iterator[tuple[EvalStore, LLMRunRepo]]:
    if request.param == "memory":
        runs = InMemoryLLMRunRepo()
        yield InMemoryEvalStore(runs), runs
        return
    with JournalHome(request.getfixturevalue(f"{request.param}_url")) as home:
        yield SqlEvalStore(home.journal), home.repo


@pytest.fixture
def store(stores: tuple[EvalStore, LLMRunRepo]) -> EvalStore:
    return stores[0]


async def test_a_run_is_opened_once(store: EvalStore) -> None:
    run = an_eval_run()
    assert await store.open_run(run) == run
    assert await store.open_run(an_eval_run(task_sha256="e" * 64)) == run
    assert await store.get_run("lab", "first") == run
    assert await store.get_run("lab", "second") is None


async def test_racing_openers_get_the_same_run(store: EvalStore) -> None:
    opened = await asyncio.gather(*[store.open_run(an_eval_run()) for _ in range(20)])
    assert len({run.id for run in opened}) == 1


async def test_names_belong_to_their_workspace(store: EvalStore) -> None:
    mine, yours = an_eval_run(), an_eval_run(workspace_id="other lab")
    assert await store.open_run(mine) == mine
    assert await store.open_run(yours) == yours
    assert await store.list_runs("lab") == (mine,)


async def test_runs_are_listed_newest_first(store: EvalStore) -> None:
    now = utc_now()
    runs = [an_eval_run(name=str(age), created_at_utc=now - timedelta(days=age)) for age in (2, 0, 1)]
    for run in runs:
        await store.open_run(run)
    assert [run.name for run in await store.list_runs("lab")] == ["0", "1", "2"]


async def test_a_result_comes_back_whole(store: EvalStore) -> None:
    run = await store.open_run(an_eval_run())
    logprobs = {"logprob_mean": -0.5, "logprob_min": -2.5, "field_logprobs": {"a.b": {"mean": -1.0, "min": -2.0}}}
    logprobs = {"logprob_mean": -0.5, "logprob_min": -2.5, "field_logprobs": {"a.b": {"mean": -1.0, "min": -2.0}}}
    full = an_eval_result(run.id, scores={"exact": 1.0, "f1": 0.25}, content_digest="0123456789ab", **logprobs)
    bare = an_eval_result(
        run.id,
        sample_id="s0",
        status="FAILED",
        served_route=None,
        output_json=None,
        output_mode=None,
        scores={},
        scorer_errors={},
        valid_first_try=None,
        error_code="timeout",
        error_message="no answer",
        input_tokens=None,
        output_tokens=None,
        latency_ms=None,
        requests=0,
        warnings=(),
    )
    await store.save_result(full)
    await store.save_result(bare)
    assert await store.list_results(run.id) == (bare, full)
    assert await store.list_results(new_id()) == ()


async def test_a_second_try_replaces_the_first(store: EvalStore) -> None:
    run = await store.open_run(an_eval_run())
    await store.save_result(an_eval_result(run.id, status="FAILED", scores={}))
    again = an_eval_result(run.id)
    await store.save_result(again)
    assert await store.list_results(run.id) == (again,)


async def test_results_are_ordered_by_sample_route_and_epoch(store: EvalStore) -> None:
    run = await store.open_run(an_eval_run())
    keys = [("s1", "a/x", 1), ("s1", "a/x", 0), ("S0", "b/y", 0), ("s1", "a/X", 0)]
    results = [an_eval_result(run.id, sample_id=sample, route=route, epoch=epoch) for sample, route, epoch in keys]
    await asyncio.gather(*[store.save_result(result) for result in results])
    found = [(each.sample_id, each.route, each.epoch) for each in await store.list_results(run.id)]
    assert found == sorted(keys)


async def test_calls_without_a_known_end_are_in_doubt(stores: tuple[EvalStore, LLMRunRepo]) -> None:
    store, runs = stores
    started, abandoned, done, failed = [a_start(pipeline_run_id="eval_1/a") for _ in range(4)]
    others = [
        a_start(pipeline_run_id="EVAL_1/a"),
        a_start(pipeline_run_id="evalX1/a"),
        a_start(),
        a_start(pipeline_run_id="eval_1/a", workspace_id="other lab"),
    ]
    for start in (started, abandoned, done, failed, *others):
        await runs.create_started(start)
    seen = await runs.get_run("lab", abandoned.id)
    assert seen is not None
    assert await runs.mark_abandoned(seen)
    await runs.mark_succeeded(a_success(done.id))
    await runs.mark_failed(a_failure(failed.id))
    doubtful = await store.list_calls_in_doubt("lab", "eval_1/")
    assert [run.id for run in doubtful] == [started.id, abandoned.id]


async def test_the_digests_of_an_evaluation_are_told_by_route_and_first_appearance(
    stores: tuple[EvalStore, LLMRunRepo],
) -> None:
    store, runs = stores
    now = utc_now()
    sent = [  # pipeline run, workspace, digest, seconds after the first
        ("eval_1/a", "lab", "b", 0),
        ("eval_1/b", "lab", "a", 1),
        ("eval_1/c", "lab", "b", 2),
        ("eval_1/d", "lab", None, 3),
        ("EVAL_1/a", "lab", "c", 4),
        ("eval_1/a", "other lab", "d", 5),
    ]
    for pipeline_run_id, workspace_id, digest, second in sent:
        start = a_start(pipeline_run_id=pipeline_run_id, workspace_id=workspace_id)
        await runs.create_started(start)
        attempt = an_attempt(model_digest=digest, started_at_utc=now + timedelta(seconds=second))
        await runs.mark_succeeded(a_success(start.id, attempts=(attempt,)))
    found = await store.list_digests("lab", "eval_1/")
    assert [(each.digest, each.requests, each.first_at_utc) for each in found] == [
        ("b", 2, now),
        ("a", 1, now + timedelta(seconds=1)),
    ]
    assert {each.route for each in found} == {an_attempt().route}


async def test_hosts_are_told_apart_by_what_they_sent(stores: tuple[EvalStore, LLMRunRepo]) -> None:
    store, runs = stores
    now = utc_now()
    sent = [
        ("a", AttemptStatus.SUCCEEDED, 10.0),
        ("a", AttemptStatus.SUCCEEDED, 30.0),
        ("b", AttemptStatus.FAILED, 9.0),
    ]
    for second, (host, status, latency_ms) in enumerate(sent):
        start = a_start(pipeline_run_id="eval_1/x")
        await runs.create_started(start)
        at = now + timedelta(seconds=second)
        attempt = an_attempt(host=host, status=status, latency_ms=latency_ms, started_at_utc=at)
        await runs.mark_succeeded(a_success(start.id, attempts=(attempt,)))
    route = an_attempt().route
    assert await store.list_hosts("lab", "eval_1/") == (
        HostUse("a", route, 2, 20.0, now + timedelta(seconds=1)),
        HostUse("b", route, 1, None, now + timedelta(seconds=2)),
    )


async def test_digests_of_machines_that_differ_are_found(store: EvalStore) -> None:
    run = await store.open_run(an_eval_run())
    same, other = Route.parse("ollama/same"), Route.parse("ollama/other")
    await store.note_digests(run.id, [HostDigest("a", same, "1"), HostDigest("a", other, "2")])
    await store.note_digests(run.id, [HostDigest("b", same, "0"), HostDigest("b", other, "3")])
    await store.note_digests(run.id, [HostDigest("b", same, "1")])
    seen = await store.list_host_digests(run.id)
    assert [(each.host, each.digest) for each in seen] == [("a", "2"), ("b", "3"), ("a", "1"), ("b", "1")]
    assert find_different_digests(seen) == {other: {"2": ("a",), "3": ("b",)}}


async def test_what_an_evaluation_took_is_told_by_route_and_what_nobody_counted_apart(
    stores: tuple[EvalStore, LLMRunRepo],
) -> None:
    store, runs = stores
    unknown, flash = TokenUsage(), Route.parse("gemini/gemini-2.5-flash")
    sent = [  # pipeline run, workspace, what was sent
        ("eval_1/a", "lab", [an_attempt(1), an_attempt(2, cost_usd=0.5)]),
        ("eval_1/b", "lab", [an_attempt(1, route=flash, cost_usd=0.25)]),
        ("eval_1/c", "lab", [an_attempt(1, usage=unknown), an_attempt(2, usage=unknown, status_code=504)]),
        ("eval_1/d", "lab", [an_attempt(1, usage=unknown, status_code=500), an_attempt(2, usage=unknown)]),
        ("eval_1/e", "lab", [an_attempt(1, usage=USAGE.model_copy(update={"estimated": True}), status_code=200)]),
        ("EVAL_1/a", "lab", [an_attempt(1)]),
        ("eval_1/a", "other lab", [an_attempt(1)]),
    ]
    for pipeline_run_id, workspace_id, attempts in sent:
        start = a_start(pipeline_run_id=pipeline_run_id, workspace_id=workspace_id)
        await runs.create_started(start)
        await runs.mark_succeeded(a_success(start.id, attempts=tuple(attempts)))
    assert await store.sum_spending("lab", "eval_1/") == (
        EvalSpending(flash, 11, 7, 0.25),
        EvalSpending(an_attempt().route, 22, 14, 0.5, unpriced=1, uncounted=4),
    )
    assert await store.sum_spending("lab", "eval_2/") == ()


async def test_the_calls_of_an_evaluation_come_back_with_every_request(stores: tuple[EvalStore, LLMRunRepo]) -> None:
    store, runs = stores
    now = utc_now()
    tool_call = '{"text": "", "tool_calls": [{"id": "1", "name": "final_result", "arguments": "{\\"n\\": 1}"}]}'
    starts = [
        a_start(
            pipeline_run_id=pipeline_run_id,
            workspace_id=workspace_id,
            stage="sample",
            request_preview=f"user: {second}",
            created_at_utc=now + timedelta(seconds=second),
        )
        for second, (pipeline_run_id, workspace_id) in enumerate(
            [
                ("eval_1/a", "lab"),
                ("eval_1/b", "lab"),
                ("eval_1/c", "lab"),
                ("eval_1/a", "other lab"),
                ("EVAL_1/a", "lab"),
            ]
        )
    ]
    for start in reversed(starts):
        await runs.create_started(start)
    retried = (an_attempt(1, status="FAILED", error_code="timeout"), an_attempt(2, cost_usd=0.5, model_digest="d"))
    await runs.mark_succeeded(a_success(starts[0].id, attempts=retried))
    failure = a_failure(starts[1].id)
    await runs.mark_failed(failure)
    await runs.mark_succeeded(a_success(starts[2].id, response_preview="", result_json=tool_call))
    first, second, third = await store.list_calls("lab", "eval_1/")
    assert (first.pipeline_run_id, first.stage, first.prompt, first.answer) == (
        "eval_1/a",
        "sample",
        "user: 0",
        "hello",
    )
    assert (first.attempts, first.served_from) == (retried, "provider")
    assert (second.status, second.error_code, second.answer) == ("FAILED", "timeout", None)
    assert (second.attempts, second.served_from) == (failure.attempts, None)
    assert third.answer == 'final_result({"n": 1})'


async def test_one_result_comes_back_by_its_key(store: EvalStore) -> None:
    run = await store.open_run(an_eval_run())
    results = [
        an_eval_result(run.id, sample_id="a"),
        an_eval_result(run.id, sample_id="b"),
        an_eval_result(run.id, sample_id="a", epoch=1),
    ]
    for result in results:
        await store.save_result(result)
    assert [await store.get_result(run.id, each.sample_id, each.route, each.epoch) for each in results] == results
    assert await store.get_result(run.id, "c", results[0].route, 0) is None


async def test_outcomes_are_the_results_in_short(store: EvalStore) -> None:
    run = await store.open_run(an_eval_run())
    results = [
        an_eval_result(run.id, sample_id="scored", scores={"x": 1.0, "y": 0.5}),
        an_eval_result(run.id, sample_id="failed", status="FAILED", error_code="timeout", output_json=None, scores={}),
    ]
    for result in results:
        await store.save_result(result)
    expected = {get_outcome(result) for result in await store.list_results(run.id)}
    assert set(await store.list_outcomes(run.id)) == expected
    assert {outcome.has_output for outcome in expected} == {True, False}


async def test_calls_under_way_are_those_that_have_not_ended(stores: tuple[EvalStore, LLMRunRepo]) -> None:
    store, calls = stores
    begun, ended = a_start(pipeline_run_id="eval:1:a"), a_start(pipeline_run_id="eval:1:b")
    others = [a_start(pipeline_run_id="eval:2:a"), a_start(pipeline_run_id="eval:1:a", workspace_id="other lab")]
    for start in (begun, ended, *others):
        await calls.create_started(start)
    await calls.mark_failed(a_failure(ended.id))
    found = await store.list_calls_under_way("lab", "eval:1:")
    assert [(call.pipeline_run_id, call.owner) for call in found] == [("eval:1:a", begun.owner)]
    assert found[0].heartbeat_at_utc <= found[0].read_at_utc


async def test_a_run_is_described_anew(store: EvalStore) -> None:
    run, other = await store.open_run(an_eval_run()), await store.open_run(an_eval_run(name="second"))
    changed = replace(run, dataset_sha256="f" * 64, spec={"samples": 7})
    await store.update_run(changed)
    assert {run.name: run for run in await store.list_runs("lab")} == {"first": changed, "second": other}


async def test_workers_see_that_a_call_was_stopped(store: EvalStore) -> None:
    """A call that this store does not have is neither."""
    call, other = new_id(), new_id()
    for is_stopped in (False, True):
        await store.note_shared_call(call, is_stopped=is_stopped)
        assert await store.is_call_stopped(call) is is_stopped
    assert await store.is_call_stopped(other) is None


async def test_results_are_counted_by_outcome_and_age(store: EvalStore) -> None:
    run = await store.open_run(an_eval_run())
    first = an_eval_result(run.id, sample_id="s1", requests=2)
    later = first.finished_at_utc + timedelta(seconds=1)
    for each in (first, replace(first, sample_id="s2"), replace(first, sample_id="s3", finished_at_utc=later)):
        await store.save_result(each)
    counts = await store.count_results(run.id, first.finished_at_utc)
    assert sorted((each.is_old, each.results, each.requests) for each in counts) == [(False, 1, 2), (True, 2, 4)]
    assert {(each.route, each.status) for each in counts} == {(first.route, first.status)}


async def test_calls_that_hold_their_keys_are_listed_by_name(stores: tuple[EvalStore, LLMRunRepo]) -> None:
    store, runs = stores
    started = a_start(pipeline_run_id="eval:1:a", stage="sample")
    for start in (started, a_start(pipeline_run_id="eval:2:a", stage="sample")):
        await runs.create_started(start)
    await runs.create_started(a_start(pipeline_run_id="eval:1:a", stage="judge"))
    failed = a_start(pipeline_run_id="eval:1:b", stage="sample")
    await runs.create_started(failed)
    await runs.mark_failed(a_failure(failed.id))
    assert await store.list_called_names("lab", "eval:1:") == ["eval:1:a"]
