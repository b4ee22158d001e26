"""Pairs of STARTED and SUCCEEDED a second: the journal against SQLModel's async session, in one run.

    python benchmarks/journal.py [--seconds 3]

Everybody writes the same rows, one attempt a pair, to an SQLite file with `synchronous=FULL`, each operation durable
before its caller goes on. What counts are the ratios; seconds differ between machines, and with what else they do.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import uuid_utils.compat as uuid_utils
from sqlmodel.ext.asyncio.session import AsyncSession

from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.connections import with_quick_nulls
from llmkit.persistence.engines import make_async_engine
from llmkit.persistence.journal import Journal, JournalLLMRunRepo
from llmkit.persistence.migrate import upgrade
from llmkit.persistence.models import LLMAttemptRow, LLMRunRow
from llmkit.persistence.operations import InsertStarted, MarkSucceeded
from llmkit.persistence.rows import attempt_values, make_started_values, success_values
from llmkit.persistence.sqlite_driver import open_sqlite
from llmkit.ports import RunStart, RunSuccess
from llmkit.types import Attempt, AttemptStatus, Route, TokenUsage, utc_now

Values = tuple[RunStart, RunSuccess]
Pair = Callable[[Values], Awaitable[None]]

# About what a slow machine does in a second; values are made before the clock starts.
JOURNAL_PAIRS = {1: 400, 16: 3_000, 64: 5_000}
SQLMODEL_PAIRS = 120

ROUTE = Route.parse("ollama/llama3.2")
USAGE = TokenUsage(input_tokens=310, output_tokens=42, total_tokens=352)
NOW = utc_now()
START = RunStart(
    id=UUID(int=0),
    workspace_id="benchmark",
    prompt_sha256="",
    created_at_utc=NOW,
    owner="benchmark:1:1",
    profile="balanced",
    pipeline_run_id="eval:benchmark",
    stage="answer",
    request_preview="Classify the sentiment of this sentence. " * 8,
    metadata={"sample": 1},
)
ATTEMPT = Attempt(
    route=ROUTE,
    number=1,
    status=AttemptStatus.SUCCEEDED,
    started_at_utc=NOW,
    latency_ms=12.0,
    params_sha256="f" * 64,
    usage=USAGE,
    finish_reason="stop",
    response_model="llama3.2",
)
SUCCESS = RunSuccess(
    run_id=UUID(int=0),
    finished_at_utc=NOW,
    latency_ms=13.0,
    route=ROUTE,
    response_model="llama3.2",
    usage=USAGE,
    finish_reason="stop",
    result_json='{"text": "' + "positive, because it says so. " * 15 + '"}',
    response_preview="positive, because it says so. " * 8,
    plan={"policy": "by_profile", "candidates": ["ollama/llama3.2"]},
    attempts=(ATTEMPT,),
)


@dataclass(frozen=True)
class Rate:
    """Pairs a second of wall time, and a second of CPU time over all threads."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:8,.0f} pairs/s  {self.cpu:8,.0f} pairs per CPU second"


def next_values() -> Values:
    run_id = uuid_utils.uuid7()
    key = run_id.hex
    digest = hashlib.sha256(run_id.bytes).hexdigest()
    start = START._replace(id=run_id, prompt_sha256=digest, idempotency_key=key, flight_key=key)
    return start, SUCCESS._replace(run_id=run_id)


async def measure(pair: Pair, callers: int, pairs: int) -> Rate:
    values = [next_values() for _ in range(pairs)]
    waiting = iter(values)

    async def caller() -> None:
        for each in waiting:
            await pair(each)

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*[caller() for _ in range(callers)])
    return Rate(pairs / (time.perf_counter() - wall), pairs / (time.process_time() - cpu))


def new_database(folder: str, name: str) -> str:
    url = f"sqlite:///{Path(folder) / name}.db"
    upgrade(url)
    return url


async def journal_rate(url: str, callers: int, seconds: float) -> Rate:
    journal = Journal(url)
    repo = JournalLLMRunRepo(journal)

    async def pair(values: Values) -> None:
        start, success = values
        await repo.create_started(start)
        if not await repo.mark_succeeded(success):
            raise AssertionError("the run was not STARTED")

    rate = await measure(pair, callers, int(JOURNAL_PAIRS[callers] * seconds))
    journal.close()
    return rate


async def sqlmodel_rate(url: str, callers: int, seconds: float) -> Rate:
    """Store runs as one would with SQLModel: a session per unit of work, objects in, commit."""
    engine = make_async_engine(DatabaseAddress.parse(url))
    # SQLite has one writer; more sessions than one at a time only wait for each other in their busy timeouts.
    turn = asyncio.Lock()

    async def pair(values: Values) -> None:
        start, success = values
        async with turn, AsyncSession(engine) as db:
            db.add(LLMRunRow(**make_started_values(start)))
            await db.commit()
        async with turn, AsyncSession(engine) as db:
            run = await db.get_one(LLMRunRow, start.id)
            run.sqlmodel_update(success_values(success))
            db.add(LLMAttemptRow(**attempt_values(start.id, ATTEMPT), workspace_id=start.workspace_id))
            await db.commit()

    rate = await measure(pair, callers, int(SQLMODEL_PAIRS * seconds))
    await engine.dispose()
    return rate


def floor_rate(url: str, seconds: float) -> Rate:
    """Measure SQLite alone: the same statements, 64 per transaction, parameters made before, no caller waiting."""
    journal = Journal(url)
    statements = journal.statements
    batches = []
    for _ in range(100):
        values = [next_values() for _ in range(64)]
        starts = [InsertStarted(start) for start, _ in values]
        marks = [MarkSucceeded(success) for _, success in values]
        for operation in (*starts, *marks):
            operation.prepare(statements)
        attempts = [row for each in marks for row in each.attempt_rows]
        rows = ([each.row for each in starts], [each.row for each in marks], attempts)
        batches.append([list(map(with_quick_nulls, kind)) for kind in rows])
    journal.close()
    done, end = 0, time.monotonic() + seconds
    with closing(open_sqlite(DatabaseAddress.parse(url))) as connection:
        wall, cpu = time.perf_counter(), time.process_time()
        while time.monotonic() < end and batches:
            starts, marks, attempts = batches.pop()
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(statements.insert_started.sql, starts)
            connection.execute("COMMIT")
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(statements.mark_succeeded.sql, marks)
            connection.executemany(statements.insert_attempt.sql, attempts)
            connection.execute("COMMIT")
            done += 64
        return Rate(done / (time.perf_counter() - wall), done / (time.process_time() - cpu))


def one_of_four(url: str, seconds: float, rates: multiprocessing.Queue[float | str]) -> None:
    try:
        rates.put(asyncio.run(journal_rate(url, 16, seconds)).wall)
    except Exception as error:  # noqa: BLE001 it is the result
        rates.put(f"{type(error).__name__}: {error}")


def four_processes(url: str, seconds: float) -> list[float | str]:
    context = multiprocessing.get_context("spawn")
    rates: multiprocessing.Queue[float | str] = context.Queue()
    processes = [context.Process(target=one_of_four, args=(url, seconds, rates)) for _ in range(4)]
    for process in processes:
        process.start()
    results = [rates.get() for _ in processes]
    for process in processes:
        process.join()
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0, help="rough length of each measurement")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        rates: dict[int, Rate] = {}
        for callers in (1, 16, 64):
            url = new_database(folder, f"journal{callers}")
            rates[callers] = asyncio.run(journal_rate(url, callers, seconds))
            print(f"journal, {callers:2} callers         {rates[callers]}")
        peer = asyncio.run(sqlmodel_rate(new_database(folder, "sqlmodel"), 64, seconds))
        print(f"SQLModel AsyncSession, 64   {peer}")
        floor = floor_rate(new_database(folder, "floor"), seconds)
        print(f"SQLite alone                {floor}")
        by_wall, by_cpu = rates[64].wall / peer.wall, rates[64].cpu / peer.cpu
        print(f"journal / SQLModel, 64 callers: {by_wall:.1f} by wall time, {by_cpu:.1f} by CPU time (goal: 10)")
        print(f"journal / SQLite alone: {rates[64].cpu / floor.cpu:.2f} by CPU time")
        results = four_processes(new_database(folder, "four"), seconds)
    failures = [result for result in results if isinstance(result, str)]
    total = sum(result for result in results if not isinstance(result, str))
    print(f"4 processes on one file, 16 callers each: {total:,.0f} pairs/s together, {len(failures)} failed {failures}")
    return 1 if failures or by_wall < 10 else 0


if __name__ == "__main__":
    sys.exit(main())
