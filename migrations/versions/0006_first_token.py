"""Time to the first token of calls and requests whose answer was streamed.

Revision: 0006, after 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLES = ("llm_runs", "llm_attempts")


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column("first_token_ms", sa.Float))


def downgrade() -> None:
    for table in TABLES:
        # Without building the table anew, so that partial indexes and references to it stay.
        op.execute(f"ALTER TABLE {table} DROP COLUMN first_token_ms")
