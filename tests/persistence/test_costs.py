"""Costs: filled from prices, added up by day to the last digit, the same after every crash and repetition."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select, update

from llmkit.calls.liveness import current_owner, looks_abandoned
from llmkit.persistence import costs
from llmkit.persistence.costs import aggregate_costs, list_costs, price_requests, read_prices, save_prices
from llmkit.persistence.journal import Journal
from llmkit.persistence.statements import ATTEMPTS, RUNS
from llmkit.prices.price_list import LISTED_FROM, Price, PriceList
from llmkit.pricing import compute_cost
from llmkit.providers import BUILT_IN
from llmkit.types import utc_now

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
LATER = datetime(2026, 4, 1, tzinfo=UTC)
GEMINI = "gemini-2.5-flash"


def price(input_usd: str = "1", *, valid_from: datetime = LISTED_FROM, model: str = GEMINI, **changes: Any) -> Price:
    fields: dict[str, Any] = {
        "endpoint": "gemini",
        "model": model,
        "valid_from_utc": valid_from,
        "above_input_tokens": 0,
        "input_usd": Decimal(input_usd),
        "output_usd": Decimal(2),
        "cached_input_usd": None,
        "reasoning_usd": None,
        "source": "own.csv",
        "is_own": True,
    }
    return Price(**fields | changes)


def cost_of(prices: Sequence[Price]) -> costs.CostOf:
    book = PriceList(tuple(prices))
    return lambda provider, model, at_utc, usage: compute_cost(book, BUILT_IN, provider, model, at_utc, usage)


@pytest.fixture
def store(database_url: str) -> Iterator[Journal]:
    journal = Journal(database_url)
    yield journal
    journal.close()


class Rows:
    """Rows of runs and attempts, written past the service: any history can be made."""

    def __init__(self, store: Journal) -> None:
        self.where = store.engine, store.address
        self._number = 0

    def add(self, at: datetime = NOON, *attempts: dict[str, Any], **run: Any) -> UUID:
        self._number += 1
        run_id = UUID(int=self._number)
        row = {
            "id": run_id,
            "workspace_id": "w",
            "status": "SUCCEEDED",
            "owner": "host:1",
            "created_at_utc": at,
            "heartbeat_at_utc": at,
            "profile": "balanced",
            "epoch": 0,
            "prompt_sha256": "0" * 64,
            "request_preview": "",
            "metadata_json": "{}",
            "provider": "gemini",
            "model": GEMINI,
            "served_from": "provider",
            "attempts": len(attempts),
            "input_tokens": 10,
            "output_tokens": 5,
            **run,
        }
        sent = [
            {
                "run_id": run_id,
                "number": number,
                "workspace_id": row["workspace_id"],
                "provider": "gemini",
                "model": GEMINI,
                "status": "SUCCEEDED",
                "started_at_utc": at,
                "latency_ms": 1.0,
                "usage_estimated": False,
                "input_tokens": 10,
                "output_tokens": 5,
                "cost_usd": None,
                **attempt,
            }
            for number, attempt in enumerate(attempts, 1)
        ]
        with self.where[0].begin() as connection:
            connection.execute(insert(RUNS), row)
            for each in sent:
                connection.execute(insert(ATTEMPTS), each)
        return run_id

    def read(self, table: Any) -> list[dict[str, Any]]:
        with self.where[0].connect() as connection:
            return [dict(row) for row in connection.execute(select(table)).mappings()]

    def clear(self) -> None:
        with self.where[0].begin() as connection:
            for table in (ATTEMPTS, RUNS, costs.DAYS):
                connection.execute(delete(table))


@pytest.fixture
def rows(store: Journal) -> Rows:
    return Rows(store)


def test_prices_fill_requests_and_the_calls_that_they_answered(rows: Rows) -> None:
    rows.add(NOON, {"status": "FAILED", "input_tokens": 7, "output_tokens": 0}, {})
    found = price_requests(*rows.where, cost_of([price()]))
    assert (found.requests, found.cost_usd, found.unknown) == (2, Decimal("0.000027"), {})
    assert sorted(row["cost_usd"] for row in rows.read(ATTEMPTS)) == [7e-6, 2e-5]
    assert rows.read(RUNS)[0]["cost_usd"] == 2e-5


def test_the_price_of_the_time_counts_and_known_costs_stay(rows: Rows) -> None:
    change = [price(), price("100", valid_from=NOON)]
    rows.add(NOON - timedelta(seconds=1), {})
    rows.add(NOON, {})
    rows.add(NOON, {"cost_usd": 7.0})
    price_requests(*rows.where, cost_of(change))
    assert sorted(row["cost_usd"] for row in rows.read(ATTEMPTS)) == [2e-5, 0.00101, 7.0]
    assert price_requests(*rows.where, cost_of(change)).requests == 0
    assert price_requests(*rows.where, cost_of([price("0")]), reprice=True).requests == 3
    assert {row["cost_usd"] for row in rows.read(ATTEMPTS)} == {1e-5}


def test_what_is_not_known_stays_null_and_is_named(rows: Rows) -> None:
    rows.add(NOON, {"model": "new"})
    rows.add(NOON, {"output_tokens": None})
    rows.add(NOON, {"usage_estimated": True})
    rows.add(NOON, {"provider": "ollama", "model": "llama3.2"})
    found = price_requests(*rows.where, cost_of([price()]))
    assert found.unknown == {"gemini/new": 1}
    assert [row["cost_usd"] for row in rows.read(ATTEMPTS)].count(None) == 3
    aggregate_costs(*rows.where, now=LATER)
    by_model = {row["model"]: row for row in list_costs(*rows.where)}
    assert (by_model["new"]["cost_usd"], by_model["new"]["unpriced_requests"]) == (None, 1)
    assert by_model["llama3.2"]["cost_usd"] == "0"
    assert by_model[GEMINI]["uncounted_requests"] == 1


def test_sums_are_exact_where_floats_are_not(rows: Rows) -> None:
    for cost in (0.1, 0.2, 1e-12, 123456.789):
        rows.add(NOON, {"cost_usd": cost})
    aggregate_costs(*rows.where, now=LATER)
    assert list_costs(*rows.where)[0]["cost_usd"] == "123457.089000000001"


def test_a_day_is_final_only_when_no_call_that_could_belong_to_it_runs(rows: Rows) -> None:
    rows.add(NOON, {"cost_usd": 1.0})
    rows.add(NOON + timedelta(days=2), {"cost_usd": 1.0})
    started = rows.add(NOON + timedelta(days=1), status="STARTED", served_from=None, provider=None, model=None)
    found = aggregate_costs(*rows.where, now=LATER)
    assert (found.closed_before, found.started) == ("2026-03-03", 1)
    assert [row["is_closed"] for row in list_costs(*rows.where)] == [True, False]
    with rows.where[0].begin() as connection:
        connection.execute(update(RUNS).where(RUNS.c.id == started).values(status="FAILED"))
    aggregate_costs(*rows.where, now=NOON + timedelta(days=2))
    assert [row["is_closed"] for row in list_costs(*rows.where)] == [True, False]
    aggregate_costs(*rows.where, now=LATER)
    assert [row["is_closed"] for row in list_costs(*rows.where)] == [True, True]


def test_a_final_day_outlives_its_calls_until_it_gets_a_cost(rows: Rows) -> None:
    rows.add(NOON, {"cost_usd": 1.0})
    rows.add(NOON, {})
    aggregate_costs(*rows.where, now=LATER)
    rows.add(NOON + timedelta(days=1), {"cost_usd": 5.0})
    assert aggregate_costs(*rows.where, now=LATER).days == 1
    assert price_requests(*rows.where, cost_of([price()])).requests == 1
    assert aggregate_costs(*rows.where, now=LATER).days == 1
    assert [row["cost_usd"] for row in list_costs(*rows.where)] == ["1.00002", "5"]
    with rows.where[0].begin() as connection:
        connection.execute(delete(ATTEMPTS))
        connection.execute(delete(RUNS))
    assert aggregate_costs(*rows.where, now=LATER).days == 0
    assert len(list_costs(*rows.where)) == 2


def test_a_crash_between_two_days_is_mended_by_the_next_run(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(4):
        for name in ("a", "b"):
            rows.add(NOON + timedelta(days=day), {"cost_usd": 1.0 + day}, workspace_id=name, stage=name)
    writes = iter(range(100))
    real = costs.writing

    def failing(*where: Any) -> Any:
        if next(writes) == 5:
            raise KeyboardInterrupt
        return real(*where)

    monkeypatch.setattr(costs, "writing", failing)
    with pytest.raises(KeyboardInterrupt):
        aggregate_costs(*rows.where, now=LATER)
    assert len(list_costs(*rows.where)) == 5
    monkeypatch.undo()
    aggregate_costs(*rows.where, now=LATER)
    once = rows.read(costs.DAYS)
    assert len(once) == 8
    aggregate_costs(*rows.where, now=LATER)
    aggregate_costs(*rows.where, again=True, now=LATER)
    assert rows.read(costs.DAYS) == once


@pytest.mark.slow
def test_a_writer_beside_it_is_not_disturbed(rows: Rows) -> None:
    for number in range(50):
        rows.add(NOON + timedelta(hours=number), {})
    errors: list[BaseException] = []

    def write() -> None:
        try:
            for _ in range(60):
                rows.add(NOON + timedelta(days=20), {})
        except BaseException as error:  # noqa: BLE001 - reported below
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        price_requests(*rows.where, cost_of([price()]))
        aggregate_costs(*rows.where, now=LATER)
    thread.join()
    price_requests(*rows.where, cost_of([price()]))
    aggregate_costs(*rows.where, now=LATER)
    assert errors == []
    assert sum(row["requests"] for row in list_costs(*rows.where)) == 110
    assert {row["cost_usd"] for row in rows.read(ATTEMPTS)} == {2e-5}


def test_listed_prices_that_change_hold_from_now_on(rows: Rows) -> None:
    listed = {"source": "litellm 1", "is_own": False}
    assert save_prices(*rows.where, [price(**listed), price("2", above_input_tokens=200_000, **listed)]) == 2
    assert save_prices(*rows.where, [price(**listed), price("2", above_input_tokens=200_000, **listed)]) == 0
    newer = {"source": "litellm 2", "is_own": False}
    assert save_prices(*rows.where, [price("3", **newer)]) == 1
    assert save_prices(*rows.where, [price("9"), price("8", model="gemini-*")]) == 2
    book = read_prices(*rows.where)
    assert save_prices(*rows.where, [price("8", model="gemini-*")]) == 0
    assert [p.input_usd for p in book.tiers("gemini", GEMINI, NOON)] == [9]
    book = PriceList(tuple(p for p in read_prices(*rows.where).prices if not p.is_own))
    assert [p.input_usd for p in book.tiers("gemini", GEMINI, NOON)] == [1, 2]
    assert [p.input_usd for p in book.tiers("gemini", GEMINI, datetime.now(UTC) + timedelta(days=1))] == [3]
    assert [p.input_usd for p in read_prices(*rows.where).tiers("gemini", GEMINI, NOON)] == [8]


# --- any history adds up ------------------------------------------------------------------------------------------

counts = st.none() | st.integers(0, 10**6)
sent = st.fixed_dictionaries(
    {
        "model": st.sampled_from([GEMINI, "other"]),
        "status": st.sampled_from(["SUCCEEDED", "FAILED", "CANCELLED"]),
        "input_tokens": counts,
        "output_tokens": counts,
        "cost_usd": st.none() | st.floats(0, 1e6),
        "usage_estimated": st.booleans(),
    }
)
calls = st.tuples(
    st.integers(0, 4 * 24),
    st.sampled_from(["provider", "cache", "replay", "shared"]),
    st.sampled_from(["v", "w"]),
    st.none() | st.sampled_from(["map", "sample"]),
    st.lists(sent, max_size=3),
)


@pytest.fixture(scope="module")
def one_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journal]:
    from llmkit.persistence.migrate import upgrade

    url = f"sqlite:///{tmp_path_factory.mktemp('costs') / 'one.db'}"
    upgrade(url)
    journal = Journal(url)
    yield journal
    journal.close()


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(calls, max_size=12), st.booleans())
def test_every_history_adds_up_to_the_last_digit(
    one_store: Journal, history: list[Any], is_aggregated_before: bool
) -> None:
    rows = Rows(one_store)
    rows.clear()
    for hours, served_from, workspace, stage, attempts in history:
        paid = attempts if served_from == "provider" else []
        at = NOON + timedelta(hours=hours)
        rows.add(at, *paid, served_from=served_from, workspace_id=workspace, stage=stage)
    if is_aggregated_before:
        aggregate_costs(*rows.where, now=LATER)
    price_requests(*rows.where, cost_of([price(), price("7", valid_from=NOON + timedelta(hours=1))]))
    aggregate_costs(*rows.where, now=LATER)
    stages = {row["id"]: row["stage"] or "" for row in rows.read(RUNS)}
    expected: dict[tuple[str, ...], list[Any]] = defaultdict(lambda: [0, 0, Fraction(0)])
    for row in rows.read(ATTEMPTS):
        day = f"{row['started_at_utc']:%Y-%m-%d}"
        total = expected[row["workspace_id"], day, row["provider"], row["model"], stages[row["run_id"]]]
        total[0] += 1
        total[1] += row["cost_usd"] is None
        total[2] += 0 if row["cost_usd"] is None else Fraction(Decimal(repr(row["cost_usd"])))
    found = {}
    for row in list_costs(*rows.where):
        if row["requests"]:
            assert (row["cost_usd"] is None) == (row["requests"] == row["unpriced_requests"])
            place = tuple(row[name] for name in ("workspace_id", "day_utc", "endpoint", "model", "stage"))
            found[place] = [row["requests"], row["unpriced_requests"], Fraction(row["cost_usd"] or 0)]
    assert found == expected
    assert sum(row["served_calls"] for row in list_costs(*rows.where)) == len(history)


def test_calls_of_a_killed_process_are_ended(rows: Rows) -> None:
    started = {"status": "STARTED", "served_from": None, "provider": None, "model": None}
    elsewhere = {"owner": "another machine|1|1", **started}
    dead = rows.add(owner=f"{current_owner()}0", **started)
    silent = rows.add(**elsewhere)
    rows.add(owner=current_owner(), **started)
    rows.add(heartbeat_at_utc=utc_now(), **elsewhere)
    where = *rows.where, lambda owner, heard, now: looks_abandoned(owner, heard, 600, now)
    assert costs.end_abandoned(*where) == 2
    ended = {row["id"] for row in rows.read(RUNS) if (row["status"], row["error_code"]) == ("FAILED", "abandoned")}
    assert ended == {dead, silent}
    assert costs.end_abandoned(*where) == 0
