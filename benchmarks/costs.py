"""A million recorded requests: the time and memory of adding up their cost by day, and of pricing them.

    python benchmarks/costs.py [requests]

Fills a SQLite store with calls of one request each, over 30 days and six models, of which one in ten has no known
price. Then it runs what `llmkit cost price` and `llmkit cost aggregate` do, twice: the second time there is nothing
left to do. It checks the total against `SELECT sum(cost_usd)`, and compares the CPU time with what a user would do
instead, `pandas.read_sql` of the attempts and a `groupby`. Takes two to three minutes.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pandas as pd
from sqlalchemy import func, insert, select

from llmkit.persistence.costs import DAYS, aggregate_costs, price_requests
from llmkit.persistence.journal import Journal
from llmkit.persistence.migrate import upgrade
from llmkit.persistence.statements import ATTEMPTS, RUNS
from llmkit.types import TokenUsage

REQUESTS = 1_000_000
BATCH = 20_000
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
DAY_COUNT = 30
MODELS = ("gemini-2.5-flash", "gemini-2.5-pro", "gpt-4.1-mini", "gpt-4.1", "claude-sonnet-4-5", "unpriced")
PRICE_USD = Decimal("0.0000025")


def make_rows(numbers: range, count: int) -> Iterator[tuple[dict[str, object], dict[str, object]]]:
    """Yield the rows of one call and of its request for each number."""
    for number in numbers:
        at = FIRST + timedelta(days=DAY_COUNT) * (number / count)
        place = {"provider": "gemini", "model": MODELS[-1] if number % 10 == 0 else MODELS[number % 5]}
        counts = {"input_tokens": 100 + number % 900, "output_tokens": 20 + number % 80, "usage_estimated": False}
        run_id = UUID(int=number + 1)
        run = {
            "id": run_id, "workspace_id": "study", "status": "SUCCEEDED", "owner": "host|1|1", "created_at_utc": at,
            "heartbeat_at_utc": at, "profile": "balanced", "epoch": 0, "prompt_sha256": "0" * 64, "stage": "label",
            "request_preview": "", "metadata_json": "{}", "served_from": "provider", "attempts": 1, **place, **counts,
        }  # fmt: skip
        attempt = {
            "run_id": run_id, "number": 1, "workspace_id": "study", "status": "SUCCEEDED", "started_at_utc": at,
            "latency_ms": 800.0, **place, **counts,
        }  # fmt: skip
        yield run, attempt


def fill(store: Journal, count: int) -> None:
    """Write the calls and their requests."""
    for first in range(0, count, BATCH):
        runs, attempts = zip(*make_rows(range(first, min(first + BATCH, count)), count), strict=True)
        with store.engine.begin() as connection:
            connection.execute(insert(RUNS), list(runs))
            connection.execute(insert(ATTEMPTS), list(attempts))


def find_cost(_provider: str, model: str, _at_utc: datetime, usage: TokenUsage) -> Decimal | None:
    """Return one price for all models but the one without."""
    return None if model == MODELS[-1] else PRICE_USD * ((usage.input_tokens or 0) + (usage.output_tokens or 0))


def sum_in_pandas(store: Journal) -> None:
    """Add up the costs as a user would without llmkit."""
    columns = (ATTEMPTS.c.started_at_utc, ATTEMPTS.c.provider, ATTEMPTS.c.model, ATTEMPTS.c.cost_usd)
    with store.engine.connect() as connection:
        frame = pd.read_sql(select(*columns), connection)
    frame.groupby([frame["started_at_utc"].dt.floor("D"), "provider", "model"])["cost_usd"].sum()


def measure(name: str, work: Callable[[], object]) -> float:
    """Print and return the CPU time of the work, with the growth of the memory's peak."""
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kb) / 1024
    print(f"{name:<24}{cpu_s:8.1f} s CPU{wall_s:8.1f} s{grown_mib:+8.1f} MiB", flush=True)
    return cpu_s


def main(count: int) -> int:
    """Fill, price, aggregate, compare; return 0 when the sums agree."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'costs.db'}"
        upgrade(url)
        store = Journal(url)
        place = store.engine, store.address
        measure(f"fill {count:,} requests", lambda: fill(store, count))
        measure("price", lambda: price_requests(*place, find_cost))
        measure("price again", lambda: price_requests(*place, find_cost))
        own_s = measure("aggregate", lambda: aggregate_costs(*place))
        measure("aggregate again", lambda: aggregate_costs(*place))
        theirs_s = measure("read_sql and groupby", lambda: sum_in_pandas(store))
        print(f"aggregate / pandas{own_s / theirs_s:14.2f}")
        with store.engine.connect() as connection:
            requests, cost = connection.execute(select(func.sum(DAYS.c.requests), func.sum(DAYS.c.cost_usd))).one()
            sent, sum_usd = connection.execute(select(func.count(), func.sum(ATTEMPTS.c.cost_usd))).one()
        store.close()
    agree = requests == sent and abs(float(cost) - float(sum_usd)) < 1e-6 * float(sum_usd)
    print(f"{requests:,} of {sent:,} requests, {cost} of {sum_usd} USD: {'agree' if agree else 'DO NOT AGREE'}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS))
