"""Users, clients, sessions and what signs their tokens. None of it is visible through GraphQL."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, LargeBinary, text
from sqlalchemy.orm import Mapped, mapped_column

from app.kit.db import Created, Record, Table


class User(Record, Table):
    """Somebody who may sign in; `username` and `email` are kept in lower case."""

    __tablename__ = "identity_user"

    id: Mapped[str] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(unique=True)
    email: Mapped[str | None] = mapped_column(unique=True)
    first_name: Mapped[str | None]
    last_name: Mapped[str | None]
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    email_verified: Mapped[bool] = mapped_column(server_default=text("false"))
    is_admin: Mapped[bool] = mapped_column(server_default=text("false"))
    password_hash: Mapped[str | None]
    required_actions: Mapped[list[str]] = mapped_column(server_default=text("'[]'"))
    not_before: Mapped[int] = mapped_column(server_default=text("0"))
    """Tokens issued before this epoch second no longer count."""
    last_login: Mapped[datetime | None]


class Client(Record, Table):
    """A program that asks for tokens; public ones have no secret."""

    __tablename__ = "identity_client"

    client_id: Mapped[str] = mapped_column(primary_key=True)
    secret_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    grants: Mapped[list[str]]
    access_s: Mapped[int]
    """Life of its access tokens."""
    service_user_id: Mapped[str | None]
    """`sub` of the tokens it gets for itself."""
    not_before: Mapped[int] = mapped_column(server_default=text("0"))


class SigningKey(Created, Table):
    """An RSA key pair. The newest active one signs; the others still verify until they are deleted."""

    __tablename__ = "identity_signing_key"

    kid: Mapped[str] = mapped_column(primary_key=True)
    private: Mapped[bytes] = mapped_column(LargeBinary)
    """PEM, encrypted by the instance's key."""
    public: Mapped[dict[str, Any]]
    """JWK."""
    active_from: Mapped[datetime]


class LoginSession(Created, Table):
    """A sign-in, known to tokens as `sid`; `kind` is `online`, `offline`, `browser` or `change`."""

    __tablename__ = "identity_session"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    user_id: Mapped[str] = mapped_column(ForeignKey("identity_user.id", ondelete="CASCADE"), index=True)
    client_id: Mapped[str | None] = mapped_column(ForeignKey("identity_client.client_id", ondelete="CASCADE"))
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary)
    """Hash of the refresh token's (or the cookie's) secret part."""
    scope: Mapped[str] = mapped_column(server_default="")
    expires_at: Mapped[datetime | None] = mapped_column(index=True)
    """When the refresh token ends; access tokens may outlive it. None for offline sessions."""
    revoked_at: Mapped[datetime | None] = mapped_column(index=True)


class DeviceCode(Created, Table):
    """A device that waits for its user; `status` is `pending`, `granted` or `denied`."""

    __tablename__ = "identity_device_code"

    user_code: Mapped[str] = mapped_column(primary_key=True)
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    client_id: Mapped[str] = mapped_column(ForeignKey("identity_client.client_id", ondelete="CASCADE"))
    scope: Mapped[str] = mapped_column(server_default="")
    status: Mapped[str] = mapped_column(server_default="pending")
    user_id: Mapped[str | None] = mapped_column(ForeignKey("identity_user.id", ondelete="CASCADE"))
    expires_at: Mapped[datetime] = mapped_column(index=True)
    polled_at: Mapped[datetime | None]


class LoginAttempt(Table):
    """Failed logins of one user, one address, or one user from one address."""

    __tablename__ = "identity_login_attempt"

    key: Mapped[str] = mapped_column(primary_key=True)
    failures: Mapped[int]
    free_at: Mapped[datetime]
    """Until then no further attempt is looked at."""
    seen_at: Mapped[datetime] = mapped_column(index=True)
