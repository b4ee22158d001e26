"""The calls of a workspace as they go into a cassette."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from sqlalchemy import Engine, RowMapping, select

from llmkit.errors import ABANDONED_CODE, CANCELLED_CODE, LLMInProgress, LLMNoRecording, LLMStoreError
from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.engines import reading
from llmkit.persistence.statements import RUNS
from llmkit.replay.cassette import Recording, redact_answer
from llmkit.types import WARM_UP_STAGE, LLMResponse, RunStatus, ServedFrom

__all__ = ["read_asked_keys", "recordings"]

# How these ended says nothing of the provider.
_OURS: Final = frozenset(
    {CANCELLED_CODE, ABANDONED_CODE, *(kind.code for kind in (LLMStoreError, LLMInProgress, LLMNoRecording))}
)


def recordings(
    engine: Engine,
    address: DatabaseAddress,
    workspace_id: str,
    *,
    pipeline_run_id: str | None = None,
    secrets: Iterable[str] = (),
) -> list[Recording]:
    """Yield every call of a workspace that a provider answered, oldest first, redacted.

    A call that failed is among them when the same call never succeeded; warm-ups are not.

    Args:
        engine: From `make_engine`.
        address: Of the same database.
        workspace_id: Whose.
        pipeline_run_id: Only those of this pipeline run.
        secrets: Exact texts that must not remain.

    Raises:
        LLMStoreError: The database cannot be read, or an answer was not stored.
    """
    query = select(RUNS).where(RUNS.c.workspace_id == workspace_id, RUNS.c.status != str(RunStatus.STARTED))
    query = query.where(RUNS.c.stage.is_distinct_from(WARM_UP_STAGE))
    if pipeline_run_id is not None:
        query = query.where(RUNS.c.pipeline_run_id == pipeline_run_id)
    with reading(engine, address) as connection:
        rows = list(connection.execute(query.order_by(RUNS.c.created_at_utc, RUNS.c.id)).mappings())
    answered = {(row["prompt_sha256"], row["epoch"]) for row in rows if row["status"] == str(RunStatus.SUCCEEDED)}
    return list(_select_recordings(rows, answered, tuple(secrets)))


def read_asked_keys(engine: Engine, address: DatabaseAddress, workspace_id: str) -> set[tuple[str, int]]:
    """Read the lookup keys of every call of a workspace except warm-ups, whatever served its answer.

    Raises:
        LLMStoreError: The database cannot be read.
    """
    query = select(RUNS.c.prompt_sha256, RUNS.c.epoch).where(RUNS.c.workspace_id == workspace_id).distinct()
    query = query.where(RUNS.c.stage.is_distinct_from(WARM_UP_STAGE))
    with reading(engine, address) as connection:
        return {(row[0], row[1]) for row in connection.execute(query)}


def _select_recordings(
    rows: Iterable[RowMapping], answered: set[tuple[str, int]], secrets: tuple[str, ...]
) -> Iterator[Recording]:
    failed: set[tuple[str, int]] = set()
    for row in rows:
        key = (row["prompt_sha256"], row["epoch"])
        if row["status"] == str(RunStatus.SUCCEEDED):
            if row["served_from"] == str(ServedFrom.PROVIDER):
                yield _answer(row, secrets)
        elif key not in answered | failed and row["error_code"] not in _OURS:
            failed.add(key)
            yield Recording(**_common(row), error_code=row["error_code"], error_message=row["error_message"])


def _answer(row: RowMapping, secrets: tuple[str, ...]) -> Recording:
    if row["result_json"] is None:
        raise LLMStoreError(f"The answer of run {row['id']} was not stored (LLM_STORE_PAYLOADS was off)")
    response = LLMResponse.model_validate_json(row["result_json"])
    return Recording(
        **_common(row),
        text=redact_answer(response.text, secrets),
        tool_calls=tuple(
            call.model_copy(update={"arguments": redact_answer(call.arguments, secrets)})
            for call in response.tool_calls
        ),
        route=response.route,
        response_model=response.response_model,
        finish_reason=response.finish_reason,
        usage=response.usage,
        latency_ms=round(response.latency_ms, 1),
        cost_usd=response.cost_usd,
        logprobs=response.logprobs,
        warnings=response.warnings,
    )


def _common(row: RowMapping) -> dict[str, Any]:
    return {
        "prompt": row["request_preview"],
        "requested_route": row["requested_route"],
        "profile": row["profile"],
        "parameters": json.loads(row["metadata_json"]).get("parameters", {}),
        "epoch": row["epoch"],
        "prompt_sha256": row["prompt_sha256"],
    }
