"""What is durable when a request leaves, and when its answer is seen; no write transaction in between (spec 3.3)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import pytest
from pydantic import BaseModel

from llmkit import Session
from llmkit.errors import LLMError
from llmkit.evals import Sample, Task, field_match
from llmkit.persistence.transaction_watch import WriteTransactionWatch
from llmkit.persistence.unit_of_work import SqlUnitOfWork
from llmkit.ports import AnswerSink, AttemptLog, BeforeSend, ClientReply, NotSent, allow_sending
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing import Fault, OllamaServer, Reply
from llmkit.testing.request_log import RecordedRequest
from llmkit.testing.scripted_client import ScriptedClient
from llmkit.types import LLMRequest, Route
from tests.support.repositories import JournalHome, async_engine
from tests.support.workers import HERE, Worker, ask


class Mood(BaseModel):
    label: str


class WatchedClient(ScriptedClient):
    """Looks for open write transactions whenever a request leaves."""

    def __init__(self, watch: WriteTransactionWatch, patience_s: float) -> None:
        super().__init__(latency_s=0.001)
        self._watch = watch
        self._patience_s = patience_s

    async def call(
        self,
        route: Route,
        request: LLMRequest,
        log: AttemptLog,
        before_send: BeforeSend = allow_sending,
        *,
        sink: AnswerSink | None = None,
    ) -> ClientReply | NotSent:
        if (not_sent := await before_send()) is not None:
            return not_sent
        await self._watch.assert_none_held(self._patience_s)
        return await super().call(route, request, log, before_send, sink=sink)


async def test_the_journal_holds_no_write_transaction_across_a_call(database_url: str) -> None:
    settings = load_settings(cache_enabled=False)
    with JournalHome(database_url) as home, WriteTransactionWatch() as watch:
        client = WatchedClient(watch, patience_s=5)
        service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=home.repo)
        asked = [ask(f"{number}", idempotency_key=f"{number}" if number % 2 else None) for number in range(200)]
        await asyncio.gather(*(service.chat(each, HERE) for each in asked))
        assert len(client.calls) == 200
        assert watch.count >= 2


async def test_the_hook_notices_a_session_that_is_held_across_a_call(database_url: str) -> None:
    settings = load_settings(cache_enabled=False)
    async with async_engine(database_url) as engine:
        with WriteTransactionWatch() as watch:
            client = WatchedClient(watch, patience_s=0.05)
            async with SqlUnitOfWork(engine) as unit:
                service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=unit.runs)
                with pytest.raises(LLMError, match="AssertionError") as caught:
                    await service.chat(ask("q"), HERE)
                assert "open across a call" in str(caught.value.__cause__)


def _watched(watch: WriteTransactionWatch, held: list[object], answer: Reply) -> Callable[[RecordedRequest], object]:
    """Answers, after noting what was open when the request came and does not end by itself."""

    def reply(_request: RecordedRequest) -> object:
        numbers = {transaction.number for transaction in watch.open_transactions}
        deadline = time.monotonic() + 60
        while still := [each for each in watch.open_transactions if each.number in numbers]:
            if time.monotonic() > deadline:
                held.append(still)
                break
            time.sleep(0.001)
        return answer

    return reply


def test_chats_extractions_and_evaluations_hold_none_over_real_http(database_url: str) -> None:
    samples = [Sample(f"text {number}", "good") for number in range(12)]
    task = Task("mood", samples, "Mood of: {input}", Mood, [field_match("label")])
    held: list[object] = []
    with WriteTransactionWatch() as watch:
        answer = Reply('{"label": "good"}')
        with (
            OllamaServer(_watched(watch, held, answer)) as server,
            Session("lab", database_url=database_url, ollama_api_base=server.url) as session,
        ):
            session.chat("one")
            session.extract(Mood, "two")
            report = session.evaluate(task, ["ollama/llama3.2"], name="run", progress=False, concurrency=4)
            assert server.call_count == 2 + len(samples)
        assert report.counts["SUCCEEDED"] == len(samples)
        assert watch.count >= 2
    assert held == []


def test_others_see_started_before_the_request(database_url: str) -> None:
    """The calls are a child's; this process reads the database when their requests arrive, and when they are told."""
    seen: dict[str, list[tuple[str, int]]] = {}

    def look(key: str) -> None:
        (run,) = [run for run in home.runs() if run["idempotency_key"] == key]
        attempts = [attempt for attempt in home.attempts() if attempt["run_id"] == run["id"]]
        seen.setdefault(key, []).append((run["status"], len(attempts)))

    def reply(request: RecordedRequest) -> object:
        look(request.json["messages"][0]["content"])
        return "done"

    keys = [f"key {number}" for number in range(10)]
    with JournalHome(database_url) as home, OllamaServer(reply) as server:
        arguments = {"database": database_url, "url": server.url, "keys": keys}
        with Worker("one_by_one", **arguments) as worker:
            worker.go()
            for key in keys:
                answer = worker.result()
                assert answer == {"key": key, "text": "done"}
                look(key)
                worker.tell()
    assert seen == {key: [("STARTED", 0), ("SUCCEEDED", 1)] for key in keys}


def test_a_failure_is_recorded_before_it_is_raised(database_url: str) -> None:
    with (
        OllamaServer([Fault.status(500)]) as server,
        Session("lab", database_url=database_url, ollama_api_base=server.url, max_retries=1) as session,
        JournalHome(database_url) as home,
    ):
        with pytest.raises(Exception, match="500") as caught:
            session.chat("q", route="ollama/llama3.2")
        (run,) = home.runs()
        assert (run["id"], run["status"], run["error_code"]) == (caught.value.run_id, "FAILED", caught.value.code)
        assert [attempt["status_code"] for attempt in home.attempts()] == [500, 500]
        assert json.loads(run["plan_json"])["failures"] == [
            {"route": "ollama/llama3.2", "error_code": caught.value.code}
        ]
