"""100,000 requests as a DataFrame: `session.attempts()` against pandas' own reader and ORM objects.

    python benchmarks/frames.py [--rows 100000] [--rounds 5]

Read from one SQLite file, interleaved, medians of the rounds. `read_sql` gets the same rows and columns, and its
result is what comes out of SQLite: numbers with holes are floats, flags are numbers and times are text. Ours is typed.
"to the same types" is `read_sql` and then the casts that a user would have to add. ADBC is left out, for the reason in
docs/decisions/0011. Under a minute on an idle machine.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pandas as pd
from sqlmodel import Session as OrmSession
from sqlmodel import create_engine, select
from uuid_utils.compat import uuid7

from llmkit import Session
from llmkit.dataframes.store import ATTEMPT_COLUMNS
from llmkit.eval_ports import EvalResult, EvalRun
from llmkit.evals.report.report import EvalReport
from llmkit.persistence.migrate import upgrade
from llmkit.persistence.models import LLMAttemptRow

WORKSPACE = "bench"
SHA256 = "0123456789abcdef" * 4
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
RUN = (
    "INSERT INTO llm_runs (id, workspace_id, pipeline_run_id, status, owner, created_at_utc, heartbeat_at_utc, "
    "profile, epoch, prompt_sha256, request_preview, metadata_json) "
    "VALUES (?, ?, ?, 'SUCCEEDED', 'bench', ?, ?, 'balanced', 0, ?, '{}', '{}')"
)
ATTEMPTS = (
    "SELECT a.*, r.pipeline_run_id FROM llm_attempts a JOIN llm_runs r ON r.id = a.run_id ORDER BY r.created_at_utc"
)


def stored(moment: datetime) -> str:
    """Format a time as SQLAlchemy stores it in SQLite."""
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")


def fill(database: Path, rows: int) -> None:
    """Store this many calls with one request each; one in twenty failed."""
    upgrade(f"sqlite:///{database}")
    chance = random.Random(7)
    runs, attempts = [], []
    for number in range(rows):
        key, when, failed = uuid7().hex, stored(BEGIN + timedelta(milliseconds=37 * number)), number % 20 == 7
        tokens = (
            (None,) * 5 if failed else (chance.randrange(900), chance.randrange(90), chance.randrange(990), None, 0)
        )
        outcome = (None, None, None, None, 503, "unavailable", "The server is busy.")
        if not failed:
            outcome = ("stop", "llama3.2", SHA256, chance.random() / 100, 200, None, None)
        status = "FAILED" if failed else "SUCCEEDED"
        latency_ms = chance.random() * 1000
        # What is sent is different every time.
        sent = f"{chance.getrandbits(256):064x}"
        runs.append((key, WORKSPACE, f"run/{number}", when, when, SHA256))
        attempts.append(
            (key, 1, WORKSPACE, "ollama", "llama3.2", status, when, latency_ms, sent, None, *tokens, 0, *outcome)
        )
    with sqlite3.connect(database) as connection:
        connection.executemany(RUN, runs)
        connection.executemany(f"INSERT INTO llm_attempts VALUES ({', '.join('?' * 23)})", attempts)
    connection.close()


def by_pandas(database: Path) -> pd.DataFrame:
    """Read the table as users do."""
    with sqlite3.connect(database) as connection:
        frame = pd.read_sql(ATTEMPTS, connection)
    connection.close()
    return frame


def by_pandas_typed(database: Path) -> pd.DataFrame:
    """Read it, and convert it to types that keep whole numbers, flags, times and missing values."""
    frame = by_pandas(database)
    for name, kind in ATTEMPT_COLUMNS.items():
        if kind == "time":
            frame[name] = pd.to_datetime(frame[name], utc=True, format="ISO8601")
        elif kind == "uuid":
            frame[name] = frame[name].map(lambda text: str(UUID(text))).astype("string")
        else:
            frame[name] = frame[name].astype("boolean" if kind == "boolean" else kind)
    return frame[list(ATTEMPT_COLUMNS)]


def by_orm(database: Path) -> pd.DataFrame:
    """Read it through objects."""
    engine = create_engine(f"sqlite:///{database}")
    with OrmSession(engine) as db:
        frame = pd.DataFrame([row.model_dump() for row in db.exec(select(LLMAttemptRow))])
    engine.dispose()
    return frame


def measure_rates(work: Callable[[], pd.DataFrame], rows: int) -> tuple[float, float]:
    """Measure rows a second by the clock, and by the CPU time of the process."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    frame = work()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    assert len(frame) == rows, f"{len(frame)} rows of {rows}"
    return rows / wall_s, rows / cpu_s


def compare(database: Path, session: Session, rows: int, rounds: int) -> dict[str, float]:
    """Print the medians of all readers, and return rows per CPU second by name."""
    readers: dict[str, Callable[[], pd.DataFrame]] = {
        "session.attempts()": session.attempts,
        "pandas.read_sql": lambda: by_pandas(database),
        "pandas.read_sql to the same types": lambda: by_pandas_typed(database),
        "ORM objects": lambda: by_orm(database),
    }
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, work in readers.items():
            figures[name].append(measure_rates(work, rows))
    medians = {name: tuple(map(statistics.median, zip(*several, strict=True))) for name, several in figures.items()}
    for name, (by_clock, by_cpu) in medians.items():
        print(f"{name:36} {by_clock:10,.0f} rows/s {by_cpu:10,.0f} rows/s of CPU")
    return {name: by_cpu for name, (_, by_cpu) in medians.items()}


def evaluation_frame(rows: int) -> None:
    """Time and size of `report.samples()`."""
    run = EvalRun(uuid7(), WORKSPACE, "bench", "bench", SHA256, SHA256, BEGIN, {"routes": ["ollama/llama3.2"]})
    blank = EvalResult(
        eval_run_id=run.id,
        route="ollama/llama3.2",
        sample_id="",
        epoch=0,
        status="SUCCEEDED",
        finished_at_utc=BEGIN,
        pipeline_run_id="run",
        output_json='{"label": "positive"}',
        scores={"field_match": 1.0},
        latency_ms=12.5,
        input_tokens=20,
        output_tokens=6,
    )
    results = tuple(replace(blank, sample_id=f"s{number}") for number in range(rows))
    report = EvalReport(run=run, results=results)
    started_s = time.process_time()
    frame = report.samples()
    took_s = time.process_time() - started_s
    size = frame.memory_usage(deep=True).sum() / rows
    print(f"report.samples(): {rows / took_s:,.0f} rows/s of CPU, {size:,.0f} bytes a row")


def main() -> None:
    """Fill a database, compare, and say what a frame weighs."""
    parser = argparse.ArgumentParser(description="Rows to DataFrames.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "bench.db"
        fill(database, options.rows)
        with Session(WORKSPACE, database_url=f"sqlite:///{database}", warm_up=False) as session:
            rates = compare(database, session, options.rows, options.rounds)
            size = session.attempts().memory_usage(deep=True).sum() / options.rows
    ours = rates["session.attempts()"]
    print(f"session.attempts(): {size:,.0f} bytes a row")
    for name in ("pandas.read_sql", "pandas.read_sql to the same types", "ORM objects"):
        print(f"  {ours / rates[name]:5.2f} x {name}")
    evaluation_frame(options.rows)


if __name__ == "__main__":
    main()
