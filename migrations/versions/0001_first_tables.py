"""Runs, attempts and evaluations.

Revision: 0001, the first
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import UTCDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "unknown")
HOLDS_KEY = sa.text("idempotency_key IS NOT NULL AND status IN ('STARTED', 'SUCCEEDED')")
IN_FLIGHT = sa.text("flight_key IS NOT NULL AND status = 'STARTED'")


def upgrade() -> None:
    create_runs()
    create_attempts()
    create_eval_runs()
    create_eval_results()


def downgrade() -> None:
    op.drop_table("eval_results")
    op.drop_table("eval_runs")
    op.drop_table("llm_attempts")
    op.drop_table("llm_runs")


def one_of(table: str, column: str, values: tuple[str, ...]) -> sa.CheckConstraint:
    return sa.CheckConstraint(
        " OR ".join(f"{column} = '{value}'" for value in values), name=op.f(f"ck_{table}_{column}")
    )


def token_columns() -> list[sa.Column]:
    names = ("input_tokens", "output_tokens", "total_tokens", "cached_input_tokens", "reasoning_tokens")
    return [sa.Column(name, sa.BigInteger) for name in names]


def create_runs() -> None:
    op.create_table(
        "llm_runs",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("workspace_id", sa.String, nullable=False),
        sa.Column("pipeline_run_id", sa.String),
        sa.Column("stage", sa.String),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("created_at_utc", UTCDateTime, nullable=False),
        sa.Column("heartbeat_at_utc", UTCDateTime, nullable=False),
        sa.Column("finished_at_utc", UTCDateTime),
        sa.Column("requested_route", sa.String),
        sa.Column("provider", sa.String),
        sa.Column("model", sa.String),
        sa.Column("response_model", sa.String),
        sa.Column("profile", sa.String, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("idempotency_key", sa.String),
        sa.Column("flight_key", sa.String),
        sa.Column("prompt_sha256", sa.String, nullable=False),
        sa.Column("served_from", sa.String),
        sa.Column("source_run_id", sa.Uuid),
        sa.Column("finish_reason", sa.String),
        *token_columns(),
        sa.Column("usage_estimated", sa.Boolean),
        sa.Column("cost_usd", sa.Float),
        sa.Column("latency_ms", sa.Float),
        sa.Column("attempts", sa.Integer),
        sa.Column("error_code", sa.String),
        sa.Column("error_message", sa.Text),
        sa.Column("request_preview", sa.Text, nullable=False),
        sa.Column("response_preview", sa.Text),
        sa.Column("metadata_json", sa.Text, nullable=False),
        sa.Column("plan_json", sa.Text),
        sa.Column("result_json", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_llm_runs"),
        one_of("llm_runs", "status", ("STARTED", "SUCCEEDED", "FAILED")),
        one_of("llm_runs", "served_from", ("provider", "cache", "replay", "shared")),
        one_of("llm_runs", "finish_reason", FINISH_REASONS),
    )
    op.create_index("ix_llm_runs_workspace_id_created_at_utc", "llm_runs", ["workspace_id", "created_at_utc"])
    op.create_index("ix_llm_runs_pipeline_run_id", "llm_runs", ["pipeline_run_id"])
    op.create_index("ix_llm_runs_prompt_sha256", "llm_runs", ["prompt_sha256"])
    create_unique_key("idempotency_key", HOLDS_KEY)
    create_unique_key("flight_key", IN_FLIGHT)


def create_unique_key(column: str, where: sa.TextClause) -> None:
    op.create_index(
        f"uq_llm_runs_{column}",
        "llm_runs",
        ["workspace_id", column],
        unique=True,
        sqlite_where=where,
        postgresql_where=where,
    )


def create_attempts() -> None:
    op.create_table(
        "llm_attempts",
        sa.Column("run_id", sa.Uuid, nullable=False),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("workspace_id", sa.String, nullable=False),
        sa.Column("provider", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("started_at_utc", UTCDateTime, nullable=False),
        sa.Column("latency_ms", sa.Float, nullable=False),
        sa.Column("params_sha256", sa.String),
        sa.Column("schema_sha256", sa.String),
        *token_columns(),
        sa.Column("usage_estimated", sa.Boolean, nullable=False),
        sa.Column("finish_reason", sa.String),
        sa.Column("response_model", sa.String),
        sa.Column("model_digest", sa.String),
        sa.Column("cost_usd", sa.Float),
        sa.Column("status_code", sa.Integer),
        sa.Column("error_code", sa.String),
        sa.Column("error_message", sa.Text),
        sa.PrimaryKeyConstraint("run_id", "number", name="pk_llm_attempts"),
        sa.ForeignKeyConstraint(["run_id"], ["llm_runs.id"], name="fk_llm_attempts_run_id", ondelete="CASCADE"),
        one_of("llm_attempts", "status", ("SUCCEEDED", "FAILED", "CANCELLED")),
        one_of("llm_attempts", "finish_reason", FINISH_REASONS),
    )


def create_eval_runs() -> None:
    op.create_table(
        "eval_runs",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("workspace_id", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("task_name", sa.String, nullable=False),
        sa.Column("task_sha256", sa.String, nullable=False),
        sa.Column("dataset_sha256", sa.String, nullable=False),
        sa.Column("created_at_utc", UTCDateTime, nullable=False),
        sa.Column("spec_json", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_eval_runs"),
        sa.UniqueConstraint("workspace_id", "name", name="uq_eval_runs_workspace_id_name"),
    )


def create_eval_results() -> None:
    op.create_table(
        "eval_results",
        sa.Column("eval_run_id", sa.Uuid, nullable=False),
        sa.Column("route", sa.String, nullable=False),
        sa.Column("sample_id", sa.String, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("finished_at_utc", UTCDateTime, nullable=False),
        sa.Column("pipeline_run_id", sa.String, nullable=False),
        sa.Column("served_route", sa.String),
        sa.Column("output_mode", sa.String),
        sa.Column("valid_first_try", sa.Boolean),
        sa.Column("outcome", sa.String),
        sa.Column("schema_sha256", sa.String),
        sa.Column("sample_group", sa.String),
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("latency_ms", sa.Float),
        sa.Column("requests", sa.Integer, nullable=False),
        sa.Column("error_code", sa.String),
        sa.Column("error_message", sa.Text),
        sa.Column("scores_json", sa.Text, nullable=False),
        sa.Column("scorer_errors_json", sa.Text, nullable=False),
        sa.Column("score_details_json", sa.Text, nullable=False),
        sa.Column("warnings_json", sa.Text, nullable=False),
        sa.Column("output_json", sa.Text),
        sa.PrimaryKeyConstraint("eval_run_id", "route", "sample_id", "epoch", name="pk_eval_results"),
        sa.ForeignKeyConstraint(
            ["eval_run_id"], ["eval_runs.id"], name="fk_eval_results_eval_run_id", ondelete="CASCADE"
        ),
        one_of("eval_results", "status", ("SUCCEEDED", "FAILED", "SCORER_FAILED")),
    )
