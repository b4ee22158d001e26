"""Kill workers, drivers, a Dask scheduler and PostgreSQL under an evaluation; count what was lost or sent twice.

    python -m scripts.kill_workers [--samples 2000] [--workers 4] [--kills 50] [--stops 5] [--seed 1] [--engine dask]

The evaluation runs in a process of its own, the driver, with workers on a PostgreSQL of the tests and a stand-in for
Ollama. All kills are SIGKILL. Their order, and after how many requests each comes, is drawn from the seed; two may come
at once, the second before the run has recovered from the first. A driver that is killed or ends early is started again
under the same name, as its user would. PostgreSQL is away for some seconds each time.

In the end these must hold, or the exit code is 1:

- one result for each sample, and scores and tokens as in a report of one process;
- no request left for a sample after its call had SUCCEEDED, and none that was not recorded before;
- calls in doubt are at most the concurrency of the workers that were killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from pydantic import BaseModel

from llmkit import Session
from llmkit.evals import EvalReport, Sample, Task, field_match
from llmkit.testing import Load, OllamaServer

ROUTE = "ollama/llama3.2"
CONCURRENCY = 4
LATENCY_S = 0.1
# So often each is killed, in relation to the others.
SHARES = {"worker": 6, "driver": 2, "scheduler": 1}
DOWN_S = (0.5, 5.0)
# Without any request for so long, the next kill comes anyway.
STALLED_S = 120.0
ENDING_S = 1800.0


class Parcel(BaseModel):
    """An answer."""

    name: str


def make_task(samples: int) -> Task:
    """Return a task whose prompts are all different."""
    return Task(
        name="parcels",
        dataset=[Sample(f"Parcel {number} came.", {"name": "x"}, id=f"s{number}") for number in range(samples)],
        prompt="Which parcel? {input}",
        output_type=Parcel,
        scorers=[field_match("name")],
    )


def hash_report(report: EvalReport) -> str:
    """Return a hash of what must not depend on who has done the work."""
    lines = sorted(
        f"{each.sample_id} {each.status} {each.scores} {each.input_tokens} {each.output_tokens}"
        for each in report.results
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def drive(samples: int, workers: str) -> None:
    """Run the evaluation in this process, and print what is in its report."""
    given: Any = int(workers) if workers.isdecimal() else workers
    with Session("kills", concurrency_limit=CONCURRENCY) as session:
        report = session.evaluate(
            make_task(samples), ROUTE, name="run", workers=given, concurrency=CONCURRENCY, warm_up=False, progress=False
        )
    counts = Counter(result.status for result in report.results)
    print(json.dumps({"statuses": counts, "in_doubt": len(report.in_doubt), "report": hash_report(report)}))


@dataclass(frozen=True, slots=True)
class Options:
    """Size of a run, and what is done to it.

    Attributes:
        samples: Samples of the evaluation.
        workers: Workers.
        kills: Kills of workers, drivers and schedulers.
        stops: Kills of PostgreSQL.
        seed: Decides which come when.
        engine: `local` or `dask`.
    """

    samples: int = 2000
    workers: int = 4
    kills: int = 50
    stops: int = 5
    seed: int = 1
    engine: str = "local"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts at the end of a run.

    Attributes:
        killed: How many of each kind were killed.
        restarts: Drivers that ended by themselves before all was done, and were started again.
        statuses: Results in the report.
        is_same_report: Whether it is that of one process.
        results: Rows of results in the store.
        requests: Requests that the server has received.
        sent_again: Requests for samples of which a call had succeeded before.
        unrecorded: Requests without a row in the store.
        in_doubt: Calls in doubt in the report.
        bound: The most that there may be.
    """

    killed: Mapping[str, int]
    restarts: int
    statuses: Mapping[str, int]
    is_same_report: bool
    results: int
    requests: int
    sent_again: int
    unrecorded: int
    in_doubt: int
    bound: int

    def is_right(self, samples: int) -> bool:
        """Return whether all promises were kept."""
        return (
            self.statuses == {"SUCCEEDED": samples}
            and self.is_same_report
            and self.results == samples
            and self.sent_again == self.unrecorded == 0
            and self.in_doubt <= self.bound
        )


class Processes:
    """The processes of one run, and the hand that kills them.

    Args:
        options: See `Options`.
        folder: Where their complaints go.
        environment: Their environment.
        postgres: The database, a `PostgresServer` of the tests.
    """

    def __init__(self, options: Options, folder: Path, environment: Mapping[str, str], postgres: Any) -> None:
        self.options = options
        self.errors = folder / "errors.txt"
        self.environment = environment
        self.postgres = postgres
        self.random = random.Random(options.seed)
        self.killed: Counter[str] = Counter()
        self.killed_workers = 0
        self.restarts = 0
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.dask_workers: list[subprocess.Popen[bytes]] = []
        self.address = f"127.0.0.1:{20_000 + os.getpid() % 10_000}"
        if options.engine == "dask":
            self.start_scheduler()
            for _ in range(options.workers):
                self.start_dask_worker()
        self.driver = self.start_driver()

    def plan_kills(self) -> list[tuple[int, str]]:
        """Return after how many requests what is killed, in this order."""
        kinds = [kind for kind in SHARES if kind != "scheduler" or self.scheduler is not None]
        chosen = self.random.choices(kinds, [SHARES[kind] for kind in kinds], k=self.options.kills)
        chosen += ["PostgreSQL"] * self.options.stops
        self.random.shuffle(chosen)
        # The last of them while enough is left to see what follows.
        last = max(len(chosen), self.options.samples * 19 // 20)
        return list(zip(sorted(self.random.sample(range(last), len(chosen))), chosen, strict=True))

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a module in a process of its own."""
        with self.errors.open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", *command], env=self.environment, stdout=subprocess.PIPE, stderr=errors
            )

    def start_driver(self) -> subprocess.Popen[bytes]:
        """Start the evaluation, or go on with it."""
        workers = f"dask://{self.address}" if self.options.engine == "dask" else str(self.options.workers)
        return self.start("scripts.kill_workers", "--driver", workers, "--samples", str(self.options.samples))

    def start_scheduler(self) -> None:
        """Start a Dask scheduler, again at the same address."""
        host, port = self.address.split(":")
        self.scheduler = self.start("distributed.cli.dask_scheduler", "--host", host, "--port", port, "--no-dashboard")

    def start_dask_worker(self) -> None:
        """Start one more Dask worker."""
        command = ("distributed.cli.dask_worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
        self.dask_workers.append(self.start(*command))

    def list_workers(self) -> list[psutil.Process]:
        """Return the workers that live."""
        if self.options.engine == "dask":
            return [psutil.Process(each.pid) for each in self.dask_workers if each.poll() is None]
        try:
            return psutil.Process(self.driver.pid).children()
        except psutil.NoSuchProcess:
            return []

    def mend(self) -> None:
        """Start what has ended again: Dask workers end when their scheduler does, and a driver may give up."""
        ended = [each for each in self.dask_workers if each.poll() is not None]
        self.dask_workers = [each for each in self.dask_workers if each not in ended]
        for process in ended:
            self.forget(process)
            self.start_dask_worker()
        if self.driver.poll() is not None and self.driver.returncode != 0:
            self.restarts += 1
            self.forget(self.driver)
            self.driver = self.start_driver()

    def forget(self, process: subprocess.Popen[bytes]) -> None:
        """End a process and close its pipe."""
        process.kill()
        process.communicate()

    def kill(self, kind: str) -> None:
        """Kill one of a kind; of workers nothing when none lives."""
        if kind == "driver":
            # Local workers end with their driver, and record what they cancel.
            self.forget(self.driver)
            self.driver = self.start_driver()
        elif kind == "scheduler":
            assert self.scheduler is not None
            # Dask ends its workers when their scheduler is gone.
            self.killed_workers += len(self.list_workers())
            self.forget(self.scheduler)
            self.start_scheduler()
        elif kind == "PostgreSQL":
            self.postgres.kill()
            time.sleep(self.random.uniform(*DOWN_S))
            self.postgres.start()
        elif workers := self.list_workers():
            self.killed_workers += 1
            self.random.choice(workers).kill()
        else:
            return
        self.killed[kind] += 1

    def finish(self) -> dict[str, Any]:
        """Let the driver end, and return what it has printed; start it again when it ends early."""
        until_s = time.monotonic() + ENDING_S
        while time.monotonic() < until_s:
            self.mend()
            try:
                output, _ = self.driver.communicate(timeout=1.0)
            except subprocess.TimeoutExpired:
                continue
            if self.driver.returncode == 0:
                found: dict[str, Any] = json.loads(output.splitlines()[-1])
                if sum(found["statuses"].values()) == found["statuses"].get("SUCCEEDED"):
                    return found
                self.restarts += 1
                self.driver = self.start_driver()
        raise SystemExit("the run does not end")

    def close(self) -> None:
        """End all processes."""
        for process in (self.driver, *self.dask_workers, *filter(None, [self.scheduler])):
            self.forget(process)


def play(options: Options, postgres: Any, *, report: Any = None) -> Outcome:
    """Run an evaluation, kill its processes, and return what came of it.

    Args:
        options: See `Options`.
        postgres: A `PostgresServer` of the tests, which is killed, too.
        report: Called with a line on each kill.
    """
    tell = report or (lambda _line: None)
    with TemporaryDirectory() as folder, OllamaServer(load=Load(latency_s=LATENCY_S), keep_requests=None) as server:
        environment = os.environ | {
            "LLM_OLLAMA_API_BASE": server.url,
            "LLM_DATABASE_URL": postgres.url,
            "LLM_ABANDONED_AFTER_S": "10",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        processes = Processes(options, Path(folder), environment, postgres)
        try:
            for number, (after, kind) in enumerate(processes.plan_kills()):
                wait_for_requests(processes, server, after)
                processes.kill(kind)
                tell(f"{number + 1}: {kind} after {server.call_count} requests")
            found = processes.finish()
        finally:
            processes.close()
            complaints = processes.errors.read_text(errors="replace")
            if complaints:
                tell(f"The processes said:\n{complaints[-6000:]}")
        prompts = Counter(
            json.loads(request.body)["messages"][-1]["content"] for request in list(server.requests) if request.is_call
        )
        alone = evaluate_alone(options.samples, server.url)
    return count(processes, found, prompts, alone)


def wait_for_requests(processes: Processes, server: OllamaServer, count: int) -> None:
    """Wait until the server has received a number of requests, or none comes any more."""
    seen, seen_s = server.call_count, time.monotonic()
    while server.call_count < count and time.monotonic() - seen_s < STALLED_S:
        processes.mend()
        time.sleep(0.05)
        if server.call_count != seen:
            seen, seen_s = server.call_count, time.monotonic()


def evaluate_alone(samples: int, url: str) -> str:
    """Return the hash of the report that one process makes."""
    with TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"ollama_api_base": url, "database_url": f"sqlite:///{folder}/alone.db"}
        with Session("alone", concurrency_limit=64, cache_enabled=False, **settings) as session:
            report = session.evaluate(
                make_task(samples), ROUTE, name="run", concurrency=64, warm_up=False, progress=False
            )
    return hash_report(report)


def count(processes: Processes, found: Mapping[str, Any], prompts: Counter[str], alone: str) -> Outcome:
    """Compare what the server, the store and the report say."""
    import psycopg

    # An answer that was read from the store, and a call that was cancelled while it waited, have sent nothing.
    select = (
        "SELECT pipeline_run_id, status, created_at_utc, finished_at_utc, attempts FROM llm_runs"
        " WHERE stage = 'sample' AND coalesce(served_from, 'provider') = 'provider' AND attempts IS DISTINCT FROM 0"
        " ORDER BY created_at_utc, id"
    )
    with psycopg.connect(processes.postgres.url) as connection:
        rows = connection.execute(select).fetchall()
        (results,) = connection.execute("SELECT count(*) FROM eval_results").fetchone() or (0,)
    # Sample s7 was asked of parcel 7.
    requests = {f"s{prompt.split()[-2]}": number for prompt, number in prompts.items()}
    recorded: Counter[str] = Counter()
    finished: dict[str, Any] = {}
    sent_again = 0
    for name, status, created_at_utc, finished_at_utc, attempts in rows:
        sample = name.split(":")[2]
        recorded[sample] += attempts or 1
        sent_again += sample in finished and (status == "SUCCEEDED" or created_at_utc >= finished[sample])
        if status == "SUCCEEDED":
            finished[sample] = finished_at_utc
    return Outcome(
        killed=dict(processes.killed),
        restarts=processes.restarts,
        statuses=found["statuses"],
        is_same_report=found["report"] == alone,
        results=results,
        requests=sum(prompts.values()),
        sent_again=sent_again,
        unrecorded=sum(max(0, number - recorded[sample]) for sample, number in requests.items()),
        in_doubt=found["in_doubt"],
        bound=CONCURRENCY * processes.killed_workers,
    )


def main() -> int:
    """Play it and check its end."""
    parser = argparse.ArgumentParser(description="Kill processes of an evaluation, and count what was lost.")
    usual = Options()
    for name in ("samples", "workers", "kills", "stops", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(usual, name))
    parser.add_argument("--engine", choices=["local", "dask"], default=usual.engine)
    parser.add_argument("--driver")
    given = vars(parser.parse_args())
    workers = given.pop("driver")
    if workers is not None:
        drive(given["samples"], workers)
        return 0
    from tests.support.databases import PostgresServer

    # Otherwise its processes outlive this script when it is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    options = Options(**given)
    postgres = PostgresServer()
    began_s = time.monotonic()
    try:
        outcome = play(options, postgres, report=lambda line: print(line, file=sys.stderr, flush=True))
    finally:
        postgres.close()
    kills = ", ".join(f"{number} x {kind}" for kind, number in outcome.killed.items())
    print(f"killed: {kills}; drivers that ended early: {outcome.restarts}; {time.monotonic() - began_s:.0f} s")
    print(f"results: {dict(outcome.statuses)} in the report, {outcome.results} rows for {options.samples} samples")
    print(f"report as that of one process: {outcome.is_same_report}")
    print(f"requests: {outcome.requests}; without a record: {outcome.unrecorded}")
    print(f"finished calls sent again: {outcome.sent_again}")
    print(f"in doubt: {outcome.in_doubt} (at most {outcome.bound})")
    return 0 if outcome.is_right(options.samples) else 1


if __name__ == "__main__":
    sys.exit(main())
