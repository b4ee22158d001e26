"""Machines: the host of each request, leases of limits and budgets, pauses, and digests by host.

Revision: 0007, after 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import UTCDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("llm_attempts", sa.Column("host", sa.String))
    op.create_table(
        "llm_leases",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("pool", sa.String, nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("settled", sa.BigInteger, nullable=False),
        sa.Column("expires_at_utc", UTCDateTime),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_llm_leases")),
    )
    op.create_index("ix_llm_leases_pool_expires_at_utc", "llm_leases", ["pool", "expires_at_utc"])
    op.create_table(
        "llm_pauses",
        sa.Column("endpoint", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("until_utc", UTCDateTime, nullable=False),
        sa.PrimaryKeyConstraint("endpoint", "model", name=op.f("pk_llm_pauses")),
    )
    op.create_table(
        "eval_digests",
        sa.Column("eval_run_id", sa.Uuid, nullable=False),
        sa.Column("host", sa.String, nullable=False),
        sa.Column("provider", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("seen_at_utc", UTCDateTime, nullable=False),
        sa.ForeignKeyConstraint(
            ["eval_run_id"], ["eval_runs.id"], name=op.f("fk_eval_digests_eval_run_id_eval_runs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("eval_run_id", "host", "provider", "model", name=op.f("pk_eval_digests")),
    )


def downgrade() -> None:
    op.drop_table("eval_digests")
    op.drop_table("llm_pauses")
    op.drop_index("ix_llm_leases_pool_expires_at_utc", "llm_leases")
    op.drop_table("llm_leases")
    # Without building the table anew, so that references to it stay.
    op.execute("ALTER TABLE llm_attempts DROP COLUMN host")
