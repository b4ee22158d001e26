"""What every `LLMRunRepo` promises: the journal, the session-bound one, and the fake in memory."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from llmkit.calls.liveness import looks_abandoned
from llmkit.calls.request_hash import CanonicalRequest
from llmkit.errors import LLMInProgress, LLMStoreError
from llmkit.persistence.journal import JournalLLMRunRepo
from llmkit.persistence.repo import SqlLLMRunRepo
from llmkit.ports import KeyTaken, LLMRunRepo
from llmkit.testing.in_memory import InMemoryLLMRunRepo
from llmkit.types import RunStatus, utc_now
from tests.support.repositories import JournalHome, runs_in, session_repo
from tests.support.run_values import a_failure, a_start, a_success, new_id, served
from tests.support.workers import HERE, ask, service_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

ADAPTERS = ["journal-sqlite", "journal-postgres", "session-sqlite", "session-postgres", "memory"]
SHARING = ["journal-sqlite", "journal-postgres", "memory"]


async def _adapter(request: pytest.FixtureRequest) -> AsyncIterator[LLMRunRepo]:
    kind, _, database = request.param.partition("-")
    if kind == "memory":
        yield InMemoryLLMRunRepo()
        return
    url = request.getfixturevalue(f"{database}_url")
    if kind == "journal":
        with JournalHome(url) as home:
            yield home.repo
    else:
        async with session_repo(url) as repo:
            yield repo


@pytest.fixture(params=ADAPTERS)
async def repo(request: pytest.FixtureRequest) -> AsyncIterator[LLMRunRepo]:
    async for adapter in _adapter(request):
        yield adapter


@pytest.fixture(params=SHARING)
async def sharing_repo(request: pytest.FixtureRequest) -> AsyncIterator[LLMRunRepo]:
    """Those whose rows others see at once, so that calls in flight can be shared."""
    async for adapter in _adapter(request):
        yield adapter


async def test_a_started_run_is_found_by_key_and_id(repo: LLMRunRepo) -> None:
    start = a_start(idempotency_key="k", epoch=3)
    await repo.create_started(start)
    found = await repo.get_by_idempotency_key("lab", "k")
    assert found is not None
    assert (found.id, found.workspace_id, found.status, found.epoch) == (start.id, "lab", RunStatus.STARTED, 3)
    assert (found.prompt_sha256, found.owner, found.result_json) == ("a" * 64, "host:1:1", None)
    assert found.created_at_utc == start.created_at_utc
    again = await repo.get_run("lab", start.id)
    assert again is not None
    assert found.heartbeat_at_utc <= found.read_at_utc <= again.read_at_utc
    assert again._replace(read_at_utc=found.read_at_utc) == found


async def test_nothing_is_found_where_nothing_is(repo: LLMRunRepo) -> None:
    assert await repo.get_by_idempotency_key("lab", "k") is None
    assert await repo.get_by_flight_key("lab", "f") is None
    assert await repo.get_run("lab", new_id()) is None


async def test_a_held_key_is_refused_and_the_repository_goes_on(repo: LLMRunRepo) -> None:
    await repo.create_started(a_start(idempotency_key="k"))
    loser = a_start(idempotency_key="k")
    with pytest.raises(KeyTaken):
        await repo.create_started(loser)
    assert await repo.get_run("lab", loser.id) is None
    await repo.create_started(a_start(idempotency_key="other"))


async def test_a_finished_run_still_holds_its_key(repo: LLMRunRepo) -> None:
    start = a_start(idempotency_key="k")
    await repo.create_started(start)
    assert await repo.mark_succeeded(a_success(start.id, result_json='{"text": "hé\\u0000"}'))
    found = await repo.get_by_idempotency_key("lab", "k")
    assert found is not None
    assert (found.status, found.result_json) == (RunStatus.SUCCEEDED, '{"text": "hé\\u0000"}')
    with pytest.raises(KeyTaken):
        await repo.create_started(a_start(idempotency_key="k"))


async def test_a_failed_run_gives_its_key_free(repo: LLMRunRepo) -> None:
    first, second = a_start(idempotency_key="k"), a_start(idempotency_key="k")
    await repo.create_started(first)
    assert await repo.mark_failed(a_failure(first.id))
    assert await repo.get_by_idempotency_key("lab", "k") is None
    await repo.create_started(second)
    found = await repo.get_by_idempotency_key("lab", "k")
    assert found is not None
    assert found.id == second.id
    old = await repo.get_run("lab", first.id)
    assert old is not None
    assert old.status is RunStatus.FAILED


async def test_a_key_belongs_to_its_workspace(repo: LLMRunRepo) -> None:
    mine, yours = a_start(idempotency_key="k"), a_start(idempotency_key="k", workspace_id="other lab")
    await repo.create_started(mine)
    await repo.create_started(yours)
    for workspace_id, start in (("lab", mine), ("other lab", yours)):
        found = await repo.get_by_idempotency_key(workspace_id, "k")
        assert found is not None
        assert found.id == start.id
    assert await repo.get_run("lab", yours.id) is None


async def test_keyless_runs_never_meet(repo: LLMRunRepo) -> None:
    await repo.create_started(a_start())
    await repo.create_started(a_start())


async def test_only_the_first_outcome_counts(repo: LLMRunRepo) -> None:
    start = a_start()
    await repo.create_started(start)
    assert await repo.mark_succeeded(a_success(start.id))
    assert not await repo.mark_failed(a_failure(start.id))
    assert not await repo.mark_succeeded(a_success(start.id, result_json="{}"))
    found = await repo.get_run("lab", start.id)
    assert found is not None
    assert (found.status, found.result_json) == (RunStatus.SUCCEEDED, '{"text": "hello"}')


async def test_unsent_failure_blocks_no_key(repo: LLMRunRepo) -> None:
    """A run that failed before it was sent is recorded."""
    holder, unsent = a_start(idempotency_key="k"), a_start(idempotency_key="k", flight_key="f")
    await repo.create_started(holder)
    await repo.record_unsent(unsent, a_failure(unsent.id))
    found = await repo.get_run("lab", unsent.id)
    assert found is not None
    assert found.status is RunStatus.FAILED
    holding = await repo.get_by_idempotency_key("lab", "k")
    assert holding is not None
    assert holding.id == holder.id
    assert await repo.get_by_flight_key("lab", "f") is None
    assert not await repo.mark_succeeded(a_success(unsent.id))


async def test_the_outcome_of_an_unknown_run_is_not_recorded(repo: LLMRunRepo) -> None:
    run_id = new_id()
    assert not await repo.mark_succeeded(a_success(run_id))
    assert not await repo.mark_failed(a_failure(run_id))
    assert await repo.get_run("lab", run_id) is None


async def test_a_dead_run_is_abandoned_once(repo: LLMRunRepo) -> None:
    start = a_start(idempotency_key="k")
    await repo.create_started(start)
    found = await repo.get_run("lab", start.id)
    assert found is not None
    assert await repo.mark_abandoned(found)
    assert not await repo.mark_abandoned(found)
    assert await repo.get_by_idempotency_key("lab", "k") is None
    await repo.create_started(a_start(idempotency_key="k"))
    assert not await repo.mark_succeeded(a_success(start.id)), "it was declared dead before"


async def test_a_run_that_stirred_is_not_abandoned(sharing_repo: LLMRunRepo) -> None:
    start = a_start()
    await sharing_repo.create_started(start)
    seen = await sharing_repo.get_run("lab", start.id)
    assert seen is not None
    await asyncio.sleep(0.002)  # SQLite's clock has milliseconds
    await sharing_repo.heartbeat([start.id, new_id()])
    assert not await sharing_repo.mark_abandoned(seen)
    stirred = await sharing_repo.get_run("lab", start.id)
    assert stirred is not None
    assert stirred.status is RunStatus.STARTED
    assert stirred.heartbeat_at_utc > seen.heartbeat_at_utc
    assert await sharing_repo.mark_abandoned(stirred)


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_wrong_clock_declares_no_live_call_dead(
    database_url: str, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """A process whose clock is an hour off meets the call of another machine, and leaves it alone."""
    request = ask("x", idempotency_key="k")
    prompt_sha256 = CanonicalRequest(request).sha256("balanced")
    with JournalHome(database_url) as home:
        start = a_start(idempotency_key="k", owner="another machine|1|1", prompt_sha256=prompt_sha256, epoch=0)
        await home.repo.create_started(start)
        _set_clock(monkeypatch, timedelta(hours=hours))
        async with service_on(home.repo, "http://unused", cache_enabled=False, abandoned_after_s=60) as service:
            with pytest.raises(LLMInProgress):
                await service.chat(request, HERE)


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_call_of_a_process_with_a_wrong_clock_lives(database_url: str, hours: int) -> None:
    with JournalHome(database_url) as home:
        start = a_start(idempotency_key="k", created_at_utc=utc_now() + timedelta(hours=hours))
        await home.repo.create_started(start)
        await home.repo.heartbeat([start.id])
        found = await home.repo.get_run("lab", start.id)
    assert found is not None
    assert not looks_abandoned("another machine|1|1", found.heartbeat_at_utc, 60, found.read_at_utc)
    assert found.heartbeat_at_utc <= found.read_at_utc


def _set_clock(monkeypatch: pytest.MonkeyPatch, off: timedelta) -> None:
    for module in list(sys.modules.values()):
        if getattr(module, "utc_now", None) is utc_now:
            monkeypatch.setattr(module, "utc_now", lambda: datetime.now(UTC) + off)


async def test_a_finished_run_has_no_heartbeat(sharing_repo: LLMRunRepo) -> None:
    start = a_start()
    await sharing_repo.create_started(start)
    await sharing_repo.mark_failed(a_failure(start.id))
    before = await sharing_repo.get_run("lab", start.id)
    await asyncio.sleep(0.002)
    await sharing_repo.heartbeat([start.id])
    await sharing_repo.heartbeat([])
    found = await sharing_repo.get_run("lab", start.id)
    assert before is not None
    assert found is not None
    assert found.heartbeat_at_utc == before.heartbeat_at_utc


async def test_one_flight_at_a_time(sharing_repo: LLMRunRepo) -> None:
    leader, follower = a_start(flight_key="f"), a_start(flight_key="f")
    await sharing_repo.create_started(leader)
    with pytest.raises(KeyTaken):
        await sharing_repo.create_started(follower)
    await sharing_repo.create_started(a_start(flight_key="f", workspace_id="other lab"))
    found = await sharing_repo.get_by_flight_key("lab", "f")
    assert found is not None
    assert found.id == leader.id
    await sharing_repo.mark_succeeded(a_success(leader.id))
    assert await sharing_repo.get_by_flight_key("lab", "f") is None
    await sharing_repo.create_started(follower)


async def test_a_result_that_cost_nothing_takes_the_key(repo: LLMRunRepo) -> None:
    start = a_start(idempotency_key="k", flight_key="f")
    await repo.save_result_for_idempotency_key(start, served(start.id, source_run_id=new_id()))
    found = await repo.get_by_idempotency_key("lab", "k")
    assert found is not None
    assert (found.id, found.status, found.result_json) == (start.id, RunStatus.SUCCEEDED, '{"text": "hello"}')
    again = a_start(idempotency_key="k")
    with pytest.raises(KeyTaken):
        await repo.save_result_for_idempotency_key(again, served(again.id))
    assert await repo.get_by_flight_key("lab", "f") is None


async def test_what_was_served_is_recorded(repo: LLMRunRepo) -> None:
    start = a_start()
    await repo.record_served(start, served(start.id))
    await repo.create_started(a_start())  # behind it in the queue
    found = await repo.get_run("lab", start.id)
    assert found is not None
    assert found.status is RunStatus.SUCCEEDED


@pytest.mark.parametrize("repo", ADAPTERS[:-1], indirect=True)
@pytest.mark.parametrize("field", ["workspace_id", "idempotency_key", "pipeline_run_id", "stage"])
async def test_a_name_that_cannot_be_stored_is_refused(repo: LLMRunRepo, field: str) -> None:
    with pytest.raises(LLMStoreError, match=f"{field} contains a character that cannot be stored"):
        await repo.create_started(a_start(**{field: "a\0b"}))
    await repo.create_started(a_start())


@pytest.mark.parametrize("text", ["nul \0 inside", "half \ud800 a pair", "ordinary ünï 🙂"])
async def test_text_that_databases_refuse_is_stored_escaped(repo: LLMRunRepo, text: str) -> None:
    start = a_start(request_preview=text, metadata={"note": text})
    await repo.create_started(start)
    assert await repo.mark_failed(a_failure(start.id, error_message=text, plan={"why": text}))
    assert await repo.get_run("lab", start.id) is not None


async def test_metadata_are_replaced_in_their_own_workspace_only(repo: LLMRunRepo) -> None:
    start = a_start(metadata={"batch": 7})
    await repo.create_started(start)
    await repo.mark_succeeded(a_success(start.id))
    await repo.annotate("other", start.id, {"batch": 8})
    await repo.annotate("lab", new_id(), {"batch": 9})
    assert await _metadata(repo, start.id) == {"batch": 7}
    for _ in range(2):
        await repo.annotate("lab", start.id, {"batch": 7, "agent": {"repaired": True, "odd": "\0\ud800"}})
        assert await _metadata(repo, start.id) == {"batch": 7, "agent": {"repaired": True, "odd": "\0\ud800"}}
    found = await repo.get_run("lab", start.id)
    assert found is not None
    assert found.status is RunStatus.SUCCEEDED


async def _metadata(repo: LLMRunRepo, run_id: UUID) -> object:
    if isinstance(repo, InMemoryLLMRunRepo):
        return next(run.start.metadata for run in repo.runs if run.start.id == run_id)
    if isinstance(repo, JournalLLMRunRepo):
        (row,) = [row for row in repo._journal.read_here(runs_in) if row["id"] == run_id]
    else:
        assert isinstance(repo, SqlLLMRunRepo)
        connection = await repo._db.connection()
        (row,) = [row for row in await connection.run_sync(runs_in) if row["id"] == run_id]
    return json.loads(row["metadata_json"])


async def test_a_run_that_was_written_behind_can_be_annotated_at_once(repo: LLMRunRepo) -> None:
    start = a_start()
    await repo.record_served(start, served(start.id))
    await repo.annotate("lab", start.id, {"repaired": True})
    assert await _metadata(repo, start.id) == {"repaired": True}
