"""Log lines, metrics and spans."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from llmkit import Session
from llmkit.errors import LLMBadRequest
from llmkit.providers import TELEMETRY_NAMES
from llmkit.telemetry import RunEvent, Telemetry
from llmkit.testing import Fault, OllamaServer
from llmkit.types import TokenUsage


def _event(**changes: object) -> RunEvent:
    return RunEvent(
        **{
            "llm_run_id": uuid.UUID(int=1),
            "workspace_id": "w",
            "status": "SUCCEEDED",
            "served_from": "provider",
            "latency_ms": 250.0,
            "profile": "fast",
            "provider": "ollama",
            "model": "llama3.2",
            "stage": "s",
            "usage": TokenUsage(input_tokens=7, output_tokens=None),
            **changes,
        }
    )


def test_a_log_line_has_every_field_and_extras(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "llmkit"):
        Telemetry().run_finished(_event(error_code="timeout"))
    (record,) = caplog.records
    for name in ("llm_run_id", "workspace_id", "provider", "model", "profile", "stage", "status", "latency_ms"):
        assert f"{name}=" in record.getMessage()
        assert hasattr(record, name)
    assert record.error_code == "timeout"


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exported]:
    reader, spans = InMemoryMetricReader(), InMemorySpanExporter()
    metered, traced = MeterProvider([reader]), TracerProvider()
    traced.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("opentelemetry.metrics.get_meter", metered.get_meter)
    monkeypatch.setattr("opentelemetry.metrics.get_meter_provider", lambda: metered)
    monkeypatch.setattr("opentelemetry.trace.get_tracer", traced.get_tracer)
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: traced)
    yield Exported(reader, spans, traced.get_tracer("caller"))
    metered.shutdown()
    traced.shutdown()


@dataclass
class Exported:
    """What an SDK would send on."""

    reader: InMemoryMetricReader
    exporter: InMemorySpanExporter
    tracer: Tracer

    def metrics(self) -> dict[str, list[object]]:
        return {
            metric.name: list(metric.data.data_points)
            for resource in self.reader.get_metrics_data().resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


def test_metrics_go_through_opentelemetry(exported: Exported) -> None:
    telemetry = Telemetry()
    telemetry.run_finished(_event(requests=3))
    telemetry.run_finished(_event(served_from="cache"))
    metrics = exported.metrics()
    assert sum(point.value for point in metrics["llmkit.runs"]) == 2
    assert sum(point.value for point in metrics["llmkit.requests"]) == 3
    assert [point.sum for point in metrics["gen_ai.client.token.usage"]] == [7]
    assert sum(point.sum for point in metrics["gen_ai.client.operation.duration"]) == pytest.approx(0.5)
    assert metrics["gen_ai.client.operation.duration"][0].explicit_bounds[0] == 0.01


def test_a_span_has_the_conventions_names_and_lasts_as_long_as_the_call(exported: Exported) -> None:
    Telemetry(TELEMETRY_NAMES).run_finished(_event(provider="gemini", model="gemini-2.5-flash", error_code="timeout"))
    span = exported.spans()["chat gemini-2.5-flash"]
    assert span.kind is SpanKind.CLIENT
    assert span.attributes["gen_ai.operation.name"] == "chat"
    assert span.attributes["gen_ai.provider.name"] == "gcp.gemini"
    assert span.attributes["gen_ai.request.model"] == "gemini-2.5-flash"
    assert span.attributes["gen_ai.usage.input_tokens"] == 7
    assert "gen_ai.usage.output_tokens" not in span.attributes
    assert span.attributes["error.type"] == "timeout"
    assert span.attributes["llmkit.workspace_id"] == "w"
    assert (span.end_time - span.start_time) / 1e6 == pytest.approx(250.0)
    assert span.status.status_code is StatusCode.ERROR


@pytest.mark.parametrize(
    ("is_streamed", "first_token_ms", "stream", "first_chunk_s"),
    [(True, 20.0, True, 0.02), (True, None, True, None), (False, None, None, None)],
)
def test_the_first_piece_of_a_stream_is_reported(
    exported: Exported,
    is_streamed: bool,
    first_token_ms: float | None,
    stream: bool | None,
    first_chunk_s: float | None,
) -> None:
    Telemetry().run_finished(_event(is_streamed=is_streamed, first_token_ms=first_token_ms))
    attributes = exported.spans()["chat llama3.2"].attributes
    assert attributes.get("gen_ai.request.stream") is stream
    assert attributes.get("gen_ai.response.time_to_first_chunk") == first_chunk_s
    measured = exported.metrics().get("gen_ai.client.operation.time_to_first_chunk", [])
    assert [point.sum for point in measured] == ([] if first_chunk_s is None else [first_chunk_s])


def test_every_call_of_a_session_is_told_below_the_span_of_its_caller(
    exported: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        OllamaServer([Fault.status(503), "A loss.", Fault.status(400)]) as server,
        Session(ollama_api_base=server.url, retry_max_wait_s=0.01) as session,
        caplog.at_level(logging.INFO, "llmkit"),
        exported.tracer.start_as_current_span("cell") as cell,
    ):
        session.chat("Hi", stage="first")
        session.chat("Hi")
        with pytest.raises(LLMBadRequest):
            session.chat("Ho", route="ollama/llama3.2")
    runs = {dict(point.attributes)["llmkit.served_from"]: point.value for point in exported.metrics()["llmkit.runs"]}
    assert runs == {"provider": 1, "cache": 1, "none": 1}
    assert sum(point.value for point in exported.metrics()["llmkit.requests"]) == 3
    spans = [span for span in exported.exporter.get_finished_spans() if span.name == "chat llama3.2"]
    assert [span.parent.span_id for span in spans] == [cell.get_span_context().span_id] * 3
    assert [record.status for record in caplog.records] == ["SUCCEEDED", "SUCCEEDED", "FAILED"]
    assert [record.error_code for record in caplog.records] == [None, None, "bad_request"]
    assert caplog.records[0].stage == "first"
    assert all(record.latency_ms > 0 and record.llm_run_id and record.workspace_id for record in caplog.records)
