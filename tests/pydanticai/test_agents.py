"""Agents from end to end, on both providers' wires: tools, histories, keys, and a process that dies half-way."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.messages import ModelMessagesTypeAdapter
from sqlalchemy import create_engine, text

from llmkit.testing import Fault, OllamaServer, Reply, ToolCall
from tests.support.one_agent import weather
from tests.support.scripted_services import Wire, opened_wire


class Label(BaseModel):
    label: Literal["positive", "negative"]


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


@pytest.fixture(params=["ollama", "gemini"])
async def wire(request: pytest.FixtureRequest) -> AsyncIterator[Wire]:
    async with opened_wire(request.param) as wire:
        yield wire


def weather_agent(wire: Wire, seen: list[object], **options: object) -> Agent[None, Label]:
    """Two tools, one that asks for a retry and one async, and a structured result."""
    agent = Agent(wire.model(**options), output_type=Label, instructions="Use the tools.")

    @agent.tool_plain
    def look_up(city: str) -> str:
        """Weather of a city."""
        seen.append(city)
        if city == "Rome":
            raise ModelRetry("no such city, try Paris")
        return "sunny"

    @agent.tool_plain
    async def add(a: int, b: int) -> int:
        """Sum."""
        await asyncio.sleep(0)
        seen.append(a + b)
        return a + b

    return agent


SCRIPT = [
    Reply(tool_calls=[ToolCall("look_up", {"city": "Rome"}), ToolCall("add", {"a": 2, "b": 3})], input_tokens=5),
    Reply(tool_calls=[ToolCall("look_up", {"city": "Paris"})]),
    Reply('{"label": "positive"}'),
]


async def test_parallel_tool_calls_a_retry_and_a_typed_result(wire: Wire) -> None:
    wire.server.script(SCRIPT)
    seen: list[object] = []
    result = await weather_agent(wire, seen, idempotency_key="agent").run("Weather?")
    assert result.output == Label(label="positive")
    assert sorted(map(str, seen)) == ["5", "Paris", "Rome"]
    assert result.usage.requests == 3
    second = wire.server.calls[1].body.decode()
    assert "no such city" in second
    assert "look_up" in second
    rows = wire.runs.runs
    assert [run.start.idempotency_key for run in rows] == ["agent#0", "agent#1", "agent#2"]
    assert {run.start.pipeline_run_id for run in rows} == {"p"}
    assert [run.start.metadata["agent"]["step"] for run in rows] == [0, 1, 2]
    assert len({run.start.metadata["agent"]["schema_sha256"] for run in rows}) == 1
    assert [len(run.attempts) for run in rows] == [1, 1, 1]


async def test_the_same_key_replays_every_step_of_an_agent(wire: Wire) -> None:
    wire.server.script(SCRIPT)
    first = await weather_agent(wire, [], idempotency_key="agent").run("Weather?")
    again = await weather_agent(wire, [], idempotency_key="agent").run("Weather?")
    assert again.output == first.output
    assert len(wire.server.calls) == 3
    assert again.usage.input_tokens == first.usage.input_tokens
    assert {str(run.success.served_from) for run in wire.runs.runs[3:] if run.success} == {"replay"}


async def test_a_history_is_serialised_and_resumed(wire: Wire) -> None:
    wire.server.script([*SCRIPT, Reply(tool_calls=[ToolCall("add", {"a": 1, "b": 1})]), Reply('{"label": "negative"}')])
    first = await weather_agent(wire, [], idempotency_key="talk").run("Weather?")
    stored = ModelMessagesTypeAdapter.dump_json(first.all_messages())
    history = ModelMessagesTypeAdapter.validate_json(stored)
    second = await weather_agent(wire, [], idempotency_key="talk").run("And now?", message_history=history)
    assert second.output == Label(label="negative")
    keys = [run.start.idempotency_key for run in wire.runs.runs]
    assert keys == [f"talk#{step}" for step in range(5)]
    last = wire.server.calls[-1].body.decode()
    for words in ("Weather?", "no such city", "sunny", "And now?", "positive"):
        assert words in last


async def test_a_recursive_tool_parameter_arrives(wire: Wire) -> None:
    agent = Agent(wire.model())

    @agent.tool_plain
    def count(tree: Tree) -> int:
        return 1 + sum(count(child) for child in tree.children)

    call = {"tree": {"name": "a", "children": [{"name": "b"}]}}
    wire.server.script([Reply(tool_calls=[ToolCall("count", call)]), Reply("two")])
    assert (await agent.run("q")).output == "two"
    assert "2" in wire.server.calls[1].body.decode()


# --- a process that dies ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_agent_does_not_repeat_its_first_step(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'runs.db'}"
    first = Reply(tool_calls=[ToolCall("look_up", {"city": "Rome"})])
    with OllamaServer([first, Fault.hang(), Reply("It is sunny.")], models=["llama3.2"]) as server:
        killed = subprocess.Popen(
            [sys.executable, "-m", "tests.support.one_agent", server.url, database],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        deadline = time.monotonic() + 200
        while len(server.calls) < 2 and time.monotonic() < deadline and killed.poll() is None:
            time.sleep(0.02)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        assert killed.returncode == -signal.SIGKILL
        assert len(server.calls) == 2
        said = asyncio.run(weather(server.url, database))
        asked = [json.dumps(call.json["messages"]) for call in server.calls]
    assert said == "It is sunny."
    assert len(asked) == 3
    assert asked[1] == asked[2]
    assert "sunny" in asked[2]
    assert _rows(tmp_path) == [
        ("agent#0", "SUCCEEDED", None, "provider"),
        ("agent#1", "FAILED", "abandoned", None),
        (None, "SUCCEEDED", None, "replay"),
        ("agent#1", "SUCCEEDED", None, "provider"),
    ]


def _rows(folder: Path) -> list[tuple[object, ...]]:
    engine = create_engine(f"sqlite:///{folder / 'runs.db'}")
    columns = "idempotency_key, status, error_code, served_from"
    with engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(text(f"SELECT {columns} FROM llm_runs ORDER BY id"))]
    engine.dispose()
    return rows
