"""Values of the ports with everything filled in, for tests that care about one field."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import uuid_utils.compat as uuid_utils

from llmkit.eval_ports import EvalResult, EvalRun
from llmkit.ports import RunFailure, RunStart, RunSuccess
from llmkit.types import Attempt, AttemptStatus, Route, ServedFrom, TokenUsage, utc_now

ROUTE = Route.parse("ollama/llama3.2")
USAGE = TokenUsage(input_tokens=11, output_tokens=7, total_tokens=18, cached_input_tokens=3, reasoning_tokens=2)


def new_id() -> UUID:
    return uuid_utils.uuid7()


def a_start(**changes: Any) -> RunStart:
    defaults = {
        "id": new_id(),
        "workspace_id": "lab",
        "prompt_sha256": "a" * 64,
        "created_at_utc": utc_now(),
        "owner": "host:1:1",
        "profile": "balanced",
    }
    return RunStart(**(defaults | changes))


def an_attempt(number: int = 1, **changes: Any) -> Attempt:
    defaults = {
        "route": ROUTE,
        "number": number,
        "status": AttemptStatus.SUCCEEDED,
        "started_at_utc": utc_now(),
        "latency_ms": 12.5,
        "params_sha256": "b" * 64,
        "usage": USAGE,
        "finish_reason": "stop",
        "response_model": "llama3.2:latest",
    }
    return Attempt(**(defaults | changes))


def a_success(run_id: UUID, **changes: Any) -> RunSuccess:
    defaults = {
        "run_id": run_id,
        "finished_at_utc": utc_now(),
        "latency_ms": 13.5,
        "route": ROUTE,
        "response_model": "llama3.2:latest",
        "usage": USAGE,
        "finish_reason": "stop",
        "result_json": '{"text": "hello"}',
        "response_preview": "hello",
        "attempts": (an_attempt(),),
    }
    return RunSuccess(**(defaults | changes))


def served(run_id: UUID, **changes: Any) -> RunSuccess:
    """A success that cost nothing."""
    return a_success(run_id, **({"served_from": ServedFrom.CACHE, "attempts": ()} | changes))


def a_failure(run_id: UUID, **changes: Any) -> RunFailure:
    failed = an_attempt(status=AttemptStatus.FAILED, usage=TokenUsage(), finish_reason=None, error_code="timeout")
    defaults = {
        "run_id": run_id,
        "finished_at_utc": utc_now(),
        "latency_ms": 20.0,
        "error_code": "timeout",
        "error_message": "no answer",
        "attempts": (failed,),
    }
    return RunFailure(**(defaults | changes))


def an_eval_run(**changes: Any) -> EvalRun:
    defaults = {
        "id": new_id(),
        "workspace_id": "lab",
        "name": "first",
        "task_name": "sentiment",
        "task_sha256": "c" * 64,
        "dataset_sha256": "d" * 64,
        "created_at_utc": utc_now(),
        "spec": {"routes": ["ollama/llama3.2"], "epochs": 2},
    }
    return EvalRun(**(defaults | changes))


def an_eval_result(eval_run_id: UUID, **changes: Any) -> EvalResult:
    defaults = {
        "eval_run_id": eval_run_id,
        "route": "ollama/llama3.2",
        "sample_id": "s1",
        "epoch": 0,
        "status": "SUCCEEDED",
        "finished_at_utc": utc_now(),
        "pipeline_run_id": "eval:first",
        "served_route": "ollama/llama3.2",
        "output_json": '{"label": "positive"}',
        "output_mode": "schema",
        "scores": {"exact": 1.0},
        "scorer_errors": {"judge": "timeout"},
        "score_details": {"exact": "all fields"},
        "valid_first_try": True,
        "outcome": "first_try",
        "schema_sha256": "5" * 64,
        "sample_group": "reviews",
        "input_tokens": 11,
        "output_tokens": 7,
        "latency_ms": 30.0,
        "requests": 1,
        "warnings": ("schema differs",),
    }
    return EvalResult(**(defaults | changes))
