"""Prices of tokens, and costs by day.

Revision: 0005, after 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import UTCDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "prices",
        sa.Column("endpoint", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("valid_from_utc", UTCDateTime, nullable=False),
        sa.Column("above_input_tokens", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("source", sa.String, nullable=False),
        sa.Column("is_own", sa.Boolean, nullable=False),
        sa.Column("input_usd", sa.String, nullable=False),
        sa.Column("output_usd", sa.String, nullable=False),
        sa.Column("cached_input_usd", sa.String),
        sa.Column("reasoning_usd", sa.String),
        sa.PrimaryKeyConstraint(
            "endpoint", "model", "valid_from_utc", "above_input_tokens", "source", name=op.f("pk_prices")
        ),
    )
    counts = ("requests", "uncounted_requests", "unpriced_requests")
    op.create_table(
        "llm_costs_daily",
        *(
            sa.Column(name, sa.String, nullable=False)
            for name in ("workspace_id", "day_utc", "endpoint", "model", "stage")
        ),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in counts),
        sa.Column("billed_input_tokens", sa.BigInteger),
        sa.Column("billed_output_tokens", sa.BigInteger),
        sa.Column("cost_usd", sa.String),
        sa.Column("served_calls", sa.BigInteger, nullable=False),
        sa.Column("served_input_tokens", sa.BigInteger),
        sa.Column("served_output_tokens", sa.BigInteger),
        sa.Column("is_closed", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint(
            "workspace_id", "day_utc", "endpoint", "model", "stage", name=op.f("pk_llm_costs_daily")
        ),
    )


def downgrade() -> None:
    op.drop_table("llm_costs_daily")
    op.drop_table("prices")
