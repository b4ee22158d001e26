"""An evaluation through the session, the service, LiteLLM, HTTP and the database, killed and continued."""

import json
import subprocess
import sys
import threading
import time

import pytest

from llmkit.session import Session
from llmkit.testing import Fault, OllamaServer, Reply
from tests.evals.fakes import sentiment_task

SAMPLES = 30

TASK_FILE = """
from typing import Literal
from pydantic import BaseModel
from llmkit.evals import Sample, Task, field_match

class Sentiment(BaseModel):
    label: Literal["positive", "negative"]

task = Task(
    name="sentiment",
    dataset=[Sample(f"good {number}", "positive") for number in range(30)],
    prompt="Text: {input}",
    output_type=Sentiment,
    scorers=[field_match("label")],
)
"""

PROGRAM = """
import json, sys
from llmkit.evals import load_tasks
from llmkit.session import Session

with Session("w") as session:
    options = {"name": "run", "progress": False, "concurrency": 2, "warm_up": False}
    report = session.evaluate(*load_tasks("task.py"), ["ollama/llama3.2"], **options)
print(json.dumps(report.to_json()))
"""


def session_for(server, **settings):
    return Session("w", ollama_api_base=server.url, max_retries=0, **settings)


def answer(request):
    return Reply(json.dumps({"label": "positive"}))


@pytest.fixture
def server():
    with OllamaServer(answer, models=["llama3.2"]) as running:
        yield running


def test_a_first_run_sends_and_a_second_does_not(server):
    with session_for(server) as session:
        first = session.evaluate(sentiment_task(), ["ollama/llama3.2"], name="run", progress=False)
        sent = len(server.calls)
        second = session.evaluate(sentiment_task(), ["ollama/llama3.2"], name="run", progress=False)
        frame = second.samples()
    assert (sent, len(server.calls)) == (4, 4)
    assert (first.work.sent, second.work.sent) == (4, 0)
    assert second.summary()["mean"].iloc[0] == 0.5
    assert frame["output_tokens"].sum() == server.usage.output_tokens
    assert set(frame["output_mode"]) == {"schema"}
    assert set(frame["served_route"]) == {"ollama/llama3.2"}


def test_an_invalid_answer_is_repaired_once_and_then_a_row():
    replies = [Reply("no json"), Reply('{"label": "positive"}'), *[Reply('{"label": "sad"}')] * 2]
    with OllamaServer(replies, models=["llama3.2"]) as server, session_for(server) as session:
        report = session.evaluate(
            sentiment_task(), ["ollama/llama3.2"], name="run", progress=False, limit=2, concurrency=1
        )
    frame = report.samples().sort_values("sample_id")
    assert list(frame["status"]) == ["SUCCEEDED", "FAILED"]
    assert list(frame["valid_first_try"]) == [False, False]
    assert list(frame["requests"]) == [2, 2]
    assert frame["error_code"].iloc[1] == "invalid_output"


def test_what_failed_is_all_that_is_sent_again():
    broken = []

    def sometimes(request):
        text = json.dumps(request.json)
        if "awful" in text and not broken:
            broken.append(text)
            return Fault.status(500)
        return answer(request)

    with OllamaServer(sometimes, models=["llama3.2"]) as server, session_for(server) as session:
        first = session.evaluate(sentiment_task(), ["ollama/llama3.2"], name="run", progress=False)
        sent = len(server.calls)
        second = session.evaluate(sentiment_task(), ["ollama/llama3.2"], name="run", progress=False)
        assert len(server.calls) == sent + 1
    assert first.counts["FAILED"] == 1
    assert not second.has_failures


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again(tmp_path):
    (tmp_path / "task.py").write_text(TASK_FILE)

    dead = threading.Event()

    def until_the_twelfth(request):
        return answer(request) if dead.is_set() or len(server.calls) <= 10 else Fault.hang()

    with OllamaServer(until_the_twelfth, models=["llama3.2"]) as server:
        environment = {"LLM_OLLAMA_API_BASE": server.url, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        command = [sys.executable, "-c", PROGRAM]
        victim = subprocess.Popen(command, cwd=tmp_path, env=environment)
        deadline = time.monotonic() + 200
        while len(server.calls) < 12 and time.monotonic() < deadline:
            time.sleep(0.01)
        victim.kill()
        victim.wait()
        dead.set()
        before = len(server.calls)
        assert before == 12
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True, timeout=250)
        report = json.loads(done.stdout)
        sent_again = len(server.calls) - SAMPLES

    assert report["counts"]["SUCCEEDED"] == SAMPLES
    # At most the two calls that were under way when the process died are in doubt, and only they are sent again.
    assert 0 <= sent_again <= 2
    assert len(report["in_doubt"]) <= 2
    assert report["work"]["reused"] >= before - 4
