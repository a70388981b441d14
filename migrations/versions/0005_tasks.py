"""Tasks and their runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005_tasks"
down_revision = "0004_tag_owner"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "task",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column("orch_id", sa.Uuid(), nullable=False),
        sa.Column("workspace_id", sa.BigInteger(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("run_type", sa.String(), nullable=False),
        sa.Column("schedule", sa.String(), nullable=True),
        sa.Column(
            "input_data", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("timeout_s", sa.BigInteger(), nullable=True),
        sa.Column("debug", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("status", sa.String(), server_default="pending", nullable=False),
        sa.Column("killed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("paused", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("next_run_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failures", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["orch_id"], ["orchestration.id"], name=op.f("task_orch_id_fkey"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspace.id"], name=op.f("task_workspace_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("task_pkey")),
    )
    op.create_index(op.f("task_next_run_at_idx"), "task", ["next_run_at"], unique=False)
    op.create_index(op.f("task_orch_id_idx"), "task", ["orch_id"], unique=False)
    op.create_index(op.f("task_workspace_id_idx"), "task", ["workspace_id"], unique=False)
    op.create_table(
        "task_run",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.String(), server_default="queued", nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("kill_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("log_key", sa.String(), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("task_run_task_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("task_run_pkey")),
        sa.UniqueConstraint("task_id", "due_at", name=op.f("task_run_task_id_due_at_key")),
    )
    op.create_index(
        "task_run_unfinished_idx",
        "task_run",
        ["status"],
        unique=False,
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )
    op.add_column("orchestration", sa.Column("entry_point", sa.String(), server_default="main.py", nullable=False))
    op.add_column("orchestration", sa.Column("environment", sa.String(), nullable=True))
    op.add_column("orchestration", sa.Column("error_summary", sa.String(), nullable=True))
    op.add_column("orchestration", sa.Column("packaging_log", sa.String(), server_default="", nullable=False))
    op.add_column("orchestration", sa.Column("claimed_by", sa.String(), nullable=True))
    op.add_column("orchestration", sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("orchestration", "claimed_at")
    op.drop_column("orchestration", "claimed_by")
    op.drop_column("orchestration", "packaging_log")
    op.drop_column("orchestration", "error_summary")
    op.drop_column("orchestration", "environment")
    op.drop_column("orchestration", "entry_point")
    op.drop_index(
        "task_run_unfinished_idx", table_name="task_run", postgresql_where=sa.text("status IN ('queued', 'running')")
    )
    op.drop_table("task_run")
    op.drop_index(op.f("task_workspace_id_idx"), table_name="task")
    op.drop_index(op.f("task_orch_id_idx"), table_name="task")
    op.drop_index(op.f("task_next_run_at_idx"), table_name="task")
    op.drop_table("task")
