"""Redaction, log lines, metrics and spans: the only place that emits any of them.

Metrics and spans go through OpenTelemetry's API and cost next to nothing while no SDK is configured. Names follow its
semantic conventions for generative AI.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, cached_property
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from uuid import UUID

from llmkit.settings import is_in_environment
from llmkit.types import TokenUsage

if TYPE_CHECKING:
    from opentelemetry.metrics import Counter, Histogram
    from opentelemetry.trace import Span as OpenSpan
    from opentelemetry.trace import Tracer

__all__ = ["RunEvent", "Span", "SpanValue", "Telemetry", "span"]


_log = logging.getLogger("llmkit")
_log.addHandler(logging.NullHandler())


class RunEvent(NamedTuple):
    """Facts about a finished call: no prompt, no answer, no key.

    `requests` counts what was sent to providers for it, retries and fallbacks included. `is_streamed` says whether the
    caller wanted the answer in pieces, and `first_token_ms` when the first one arrived, if the provider sent any.
    """

    llm_run_id: UUID | None
    workspace_id: str | None
    status: str
    served_from: str
    latency_ms: float
    profile: str
    provider: str | None = None
    model: str | None = None
    stage: str | None = None
    error_code: str | None = None
    usage: TokenUsage | None = None
    requests: int = 0
    is_streamed: bool = False
    first_token_ms: float | None = None


_LOGGED = (
    "llm_run_id",
    "workspace_id",
    "provider",
    "model",
    "profile",
    "stage",
    "status",
    "served_from",
    "latency_ms",
    "first_token_ms",
    "error_code",
)
# With these an SDK is loaded by the first import of the API.
_PROVIDERS_BY_NAME = ("OTEL_PYTHON_METER_PROVIDER", "OTEL_PYTHON_TRACER_PROVIDER")
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = tuple(4**power for power in range(14))


class Telemetry:
    """Emits one log line, the metrics and one span of every finished call.

    Args:
        provider_names: Providers whose name in the OpenTelemetry conventions differs from llmkit's
            (https://opentelemetry.io/docs/specs/semconv/registry/attributes/gen-ai/).
    """

    def __init__(self, provider_names: Mapping[str, str] = MappingProxyType({})) -> None:
        self._provider_names = provider_names

    @property
    def is_enabled(self) -> bool:
        """Whether any logger, metric or trace is enabled, so that callers can skip building events that go nowhere."""
        return _log.isEnabledFor(logging.INFO) or self._is_measured or self._is_traced

    def run_finished(self, event: RunEvent) -> None:
        """Emit a call that succeeded or failed, in the context of its caller."""
        if _log.isEnabledFor(logging.INFO):
            fields = {name: getattr(event, name) for name in _LOGGED}
            line = " ".join(f"{name}={value}" for name, value in fields.items() if value is not None)
            _log.info("llm_run %s", line, extra=fields)
        if self._is_measured:
            self._measure(event, _attributes(event, self._provider_names))
        if self._is_traced:
            self._trace(event, _attributes(event, self._provider_names))

    @property
    def _is_measured(self) -> bool:
        return self._is_imported_or_configured and _is_configured(_metrics_api().get_meter_provider())

    @property
    def _is_traced(self) -> bool:
        return self._is_imported_or_configured and _is_configured(_trace_api().get_tracer_provider())

    @property
    def _is_imported_or_configured(self) -> bool:
        """Whether OpenTelemetry is in use. Importing it takes as long as reading fifty answers from the store."""
        return "opentelemetry" in sys.modules or self._is_announced

    @cached_property
    def _is_announced(self) -> bool:
        return is_in_environment(*_PROVIDERS_BY_NAME)

    def _measure(self, event: RunEvent, attributes: dict[str, str]) -> None:
        # Workspace and run ids stay out of metrics: they would make one time series each.
        self._runs.add(1, attributes)
        self._requests.add(event.requests, attributes)
        self._duration.record(event.latency_ms / 1000, attributes)
        if event.first_token_ms is not None:
            self._first_chunk.record(event.first_token_ms / 1000, attributes)
        for kind, count in _list_billed_tokens(event):
            self._tokens.record(count, attributes | {"gen_ai.token.type": kind})

    def _trace(self, event: RunEvent, attributes: dict[str, str]) -> None:
        trace = _trace_api()
        ended_ns = time.time_ns()
        span = self._tracer.start_span(
            f"chat {event.model or 'none'}",
            kind=trace.SpanKind.CLIENT,
            start_time=ended_ns - int(event.latency_ms * 1e6),
            attributes=attributes,
        )
        if span.is_recording():
            names = ("llm_run_id", "workspace_id", "stage", "profile")
            own = {name: getattr(event, name) for name in names}
            span.set_attributes({f"llmkit.{name}": str(value) for name, value in own.items() if value is not None})
            span.set_attributes({f"gen_ai.usage.{kind}_tokens": count for kind, count in _list_billed_tokens(event)})
            if event.is_streamed:
                span.set_attributes({"gen_ai.request.stream": True})
            if event.first_token_ms is not None:
                span.set_attribute("gen_ai.response.time_to_first_chunk", event.first_token_ms / 1000)
            if event.error_code is not None:
                span.set_status(trace.StatusCode.ERROR, event.error_code)
        span.end(ended_ns)

    @cached_property
    def _tracer(self) -> Tracer:
        return _trace_api().get_tracer("llmkit")  # type: ignore[no-any-return]

    @cached_property
    def _runs(self) -> Counter:
        from opentelemetry import metrics

        return metrics.get_meter("llmkit").create_counter(
            "llmkit.runs", unit="{run}", description="Logical calls, by status and by where the answer came from."
        )

    @cached_property
    def _requests(self) -> Counter:
        from opentelemetry import metrics

        return metrics.get_meter("llmkit").create_counter(
            "llmkit.requests",
            unit="{request}",
            description="Requests sent to providers, retries and fallbacks included.",
        )

    @cached_property
    def _duration(self) -> Histogram:
        from opentelemetry import metrics

        return metrics.get_meter("llmkit").create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="Wall time of one logical call.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )

    @cached_property
    def _first_chunk(self) -> Histogram:
        from opentelemetry import metrics

        return metrics.get_meter("llmkit").create_histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            unit="s",
            description="Time to the first piece of one streamed answer.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )

    @cached_property
    def _tokens(self) -> Histogram:
        from opentelemetry import metrics

        return metrics.get_meter("llmkit").create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Tokens billed for one logical call.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )


# The names of our own attributes; a list is one of labels.
SpanValue: TypeAlias = str | int | float | list[str]


def span(name: str, attributes: Mapping[str, SpanValue]) -> AbstractContextManager[Span]:
    """Return a span around a block, current inside of it, so that the spans of calls made there are below it.

    Args:
        name: Of few kinds: a route, not a sample.
        attributes: Without prompts, answers and keys.
    """
    trace = _trace_api()
    if _is_configured(trace.get_tracer_provider()):
        return _span(trace, name, attributes)
    return nullcontext(Span(trace.INVALID_SPAN))


@cache
def _trace_api() -> ModuleType:
    from opentelemetry import trace

    return trace


@cache
def _metrics_api() -> ModuleType:
    from opentelemetry import metrics

    return metrics


def _is_configured(provider: object) -> bool:
    """Return whether an SDK is configured. A span that goes nowhere costs as much as reading an answer.

    Until then the API returns its own providers, which forward to the SDK once it is configured.
    """
    return not type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics"))


@contextmanager
def _span(trace: ModuleType, name: str, attributes: Mapping[str, SpanValue]) -> Iterator[Span]:
    tracer: Tracer = trace.get_tracer("llmkit")
    # The text of an exception may quote a prompt, so only its class is recorded.
    with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as open_span:
        opened = Span(open_span)
        opened.set(attributes)
        try:
            yield opened
        except BaseException as error:
            opened.fail(type(error).__name__)
            raise
        finally:
            if opened.error_code is not None and open_span.is_recording():
                open_span.set_attribute("error.type", opened.error_code)
                open_span.set_status(trace.StatusCode.ERROR, opened.error_code)


class Span:
    """A span that is open; without an SDK it does nothing."""

    __slots__ = ("_span", "error_code")

    def __init__(self, open_span: OpenSpan) -> None:
        self._span = open_span
        self.error_code: str | None = None

    def set(self, attributes: Mapping[str, SpanValue | None]) -> None:
        """Add attributes; None is left out."""
        if self._span.is_recording():
            self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def fail(self, error_code: str) -> None:
        """Mark the span as failed."""
        self.error_code = error_code

    def add_scores(self, scores: Mapping[str, float]) -> None:
        """Add an event for each score, as the semantic conventions have it."""
        if self._span.is_recording():
            for name, value in scores.items():
                event: dict[str, str | float] = {"gen_ai.evaluation.name": name, "gen_ai.evaluation.score.value": value}
                self._span.add_event("gen_ai.evaluation.result", event)


def _attributes(event: RunEvent, provider_names: Mapping[str, str]) -> dict[str, str]:
    provider = event.provider or "none"
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider_names.get(provider, provider),
        "gen_ai.request.model": event.model or "none",
        "llmkit.status": event.status,
        "llmkit.served_from": event.served_from,
    }
    if event.error_code is not None:
        attributes["error.type"] = event.error_code
    return attributes


def _list_billed_tokens(event: RunEvent) -> list[tuple[str, int]]:
    if event.usage is None or event.served_from != "provider":
        return []
    counts = (("input", event.usage.input_tokens), ("output", event.usage.output_tokens))
    return [(kind, count) for kind, count in counts if count is not None]
