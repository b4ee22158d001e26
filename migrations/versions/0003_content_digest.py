"""The content of the sample that the scores of an evaluation's result are of.

Revision: 0003, after 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("eval_results", sa.Column("content_digest", sa.String))


def downgrade() -> None:
    with op.batch_alter_table("eval_results") as table:
        table.drop_column("content_digest")
