"""Log-probabilities of the tokens of an answer, of calls and of results of evaluations.

Revision: 0004, after 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

COLUMNS = ("logprob_mean", "logprob_min")


def upgrade() -> None:
    for table in ("llm_runs", "eval_results"):
        for name in COLUMNS:
            op.add_column(table, sa.Column(name, sa.Float))
    op.add_column("eval_results", sa.Column("field_logprobs_json", sa.Text))


def downgrade() -> None:
    with op.batch_alter_table("eval_results") as results:
        for name in (*COLUMNS, "field_logprobs_json"):
            results.drop_column(name)
    for name in COLUMNS:
        # Without building the table anew, so that its partial indexes and the references to it stay.
        op.execute(f"ALTER TABLE llm_runs DROP COLUMN {name}")
