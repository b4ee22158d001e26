"""Redaction, previews, log lines and metrics."""

from __future__ import annotations

import logging
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from llmkit.telemetry import RunEvent, Telemetry, preview, redact, request_preview
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


def test_metrics_go_through_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr("opentelemetry.metrics.get_meter", provider.get_meter)
    telemetry = Telemetry()
    telemetry.run_finished(_event())
    telemetry.run_finished(_event(served_from="cache"))
    metrics = {
        metric.name: list(metric.data.data_points)
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    provider.shutdown()
    assert sum(point.value for point in metrics["llmkit.runs"]) == 2
    assert [point.sum for point in metrics["gen_ai.client.token.usage"]] == [7]
    assert sum(point.sum for point in metrics["gen_ai.client.operation.duration"]) == pytest.approx(0.5)
