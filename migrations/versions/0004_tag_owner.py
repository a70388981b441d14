"""who made a tag."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_tag_owner"
down_revision = "0003_assays"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tag", sa.Column("owner_id", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("tag", "owner_id")
