"""The model of a session in agents: in scripts and event loops, recorded, and replayed by key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from pydantic_ai import Agent, AgentRunResultEvent

from llmkit import LLMBadRequest, Session
from llmkit.persistence.journal import JournalLLMRunRepo
from llmkit.ports import RunFailure
from llmkit.testing import Fault, GeminiServer, Reply, ToolCall

PIN = "gemini/gemini-2.5-flash"


@pytest.fixture
def gemini() -> Iterator[GeminiServer]:
    script = [Reply(tool_calls=[ToolCall("add", {"a": 2, "b": 3})]), Reply("It is 5.")]
    with GeminiServer(script) as server:
        yield server


@pytest.fixture
def session(gemini: GeminiServer) -> Iterator[Session]:
    with Session("agents", gemini_api_base=gemini.url, gemini_api_key="a-key-of-no-use") as session:
        yield session


def adder(session: Session, **how: object) -> Agent[None, str]:
    agent = Agent(session.model(PIN, **how))

    @agent.tool_plain
    def add(a: int, b: int) -> int:
        """Sum."""
        return a + b

    return agent


@pytest.fixture
def _loop_of_a_script() -> Iterator[None]:
    """Set an event loop, because Pydantic AI's `run_sync` would leave its own open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.mark.usefixtures("_loop_of_a_script")
def test_every_step_of_an_agent_is_a_row(session: Session, gemini: GeminiServer) -> None:
    agent = adder(session, pipeline_run_id="sum", stage="adding", idempotency_key="sum-1")
    assert agent.run_sync("2 + 3?").output == "It is 5."
    rows = session.runs(pipeline_run_id="sum")
    assert rows["status"].tolist() == ["SUCCEEDED", "SUCCEEDED"]
    assert set(rows["stage"]) == {"adding"}
    again = adder(session, pipeline_run_id="sum", stage="adding", idempotency_key="sum-1")
    assert again.run_sync("2 + 3?").output == "It is 5."
    assert len(gemini.calls) == 2


async def test_an_agent_streams_across_event_loops(session: Session, gemini: GeminiServer) -> None:
    async with adder(session).run_stream_events("2 + 3?") as stream:
        events = [event async for event in stream]
    assert isinstance(events[-1], AgentRunResultEvent)
    assert events[-1].result.output == "It is 5."
    # With the signature in the id of its call: Gemini refuses a history without.
    assert gemini.calls[1].json["contents"][1]["parts"][-1]["thoughtSignature"]
    assert session.runs()["status"].tolist() == ["SUCCEEDED", "SUCCEEDED"]


async def test_leaving_a_stream_closes_its_connection_and_records_it(
    session: Session, gemini: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark_failed = JournalLLMRunRepo.mark_failed

    async def mark_later(self: JournalLLMRunRepo, failure: RunFailure) -> bool:
        await asyncio.sleep(0.3)
        return await mark_failed(self, failure)

    monkeypatch.setattr(JournalLLMRunRepo, "mark_failed", mark_later)
    gemini.script(Fault.stream_stall(1, Reply("It is 5.")))
    async with Agent(session.model(PIN)).run_stream("2 + 3?") as result:
        async for _ in result.stream_text(debounce_by=None):
            break
    assert await asyncio.to_thread(gemini.wait_until_idle, 60)
    assert [call.outcome for call in gemini.calls] == ["client_left"]
    runs = session.runs()
    assert (runs["status"].tolist(), runs["error_code"].tolist()) == (["FAILED"], ["cancelled"])


async def test_an_agent_runs_in_a_running_loop(session: Session, gemini: GeminiServer) -> None:
    assert (await adder(session).run("2 + 3?")).output == "It is 5."
    assert len(gemini.calls) == 2


def test_a_bad_route_is_refused(session: Session) -> None:
    with pytest.raises(LLMBadRequest, match="provider/model"):
        session.model("gemini-2.5-flash")
