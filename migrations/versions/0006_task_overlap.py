"""Whether a scheduled task may run while its last run goes on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_task_overlap"
down_revision = "0005_tasks"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("task", sa.Column("may_overlap", sa.Boolean(), nullable=False, server_default=sa.text("false")))


def downgrade() -> None:
    op.drop_column("task", "may_overlap")
