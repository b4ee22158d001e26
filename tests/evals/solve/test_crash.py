"""A process that is killed in the third call of a sample is resumed there: a prompt, and an agent with a tool."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from llmkit import Session
from llmkit.evals import load_tasks
from llmkit.testing import Fault, OllamaServer, Reply, ToolCall

TASK = '''
from llmkit.evals import BoundModel, Sample, Task


def pipeline(sample: Sample, model: BoundModel) -> str:
    def look_up(city: str) -> str:
        """Weather of a city."""
        return f"third {city}"

    draft = model.chat(f"first {sample.input}").text
    return model.agent(tools=[look_up]).run_sync(f"second {draft}").output


task = Task("steps", [Sample(f"case {number}", id=str(number)) for number in range(6)], solve=pipeline)
'''

CHILD = """
import sys
from llmkit import Session
from llmkit.evals import load_tasks

file, url = sys.argv[1:]
(task,) = load_tasks(file)
with Session("w", ollama_api_base=url) as session:
    session.evaluate(task, "ollama/llama3.2", name="run", progress=False, warm_up=False, concurrency=2)
"""

BOUND_S = 200


@pytest.mark.slow
def test_a_run_that_is_killed_in_a_third_step_pays_only_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tasks.py"
    file.write_text(TASK, encoding="utf-8")
    prompts: list[str] = []
    killed, reached = threading.Event(), threading.Semaphore(0)

    def answer(request: Any) -> Any:
        prompt = request.json["messages"][-1]["content"]
        prompts.append(prompt)
        if prompt.startswith("third") and not killed.is_set() and count(prompts, "third") > 2:
            reached.release()
            return Fault.hang()
        if prompt.startswith("second"):
            return Reply("", tool_calls=[ToolCall("look_up", {"city": prompt})])
        return Reply(f"done {prompt}")

    monkeypatch.chdir(tmp_path)
    with OllamaServer(answer, models=["llama3.2"]) as server:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(file), server.url], cwd=tmp_path)
        try:
            # Two samples are done, and both workers wait for the third answer of another.
            assert all(reached.acquire(timeout=BOUND_S) for _ in range(2))
            child.send_signal(signal.SIGKILL)
        finally:
            child.kill()
            child.wait(BOUND_S)
        killed.set()
        assert len(prompts) == 4 * 3
        (task,) = load_tasks(file)
        with Session("w", ollama_api_base=server.url) as session:
            report = session.evaluate(task, "ollama/llama3.2", name="run", progress=False, warm_up=False)
            rows = session.runs()
    assert report.counts["SUCCEEDED"] == 6
    # Of 18 requests, the two that were cut off are sent again, and nothing else.
    assert [count(prompts, step) for step in ("first", "second", "third")] == [6, 6, 6 + 2]
    assert len(report.in_doubt) == 2
    assert (rows["served_from"] == "replay").sum() == 2 * 2


def count(prompts: list[str], step: str) -> int:
    return sum(prompt.startswith(step) for prompt in prompts)
