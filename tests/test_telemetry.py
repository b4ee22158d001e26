"""Redaction, previews, log lines and metrics."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from llmkit import Session
from llmkit.errors import LLMBadRequest
from llmkit.providers import TELEMETRY_NAMES
from llmkit.redaction import preview, redact, request_preview
from llmkit.telemetry import RunEvent, Telemetry
from llmkit.testing import Fault, OllamaServer
from llmkit.types import LLMRequest, Message, TokenUsage

SECRETS = {
    "AIzaSyD-0123456789abcdefghijk": "[api_key]",
    "sk-proj-0123456789abcdefghij": "[api_key]",
    "Authorization: Bearer abc.def-0123456789": "Authorization: [bearer]",
    "api_key=hunter2hunter2": "api_key=[secret]",
    '"password": "correct horse"': '"password": "[secret] horse"',
    "https://x.test/v1?key=abcdef&q=1": "https://x.test/v1?[url_key]&q=1",
    "postgresql://me:s3cret@db/x": "postgresql://[credentials]@db/x",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.abc": "[jwt]",
    "write to ada.lovelace+x@maths.example.org": "write to [email]",
    "call +44 (0)20 7946 0958 now": "call [number] now",
    "card 4111 1111 1111 1111": "card [number]",
    "DE89 3704 0044 0532 0130 00": "[iban]",
    "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----": "[private_key]",
}


@pytest.mark.parametrize(("text", "expected"), SECRETS.items())
def test_secrets_and_personal_data_are_replaced_by_what_they_were(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize("text", ["2026-11-22 10:00", "3.14159265358979", "in 2024 we had 12,500 rows", "a = b"])
def test_dates_and_plain_numbers_stay(text: str) -> None:
    assert redact(text) == text


def test_a_named_secret_goes_whatever_its_shape() -> None:
    assert redact("the word is swordfish", ["swordfish"]) == "the word is [secret]"


def test_a_short_secret_goes_as_a_word_and_leaves_other_words_whole() -> None:
    assert redact("kettle, key=k&x, k", ["k"]) == "kettle, key=[secret]&x, [secret]"


@given(st.text(), st.text())
def test_redaction_is_idempotent_and_keeps_no_key(before: str, after: str) -> None:
    once = redact(f"{before} sk-abcdefghijklmnop0123 {after}")
    assert "abcdefghijklmnop0123" not in once
    assert redact(once) == once


@given(st.text(), st.integers(0, 50))
def test_a_preview_never_exceeds_its_limit(text: str, limit: int) -> None:
    assert len(preview(text, limit)) <= limit + 1


@pytest.mark.parametrize("offset", range(0, 40, 3))
def test_a_secret_across_the_cut_of_a_preview_is_not_shown_in_part(offset: int) -> None:
    text = "x " * 10 + " " * offset + "sk-0123456789abcdefghij" + " end" * 400
    assert "0123" not in preview(text, 30)


def test_a_request_preview_shows_the_latest_message_first_and_redacted() -> None:
    request = LLMRequest(messages=(Message(role="system", content="Be brief."), Message(role="user", content="a@b.cd")))
    assert request_preview(request) == "user: [email]\nsystem: Be brief."


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
