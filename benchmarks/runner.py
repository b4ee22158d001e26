"""The cost of the evaluation runner: CPU for a sample, memory while it runs, and a finished run resumed.

    python benchmarks/runner.py            # 10,000 samples, then resumed
    python benchmarks/runner.py memory     # 10,000 and 100,000 samples, each in a process of its own; some minutes
    python benchmarks/runner.py map        # memory again, of `Session.map` over as many rows

Every part is the real one but for the provider, which answers at once and from this process: what is measured is
llmkit's own. Every sample is durable in an SQLite file. Memory is that of the process (RSS), read while it works.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pandas as pd
from pydantic import BaseModel

from llmkit import Session
from llmkit.evals import EvalReport, Sample, Task, evaluate, field_match
from llmkit.persistence.eval_store import SqlEvalStore
from llmkit.persistence.journal import Journal, JournalLLMRunRepo
from llmkit.persistence.migrate import upgrade
from llmkit.ports import AnswerSink, AttemptLog, BeforeSend, ClientReply, NotSent, allow_sending
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing.scripted_client import reply
from llmkit.types import Attempt, AttemptStatus, LLMRequest, Route, utc_now

CONCURRENCY = 64
TEXT = "The kettle leaked on the second day and no one answered my letters. " * 3
ANSWER = reply('{"label": "negative"}')
# Of the samples, where memory is looked at while they are worked on.
LOOKS = 10


class Label(BaseModel):
    """A verdict."""

    label: Literal["positive", "negative"]


class InstantClient:
    """A `ModelClient` that answers at once and keeps nothing."""

    async def call(
        self,
        route: Route,
        request: LLMRequest,
        log: AttemptLog,
        before_send: BeforeSend = allow_sending,
        *,
        sink: AnswerSink | None = None,
    ) -> ClientReply | NotSent:
        """Return the one answer."""
        del request, sink
        await asyncio.sleep(0)
        if (not_sent := await before_send()) is not None:
            return not_sent
        log.add(
            Attempt(
                route=route,
                number=log.next_number,
                status=AttemptStatus.SUCCEEDED,
                started_at_utc=utc_now(),
                latency_ms=0.1,
                usage=ANSWER.usage,
            )
        )
        return ANSWER

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""


def task(samples: int) -> Task:
    """Make different samples with ids."""
    dataset = [Sample(f"{TEXT} {number}", "negative", id=f"s{number:06}") for number in range(samples)]
    return Task("bench", dataset, "Text: {input}\nJSON:", Label, scorers=[field_match("label")])


class Home:
    """A store and a service on a database of its own."""

    def __init__(self, folder: Path) -> None:
        url = f"sqlite:///{folder}/bench.db"
        upgrade(url)
        settings = load_settings()
        self.journal = Journal(url)
        self.store = SqlEvalStore(self.journal)
        router = LLMRouter(settings, InstantClient())
        self.service = LLMService(router=router, settings=settings, runs=JournalLLMRunRepo(self.journal))

    async def evaluate(self, given: Task, **options: Any) -> EvalReport:
        """Call `evaluate` once."""
        return await evaluate(
            given,
            ["ollama/llama3.2"],
            service=self.service,
            store=self.store,
            workspace_id="bench",
            concurrency=CONCURRENCY,
            **{"progress": False} | options,
        )


def rss_mib() -> float:
    """Return the memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 2**20


def cpu_s() -> float:
    """Return the CPU time of this process so far, all threads."""
    return time.process_time()


async def speed(folder: Path, samples: int = 10_000) -> None:
    """Measure CPU for each sample of a first run, and for a finished run that is resumed."""
    home, given = Home(folder), task(samples)
    await home.evaluate(task(200), name="warm")
    began, began_s = cpu_s(), time.perf_counter()
    await home.evaluate(given, name="run")
    took, took_s = cpu_s() - began, time.perf_counter() - began_s
    print(f"first run   {took / samples * 1000:8.3f} ms CPU a sample, {samples / took_s:8,.0f} samples/s")
    for _ in range(3):
        began = cpu_s()
        report = await home.evaluate(given, name="run")
        resumed = cpu_s() - began
        report.summary()
        print(f"resumed     {resumed:8.3f} s CPU, its summary {cpu_s() - began - resumed:8.3f} s CPU")
    home.journal.close()


async def growth(folder: Path, samples: int) -> None:
    """Measure memory while samples are worked on: at a tenth of them and at the end, before the report."""
    home, given = Home(folder), task(samples)
    await home.evaluate(task(200), name="warm")
    loaded = rss_mib()
    seen: list[float] = []

    def look(progress: Any) -> None:
        if progress.done % (samples // LOOKS) == 0 and progress.done > len(seen) * samples // LOOKS:
            seen.append(rss_mib())

    report = await home.evaluate(given, name="run", progress=look)
    steps = " ".join(f"{mib - loaded:+.0f}" for mib in seen)
    print(f"{samples:8,} samples: {loaded:.0f} MiB before; while it ran {steps}; with its report {rss_mib():.0f} MiB")
    assert len(report.results) == samples
    home.journal.close()


class Looking(InstantClient):
    """Looks at memory now and then while it answers."""

    def __init__(self, total: int) -> None:
        self.step, self.calls, self.seen = total // LOOKS, 0, list[float]()

    async def call(
        self,
        route: Route,
        request: LLMRequest,
        log: AttemptLog,
        before_send: BeforeSend = allow_sending,
        *,
        sink: AnswerSink | None = None,
    ) -> ClientReply | NotSent:
        """Return the one answer, and measure after a tenth of the rows."""
        self.calls += 1
        if self.calls % self.step == 0:
            self.seen.append(rss_mib())
        return await super().call(route, request, log, before_send, sink=sink)


def map_growth(folder: Path, rows: int) -> None:
    """Measure memory while different texts are extracted by `Session.map`, and with the frame."""
    texts = pd.Series([f"{TEXT} {number}" for number in range(rows)])
    client = Looking(rows)
    instant = mock.patch("llmkit.client_litellm.LiteLLMClient", return_value=client)
    options = {"database_url": f"sqlite:///{folder}/bench.db", "cache_dir": folder / "cache", "warm_up": False}
    with instant, Session("bench", **options) as session:
        asked = {"route": "ollama/llama3.2", "concurrency": CONCURRENCY, "progress": False}
        session.map(Label, [f"warm {number}" for number in range(200)], **asked)
        loaded = rss_mib()
        client.calls, client.seen = 0, []
        frame = session.map(Label, texts, name="run", **asked)
    steps = " ".join(f"{mib - loaded:+.0f}" for mib in client.seen)
    size = frame.memory_usage(deep=True).sum() / rows
    print(f"{rows:8,} rows: {loaded:.0f} MiB before; while it ran {steps}; with its frame {rss_mib():.0f} MiB")
    print(f"         the frame has {size:,.0f} bytes a row")
    assert (frame["status"] == "SUCCEEDED").all()


def main() -> None:
    """Parse the command line."""
    growing = {"memory": "growth", "map": "map-growth"}
    if sys.argv[1:2] and sys.argv[1] in growing:
        for number in (10_000, 100_000):
            command = [sys.executable, __file__, growing[sys.argv[1]], str(number)]
            subprocess.run(command, check=True, env=os.environ.copy())
        return
    with tempfile.TemporaryDirectory() as folder:
        if sys.argv[1:2] == ["growth"]:
            asyncio.run(growth(Path(folder), int(sys.argv[2])))
        elif sys.argv[1:2] == ["map-growth"]:
            map_growth(Path(folder), int(sys.argv[2]))
        else:
            asyncio.run(speed(Path(folder)))


if __name__ == "__main__":
    main()
