"""Reports made of given results, without a run behind them."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from llmkit.eval_ports import EvalResult, EvalRun
from llmkit.evals import EvalReport, Sample

RUN_ID = UUID(int=7)
MADE_AT_UTC = datetime(2026, 1, 1, tzinfo=UTC)


def make_result(variant: str, sample_id: str, score: float | None = None, epoch: int = 0, **changes: Any) -> EvalResult:
    """Return a SUCCEEDED result of 10 and 5 tokens and 100 ms; without a score it is FAILED."""
    fields: dict[str, Any] = {
        "eval_run_id": RUN_ID,
        "route": variant,
        "sample_id": sample_id,
        "epoch": epoch,
        "status": "FAILED" if score is None else "SUCCEEDED",
        "finished_at_utc": MADE_AT_UTC,
        "pipeline_run_id": f"eval:{variant}:{sample_id}:{epoch}:digest",
        "output_json": None if score is None else json.dumps({"label": "x"}),
        "scores": {} if score is None else {"match": score},
        "outcome": None if score is None else "first_try",
        "input_tokens": 10,
        "output_tokens": 5,
        "latency_ms": 100.0,
        "requests": 1,
    }
    return EvalResult(**fields | changes)


def make_report(results: Iterable[EvalResult], samples: Mapping[str, Sample] | None = None, **spec: Any) -> EvalReport:
    """Return the report of these results."""
    listed = tuple(results)
    run = EvalRun(
        id=RUN_ID,
        workspace_id="w",
        name=spec.pop("name", "study"),
        task_name="task",
        task_sha256="t",
        dataset_sha256="d",
        created_at_utc=MADE_AT_UTC,
        spec={"scorers": ["match"], **spec},
    )
    return EvalReport(run, listed, dataset=samples or {})
