"""Calls of `evaluate` and `map` that workers take part in: where they see that it was stopped.

Revision: 0008, after 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import UTCDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "shared_calls",
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("created_at_utc", UTCDateTime, nullable=False),
        sa.Column("is_stopped", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shared_calls")),
    )


def downgrade() -> None:
    op.drop_table("shared_calls")
