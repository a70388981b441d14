"""initial schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


FUNCTION = """
CREATE FUNCTION set_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.updated_at := now();
  RETURN NEW;
END $$
"""


def upgrade() -> None:
    op.execute(FUNCTION)
    op.create_table(
        "alert_configuration",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column("expression", sa.String(), nullable=True),
        sa.Column("notifications", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("pipeline_version_pk_id", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("alert_configuration_pkey")),
    )
    op.create_table(
        "comment",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("comment_pkey")),
    )
    op.create_table(
        "connections",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("details", sa.LargeBinary(), nullable=True),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("connections_pkey")),
        sa.UniqueConstraint("name", name=op.f("connections_name_key")),
    )
    op.create_table(
        "tag",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("tag_pkey")),
    )
    op.create_table(
        "workspace",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("archived", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_by", sa.String(), nullable=True),
        sa.Column("owner_id", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("workspace_pkey")),
        sa.UniqueConstraint("name", name=op.f("workspace_name_key")),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), server_default="", nullable=False),
        sa.Column("workspace_id", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspace.id"], name=op.f("models_workspace_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("models_pkey")),
        sa.UniqueConstraint("name", "workspace_id", name=op.f("models_name_workspace_id_key")),
    )
    op.create_index(op.f("models_workspace_id_idx"), "models", ["workspace_id"], unique=False)
    op.create_table(
        "orchestration",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column("file_name", sa.String(), nullable=False),
        sa.Column("file_size", sa.BigInteger(), nullable=False),
        sa.Column("sha", sa.CHAR(length=64), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=True),
        sa.Column("status", sa.String(), server_default="pending_packaging", nullable=False),
        sa.Column("image_path", sa.String(), nullable=True),
        sa.Column("task_id", sa.Uuid(), nullable=True),
        sa.Column("workspace_id", sa.BigInteger(), nullable=False),
        sa.Column("created_on_version", sa.String(), server_default="2024.1.0", nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspace.id"], name=op.f("orchestration_workspace_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("orchestration_pkey")),
    )
    op.create_index(op.f("orchestration_sha_idx"), "orchestration", ["sha"], unique=False)
    op.create_index(op.f("orchestration_workspace_id_idx"), "orchestration", ["workspace_id"], unique=False)
    op.create_table(
        "pipeline",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("pipeline_id", sa.String(), nullable=False),
        sa.Column("workspace_id", sa.BigInteger(), nullable=False),
        sa.Column("owner_id", sa.String(), server_default="", nullable=False),
        sa.Column("visibility", sa.String(), server_default="private", nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspace.id"], name=op.f("pipeline_workspace_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("pipeline_pkey")),
        sa.UniqueConstraint("pipeline_id", "workspace_id", name=op.f("pipeline_pipeline_id_workspace_id_key")),
    )
    op.create_index(op.f("pipeline_workspace_id_idx"), "pipeline", ["workspace_id"], unique=False)
    op.create_table(
        "user_default_workspace",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("workspace_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            ["workspace.id"],
            name=op.f("user_default_workspace_workspace_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("user_default_workspace_pkey")),
        sa.UniqueConstraint("user_id", name=op.f("user_default_workspace_user_id_key")),
    )
    op.create_index(
        op.f("user_default_workspace_workspace_id_idx"), "user_default_workspace", ["workspace_id"], unique=False
    )
    op.create_table(
        "workspace_connections",
        sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("workspace_id", sa.BigInteger(), nullable=False),
        sa.Column("connection_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["connection_id"],
            ["connections.id"],
            name=op.f("workspace_connections_connection_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["workspace.id"], name=op.f("workspace_connections_workspace_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("workspace_connections_pkey")),
        sa.UniqueConstraint(
            "workspace_id", "connection_id", name=op.f("workspace_connections_workspace_id_connection_id_key")
        ),
    )
    op.create_index(
        op.f("workspace_connections_connection_id_idx"), "workspace_connections", ["connection_id"], unique=False
    )
    op.create_table(
        "workspace_users",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("workspace_id", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("user_type", sa.String(), server_default="COLLABORATOR", nullable=False),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["workspace.id"], name=op.f("workspace_users_workspace_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("workspace_users_pkey")),
        sa.UniqueConstraint("workspace_id", "user_id", name=op.f("workspace_users_workspace_id_user_id_key")),
    )
    op.create_index(op.f("workspace_users_user_id_idx"), "workspace_users", ["user_id"], unique=False)
    op.create_table(
        "assay",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("status", sa.String(), server_default="created", nullable=False),
        sa.Column("warning_threshold", sa.REAL(), nullable=True),
        sa.Column("alert_threshold", sa.REAL(), nullable=False),
        sa.Column("pipeline_name", sa.String(), nullable=False),
        sa.Column("pipeline_id", sa.BigInteger(), nullable=False),
        sa.Column("created_on_version", sa.String(), server_default="2024.1.0", nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["pipeline_id"], ["pipeline.id"], name=op.f("assay_pipeline_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("assay_pkey")),
        sa.UniqueConstraint("name", name=op.f("assay_name_key")),
    )
    op.create_index(op.f("assay_pipeline_id_idx"), "assay", ["pipeline_id"], unique=False)
    op.create_table(
        "deployment",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("deploy_id", sa.String(), nullable=False),
        sa.Column("deployed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "engine_config",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{\"engine\": {}}'::jsonb"),
            nullable=False,
        ),
        sa.Column("limit_status", sa.String(), nullable=True),
        sa.Column("pipeline_id", sa.BigInteger(), nullable=False),
        sa.Column("updated_by", sa.String(), nullable=True),
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("1"), nullable=False),
        sa.Column("phase", sa.String(), server_default="stopped", nullable=False),
        sa.Column("phase_since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("running_revision", sa.BigInteger(), nullable=True),
        sa.Column("failed_revision", sa.BigInteger(), nullable=True),
        sa.Column("observed", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["pipeline_id"], ["pipeline.id"], name=op.f("deployment_pipeline_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("deployment_pkey")),
        sa.UniqueConstraint("pipeline_id", name=op.f("deployment_pipeline_id_key")),
    )
    op.create_index(op.f("deployment_deploy_id_idx"), "deployment", ["deploy_id"], unique=False)
    op.create_table(
        "model",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("model_version", sa.String(), server_default=sa.text("gen_random_uuid()::text"), nullable=False),
        sa.Column("models_pk_id", sa.BigInteger(), nullable=False),
        sa.Column("sha", sa.CHAR(length=64), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("error_summary", sa.String(), nullable=True),
        sa.Column("file_name", sa.String(), nullable=True),
        sa.Column("file_size", sa.BigInteger(), nullable=True),
        sa.Column("image_path", sa.String(), nullable=True),
        sa.Column("owner_id", sa.String(), server_default="", nullable=False),
        sa.Column("created_by", sa.String(), nullable=True),
        sa.Column("visibility", sa.String(), server_default="private", nullable=False),
        sa.Column("conversion", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("task_id", sa.Uuid(), nullable=True),
        sa.Column("created_on_version", sa.String(), server_default="2024.1.0", nullable=False),
        sa.Column("inspection", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["models_pk_id"], ["models.id"], name=op.f("model_models_pk_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("model_pkey")),
        sa.UniqueConstraint("model_version", name=op.f("model_model_version_key")),
    )
    op.create_index(op.f("model_model_id_idx"), "model", ["model_id"], unique=False)
    op.create_index(op.f("model_models_pk_id_idx"), "model", ["models_pk_id"], unique=False)
    op.create_table(
        "pipeline_comment",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("pipeline_pk_id", sa.BigInteger(), nullable=False),
        sa.Column("comment_pk_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["comment_pk_id"], ["comment.id"], name=op.f("pipeline_comment_comment_pk_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["pipeline_pk_id"], ["pipeline.id"], name=op.f("pipeline_comment_pipeline_pk_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pipeline_comment_pkey")),
    )
    op.create_index(op.f("pipeline_comment_pipeline_pk_id_idx"), "pipeline_comment", ["pipeline_pk_id"], unique=False)
    op.create_table(
        "pipeline_tag",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("pipeline_pk_id", sa.BigInteger(), nullable=False),
        sa.Column("tag_pk_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["pipeline_pk_id"], ["pipeline.id"], name=op.f("pipeline_tag_pipeline_pk_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["tag_pk_id"], ["tag.id"], name=op.f("pipeline_tag_tag_pk_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pipeline_tag_pkey")),
    )
    op.create_index(op.f("pipeline_tag_pipeline_pk_id_idx"), "pipeline_tag", ["pipeline_pk_id"], unique=False)
    op.create_index(op.f("pipeline_tag_tag_pk_id_idx"), "pipeline_tag", ["tag_pk_id"], unique=False)
    op.create_table(
        "pipeline_version",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("pipeline_pk_id", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column(
            "definition", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("owner_id", sa.String(), server_default="", nullable=False),
        sa.Column("created_on_version", sa.String(), server_default="2024.1.0", nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["pipeline_pk_id"], ["pipeline.id"], name=op.f("pipeline_version_pipeline_pk_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pipeline_version_pkey")),
        sa.UniqueConstraint("version", name=op.f("pipeline_version_version_key")),
    )
    op.create_index(op.f("pipeline_version_pipeline_pk_id_idx"), "pipeline_version", ["pipeline_pk_id"], unique=False)
    op.create_table(
        "deployment_pipeline_version",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("deployment_id", sa.BigInteger(), nullable=False),
        sa.Column("pipeline_version_pk_id", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["deployment_id"],
            ["deployment.id"],
            name=op.f("deployment_pipeline_version_deployment_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["pipeline_version_pk_id"],
            ["pipeline_version.id"],
            name=op.f("deployment_pipeline_version_pipeline_version_pk_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("deployment_pipeline_version_pkey")),
    )
    op.create_index(
        op.f("deployment_pipeline_version_deployment_id_idx"),
        "deployment_pipeline_version",
        ["deployment_id"],
        unique=False,
    )
    op.create_index(
        op.f("deployment_pipeline_version_pipeline_version_pk_id_idx"),
        "deployment_pipeline_version",
        ["pipeline_version_pk_id"],
        unique=False,
    )
    op.create_table(
        "model_config",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("runtime", sa.String(), server_default="onnx", nullable=False),
        sa.Column("tensor_fields", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("filter_threshold", sa.Double(), nullable=True),
        sa.Column("input_schema", sa.String(), nullable=True),
        sa.Column("output_schema", sa.String(), nullable=True),
        sa.Column("batch_config", sa.String(), nullable=True),
        sa.Column("dynamic_batching_config", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("continuous_batching_config", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("openai", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["model.id"], name=op.f("model_config_model_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("model_config_pkey")),
    )
    op.create_index(op.f("model_config_model_id_idx"), "model_config", ["model_id"], unique=False)
    op.create_table(
        "model_tag",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=False),
        sa.Column("tag_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("model_tag_model_id_fkey"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["tag_id"], ["tag.id"], name=op.f("model_tag_tag_id_fkey"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("model_tag_pkey")),
    )
    op.create_index(op.f("model_tag_model_id_idx"), "model_tag", ["model_id"], unique=False)
    op.create_index(op.f("model_tag_tag_id_idx"), "model_tag", ["tag_id"], unique=False)
    op.create_table(
        "model_variant_comment",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("model_pk_id", sa.BigInteger(), nullable=False),
        sa.Column("comment_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["comment_id"], ["comment.id"], name=op.f("model_variant_comment_comment_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["model_pk_id"], ["model.id"], name=op.f("model_variant_comment_model_pk_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("model_variant_comment_pkey")),
    )
    op.create_index(
        op.f("model_variant_comment_model_pk_id_idx"), "model_variant_comment", ["model_pk_id"], unique=False
    )
    op.create_table(
        "pipeline_publish",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("pipeline_version_id", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("chart_url", sa.String(), nullable=True),
        sa.Column("engine_url", sa.String(), nullable=True),
        sa.Column("pipeline_url", sa.String(), nullable=True),
        sa.Column(
            "engine_config",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column(
            "user_images",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column("created_by", sa.String(), nullable=True),
        sa.Column("created_on_version", sa.String(), server_default="2024.1.0", nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["pipeline_version_id"],
            ["pipeline_version.id"],
            name=op.f("pipeline_publish_pipeline_version_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pipeline_publish_pkey")),
    )
    op.create_index(
        op.f("pipeline_publish_pipeline_version_id_idx"), "pipeline_publish", ["pipeline_version_id"], unique=False
    )
    op.create_table(
        "deployment_model_configs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("deployment_id", sa.BigInteger(), nullable=False),
        sa.Column("model_config_id", sa.BigInteger(), nullable=False),
        sa.Column("pipeline_version_pk_id", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["deployment_id"],
            ["deployment.id"],
            name=op.f("deployment_model_configs_deployment_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["model_config_id"],
            ["model_config.id"],
            name=op.f("deployment_model_configs_model_config_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["pipeline_version_pk_id"],
            ["pipeline_version.id"],
            name=op.f("deployment_model_configs_pipeline_version_pk_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("deployment_model_configs_pkey")),
        sa.UniqueConstraint(
            "deployment_id",
            "model_config_id",
            "pipeline_version_pk_id",
            name="deployment_model_configs_deployment_id_model_config_id_pipeline",
        ),
    )
    op.create_index(
        op.f("deployment_model_configs_model_config_id_idx"),
        "deployment_model_configs",
        ["model_config_id"],
        unique=False,
    )
    op.create_index(
        op.f("deployment_model_configs_pipeline_version_pk_id_idx"),
        "deployment_model_configs",
        ["pipeline_version_pk_id"],
        unique=False,
    )


def downgrade() -> None:
    op.drop_index(op.f("deployment_model_configs_pipeline_version_pk_id_idx"), table_name="deployment_model_configs")
    op.drop_index(op.f("deployment_model_configs_model_config_id_idx"), table_name="deployment_model_configs")
    op.drop_table("deployment_model_configs")
    op.drop_index(op.f("pipeline_publish_pipeline_version_id_idx"), table_name="pipeline_publish")
    op.drop_table("pipeline_publish")
    op.drop_index(op.f("model_variant_comment_model_pk_id_idx"), table_name="model_variant_comment")
    op.drop_table("model_variant_comment")
    op.drop_index(op.f("model_tag_tag_id_idx"), table_name="model_tag")
    op.drop_index(op.f("model_tag_model_id_idx"), table_name="model_tag")
    op.drop_table("model_tag")
    op.drop_index(op.f("model_config_model_id_idx"), table_name="model_config")
    op.drop_table("model_config")
    op.drop_index(
        op.f("deployment_pipeline_version_pipeline_version_pk_id_idx"), table_name="deployment_pipeline_version"
    )
    op.drop_index(op.f("deployment_pipeline_version_deployment_id_idx"), table_name="deployment_pipeline_version")
    op.drop_table("deployment_pipeline_version")
    op.drop_index(op.f("pipeline_version_pipeline_pk_id_idx"), table_name="pipeline_version")
    op.drop_table("pipeline_version")
    op.drop_index(op.f("pipeline_tag_tag_pk_id_idx"), table_name="pipeline_tag")
    op.drop_index(op.f("pipeline_tag_pipeline_pk_id_idx"), table_name="pipeline_tag")
    op.drop_table("pipeline_tag")
    op.drop_index(op.f("pipeline_comment_pipeline_pk_id_idx"), table_name="pipeline_comment")
    op.drop_table("pipeline_comment")
    op.drop_index(op.f("model_models_pk_id_idx"), table_name="model")
    op.drop_index(op.f("model_model_id_idx"), table_name="model")
    op.drop_table("model")
    op.drop_index(op.f("deployment_deploy_id_idx"), table_name="deployment")
    op.drop_table("deployment")
    op.drop_index(op.f("assay_pipeline_id_idx"), table_name="assay")
    op.drop_table("assay")
    op.drop_index(op.f("workspace_users_user_id_idx"), table_name="workspace_users")
    op.drop_table("workspace_users")
    op.drop_index(op.f("workspace_connections_connection_id_idx"), table_name="workspace_connections")
    op.drop_table("workspace_connections")
    op.drop_index(op.f("user_default_workspace_workspace_id_idx"), table_name="user_default_workspace")
    op.drop_table("user_default_workspace")
    op.drop_index(op.f("pipeline_workspace_id_idx"), table_name="pipeline")
    op.drop_table("pipeline")
    op.drop_index(op.f("orchestration_workspace_id_idx"), table_name="orchestration")
    op.drop_index(op.f("orchestration_sha_idx"), table_name="orchestration")
    op.drop_table("orchestration")
    op.drop_index(op.f("models_workspace_id_idx"), table_name="models")
    op.drop_table("models")
    op.drop_table("workspace")
    op.drop_table("tag")
    op.drop_table("connections")
    op.drop_table("comment")
    op.drop_table("alert_configuration")
    op.execute("DROP FUNCTION set_updated_at CASCADE")
