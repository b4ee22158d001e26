"""Validation of a request and its context before any I/O."""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple, TypeGuard
from uuid import UUID

from pydantic import TypeAdapter, ValidationError
from uuid_utils.compat import uuid7

from llmkit.calls.request_hash import CanonicalRequest
from llmkit.errors import (
    LLMBadRequest,
    LLMConfigurationError,
    LLMIdempotencyConflict,
    LLMInProgress,
)
from llmkit.ports import AnswerSink, AttemptLog, StoredRun
from llmkit.types import (
    MAX_KEY_LENGTH,
    RESERVED_METADATA_KEYS,
    LLMProfile,
    LLMRequest,
    Name,
    RequestContext,
    utc_now,
)

__all__ = ["Call", "Caller", "make_conflict", "make_in_progress", "open_call", "resolve_caller"]

_NAME: TypeAdapter[str] = TypeAdapter(Name)


def open_call(
    request: LLMRequest,
    context: RequestContext | None,
    default_profile: LLMProfile,
    *,
    recorded: bool,
    sink: AnswerSink | None = None,
) -> Call:
    """Return the call that a request opens.

    Args:
        request: The request.
        context: Workspace and pipeline run.
        default_profile: The profile of a request that names none.
        recorded: Whether calls are written down, which takes a workspace.
        sink: Receives the pieces of the answer.

    Raises:
        LLMConfigurationError: No workspace, or two that disagree.
        LLMBadRequest: A tool or a schema contains something that is not JSON.
    """
    who = resolve_caller(request, context)
    if recorded and who.workspace_id is None:
        raise LLMConfigurationError(
            "No workspace: pass RequestContext(workspace_id=...), or metadata={'workspace_id': ...}; "
            "or switch LLM_PERSIST_RUNS off"
        )
    profile, canonical = request.profile or default_profile, _canonical(request)
    return Call(
        request=request,
        workspace_id=who.workspace_id or "",
        pipeline_run_id=who.pipeline_run_id,
        stage=who.stage,
        profile=str(profile),
        canonical=canonical,
        prompt_sha256=canonical.sha256(profile),
        run_id=uuid7(),
        started_s=perf_counter(),
        sink=sink,
    )


class Caller(NamedTuple):
    """Workspace, pipeline run and stage of a call, from the context or the reserved metadata keys."""

    workspace_id: str | None
    pipeline_run_id: str | None
    stage: str | None


def resolve_caller(request: LLMRequest, context: RequestContext | None) -> Caller:
    """Read workspace, pipeline run and stage from the context object or the reserved metadata keys.

    Raises:
        LLMConfigurationError: The two disagree, or the value of a reserved key is not a name.
    """
    metadata = request.metadata
    if context is not None and not metadata:
        return Caller(context.workspace_id, context.pipeline_run_id, context.stage)
    found: list[str | None] = []
    for name in RESERVED_METADATA_KEYS:
        in_context = getattr(context, name) if context is not None else None
        in_metadata = metadata.get(name)
        if in_metadata is not None and not _is_name(in_metadata):
            raise LLMConfigurationError(
                f"metadata[{name!r}] must be one line of 1 to {MAX_KEY_LENGTH} characters, with no space at its ends"
            )
        if in_context is not None and in_metadata is not None and in_context != in_metadata:
            raise LLMConfigurationError(
                f"The context's {name} and metadata[{name!r}] disagree; give one of them, or the same in both"
            )
        found.append(in_context or in_metadata)
    return Caller(*found)


def _is_name(value: object) -> TypeGuard[str]:
    try:
        _NAME.validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _canonical(request: LLMRequest) -> CanonicalRequest:
    try:
        return CanonicalRequest(request)
    except (TypeError, ValueError) as error:
        raise LLMBadRequest(
            f"A tool's parameters or the response format contain something that is not JSON: {error}"
        ) from None


def make_conflict(key: str, stored: StoredRun) -> LLMIdempotencyConflict:
    """Make the error of a key that belongs to another request."""
    error = LLMIdempotencyConflict(
        f"The idempotency key {key!r} belongs to run {stored.id} of a different request "
        f"({stored.status}); use a new key, or send the same request"
    )
    error.run_id = stored.id
    return error


def make_in_progress(key: str, stored: StoredRun) -> LLMInProgress:
    """Make the error of a key whose call has been running elsewhere for some time."""
    age_s = max(0.0, (utc_now() - stored.created_at_utc).total_seconds())
    return LLMInProgress(
        f"A call with the idempotency key {key!r} is under way since {age_s:.0f} s (run {stored.id}); "
        "wait for it, or use another key",
        run_id=stored.id,
        age_s=age_s,
    )


class Call(NamedTuple):
    """One logical call after its contract was checked."""

    request: LLMRequest
    workspace_id: str
    pipeline_run_id: str | None
    stage: str | None
    profile: str
    canonical: CanonicalRequest
    prompt_sha256: str
    run_id: UUID
    started_s: float
    sink: AnswerSink | None = None

    def elapsed_ms(self) -> float:
        """Return the milliseconds since the call began."""
        return (perf_counter() - self.started_s) * 1000

    def measure(self, log: AttemptLog) -> float:
        """Return the latency so far: without the waits for our own limits, and for the reader of a stream."""
        return self.elapsed_ms() - log.queued_ms - (self.sink.reader_ms if self.sink is not None else 0.0)

    def measure_first_token(self, log: AttemptLog) -> float | None:
        """Return the part of the latency before the first piece of the answer; None when it was not streamed."""
        # An answer that came as a whole is in the sink too, and says nothing about a first token.
        if self.sink is None or not log.attempts or log.attempts[-1].first_token_ms is None:
            return None
        return (self.sink.begun_s - self.started_s) * 1000 - log.queued_ms
