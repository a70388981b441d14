"""users, clients, sessions and signing keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002_identity"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "identity_client",
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=True),
        sa.Column("grants", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("access_s", sa.BigInteger(), nullable=False),
        sa.Column("service_user_id", sa.String(), nullable=True),
        sa.Column("not_before", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("client_id", name=op.f("identity_client_pkey")),
    )
    op.create_table(
        "identity_login_attempt",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("free_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("identity_login_attempt_pkey")),
    )
    op.create_index(op.f("identity_login_attempt_seen_at_idx"), "identity_login_attempt", ["seen_at"], unique=False)
    op.create_table(
        "identity_signing_key",
        sa.Column("kid", sa.String(), nullable=False),
        sa.Column("private", sa.LargeBinary(), nullable=False),
        sa.Column("public", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("active_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("kid", name=op.f("identity_signing_key_pkey")),
    )
    op.create_table(
        "identity_user",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("username", sa.String(), nullable=False),
        sa.Column("email", sa.String(), nullable=True),
        sa.Column("first_name", sa.String(), nullable=True),
        sa.Column("last_name", sa.String(), nullable=True),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("email_verified", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("is_admin", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=True),
        sa.Column(
            "required_actions", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False
        ),
        sa.Column("not_before", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_login", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("identity_user_pkey")),
        sa.UniqueConstraint("email", name=op.f("identity_user_email_key")),
        sa.UniqueConstraint("username", name=op.f("identity_user_username_key")),
    )
    op.create_table(
        "identity_device_code",
        sa.Column("user_code", sa.String(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), server_default="", nullable=False),
        sa.Column("status", sa.String(), server_default="pending", nullable=False),
        sa.Column("user_id", sa.String(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("polled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["client_id"],
            ["identity_client.client_id"],
            name=op.f("identity_device_code_client_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["identity_user.id"], name=op.f("identity_device_code_user_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_code", name=op.f("identity_device_code_pkey")),
        sa.UniqueConstraint("secret_hash", name=op.f("identity_device_code_secret_hash_key")),
    )
    op.create_index(op.f("identity_device_code_expires_at_idx"), "identity_device_code", ["expires_at"], unique=False)
    op.create_table(
        "identity_session",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=True),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("scope", sa.String(), server_default="", nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["client_id"],
            ["identity_client.client_id"],
            name=op.f("identity_session_client_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["identity_user.id"], name=op.f("identity_session_user_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("identity_session_pkey")),
    )
    op.create_index(op.f("identity_session_expires_at_idx"), "identity_session", ["expires_at"], unique=False)
    op.create_index(op.f("identity_session_revoked_at_idx"), "identity_session", ["revoked_at"], unique=False)
    op.create_index(op.f("identity_session_user_id_idx"), "identity_session", ["user_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("identity_session_user_id_idx"), table_name="identity_session")
    op.drop_index(op.f("identity_session_revoked_at_idx"), table_name="identity_session")
    op.drop_index(op.f("identity_session_expires_at_idx"), table_name="identity_session")
    op.drop_table("identity_session")
    op.drop_index(op.f("identity_device_code_expires_at_idx"), table_name="identity_device_code")
    op.drop_table("identity_device_code")
    op.drop_table("identity_user")
    op.drop_table("identity_signing_key")
    op.drop_index(op.f("identity_login_attempt_seen_at_idx"), table_name="identity_login_attempt")
    op.drop_table("identity_login_attempt")
    op.drop_table("identity_client")
