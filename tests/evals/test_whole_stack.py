"""An evaluation through the session, the service, LiteLLM, HTTP and the database; `test_cli.py` kills one."""

import json

import pytest

from llmkit.session import Session
from llmkit.testing import Fault, OllamaServer, Reply
from tests.support.eval_fakes import sentiment_task


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
