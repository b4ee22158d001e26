"""Measure one evaluation by one process and by several workers: speed, CPU of each kind of process, memory of the driver.

    python -m scripts.measure_workers --samples 10000 --workers 0 2
    python -m scripts.measure_workers --samples 100000 --workers 0 4 --store postgresql

`--workers 0` is one process without `workers=`. Every sample is durable, in an SQLite file or in a PostgreSQL of the
tests; the provider is the stand-in of the benchmarks, in a process of its own. Each evaluation runs in a new driver on a
new store. Rate and CPU are those of the middle half of the samples, when every worker is at work: the start of a process
takes seconds, which a short run would measure instead. The wall clock tells little on a machine that does other things,
or has fewer cores than there are processes; the CPU of each sample tells what more cores would give.
"""  # noqa: E501 - a table

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from llmkit import Session
from llmkit.evals import Progress, load_tasks

ROUTE = "ollama/stand-in"
STAND_IN = Path(__file__).parents[1] / "benchmarks" / "peers" / "stand_in.py"
# Shares of the samples at which the processes are looked at.
SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
TASK = """
from typing import Literal
from pydantic import BaseModel
from llmkit.evals import Task, field_match

class Sentiment(BaseModel):
    label: Literal["positive", "negative"]

task = Task(
    name="load", dataset="load.jsonl", prompt="Is it positive or negative? Answer as JSON.\\n{input}",
    output_type=Sentiment, scorers=[field_match("label")],
)
"""


def read_cpu_s(process: psutil.Process, *, ended: bool = False) -> float:
    """Return the CPU time of a process so far.

    Args:
        process: The process; 0.0 when it has ended.
        ended: Count also its children that have ended.
    """
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    own = times.user + times.system
    return float(own + times.children_user + times.children_system if ended else own)


class Marks:
    """Looks at the processes of one evaluation when it has come so far."""

    def __init__(self, samples: int, server: int, database: int | None) -> None:
        self._samples = samples
        self._server = psutil.Process(server)
        self._database = psutil.Process(database) if database else None
        self.seen: list[dict[str, Any]] = []
        self._next = 0

    def note(self, now: Progress) -> None:
        """Look, if the next share is done."""
        while self._next < len(SHARES) and now.done >= SHARES[self._next] * self._samples:
            self._next += 1
            self.seen.append(self._look(SHARES[self._next - 1], now.done))

    def _look(self, share: float, done: int) -> dict[str, Any]:
        own = psutil.Process()
        cpu_s: Counter[str] = Counter()
        cpu_s["driver"] = read_cpu_s(own)
        for child in own.children():
            cpu_s["workers"] += read_cpu_s(child)
        cpu_s["stand-in"] = read_cpu_s(self._server)
        if self._database is not None:
            cpu_s["database"] = read_cpu_s(self._database, ended=True)
            for child in self._database.children():
                cpu_s["database"] += read_cpu_s(child)
        return {"share": share, "done": done, "at_s": time.monotonic(), "cpu_s": cpu_s, "rss": own.memory_info().rss}


def drive(options: argparse.Namespace) -> None:
    """Run one evaluation in this process and print what was seen."""
    workers = options.workers[0]
    (task,) = load_tasks("load_task.py")
    marks = Marks(options.samples, options.server, options.database)
    given: dict[str, Any] = {"workers": workers} if workers else {}
    with Session("load", concurrency_limit=options.concurrency) as session:
        session.evaluate(
            task, ROUTE, name="first", limit=1, warm_up=False, progress=False, concurrency=options.concurrency
        )
        began_s = time.monotonic()
        report = session.evaluate(
            task,
            ROUTE,
            name="run",
            concurrency=options.concurrency,
            warm_up=False,
            progress=marks.note,
            **given,
        )
        took_s = time.monotonic() - began_s
    statuses = Counter(result.status for result in report.results)
    assert statuses == {"SUCCEEDED": options.samples}, statuses
    assert report.work is not None
    rss = psutil.Process().memory_info().rss
    work = {"sent": report.work.sent, "workers": report.work.workers}
    print(json.dumps({"marks": marks.seen, "took_s": took_s, "rss": rss, "work": work}))


def show(workers: int, options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Print the figures of one evaluation."""
    marks = {mark["share"]: mark for mark in found["marks"]}
    low, high = marks[0.25], marks[0.75]
    done, wall_s = high["done"] - low["done"], high["at_s"] - low["at_s"]
    name = f"{workers} workers" if workers else "one process"
    print(
        f"{name}: {options.samples:,} samples in {found['took_s']:.1f} s, {done / wall_s:,.0f} a second in the middle "
        f"half; {found['work']}"
    )
    each = {kind: (high["cpu_s"][kind] - low["cpu_s"].get(kind, 0)) / done * 1000 for kind in high["cpu_s"]}
    print("  ms of CPU a sample: " + ", ".join(f"{kind} {ms:.3f}" for kind, ms in each.items()))
    mib = ", ".join(f"{mark['rss'] / 2**20:.0f} at {mark['done']:,}" for mark in marks.values())
    print(f"  MiB of the driver: {mib}; with its report {found['rss'] / 2**20:.0f}", flush=True)


@contextmanager
def run_stand_in(latency_s: float) -> Iterator[tuple[str, int]]:
    """Start the stand-in provider; yields its address and its process id."""
    command = [sys.executable, str(STAND_IN), str(latency_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.stdin.close()
            process.wait(30)


@contextmanager
def open_store(kind: str, folder: Path) -> Iterator[tuple[str, int | None]]:
    """Yield the address of a new store, and the process id of its server if it has one."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/load.db", None
        return
    from tests.support.databases import PostgresServer

    postgres = PostgresServer()
    try:
        yield postgres.url, postgres.pid
    finally:
        postgres.close()


def measure(workers: int, options: argparse.Namespace) -> None:
    """Run one evaluation in a new process on a new store, and print its figures."""
    with (
        TemporaryDirectory(dir=options.folder) as name,
        run_stand_in(options.latency) as (url, server),
        open_store(options.store, Path(name)) as (database_url, database),
    ):
        folder = Path(name)
        (folder / "load_task.py").write_text(TASK, encoding="utf-8")
        with (folder / "load.jsonl").open("w", encoding="utf-8") as file:
            for number in range(options.samples):
                line = {"id": f"s{number:07}", "input": f"Parcel {number} came.", "target": {"label": "positive"}}
                file.write(json.dumps(line) + "\n")
        environment = os.environ | {
            "LLM_OLLAMA_API_BASE": url,
            "LLM_DATABASE_URL": database_url,
            "LLM_CACHE_DIR": str(folder / "cache"),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        command = [sys.executable, "-m", "scripts.measure_workers", "--drive", "--workers", str(workers)]
        command += ["--samples", str(options.samples), "--concurrency", str(options.concurrency)]
        command += ["--server", str(server)] + ([] if database is None else ["--database", str(database)])
        done = subprocess.run(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
        show(workers, options, json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Parse what is wanted, measure and print."""
    parser = argparse.ArgumentParser(description="Measure an evaluation by one process and by workers.")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--folder", help="where the files of a run are kept meanwhile")
    parser.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--server", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--database", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options)
        return
    for workers in options.workers:
        measure(workers, options)


if __name__ == "__main__":
    main()
