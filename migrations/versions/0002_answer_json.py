"""The answer of an evaluation as it was validated, beside its serialised output.

Revision: 0002, after 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("eval_results", sa.Column("answer_json", sa.Text))


def downgrade() -> None:
    with op.batch_alter_table("eval_results") as table:
        table.drop_column("answer_json")
