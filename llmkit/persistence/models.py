"""The tables. Changed only together with a migration in `migrations/`; a drift check runs in the tests.

Times are UTC, units are in the names, unknown is NULL and never 0. Enumerations are text with a CHECK: a native
PostgreSQL enum survives a downgrade and breaks the next upgrade. JSON is kept as text: PostgreSQL's own JSON types
cannot read back a NUL that a model wrote.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, get_args
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Index, MetaData, Table, Text, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from llmkit.types import AttemptStatus, FinishReason, RunStatus, ServedFrom

__all__ = ["METADATA", "EvalResultRow", "EvalRunRow", "LLMAttemptRow", "LLMRunRow", "table_of"]

# Of its own, so that tables of the user's application never mix with these.
METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)
EVAL_STATUSES = ("SUCCEEDED", "FAILED", "SCORER_FAILED")
HOLDS_KEY = text("idempotency_key IS NOT NULL AND status IN ('STARTED', 'SUCCEEDED')")
IN_FLIGHT = text("flight_key IS NOT NULL AND status = 'STARTED'")


def _one_of(column: str, values: Iterable[str]) -> CheckConstraint:
    # Not IN: for more than two values SQLite builds a table of them per row, and a pair of writes costs a fifth more.
    return CheckConstraint(" OR ".join(f"{column} = '{value}'" for value in values), name=column)


def _members(enum: type[StrEnum]) -> tuple[str, ...]:
    return tuple(member.value for member in enum)


class StoreTable(SQLModel):
    """Base of all tables of llmkit."""

    metadata: ClassVar[MetaData] = METADATA


class LLMRunRow(StoreTable, table=True):
    """One logical call, however many requests it took.

    `model` is the one that answered as its route names it, `response_model` as the provider reported it. `owner` names
    the process that carries a STARTED call and `heartbeat_at_utc` when that process last said so. `attempts` counts
    the requests sent.
    """

    __tablename__ = "llm_runs"
    __table_args__: ClassVar[tuple[Any, ...]] = (
        _one_of("status", _members(RunStatus)),
        _one_of("served_from", _members(ServedFrom)),
        _one_of("finish_reason", get_args(FinishReason)),
        Index("ix_llm_runs_workspace_id_created_at_utc", "workspace_id", "created_at_utc"),
        Index("ix_llm_runs_pipeline_run_id", "pipeline_run_id"),
        Index("ix_llm_runs_prompt_sha256", "prompt_sha256"),
        # A failed run keeps its key for the record and never blocks a retry.
        Index(
            "uq_llm_runs_idempotency_key",
            "workspace_id",
            "idempotency_key",
            unique=True,
            sqlite_where=HOLDS_KEY,
            postgresql_where=HOLDS_KEY,
        ),
        Index(
            "uq_llm_runs_flight_key",
            "workspace_id",
            "flight_key",
            unique=True,
            sqlite_where=IN_FLIGHT,
            postgresql_where=IN_FLIGHT,
        ),
    )

    id: UUID = Field(primary_key=True)
    workspace_id: str
    pipeline_run_id: str | None = None
    stage: str | None = None
    status: str
    owner: str
    created_at_utc: datetime
    heartbeat_at_utc: datetime
    finished_at_utc: datetime | None = None
    requested_route: str | None = None
    provider: str | None = None
    model: str | None = None
    response_model: str | None = None
    profile: str
    epoch: int
    idempotency_key: str | None = None
    flight_key: str | None = None
    prompt_sha256: str
    served_from: str | None = None
    source_run_id: UUID | None = None
    finish_reason: str | None = None
    input_tokens: int | None = Field(default=None, sa_type=BigInteger)
    output_tokens: int | None = Field(default=None, sa_type=BigInteger)
    total_tokens: int | None = Field(default=None, sa_type=BigInteger)
    cached_input_tokens: int | None = Field(default=None, sa_type=BigInteger)
    reasoning_tokens: int | None = Field(default=None, sa_type=BigInteger)
    usage_estimated: bool | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None
    attempts: int | None = None
    error_code: str | None = None
    error_message: str | None = Field(default=None, sa_type=Text)
    # The long ones last: SQLite reads a row from the left and skips what it does not need.
    request_preview: str = Field(sa_type=Text)
    response_preview: str | None = Field(default=None, sa_type=Text)
    metadata_json: str = Field(sa_type=Text)
    plan_json: str | None = Field(default=None, sa_type=Text)
    result_json: str | None = Field(default=None, sa_type=Text)


class LLMAttemptRow(StoreTable, table=True):
    """One request that was sent to a provider: what was billed. Numbered from 1 within its run, which is its key.

    Attempts of a workspace or a time are found through their runs: an index more would cost every call.
    """

    __tablename__ = "llm_attempts"
    __table_args__: ClassVar[tuple[Any, ...]] = (
        _one_of("status", _members(AttemptStatus)),
        _one_of("finish_reason", get_args(FinishReason)),
    )

    run_id: UUID = Field(primary_key=True, foreign_key="llm_runs.id", ondelete="CASCADE")
    number: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    workspace_id: str
    provider: str
    model: str
    status: str
    started_at_utc: datetime
    latency_ms: float
    params_sha256: str | None = None
    schema_sha256: str | None = None
    input_tokens: int | None = Field(default=None, sa_type=BigInteger)
    output_tokens: int | None = Field(default=None, sa_type=BigInteger)
    total_tokens: int | None = Field(default=None, sa_type=BigInteger)
    cached_input_tokens: int | None = Field(default=None, sa_type=BigInteger)
    reasoning_tokens: int | None = Field(default=None, sa_type=BigInteger)
    usage_estimated: bool
    finish_reason: str | None = None
    response_model: str | None = None
    model_digest: str | None = None
    cost_usd: float | None = None
    status_code: int | None = None
    error_code: str | None = None
    error_message: str | None = Field(default=None, sa_type=Text)


class EvalRunRow(StoreTable, table=True):
    """One named evaluation of a workspace."""

    __tablename__ = "eval_runs"
    __table_args__: ClassVar[tuple[Any, ...]] = (UniqueConstraint("workspace_id", "name"),)

    id: UUID = Field(primary_key=True)
    workspace_id: str
    name: str
    task_name: str
    task_sha256: str
    dataset_sha256: str
    created_at_utc: datetime
    spec_json: str = Field(sa_type=Text)


class EvalResultRow(StoreTable, table=True):
    """The outcome of one sample on one route in one epoch. `requests` counts what was sent to providers for it."""

    __tablename__ = "eval_results"
    __table_args__: ClassVar[tuple[Any, ...]] = (_one_of("status", EVAL_STATUSES),)

    eval_run_id: UUID = Field(primary_key=True, foreign_key="eval_runs.id", ondelete="CASCADE")
    route: str = Field(primary_key=True)
    sample_id: str = Field(primary_key=True)
    epoch: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    status: str
    finished_at_utc: datetime
    pipeline_run_id: str
    served_route: str | None = None
    output_mode: str | None = None
    valid_first_try: bool | None = None
    outcome: str | None = None
    schema_sha256: str | None = None
    sample_group: str | None = None
    input_tokens: int | None = Field(default=None, sa_type=BigInteger)
    output_tokens: int | None = Field(default=None, sa_type=BigInteger)
    latency_ms: float | None = None
    requests: int
    error_code: str | None = None
    error_message: str | None = Field(default=None, sa_type=Text)
    scores_json: str = Field(sa_type=Text)
    scorer_errors_json: str = Field(sa_type=Text)
    score_details_json: str = Field(sa_type=Text)
    warnings_json: str = Field(sa_type=Text)
    output_json: str | None = Field(default=None, sa_type=Text)
    answer_json: str | None = Field(default=None, sa_type=Text)
    content_digest: str | None = None


def table_of(model: type[StoreTable]) -> Table:
    """Return the Core table behind a model."""
    return METADATA.tables[str(model.__tablename__)]
