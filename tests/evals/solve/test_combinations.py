"""Functions of several calls together with limits, spans, cassettes and other processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from typer.testing import CliRunner

from llmkit import Session
from llmkit.cli.main import app
from llmkit.evals import AsyncBoundModel, BoundModel, Sample, Task, exact_match, load_tasks
from llmkit.testing import OllamaServer, Reply

ROUTE = "ollama/llama3.2"


def answer(request: Any) -> Reply:
    return Reply(request.json["messages"][-1]["content"].upper())


async def ask_three(sample: Sample, model: AsyncBoundModel) -> str:
    """Ask three times at once, and once more."""
    parts = await asyncio.gather(*[model.chat(f"{sample.input} {number}") for number in range(3)])
    return (await model.chat(" and ".join(part.text for part in parts))).text


def ask_three_in_threads(sample: Sample, model: BoundModel) -> str:
    """Do the same in threads of its own."""
    with ThreadPoolExecutor(3) as threads:
        parts = list(threads.map(lambda number: model.chat(f"{sample.input} {number}"), range(3)))
    return model.chat(" and ".join(part.text for part in parts)).text


SOLVES = pytest.mark.parametrize("solve", [ask_three, ask_three_in_threads])


def make_task(solve: Any, count: int) -> Task:
    samples = [Sample(f"q{number}", f"Q{number} 0 AND Q{number} 1 AND Q{number} 2") for number in range(count)]
    return Task("nested", samples, solve=solve, scorers=[exact_match()])


@SOLVES
def test_nested_calls_wait_for_each_other_under_a_small_limit(tmp_path: Path, solve: Any) -> None:
    """A sample holds no place while its function waits, or 24 samples would block the two places for ever."""
    with (
        OllamaServer(answer, models=["llama3.2"]) as server,
        Session(
            "w", ollama_api_base=server.url, database_url=f"sqlite:///{tmp_path}/a.db", concurrency_limit=2
        ) as session,
    ):
        report = session.evaluate(make_task(solve, 24), ROUTE, concurrency=24, progress=False, warm_up=False)
    assert report.summary()["mean"].tolist() == [1.0]
    assert report.work is not None
    assert report.work.sent == 24 * 4


@SOLVES
def test_spans_of_steps_are_below_their_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solve: Any) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer", provider.get_tracer)
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    with (
        OllamaServer(answer, models=["llama3.2"]) as server,
        Session("w", ollama_api_base=server.url, database_url=f"sqlite:///{tmp_path}/a.db") as session,
    ):
        session.evaluate(make_task(solve, 2), ROUTE, progress=False, warm_up=False)
    spans = exporter.get_finished_spans()
    samples = {each.context.span_id for each in spans if each.name == f"sample {ROUTE}"}
    calls = Counter(each.parent.span_id for each in spans if each.name == "chat llama3.2" and each.parent)
    assert calls == dict.fromkeys(samples, 4)
    provider.shutdown()


def test_a_cassette_answers_every_step(tmp_path: Path) -> None:
    task, database, file = make_task(ask_three, 3), f"sqlite:///{tmp_path}/a.db", str(tmp_path / "c.jsonl")
    with (
        OllamaServer(answer, models=["llama3.2"]) as server,
        Session("w", ollama_api_base=server.url, database_url=database) as session,
    ):
        session.evaluate(task, ROUTE, progress=False, warm_up=False)
    recorded = CliRunner().invoke(
        app, ["cassette", "record", file, "--workspace", "w"], env={"LLM_DATABASE_URL": database}
    )
    assert recorded.exit_code == 0, recorded.output
    # The server is gone.
    with Session("other", replay=file, ollama_api_base=server.url, ollama_model="llama3.2") as session:
        report = session.evaluate(task, ROUTE, progress=False)
        entries = session.recordings()
    assert report.summary()["mean"].tolist() == [1.0]
    assert entries["asked"].tolist() == [1] * 12


TASK = """
from llmkit.evals import BoundModel, Sample, Task


def pipeline(sample: Sample, model: BoundModel) -> str:
    first = model.chat(f"first {sample.input}").text
    return model.chat(f"second {first}").text


task = Task("steps", [Sample(f"case {number}") for number in range(16)], solve=pipeline)
"""
CHILD = """
import sys
from llmkit import Session
from llmkit.evals import load_tasks

(task,) = load_tasks(sys.argv[1])
with Session("w", ollama_api_base=sys.argv[2], database_url=sys.argv[3]) as session:
    report = session.evaluate(task, "ollama/llama3.2", name="run", progress=False, warm_up=False, concurrency=2)
assert report.counts["SUCCEEDED"] == 16
"""
BOUND_S = 200


@pytest.mark.slow
def test_two_processes_share_a_run_and_send_no_step_twice(tmp_path: Path) -> None:
    file, database = tmp_path / "tasks.py", f"sqlite:///{tmp_path}/a.db"
    file.write_text(TASK, encoding="utf-8")
    prompts: list[str] = []
    begun, joined = threading.Event(), threading.Event()

    def respond(request: Any) -> Reply:
        prompts.append(request.json["messages"][-1]["content"])
        begun.set()
        # The first process goes on once the second one is about to join it.
        assert joined.wait(BOUND_S)
        return answer(request)

    with OllamaServer(respond, models=["llama3.2"]) as server:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(file), server.url, database])
        try:
            assert begun.wait(BOUND_S)
            (task,) = load_tasks(file)
            with Session("w", ollama_api_base=server.url, database_url=database) as session:
                joined.set()
                report = session.evaluate(task, ROUTE, name="run", progress=False, warm_up=False, concurrency=2)
            assert child.wait(BOUND_S) == 0
        finally:
            child.kill()
            child.wait(BOUND_S)
    assert report.counts["SUCCEEDED"] == 16
    assert len(prompts) == 32
    assert set(Counter(prompts).values()) == {1}
