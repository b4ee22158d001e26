"""A whole service before a server that sends anything: its errors, its records and its next call."""

from __future__ import annotations

import json
import random
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from llmkit.errors import LLMError
from llmkit.evals import Sample, Task, evaluate, field_match
from llmkit.evals.run.warm_up import WARM_UP_FROM
from llmkit.persistence.eval_store import SqlEvalStore
from llmkit.ports import ClientReply
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing.scripted_client import ScriptedClient
from llmkit.types import WARM_UP_STAGE, TokenUsage, ToolCall
from tests.support.hostile_replies import (
    CONTEXT,
    PATHS,
    ROUTES,
    ask_hostile_server,
    build_reply,
    draw_reply,
    open_service,
    read_request,
    serving,
)
from tests.support.repositories import JournalHome
from tests.support.workers import ask

ROUNDS = 25
ODD_TEXT = "half \ud83d, nothing \x00, escape \x1b[2J"


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("provider", ROUTES)
@pytest.mark.parametrize("path", PATHS)
async def test_every_request_has_its_row_and_no_call_stays_started(
    path: str, provider: str, streams: bool, sqlite_url: str
) -> None:
    with JournalHome(sqlite_url) as home:
        requests, outcomes = await ask_hostile_server(provider, path, home.repo, ROUNDS, streams=streams)
        runs, attempts = home.runs(), home.attempts()
    assert len(attempts) == requests
    assert {run["status"] for run in runs} == {"SUCCEEDED", "FAILED"}
    assert sum(run["attempts"] for run in runs) == requests
    assert not outcomes["defect"]
    assert outcomes.total() == ROUNDS + 2


# --- what a custom client may return ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10**30, -(10**30), -1, 2**63])
async def test_an_impossible_count_is_unknown_and_costs_neither_the_answer_nor_its_record(
    count: int, database_url: str
) -> None:
    usage = TokenUsage(input_tokens=count, output_tokens=2, total_tokens=count)
    client = ScriptedClient([ClientReply("Hi", (), "stop", usage, "m")])
    settings = load_settings(cache_enabled=False)
    with JournalHome(database_url) as home:
        service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=home.repo)
        answer = await service.chat(ask("q", idempotency_key="k"), CONTEXT)
        again = await service.chat(ask("q", idempotency_key="k"), CONTEXT)
        (attempt,) = home.attempts()
        assert {run["status"] for run in home.runs()} == {"SUCCEEDED"}
    assert answer.usage == again.usage == TokenUsage(output_tokens=2)
    assert (attempt["input_tokens"], attempt["output_tokens"]) == (None, 2)


async def test_odd_characters_cost_neither_answer_nor_record(database_url: str) -> None:
    """Wherever in the answer they are."""
    tool = ToolCall(id=ODD_TEXT, name=ODD_TEXT, arguments=json.dumps({"a": ODD_TEXT}, ensure_ascii=False))
    client = ScriptedClient([ClientReply(ODD_TEXT, (tool,), "stop", TokenUsage(), ODD_TEXT, warnings=(ODD_TEXT,))])
    settings = load_settings(cache_enabled=False)
    with JournalHome(database_url) as home:
        service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=home.repo)
        answer = await service.chat(ask("q", idempotency_key="k"), CONTEXT)
        again = await service.chat(ask("q", idempotency_key="k"), CONTEXT)
        assert {run["status"] for run in home.runs()} == {"SUCCEEDED"}
        assert len(home.attempts()) == 1
    assert answer.text == ODD_TEXT.replace("\ud83d", "\ufffd")
    assert (again.text, again.tool_calls, again.response_model) == (answer.text, answer.tool_calls, answer.text)
    answer.model_dump_json()


@pytest.mark.parametrize("name", [7, ["a"], {"a": 1}, object()])
async def test_a_name_that_is_no_string_fails_the_call_and_keeps_its_attempt(name: Any, sqlite_url: str) -> None:
    client = ScriptedClient([ClientReply("Hi", (), "stop", TokenUsage(), name)])
    settings = load_settings(cache_enabled=False)
    with JournalHome(sqlite_url) as home:
        service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=home.repo)
        with pytest.raises(LLMError) as caught:
            await service.chat(ask("q", idempotency_key="k"), CONTEXT)
        (run,) = home.runs()
        assert (run["status"], run["attempts"], len(home.attempts())) == ("FAILED", 1, 1)
        assert (caught.value.run_id, len(caught.value.attempts)) == (run["id"], 1)


# --- the warm-up call of an evaluation --------------------------------------------------------------------------------


class Label(BaseModel):
    label: Literal["positive", "negative"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("junk", [None, -1, 10**30, "\ud800"], ids=repr)
async def test_a_warm_up_call_that_meets_anything_ends_no_evaluation(junk: Any, path: str, sqlite_url: str) -> None:
    body = {"model": junk, "message": {"role": "assistant", "content": junk}, "done": True, "prompt_eval_count": junk}
    replies = [build_reply(json.dumps(body).encode(), headers=(("Connection", "close"), ("Retry-After", "1e300")))]
    good = {"model": "m", "message": {"role": "assistant", "content": '{"label": "positive"}'}, "done": True}
    good |= {"prompt_eval_count": 900, "eval_count": 5}

    async def answer(reader: Any, writer: Any) -> None:
        await read_request(reader)
        reply = replies.pop() if replies else build_reply(json.dumps(good).encode(), headers=(("Connection", "close"),))
        writer.write(reply)
        await writer.drain()

    samples = [Sample(f"good {number}", "positive", id=str(number)) for number in range(WARM_UP_FROM)]
    task = Task("t", samples, "Text: {input}\nJSON:", Label, scorers=[field_match("label")])
    with JournalHome(sqlite_url) as home:
        async with serving(answer) as url:
            service, client = open_service(url, path, home.repo, max_retries=0)
            report = await evaluate(
                task, ["ollama/llama3.2"], service=service, store=SqlEvalStore(home.journal), workspace_id="w",
                progress=False,
            )  # fmt: skip
            await client.close()
        stages = [run["stage"] for run in home.runs()]
        assert {run["status"] for run in home.runs()} <= {"SUCCEEDED", "FAILED"}
        assert len(home.attempts()) == WARM_UP_FROM + 1
    assert stages.count(WARM_UP_STAGE) == report.work.warm_ups == 1
    assert {result.status for result in report.results} == {"SUCCEEDED"}


async def test_the_same_seed_draws_the_same_replies() -> None:
    first, second = random.Random(1), random.Random(1)
    assert [draw_reply("gemini", first) for _ in range(50)] == [draw_reply("gemini", second) for _ in range(50)]
