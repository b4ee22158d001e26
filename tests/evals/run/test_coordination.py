"""Two real processes on one run name, one database and one server; and which cells a walk visits."""

import json
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.evals.run.work_queue import WorkQueue
from llmkit.testing import Fault, OllamaServer, Reply

SAMPLES = 60
CONCURRENCY = 4

PROGRAM = f"""
import json, sys
from typing import Literal
from pydantic import BaseModel
from llmkit.evals import Sample, Task, field_match
from llmkit.session import Session

class Sentiment(BaseModel):
    label: Literal["positive", "negative"]

task = Task(
    name="sentiment",
    dataset=[Sample(f"number {{number}}.", "positive") for number in range({SAMPLES})],
    prompt="Text: {{input}}",
    output_type=Sentiment,
    scorers=[field_match("label")],
)
with Session("w") as session:
    session.chat("load what a call takes", route="ollama/llama3.2")
    print("ready", flush=True)
    for name in sys.stdin:
        report = session.evaluate(
            task, ["ollama/llama3.2"], name=name.strip(), progress=False, concurrency={CONCURRENCY}, warm_up=False
        )
        samples = report.samples().drop(columns="finished_at_utc")
        print(json.dumps([report.to_json(), samples.to_json(orient="records")]), flush=True)
"""


def asked(server):
    """How often the server was asked about each sample."""
    texts = [json.loads(call.body)["messages"][-1]["content"] for call in server.calls]
    return Counter(text.removeprefix("Text: ") for text in texts)


@pytest.fixture
def server():
    """Slow until both processes are there, so that one that begins late finds something left."""

    def slow(request):
        alone = running.max_in_flight <= CONCURRENCY
        return Fault.delay(0.5 if alone else 0.03, Reply(json.dumps({"label": "positive"})))

    with OllamaServer(slow, models=["llama3.2"]) as running:
        yield running


@pytest.fixture
def both(server, tmp_path, database_url):
    """Two processes that have done all but begin."""
    environment = {"LLM_OLLAMA_API_BASE": server.url, "LLM_DATABASE_URL": database_url}
    environment |= {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", PROGRAM]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes)  # type: ignore[call-overload]
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def begin(processes, server, name):
    server.clear()
    for process in processes:
        process.stdin.write(f"{name}\n")
        process.stdin.flush()


def told(process):
    return json.loads(process.stdout.readline())


@pytest.mark.slow
def test_survivor_finishes_a_shared_run(server, both):
    """Two processes share a run, and one of them is killed."""
    begin(both, server, "shared")
    (first, first_samples), (second, second_samples) = map(told, both)
    assert asked(server) == {f"number {number}.": 1 for number in range(SAMPLES)}, "no sample is sent twice"
    assert first_samples == second_samples
    assert first["counts"] == second["counts"]
    assert first["counts"]["SUCCEEDED"] == SAMPLES
    assert first["summary"] == second["summary"]
    work = [report["work"] for report in (first, second)]
    assert sum(each["sent"] for each in work) == SAMPLES
    assert all(each["sent"] > 0 for each in work), "both make progress"

    victim, survivor = both
    begin(both, server, "left")
    deadline = time.monotonic() + 60
    while len(server.calls) < 15 and time.monotonic() < deadline:
        time.sleep(0.01)
    victim.kill()
    report, _samples = told(survivor)
    assert report["counts"]["SUCCEEDED"] == SAMPLES
    asked_again = {text: times for text, times in asked(server).items() if times > 1}
    # Only what was under way when the process died may be sent again, and is listed.
    assert len(asked_again) <= CONCURRENCY
    assert set(asked_again.values()) <= {2}
    assert len(report["in_doubt"]) >= len(asked_again)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1, 60),
    st.lists(st.tuples(st.lists(st.integers(0, 59), max_size=4), st.floats(0, 1), st.integers(0, 9)), max_size=8),
)
def test_a_walk_takes_every_cell_once_wherever_it_is_sent(total, moves):
    queue = WorkQueue(total)
    taken = []
    for occupied, share, steps in moves:
        queue.move_away([place % total for place in occupied], share)
        taken += [place for _ in range(steps) if (place := queue.take()) is not None]
    taken += list(iter(queue.take, None))
    assert sorted(taken) == list(range(total))
    assert queue.open == 0


def test_a_walk_goes_on_in_the_middle_of_what_others_leave_open():
    queue = WorkQueue(100)
    for place in range(10):
        queue.settle(place)
    queue.move_away([10, 80])
    assert queue.take() == 11 + 69 // 2
    alone = WorkQueue(100)
    alone.move_away([])
    assert alone.take() == 0
