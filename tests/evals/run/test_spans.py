"""Spans of an evaluation, read through the SDK's in-memory exporter."""

import json

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from llmkit.errors import LLMStoreError
from llmkit.evals import evaluate
from llmkit.session import Session
from llmkit.telemetry import Span, span
from llmkit.testing import Fault, OllamaServer, Reply
from tests.support.eval_fakes import FakeExtract, FakeService, MemoryStore, sentiment_task

ROUTE = "ollama/llama3.2"
SECRET_WORDS = ("Text:", "good", "awful", "positive")


@pytest.fixture
def exporter(monkeypatch):
    found, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found))
    monkeypatch.setattr("opentelemetry.trace.get_tracer", provider.get_tracer)
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    yield found
    provider.shutdown()


def answer(request):
    if "awful" in json.dumps(request.json):
        return Fault.status(400)
    return Reply('{"label": "positive"}')


def test_spans_are_nested(exporter):
    """Calls are below their sample, samples below their evaluation."""
    with (
        OllamaServer(answer, models=["llama3.2"]) as server,
        Session("w", ollama_api_base=server.url, max_retries=0) as session,
    ):
        session.evaluate(sentiment_task(), [ROUTE], name="run", progress=False, warm_up=False)
    spans = exporter.get_finished_spans()
    (whole,) = [each for each in spans if each.name == "evaluation sentiment"]
    samples = [each for each in spans if each.name == f"sample {ROUTE}"]
    calls = [each for each in spans if each.name == "chat llama3.2"]
    assert whole.parent is None
    assert [each.parent.span_id for each in samples] == [whole.context.span_id] * 4
    assert sorted(each.parent.span_id for each in calls) == sorted(each.context.span_id for each in samples)

    assert whole.attributes["llmkit.workspace_id"] == "w"
    assert whole.attributes["llmkit.evaluation.name"] == "run"
    assert whole.attributes["llmkit.evaluation.routes"] == (ROUTE,)
    assert (whole.attributes["llmkit.evaluation.samples"], whole.attributes["llmkit.evaluation.sent"]) == (4, 4)
    by_id = {each.attributes["llmkit.evaluation.sample_id"]: each for each in samples}
    assert by_id["s0"].attributes["llmkit.status"] == "SUCCEEDED"
    (event,) = by_id["s0"].events
    assert event.name == "gen_ai.evaluation.result"
    assert dict(event.attributes) == {"gen_ai.evaluation.name": "field_match", "gen_ai.evaluation.score.value": 1.0}
    assert by_id["s3"].attributes["llmkit.status"] == "FAILED"
    assert by_id["s3"].attributes["error.type"] == "bad_request"
    assert by_id["s3"].status.status_code is StatusCode.ERROR


def test_spans_hold_neither_prompt_nor_answer(exporter):
    with (
        OllamaServer(answer, models=["llama3.2"]) as server,
        Session("w", ollama_api_base=server.url, max_retries=0) as session,
    ):
        session.evaluate(sentiment_task(), [ROUTE], name="run", progress=False)
    told = " ".join(each.to_json() for each in exporter.get_finished_spans())
    assert not [word for word in SECRET_WORDS if word in told]


async def test_what_breaks_an_evaluation_off_is_told_by_its_kind_only(exporter):
    def broken(call):
        raise LLMStoreError("no room for Text: good")

    with pytest.raises(LLMStoreError):
        await evaluate(
            sentiment_task(),
            [ROUTE],
            service=FakeService(),
            store=MemoryStore(),
            workspace_id="w",
            extract=FakeExtract(broken),
            progress=False,
        )
    told = " ".join(each.to_json() for each in exporter.get_finished_spans())
    assert "LLMStoreError" in told
    assert "good" not in told


def test_without_an_sdk_a_span_is_nothing():
    with span("sample", {"a": 1}) as opened:
        opened.set({"b": 2})
        opened.add_scores({"c": 0.5})
        opened.fail("timeout")
    assert isinstance(opened, Span)
