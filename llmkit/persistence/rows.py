"""Between the values of the ports and the columns of the tables. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from llmkit.errors import ABANDONED_CODE, LLMStoreError
from llmkit.ports import EvalResult, EvalRun, RunFailure, RunStart, RunSuccess, StoredRun
from llmkit.types import Attempt, RunStatus, TokenUsage

__all__ = [
    "ABANDONED_MESSAGE",
    "FAILED",
    "STARTED",
    "STORED_RUN_COLUMNS",
    "SUCCEEDED",
    "abandoned_values",
    "annotation_values",
    "attempt_values",
    "eval_result_of",
    "eval_result_values",
    "eval_run_of",
    "eval_run_values",
    "failure_values",
    "finished_values",
    "identity",
    "started_values",
    "storable",
    "stored_run_of",
    "success_values",
]

Values = dict[str, Any]

# ASCII: NUL and lone surrogates become escapes. `default`: a strange value must not cost a paid call its record.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), default=str)

ABANDONED_MESSAGE: Final = (
    "The process that made this call died before it could record the outcome; it may have been billed."
)
# An enumeration's own way to its value costs half a microsecond, and this is done for every call.
STARTED, SUCCEEDED, FAILED = (str(status) for status in (RunStatus.STARTED, RunStatus.SUCCEEDED, RunStatus.FAILED))
# In the order of `StoredRun`.
STORED_RUN_COLUMNS: Final = (
    "id",
    "workspace_id",
    "status",
    "prompt_sha256",
    "epoch",
    "owner",
    "created_at_utc",
    "heartbeat_at_utc",
    "result_json",
)


def storable(text: str) -> str:
    r"""The text with what PostgreSQL refuses, NUL and lone surrogates, as `\uXXXX`: in JSON that changes nothing."""
    if _is_plain(text):
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\u0000")


def identity(text: str, name: str) -> str:
    """The text unchanged, since rows are found by it.

    Raises:
        LLMStoreError: It holds a NUL or a lone surrogate, which not every database can keep.
    """
    if not _is_plain(text) and storable(text) != text:
        raise LLMStoreError(
            f"{name} holds a character that cannot be stored (NUL or half a surrogate pair). Leave it out."
        )
    return text


def _identity_or_none(text: str | None, name: str) -> str | None:
    return text if text is None or _is_plain(text) else identity(text, name)


def _storable_or_none(text: str | None) -> str | None:
    return text if text is None or _is_plain(text) else storable(text)


def _is_plain(text: str) -> bool:
    return text.isascii() and "\0" not in text


def _json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    if not value:
        return "{}" if isinstance(value, Mapping) else "[]"
    return _ENCODER.encode(value)


def started_values(start: RunStart) -> Values:
    """Columns of a run that begins now.

    Raises:
        LLMStoreError: As for `identity`.
    """
    return {
        "id": start.id,
        "workspace_id": identity(start.workspace_id, "workspace_id"),
        "pipeline_run_id": _identity_or_none(start.pipeline_run_id, "pipeline_run_id"),
        "stage": _identity_or_none(start.stage, "stage"),
        "status": STARTED,
        "owner": start.owner,
        "created_at_utc": start.created_at_utc,
        "heartbeat_at_utc": start.created_at_utc,
        "requested_route": _storable_or_none(start.requested_route),
        "profile": start.profile,
        "epoch": start.epoch,
        "idempotency_key": _identity_or_none(start.idempotency_key, "idempotency_key"),
        "flight_key": _identity_or_none(start.flight_key, "flight_key"),
        "prompt_sha256": start.prompt_sha256,
        "request_preview": storable(start.request_preview),
        "metadata_json": _json(start.metadata),
    }


def annotation_values(workspace_id: str, run_id: UUID, metadata: Mapping[str, Any]) -> Values:
    """Values of an UPDATE of a run's metadata."""
    return {"in_workspace": workspace_id, "run_id": run_id, "metadata_json": _json(metadata)}


def success_values(success: RunSuccess) -> Values:
    """Columns that a good end changes."""
    return {
        "status": SUCCEEDED,
        "finished_at_utc": success.finished_at_utc,
        "provider": str(success.route.provider),
        "model": storable(success.route.model),
        "response_model": _storable_or_none(success.response_model),
        "served_from": str(success.served_from),
        "source_run_id": success.source_run_id,
        "finish_reason": success.finish_reason,
        **_usage_values(success.usage),
        "cost_usd": success.cost_usd,
        "latency_ms": success.latency_ms,
        "attempts": len(success.attempts),
        "response_preview": storable(success.response_preview),
        "plan_json": None if success.plan is None else _json(success.plan),
        "result_json": _storable_or_none(success.result_json),
    }


def failure_values(failure: RunFailure) -> Values:
    """Columns that a bad end changes."""
    return {
        "status": FAILED,
        "finished_at_utc": failure.finished_at_utc,
        "latency_ms": failure.latency_ms,
        "attempts": len(failure.attempts),
        "error_code": failure.error_code,
        "error_message": storable(failure.error_message),
        "plan_json": None if failure.plan is None else _json(failure.plan),
    }


def abandoned_values(at_utc: datetime) -> Values:
    """Columns that declaring a run dead changes."""
    return {
        "status": FAILED,
        "finished_at_utc": at_utc,
        "error_code": ABANDONED_CODE,
        "error_message": ABANDONED_MESSAGE,
    }


def finished_values(start: RunStart, success: RunSuccess) -> Values:
    """Columns of a run that is finished when it is first written; it never flies, so it has no flight key."""
    return started_values(start) | success_values(success) | {"flight_key": None}


def attempt_values(run_id: UUID, attempt: Attempt) -> Values:
    """Columns of an attempt but for `workspace_id`, which is that of its run."""
    return {
        "run_id": run_id,
        "number": attempt.number,
        "provider": str(attempt.route.provider),
        "model": storable(attempt.route.model),
        "status": str(attempt.status),
        "started_at_utc": attempt.started_at_utc,
        "latency_ms": attempt.latency_ms,
        "params_sha256": attempt.params_sha256,
        "schema_sha256": attempt.schema_sha256,
        **_usage_values(attempt.usage),
        "finish_reason": attempt.finish_reason,
        "response_model": _storable_or_none(attempt.response_model),
        "model_digest": _storable_or_none(attempt.model_digest),
        "cost_usd": attempt.cost_usd,
        "status_code": attempt.status_code,
        "error_code": attempt.error_code,
        "error_message": _storable_or_none(attempt.error_message),
    }


def _usage_values(usage: TokenUsage) -> Values:
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "cached_input_tokens": usage.cached_input_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "usage_estimated": usage.estimated,
    }


def stored_run_of(row: Sequence[Any]) -> StoredRun:
    """A run from the values of `STORED_RUN_COLUMNS`."""
    run_id, workspace_id, status, *others = row
    return StoredRun(run_id, workspace_id, RunStatus(status), *others)


def eval_run_values(run: EvalRun) -> Values:
    """Columns of an evaluation.

    Raises:
        LLMStoreError: As for `identity`.
    """
    return {
        "id": run.id,
        "workspace_id": identity(run.workspace_id, "workspace_id"),
        "name": identity(run.name, "the name of the evaluation"),
        "task_name": storable(run.task_name),
        "task_sha256": run.task_sha256,
        "dataset_sha256": run.dataset_sha256,
        "created_at_utc": run.created_at_utc,
        "spec_json": _json(run.spec),
    }


def eval_run_of(row: Mapping[str, Any]) -> EvalRun:
    """An evaluation from its columns."""
    values = dict(row)
    return EvalRun(spec=json.loads(values.pop("spec_json")), **values)


def eval_result_values(result: EvalResult) -> Values:
    """Columns of a result.

    Raises:
        LLMStoreError: As for `identity`.
    """
    return {
        "eval_run_id": result.eval_run_id,
        "route": identity(result.route, "the route"),
        "sample_id": identity(result.sample_id, "the sample's id"),
        "epoch": result.epoch,
        "status": result.status,
        "finished_at_utc": result.finished_at_utc,
        "pipeline_run_id": identity(result.pipeline_run_id, "pipeline_run_id"),
        "served_route": _storable_or_none(result.served_route),
        "output_mode": result.output_mode,
        "valid_first_try": result.valid_first_try,
        "outcome": result.outcome,
        "schema_sha256": result.schema_sha256,
        "sample_group": _storable_or_none(result.sample_group),
        "input_tokens": result.input_tokens,
        "output_tokens": result.output_tokens,
        "latency_ms": result.latency_ms,
        "requests": result.requests,
        "error_code": result.error_code,
        "error_message": _storable_or_none(result.error_message),
        "scores_json": _json(result.scores),
        "scorer_errors_json": _json(result.scorer_errors),
        "score_details_json": _json(result.score_details),
        "warnings_json": _json(result.warnings),
        "output_json": _storable_or_none(result.output_json),
    }


def eval_result_of(row: Mapping[str, Any]) -> EvalResult:
    """A result from its columns."""
    values = dict(row)
    return EvalResult(
        scores=json.loads(values.pop("scores_json")),
        scorer_errors=json.loads(values.pop("scorer_errors_json")),
        score_details=json.loads(values.pop("score_details_json")),
        warnings=tuple(json.loads(values.pop("warnings_json"))),
        **values,
    )
