"""Between the values of evaluations and the columns of the tables. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmkit.eval_ports import STEP_METADATA, EvalResult, EvalRun, RecordedCall, read_step
from llmkit.persistence.rows import Values, as_json, identity, storable, storable_or_none
from llmkit.redaction import tool_preview
from llmkit.types import Attempt, Route, RunStatus, ServedFrom, TokenUsage

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

__all__ = ["eval_result_values", "eval_run_of", "eval_run_values", "make_recorded_call"]

STEP_MARK = f'"{STEP_METADATA}"'


def make_recorded_call(row: RowMapping, attempts: Sequence[RowMapping]) -> RecordedCall:
    """Return a call of an evaluation from its columns and those of its attempts.

    Args:
        row: Columns of the run; `result_json` is looked at only when the answer has no text.
        attempts: Columns of its attempts, by number.
    """
    return RecordedCall(
        pipeline_run_id=row["pipeline_run_id"],
        stage=row["stage"],
        status=RunStatus(row["status"]),
        served_from=ServedFrom(row["served_from"]) if row["served_from"] else None,
        prompt=row["request_preview"],
        answer=row["response_preview"] or tool_preview(row["result_json"]) or row["response_preview"],
        error_code=row["error_code"],
        error_message=row["error_message"],
        attempts=tuple(_attempt_of(each) for each in attempts),
        # Most calls are no steps, and reports read all of them.
        step=read_step(json.loads(row["metadata_json"])) if STEP_MARK in row["metadata_json"] else None,
    )


def _attempt_of(row: RowMapping) -> Attempt:
    values = {name: row[name] for name in Attempt.model_fields if name in row}
    usage = {name: row[name] for name in TokenUsage.model_fields if name in row}
    route = Route(provider=row["provider"], model=row["model"])
    return Attempt(**values, route=route, usage=TokenUsage(**usage, estimated=row["usage_estimated"]))


def eval_run_values(run: EvalRun) -> Values:
    """Return the column values of an evaluation.

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
        "spec_json": as_json(run.spec),
    }


def eval_run_of(row: Mapping[str, Any]) -> EvalRun:
    """Return an evaluation from its columns."""
    values = dict(row)
    return EvalRun(spec=json.loads(values.pop("spec_json")), **values)


def eval_result_values(result: EvalResult) -> Values:
    """Return the column values of a result.

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
        "served_route": storable_or_none(result.served_route),
        "output_mode": result.output_mode,
        "valid_first_try": result.valid_first_try,
        "outcome": result.outcome,
        "schema_sha256": result.schema_sha256,
        "sample_group": storable_or_none(result.sample_group),
        "input_tokens": result.input_tokens,
        "output_tokens": result.output_tokens,
        "latency_ms": result.latency_ms,
        "requests": result.requests,
        "error_code": result.error_code,
        "error_message": storable_or_none(result.error_message),
        "scores_json": as_json(result.scores),
        "scorer_errors_json": as_json(result.scorer_errors),
        "score_details_json": as_json(result.score_details),
        "warnings_json": as_json(result.warnings),
        "output_json": storable_or_none(result.output_json),
        "answer_json": storable_or_none(result.answer_json),
        "content_digest": result.content_digest,
        "logprob_mean": result.logprob_mean,
        "logprob_min": result.logprob_min,
        "field_logprobs_json": as_json(result.field_logprobs) if result.field_logprobs else None,
    }
