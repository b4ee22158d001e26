"""Calls under way by workspace and name: processes that share a run look at them every second.

Revision: 0009, after 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

INDEX = "ix_llm_runs_under_way"


def upgrade() -> None:
    started = sa.text("status = 'STARTED'")
    op.create_index(
        INDEX, "llm_runs", ["workspace_id", "pipeline_run_id"], sqlite_where=started, postgresql_where=started
    )


def downgrade() -> None:
    op.drop_index(INDEX, "llm_runs")
