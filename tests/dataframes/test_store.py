"""The contract of the DataFrames: columns, order, dtypes and values."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from unittest import mock
from uuid import UUID

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine

from llmkit.dataframes.build import Kind
from llmkit.dataframes.store import (
    ATTEMPT_COLUMNS,
    EVAL_RESULT_COLUMNS,
    EVAL_RUN_COLUMNS,
    ROWS_AT_ONCE,
    RUN_COLUMNS,
    build_frame,
    read_attempts,
    read_eval_results,
    read_eval_runs,
    read_runs,
    summarize_usage,
)
from llmkit.persistence.eval_store import SqlEvalStore
from llmkit.persistence.models import METADATA
from llmkit.types import AttemptStatus, Route, utc_now
from tests.support.repositories import JournalHome, journal_home
from tests.support.run_values import a_failure, a_start, a_success, an_attempt, an_eval_result, an_eval_run, new_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The contract as users rely on it, written out once more.
RUN_DTYPES = """
    request_preview     string
    response_preview    string
    status              string
    created_at_utc      datetime64[us, UTC]
    finished_at_utc     datetime64[us, UTC]
    id                  string
    workspace_id        string
    pipeline_run_id     string
    stage               string
    requested_route     string
    provider            string
    model               string
    response_model      string
    profile             string
    epoch               Int64
    idempotency_key     string
    prompt_sha256       string
    served_from         string
    source_run_id       string
    finish_reason       string
    input_tokens        Int64
    output_tokens       Int64
    total_tokens        Int64
    cached_input_tokens Int64
    reasoning_tokens    Int64
    usage_estimated     boolean
    cost_usd            Float64
    latency_ms          Float64
    attempts            Int64
    error_code          string
    error_message       string
    metadata_json       string
    plan_json           string
    logprob_mean        Float64
    logprob_min         Float64
    first_token_ms      Float64
"""
ATTEMPT_DTYPES = """
    run_id              string
    number              Int64
    workspace_id        string
    pipeline_run_id     string
    started_at_utc      datetime64[us, UTC]
    provider            string
    model               string
    status              string
    latency_ms          Float64
    params_sha256       string
    schema_sha256       string
    input_tokens        Int64
    output_tokens       Int64
    total_tokens        Int64
    cached_input_tokens Int64
    reasoning_tokens    Int64
    usage_estimated     boolean
    finish_reason       string
    response_model      string
    model_digest        string
    cost_usd            Float64
    status_code         Int64
    error_code          string
    error_message       string
    first_token_ms      Float64
    host                string
"""


def dtypes(frame: pd.DataFrame) -> list[list[str]]:
    return [[str(name), str(dtype)] for name, dtype in frame.dtypes.items()]


def written(contract: str) -> list[list[str]]:
    return [line.split(maxsplit=1) for line in contract.strip().splitlines()]


@pytest.fixture
def home(database_url: str) -> Iterator[JournalHome]:
    yield from journal_home(database_url)


async def fill(home: JournalHome) -> list[str]:
    """Store three runs of one workspace, newest last, and one of another."""
    now = utc_now()
    done = a_start(created_at_utc=now - timedelta(hours=2), pipeline_run_id="p1", idempotency_key="k")
    failed = a_start(created_at_utc=now - timedelta(hours=1), pipeline_run_id="p2")
    running = a_start(created_at_utc=now)
    for start in (done, failed, running, a_start(workspace_id="other lab")):
        await home.repo.create_started(start)
    attempts = (an_attempt(1), an_attempt(2))
    await home.repo.mark_succeeded(a_success(done.id, source_run_id=failed.id, cost_usd=0.5, attempts=attempts))
    await home.repo.mark_failed(a_failure(failed.id))
    return [str(start.id) for start in (running, failed, done)]


async def test_the_contract_holds_with_rows_and_without(home: JournalHome) -> None:
    for _ in range(2):
        runs = home.journal.read_here(lambda connection: read_runs(connection, "lab"))
        attempts = home.journal.read_here(lambda connection: read_attempts(connection, "lab"))
        assert dtypes(runs) == written(RUN_DTYPES)
        assert dtypes(attempts) == written(ATTEMPT_DTYPES)
        await fill(home) if runs.empty else None
    assert len(runs) == len(attempts) == 3


async def test_runs_come_newest_first(home: JournalHome) -> None:
    ids = await fill(home)
    frame = home.journal.read_here(lambda connection: read_runs(connection, "lab"))
    assert frame["id"].tolist() == ids
    running, _, done = frame.to_dict("records")
    assert (done["status"], done["input_tokens"], done["cost_usd"]) == ("SUCCEEDED", 11, 0.5)
    assert (done["source_run_id"], done["usage_estimated"]) == (ids[1], False)
    assert running["finished_at_utc"] is pd.NaT
    assert all(pd.isna(running[name]) for name in ("input_tokens", "cost_usd", "model", "source_run_id"))
    assert done["created_at_utc"].tzinfo is not None
    assert (done["finished_at_utc"] - done["created_at_utc"]) < pd.Timedelta(hours=3)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"status": "FAILED"}, [1]),
        ({"pipeline_run_id": "p1"}, [2]),
        ({"limit": 2}, [0, 1]),
        ({"limit": 0}, []),
        ({"since": utc_now() - timedelta(minutes=90)}, [0, 1]),
        ({"since": utc_now() + timedelta(days=1)}, []),
        ({"status": "STARTED", "pipeline_run_id": "p1"}, []),
    ],
)
async def test_filters(home: JournalHome, filters: dict[str, object], expected: list[int]) -> None:
    ids = await fill(home)
    frame = home.journal.read_here(lambda connection: read_runs(connection, "lab", **filters))
    assert frame["id"].tolist() == [ids[index] for index in expected]
    if "status" not in filters:
        attempts = home.journal.read_here(lambda connection: read_attempts(connection, "lab", **filters))
        assert set(attempts["run_id"]) <= set(ids)


async def test_attempts_by_run_and_number(home: JournalHome) -> None:
    ids = await fill(home)
    frame = home.journal.read_here(lambda connection: read_attempts(connection, "lab"))
    assert list(zip(frame["run_id"], frame["number"], strict=True)) == [(ids[1], 1), (ids[2], 1), (ids[2], 2)]
    assert frame["pipeline_run_id"].tolist() == ["p2", "p1", "p1"]
    one = home.journal.read_here(lambda connection: read_attempts(connection, "lab", pipeline_run_id="p2"))
    assert one["error_code"].tolist() == ["timeout"]


USAGE_DTYPES = """
    route                   string
    calls                   Int64
    failed_calls            Int64
    cancelled_calls         Int64
    served_from_store       Int64
    served_input_tokens     Int64
    served_output_tokens    Int64
    requests                Int64
    failed_requests         Int64
    cancelled_requests      Int64
    requests_without_tokens Int64
    billed_input_tokens     Int64
    billed_output_tokens    Int64
    billed_cost_usd         Float64
    streamed_requests       Int64
    mean_first_token_ms     Float64
"""


async def test_usage_separates_served_from_billed_and_unknown_from_zero(home: JournalHome) -> None:
    empty = home.journal.read_here(lambda connection: summarize_usage(connection, "lab"))
    assert dtypes(empty) == written(USAGE_DTYPES)
    await fill(home)
    replay = a_start()
    await home.repo.record_served(replay, a_success(replay.id, served_from="cache", attempts=()))
    dear = a_start(requested_route="gemini/g")
    await home.repo.create_started(dear)
    attempts = [
        an_attempt(number, route=Route.parse("gemini/g"), cost_usd=cost, status="FAILED", first_token_ms=first_token_ms)
        for number, cost, first_token_ms in ((1, 0.25, 20.0), (2, None, 40.0), (3, None, None))
    ]
    await home.repo.mark_failed(a_failure(dear.id, attempts=tuple(attempts)))
    await home.journal.flush()
    frame = home.journal.read_here(lambda connection: summarize_usage(connection, "lab"))
    assert dtypes(frame) == written(USAGE_DTYPES)
    assert frame.astype(object).where(frame.notna(), None).to_numpy().tolist() == [
        ["gemini/g", 0, 1, 0, 0, None, None, 3, 3, 0, 0, 33, 21, 0.25, 2, 30.0],
        ["ollama/llama3.2", 2, 0, 0, 1, 22, 14, 3, 1, 0, 1, 22, 14, None, 0, None],
        [None, 0, 1, 0, 0, None, None, 0, 0, 0, 0, None, None, None, 0, None],
    ]
    later = home.journal.read_here(lambda c: summarize_usage(c, "lab", since=utc_now() - timedelta(minutes=1)))
    assert later["calls"].tolist() == [0, 1, 0]


async def test_cancelled_calls_are_counted_apart_from_failed_ones(home: JournalHome) -> None:
    for code, status in (("cancelled", AttemptStatus.CANCELLED), ("timeout", AttemptStatus.FAILED)):
        start = a_start(requested_route="ollama/llama3.2")
        await home.repo.create_started(start)
        attempt = an_attempt(status=status, error_code=code)
        await home.repo.mark_failed(a_failure(start.id, error_code=code, attempts=(attempt,)))
    await home.journal.flush()
    (row,) = home.journal.read_here(lambda connection: summarize_usage(connection, "lab")).to_dict("records")
    assert (row["failed_calls"], row["cancelled_calls"]) == (1, 1)
    assert (row["requests"], row["failed_requests"], row["cancelled_requests"]) == (2, 1, 1)


async def test_other_workspaces_are_invisible(home: JournalHome) -> None:
    await fill(home)
    assert len(home.journal.read_here(lambda connection: read_runs(connection, "other lab"))) == 1
    assert home.journal.read_here(lambda connection: read_runs(connection, "third lab")).empty


async def test_evaluations(home: JournalHome) -> None:
    store = SqlEvalStore(home.journal)
    empty = home.journal.read_here(lambda connection: read_eval_runs(connection, "lab"))
    run = await store.open_run(an_eval_run())
    for sample in ("s2", "s1"):
        await store.save_result(an_eval_result(run.id, sample_id=sample))
    runs = home.journal.read_here(lambda connection: read_eval_runs(connection, "lab"))
    results = home.journal.read_here(lambda connection: read_eval_results(connection, run.id))
    assert dtypes(empty) == dtypes(runs)
    assert list(runs) == list(EVAL_RUN_COLUMNS)
    assert list(results) == list(EVAL_RESULT_COLUMNS)
    assert runs["id"].tolist() == [str(run.id)]
    assert results["sample_id"].tolist() == ["s1", "s2"]
    assert results["valid_first_try"].tolist() == [True, True]
    none = home.journal.read_here(lambda connection: read_eval_results(connection, new_id()))
    assert dtypes(none) == dtypes(results)


def test_since_needs_a_zone(home: JournalHome) -> None:
    with pytest.raises(ValueError, match="time zone"):
        home.journal.read_here(
            lambda connection: read_runs(connection, "lab", since=datetime(2026, 1, 1))  # noqa: DTZ001
        )


def test_large_counts_stay_exact() -> None:
    frame = build_frame([(2**53 + 1, None), (None, 0.1)], {"tokens": "Int64", "cost": "Float64"})
    assert frame["tokens"].tolist() == [2**53 + 1, pd.NA]
    assert frame["cost"].tolist() == [pd.NA, 0.1]


def test_times_are_read_from_strings_and_datetimes() -> None:
    moment = datetime(2026, 3, 4, 5, 6, 7, 8, tzinfo=UTC)
    texts = build_frame([("2026-03-04 05:06:07.000008",), (None,)], {"at": "time"})
    values = build_frame([(moment.astimezone(),), (None,)], {"at": "time"})
    pd.testing.assert_frame_equal(texts, values)
    assert texts["at"][0].to_pydatetime() == moment


@pytest.mark.parametrize(
    ("table", "columns", "left_out"),
    [
        ("llm_runs", RUN_COLUMNS, {"owner", "heartbeat_at_utc", "flight_key", "result_json"}),
        ("llm_attempts", ATTEMPT_COLUMNS, set()),
        ("eval_runs", EVAL_RUN_COLUMNS, set()),
        ("eval_results", EVAL_RESULT_COLUMNS, set()),
    ],
)
def test_every_column_is_included_or_excluded_on_purpose(
    table: str, columns: dict[str, str], left_out: set[str]
) -> None:
    stored = set(METADATA.tables[table].columns.keys())
    assert stored - set(columns) == left_out
    assert set(columns) - stored <= {"pipeline_run_id"}


AWARE = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
TIME = "datetime64[us, UTC]"
CELLS = st.tuples(
    st.none() | st.uuids() | st.uuids().map(str) | st.uuids().map(lambda value: value.hex),
    st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.floats() | st.integers(-1000, 1000),
    st.none() | st.booleans() | st.sampled_from([0, 1]),
    st.none() | AWARE | AWARE.map(lambda value: value.strftime("%Y-%m-%d %H:%M:%S.%f")),
    st.uuids().map(lambda value: value.hex),
)
KINDS: dict[str, Kind] = {
    "id": "uuid",
    "text": "string",
    "count": "Int64",
    "share": "Float64",
    "flag": "boolean",
    "at": "time",
    "key": "uuid",
}


@settings(deadline=None, max_examples=30)
@given(st.lists(CELLS, max_size=5))
def test_a_frame_is_the_same_with_and_without_pyarrow(rows: list[tuple[object, ...]]) -> None:
    fast = build_frame(rows, KINDS)
    with mock.patch.dict(sys.modules, {"pyarrow": None}):
        plain = build_frame(rows, KINDS)
    pd.testing.assert_frame_equal(fast, plain, check_exact=True)
    for made in (fast, plain):
        assert [str(dtype) for dtype in made.dtypes] == [
            "string",
            "string",
            "Int64",
            "Float64",
            "boolean",
            TIME,
            "string",
        ]
    assert [None if pd.isna(at) else at.to_pydatetime() for at in fast["at"]] == [
        datetime.fromisoformat(f"{row[5]}+00:00") if isinstance(row[5], str) else row[5] for row in rows
    ]
    assert fast["key"].tolist() == [str(UUID(hex=str(row[6]))) for row in rows]


def test_values_that_pyarrow_refuses_become_strings() -> None:
    frame = build_frame([(7,), (Route.parse("ollama/m"),)], {"text": "string"})
    assert frame.text.tolist() == ["7", "ollama/m"]


def test_several_batches_keep_order_and_values(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/many.db")
    names = (*ATTEMPT_COLUMNS, "id", "created_at_utc")
    number = 2 * ROWS_AT_ONCE + 1
    with engine.begin() as connection:
        for table in ("llm_runs", "llm_attempts"):
            connection.exec_driver_sql(f"CREATE TABLE {table} ({', '.join(names)})")
        ids = [UUID(int=each).hex for each in range(number)]
        connection.exec_driver_sql(
            "INSERT INTO llm_runs (id, workspace_id, created_at_utc) VALUES (?, 'lab', ?)",
            [(key, f"2026-01-01 00:00:00.{each:06}") for each, key in enumerate(ids)],
        )
        connection.exec_driver_sql(
            "INSERT INTO llm_attempts (run_id, number, workspace_id, input_tokens) VALUES (?, 1, 'lab', ?)",
            [(key, each) for each, key in enumerate(ids)],
        )
        frame = read_attempts(connection, "lab")
    engine.dispose()
    assert frame.input_tokens.tolist() == list(reversed(range(number)))
    assert frame.run_id.tolist() == [str(UUID(hex=key)) for key in reversed(ids)]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SEEN: dict[str, Kind] = {
    "status": "string",
    "epoch": "Int64",
    "usage_estimated": "boolean",
    "error_code": "string",
}


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["2026-01-01 00:00:00.000000", "2026-01-01 00:00:00.000001"]),
            st.none() | TEXT,
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.none() | st.sampled_from([0, 1]),
            st.none() | TEXT,
            st.permutations(range(3)),
            st.uuids(),
        ),
        max_size=6,
        unique_by=lambda row: row[-1],
    ),
)
def test_sqlite_rows_of_the_same_time_are_ordered(
    rows: list[tuple[str, str | None, int | None, int | None, str | None, list[int], UUID]],
) -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE llm_runs ({', '.join(RUN_COLUMNS)})")
        connection.exec_driver_sql(f"CREATE TABLE llm_attempts ({', '.join((*ATTEMPT_COLUMNS, 'id'))})")
        for created, *values, numbers, key in rows:
            connection.exec_driver_sql(
                f"INSERT INTO llm_runs (id, created_at_utc, workspace_id, {', '.join(SEEN)}) "
                "VALUES (?, ?, 'lab', ?, ?, ?, ?)",
                (key.hex, created, *values),
            )
            for number in numbers:
                connection.exec_driver_sql("INSERT INTO llm_attempts (run_id, number) VALUES (?, ?)", (key.hex, number))
        frames = [read_runs(connection, "lab", limit=limit) for limit in (None, 100)]
        attempts = [read_attempts(connection, "lab", limit=limit) for limit in (None, 100)]
    engine.dispose()
    ordered = sorted(rows, key=lambda row: (row[0], row[-1]), reverse=True)
    for frame in frames:
        assert dtypes(frame) == written(RUN_DTYPES)
        pd.testing.assert_frame_equal(frame[list(SEEN)], build_frame([row[1:5] for row in ordered], SEEN))
        assert frame["id"].tolist() == [str(row[-1]) for row in ordered]
    for frame in attempts:
        assert dtypes(frame) == written(ATTEMPT_DTYPES)
        expected = [(str(row[-1]), number) for row in ordered for number in range(3)]
        assert list(zip(frame["run_id"], frame["number"], strict=True)) == expected
