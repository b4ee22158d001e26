"""A real Jupyter kernel: progress bars belong to their cell, and an interrupt leaves a usable partial result."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager, start_new_kernel

from llmkit.notebook.event_loop import INTERRUPTED
from llmkit.testing import Fault, OllamaServer, Reply

HANG_BOUND_S = 90

SETUP = """
import llmkit, pandas as pd
s = llmkit.Session("study", ollama_api_base={url!r}, max_retries=0)
s.chat("warm up").text
"""
MAP = 's.map("Say {text}", pd.Series([f"t{n}" for n in range(6)]), name="n", concurrency=2)'

EVALUATION = """
from pydantic import BaseModel
from llmkit.evals import Sample, Task, field_match
class City(BaseModel):
    name: str
samples = [Sample(id=f"t{n}", input=f"t{n}", target={"name": "x"}) for n in range(4)]
task = Task(name="c", dataset=samples, prompt="{input}", output_type=City, scorers=[field_match("name")])
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[tuple[KernelManager, Any]]:
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=HANG_BOUND_S, cwd=str(tmp_path))
    try:
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.context.destroy()


def _outputs(client: Any, message_id: str) -> list[dict[str, Any]]:
    """Return the outputs of a cell, once it is idle again."""
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + HANG_BOUND_S
    while time.monotonic() < deadline:
        message = client.get_iopub_msg(timeout=HANG_BOUND_S)
        if message["parent_header"].get("msg_id") != message_id:
            continue
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return found
        found.append(message)
    raise AssertionError("the cell did not end")


def _run(client: Any, code: str) -> list[dict[str, Any]]:
    return _outputs(client, client.execute(code))


@pytest.mark.slow
@pytest.mark.parametrize("call", [MAP, f"await {MAP.replace('s.map', 's.amap')}"])
def test_an_interrupted_cell_leaves_a_partial_result_and_the_next_continues(
    kernel: tuple[KernelManager, Any], call: str
) -> None:
    manager, client = kernel
    with OllamaServer() as ollama:
        _run(client, SETUP.format(url=ollama.url))
        ollama.script(
            lambda request: Fault.hang() if request.json["messages"][0]["content"][-2:] in ("t2", "t3") else "yes"
        )
        cell = client.execute(call)
        deadline = time.monotonic() + HANG_BOUND_S
        while len(ollama.calls) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        manager.interrupt_kernel()
        shown = _outputs(client, cell)
        (error,) = [each["content"] for each in shown if each["msg_type"] == "error"]
        assert error["traceback"] == [
            "Interrupted: 2 of 6 rows are done and in .partial of the session; the same call does the rest"
        ]
        assert any("application/vnd.jupyter.widget-view+json" in str(each["content"]) for each in shown)
        assert ollama.wait_until_idle(60)
        assert sum(call.client_disconnected for call in ollama.calls) == 2
        ollama.script("yes")
        before = len(ollama.calls)
        shown = _run(client, f"print(s.partial['status'].tolist()); print({MAP}['status'].tolist())")
        printed = "".join(each["content"]["text"] for each in shown if each["msg_type"] == "stream")
        assert str(["SUCCEEDED"] * 2 + ["NOT_RUN"] * 4) in printed
        assert str(["SUCCEEDED"] * 6) in printed
        assert len(ollama.calls) - before == 4


@pytest.mark.slow
def test_an_interrupted_await_of_an_evaluation_is_one_line(kernel: tuple[KernelManager, Any]) -> None:
    manager, client = kernel
    with OllamaServer() as ollama:
        _run(client, SETUP.format(url=ollama.url))
        _run(client, EVALUATION)
        ollama.script(lambda request: Fault.hang() if "t2" in str(request.json["messages"]) else '{"name": "x"}')
        cell = client.execute('await s.aevaluate(task, ["ollama/llama3.2"], concurrency=1, warm_up=False)')
        deadline = time.monotonic() + HANG_BOUND_S
        while len(ollama.calls) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        manager.interrupt_kernel()
        (error,) = [each["content"] for each in _outputs(client, cell) if each["msg_type"] == "error"]
        assert error["traceback"] == [
            "Interrupted: finished results are in .partial of the session; the same call does the rest"
        ]
        shown = _run(client, "print(s.partial.counts['SUCCEEDED'])")
        assert "".join(each["content"]["text"] for each in shown if each["msg_type"] == "stream") == "2\n"


@pytest.mark.slow
def test_routes_are_completed(kernel: tuple[KernelManager, Any]) -> None:
    _, client = kernel
    with OllamaServer(models=["llama3.2", "qwen3:8b"]) as ollama:
        _run(client, SETUP.format(url=ollama.url))
        for code, expected in (
            ('s.chat("x", route="', {"ollama/llama3.2", "ollama/qwen3:8b", "gemini/gemini-2.5-flash"}),
            ('s.chat("x", route="ollama/q', {"ollama/qwen3:8b"}),
            ('s.evaluate(task, ["ollama/llama3.2", "gem', {"gemini/gemini-2.5-flash"}),
        ):
            client.complete(code, len(code))
            content = client.get_shell_msg(timeout=HANG_BOUND_S)["content"]
            while "matches" not in content:
                content = client.get_shell_msg(timeout=HANG_BOUND_S)["content"]
            completed = {code[: content["cursor_start"]] + match for match in content["matches"]}
            assert expected <= {line.rpartition('"')[2] for line in completed}, content


@pytest.mark.slow
def test_a_displayed_stream_grows_and_ends_as_the_card_of_the_answer(kernel: tuple[KernelManager, Any]) -> None:
    manager, client = kernel
    with OllamaServer() as ollama:
        _run(client, SETUP.format(url=ollama.url))
        ollama.script(Fault.stream_pace(0.02, Reply("one <b>two</b> three four five six")))
        outputs = _run(client, 's.stream("Count")')
        shown = [each["content"] for each in outputs if each["msg_type"].endswith("display_data")]
        assert len({each["transient"]["display_id"] for each in shown}) == 1
        plain = [each["data"]["text/plain"] for each in shown]
        assert plain[0].endswith("characters so far ...]")
        assert plain[-1].startswith("one <b>two</b> three four five six\n[ollama/llama3.2")
        assert all("&lt;b&gt;" in each["data"]["text/html"] for each in shown[-1:])
        assert len(shown) < 7

        ollama.script(Fault.stream_pace(0.05, Reply("word " * 2000)))
        for code in ('s.stream("Go on")', 'async for text in s.astream("And on"): pass'):
            calls = len(ollama.calls)
            cell = client.execute(code)
            deadline = time.monotonic() + HANG_BOUND_S
            while len(ollama.calls) == calls and time.monotonic() < deadline:
                time.sleep(0.05)
            manager.interrupt_kernel()
            (error,) = [each["content"] for each in _outputs(client, cell) if each["msg_type"] == "error"]
            assert error["traceback"] == [f"Interrupted: {INTERRUPTED}"]
            assert ollama.wait_until_idle(60)
            assert ollama.calls[-1].client_disconnected
