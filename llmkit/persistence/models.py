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

__all__ = [
    "METADATA",
    "CostDayRow",
    "EvalDigestRow",
    "EvalResultRow",
    "EvalRunRow",
    "LLMAttemptRow",
    "LLMLeaseRow",
    "LLMPauseRow",
    "LLMRunRow",
    "PriceRow",
    "SharedCallRow",
    "table_of",
]

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
UNDER_WAY = text("status = 'STARTED'")
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
        # Few rows of many: without it, a look at them reads the whole table.
        Index(
            "ix_llm_runs_under_way",
            "workspace_id",
            "pipeline_run_id",
            sqlite_where=UNDER_WAY,
            postgresql_where=UNDER_WAY,
        ),
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
    logprob_mean: float | None = None
    logprob_min: float | None = None
    first_token_ms: float | None = None


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
    first_token_ms: float | None = None
    host: str | None = None


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
    logprob_mean: float | None = None
    logprob_min: float | None = None
    field_logprobs_json: str | None = Field(default=None, sa_type=Text)


class SharedCallRow(StoreTable, table=True):
    """A call of `evaluate` or `map` that workers take part in, and whether it was stopped. They look here."""

    __tablename__ = "shared_calls"

    id: UUID = Field(primary_key=True)
    created_at_utc: datetime
    is_stopped: bool


def table_of(model: type[StoreTable]) -> Table:
    """Return the Core table behind a model."""
    return METADATA.tables[str(model.__tablename__)]


class PriceRow(StoreTable, table=True):
    """A price from a time on, in USD per million tokens as decimal text: a float would not add up exactly."""

    __tablename__ = "prices"

    endpoint: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    valid_from_utc: datetime = Field(primary_key=True)
    above_input_tokens: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    source: str = Field(primary_key=True)
    is_own: bool
    input_usd: str
    output_usd: str
    cached_input_usd: str | None = None
    reasoning_usd: str | None = None


class CostDayRow(StoreTable, table=True):
    """Requests and served answers of one UTC day, by workspace, model and stage (empty for none).

    `cost_usd` is the exact sum of the known costs as decimal text, NULL when none is known; `unpriced_requests` counts
    the requests without one. A closed day is final: no call that could belong to it was under way.
    """

    __tablename__ = "llm_costs_daily"

    workspace_id: str = Field(primary_key=True)
    day_utc: str = Field(primary_key=True)
    endpoint: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    stage: str = Field(primary_key=True)
    requests: int = Field(sa_type=BigInteger)
    uncounted_requests: int = Field(sa_type=BigInteger)
    unpriced_requests: int = Field(sa_type=BigInteger)
    billed_input_tokens: int | None = Field(default=None, sa_type=BigInteger)
    billed_output_tokens: int | None = Field(default=None, sa_type=BigInteger)
    cost_usd: str | None = None
    served_calls: int = Field(sa_type=BigInteger)
    served_input_tokens: int | None = Field(default=None, sa_type=BigInteger)
    served_output_tokens: int | None = Field(default=None, sa_type=BigInteger)
    is_closed: bool


class LLMLeaseRow(StoreTable, table=True):
    """A part of a limit or of a budget that one process holds, or has used.

    Of a limit per minute: what may be sent or was, until it leaves the window at `expires_at_utc`. Of a budget: what
    the process may still spend (`amount`) and has spent (`settled`), until it counts as dead; the row without owner
    and without end is what processes that are gone have spent. Rows of a pool are changed under its lock alone.
    """

    __tablename__ = "llm_leases"
    __table_args__: ClassVar[tuple[Any, ...]] = (Index("ix_llm_leases_pool_expires_at_utc", "pool", "expires_at_utc"),)

    id: UUID = Field(primary_key=True)
    pool: str
    owner: str
    amount: int = Field(sa_type=BigInteger)
    settled: int = Field(sa_type=BigInteger)
    expires_at_utc: datetime | None = None


class LLMPauseRow(StoreTable, table=True):
    """A route that its provider asked to leave alone until a time."""

    __tablename__ = "llm_pauses"

    endpoint: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    until_utc: datetime


class EvalDigestRow(StoreTable, table=True):
    """The digest of a model as a machine that works on an evaluation had it."""

    __tablename__ = "eval_digests"

    eval_run_id: UUID = Field(primary_key=True, foreign_key="eval_runs.id", ondelete="CASCADE")
    host: str = Field(primary_key=True)
    provider: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    digest: str
    seen_at_utc: datetime
