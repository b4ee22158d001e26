"""Values to columns and back, and the journal's own SQL against SQLAlchemy's."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert
from sqlalchemy.dialects import sqlite

from llmkit.errors import LLMStoreError
from llmkit.persistence.connections import with_quick_nulls
from llmkit.persistence.rows import (
    as_json,
    attempt_values,
    identity,
    make_finished_values,
    make_started_values,
    storable,
)
from llmkit.persistence.statements import SQLITE_PROCESSORS
from llmkit.types import AttemptStatus, ServedFrom
from tests.support.repositories import ATTEMPTS, RUNS, JournalHome
from tests.support.run_values import a_failure, a_start, a_success, an_attempt, new_id, served

# What databases, JSON and escaping may stumble over. One kind of half pair: two that meet become one character in JSON.
ANY_TEXT = st.text(st.sampled_from(["a", " ", "\n", "\\", '"', "\0", "\x7f", "é", "\u2028", "🙂", "\ud800"]))
# Others may use the processor: how long an example takes says nothing here.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TIMES = st.datetimes(
    min_value=datetime(1971, 1, 1),  # noqa: DTZ001 the zone is drawn
    max_value=datetime(2200, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-11))]),
)


@unhurried
@given(ANY_TEXT)
def test_storable_text_goes_into_any_database(text: str) -> None:
    kept = storable(text)
    assert "\0" not in kept
    kept.encode("utf-8")
    assert storable(kept) == kept
    if "\0" not in text and not any("\ud800" <= each <= "\udfff" for each in text):
        assert kept == text


@unhurried
@given(ANY_TEXT)
def test_json_survives_being_made_storable(text: str) -> None:
    assert json.loads(storable(json.dumps([text]))) == [text]
    assert json.loads(storable(json.dumps([text.replace("\0", "")], ensure_ascii=False))) == [text.replace("\0", "")]


@unhurried
@given(st.dictionaries(ANY_TEXT, st.none() | st.booleans() | st.integers() | ANY_TEXT | st.lists(ANY_TEXT), max_size=4))
def test_metadata_comes_back(metadata: dict[str, Any]) -> None:
    kept = as_json(metadata)
    assert kept.isascii()
    assert "\0" not in kept
    assert json.loads(kept) == metadata


def test_strange_metadata_does_not_cost_the_record() -> None:
    assert json.loads(as_json({"at": datetime(2026, 1, 2, tzinfo=UTC)})) == {"at": "2026-01-02 00:00:00+00:00"}


@unhurried
@given(ANY_TEXT)
def test_an_identity_is_kept_or_refused(text: str) -> None:
    if storable(text) == text:
        assert identity(text, "it") == text
    else:
        with pytest.raises(LLMStoreError, match="it contains a character"):
            identity(text, "it")


@unhurried
@given(TIMES)
def test_our_processors_store_what_sqlalchemy_stores(moment: datetime) -> None:
    dialect = sqlite.dialect()
    for column, value in ((RUNS.c.created_at_utc, moment), (RUNS.c.id, new_id()), (RUNS.c.source_run_id, None)):
        theirs = column.type.dialect_impl(dialect).bind_processor(dialect)
        assert theirs is not None
        assert SQLITE_PROCESSORS[type(column.type)](value) == theirs(value)


@unhurried
@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=3)))
def test_quick_nulls_are_stored_as_nulls(values: list[Any]) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (number INTEGER, whatever)")
        for place, kept in enumerate((values, with_quick_nulls(tuple(values)))):
            connection.executemany(f"INSERT INTO t VALUES ({place}, ?)", ((value,) for value in kept))
        stored = "SELECT whatever, typeof(whatever) FROM t WHERE number = ? ORDER BY rowid"
        plain, quick = (connection.execute(stored, (place,)).fetchall() for place in (0, 1))
    assert quick == plain


@pytest.mark.parametrize("make", [make_started_values, lambda start: make_finished_values(start, served(start.id))])
def test_values_name_real_columns(make: Any) -> None:
    assert set(make(a_start())) <= set(RUNS.columns.keys())
    assert set(attempt_values(new_id(), an_attempt())) == set(ATTEMPTS.columns.keys()) - {"workspace_id"}


async def test_a_run_is_stored_whole(database_url: str) -> None:
    source = new_id()
    start = a_start(
        idempotency_key="k",
        flight_key="f",
        pipeline_run_id="eval:1",
        stage="extract",
        requested_route="ollama/llama3.2",
        epoch=2,
        request_preview="What is churn?",
        metadata={"topic": "churn", "n": 1},
    )
    success = a_success(
        start.id,
        source_run_id=source,
        cost_usd=0.25,
        plan={"policy": "by_profile"},
        logprob_mean=-0.25,
        logprob_min=-1.5,
        first_token_ms=4.5,
    )
    with JournalHome(database_url) as home:
        await home.repo.create_started(start)
        await home.repo.mark_succeeded(success)
        (run,) = home.runs()
        (attempt,) = home.attempts()
    assert run == {
        "id": start.id,
        "workspace_id": "lab",
        "pipeline_run_id": "eval:1",
        "stage": "extract",
        "status": "SUCCEEDED",
        "owner": "host:1:1",
        "created_at_utc": start.created_at_utc,
        "heartbeat_at_utc": run["heartbeat_at_utc"],
        "finished_at_utc": success.finished_at_utc,
        "requested_route": "ollama/llama3.2",
        "provider": "ollama",
        "model": "llama3.2",
        "response_model": "llama3.2:latest",
        "profile": "balanced",
        "epoch": 2,
        "idempotency_key": "k",
        "flight_key": "f",
        "prompt_sha256": "a" * 64,
        "served_from": "provider",
        "source_run_id": source,
        "finish_reason": "stop",
        "input_tokens": 11,
        "output_tokens": 7,
        "total_tokens": 18,
        "cached_input_tokens": 3,
        "reasoning_tokens": 2,
        "usage_estimated": False,
        "cost_usd": 0.25,
        "latency_ms": 13.5,
        "attempts": 1,
        "error_code": None,
        "error_message": None,
        "request_preview": "What is churn?",
        "response_preview": "hello",
        "metadata_json": '{"topic":"churn","n":1}',
        "plan_json": '{"policy":"by_profile"}',
        "result_json": '{"text": "hello"}',
        "logprob_mean": -0.25,
        "logprob_min": -1.5,
        "first_token_ms": 4.5,
    }
    assert attempt == attempt_values(start.id, success.attempts[0]) | {"workspace_id": "lab"}


async def test_a_failure_is_stored_whole(database_url: str) -> None:
    start = a_start()
    with JournalHome(database_url) as home:
        await home.repo.create_started(start)
        await home.repo.mark_failed(a_failure(start.id, plan={"policy": "x"}, first_token_ms=3.5))
        (run,) = home.runs()
        (attempt,) = home.attempts()
    names = ("status", "error_code", "error_message", "latency_ms", "attempts", "plan_json", "first_token_ms")
    assert {name: run[name] for name in names} == {
        "status": "FAILED",
        "error_code": "timeout",
        "error_message": "no answer",
        "latency_ms": 20.0,
        "attempts": 1,
        "plan_json": '{"policy":"x"}',
        "first_token_ms": 3.5,
    }
    assert (attempt["status"], attempt["error_code"], attempt["input_tokens"]) == ("FAILED", "timeout", None)


async def test_attempts_of_a_run_that_was_declared_dead_are_recorded(database_url: str) -> None:
    start = a_start()
    with JournalHome(database_url) as home:
        await home.repo.create_started(start)
        seen = await home.repo.get_run("lab", start.id)
        assert seen is not None
        await home.repo.mark_abandoned(seen)
        assert not await home.repo.mark_succeeded(a_success(start.id, attempts=(an_attempt(1), an_attempt(2))))
        (run,) = home.runs()
        assert (run["status"], run["error_code"]) == ("FAILED", "abandoned")
        assert [attempt["number"] for attempt in home.attempts()] == [1, 2]


@pytest.mark.parametrize("served_from", list(ServedFrom))
async def test_every_word_that_we_use_is_allowed(database_url: str, served_from: ServedFrom) -> None:
    words = [("stop", "SUCCEEDED"), ("content_filter", "FAILED"), (None, "CANCELLED")]
    with JournalHome(database_url) as home:
        start = a_start()
        attempts = [
            an_attempt(number, finish_reason=reason, status=AttemptStatus(status))
            for number, (reason, status) in enumerate(words, 1)
        ]
        await home.repo.create_started(start)
        await home.repo.mark_succeeded(a_success(start.id, served_from=served_from, attempts=tuple(attempts)))
        assert len(home.attempts()) == 3


def test_every_column_can_be_written(database_url: str) -> None:
    """The statements of the journal cover the tables: a new column must be added there too."""
    with JournalHome(database_url) as home:
        statements = home.journal.statements
        named = {name for name in RUNS.columns.keys() if name in statements.insert_finished.sql}  # noqa: SIM118
        assert named | {"error_code", "error_message"} == set(RUNS.columns.keys())
        assert all(name in statements.insert_attempt.sql for name in ATTEMPTS.columns.keys())  # noqa: SIM118
        assert insert(RUNS) is not None
