"""What tokens say: pure functions from rows to claims."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from app.identity.tables import Client, LoginSession, User

HASURA = "https://hasura.io/jwt/claims"
AUDIENCE = ["master-realm", "account"]
SCOPES = ("openid", "profile", "email", "offline_access")

_REALM_ROLES = ["default-roles-master", "offline_access", "uma_authorization"]
_ADMIN_REALM_ROLES = ["create-realm", *_REALM_ROLES, "admin"]
_USER_ROLES = ["manage-users", "view-users", "query-groups", "query-users"]
_ADMIN_ROLES = [
    "view-realm",
    "view-identity-providers",
    "manage-identity-providers",
    "impersonation",
    "create-client",
    "manage-users",
    "query-realms",
    "view-authorization",
    "query-clients",
    "query-users",
    "manage-events",
    "manage-realm",
    "view-events",
    "view-users",
    "view-clients",
    "manage-authorization",
    "manage-clients",
    "query-groups",
]
_ACCOUNT_ROLES = ["manage-account", "manage-account-links", "view-profile"]


def granted_scope(asked: str) -> str | None:
    """Return the scope a token gets for what was asked, or None when something unknown was asked for."""
    words = asked.split()
    if not set(words) <= set(SCOPES):
        return None
    first = ["openid"] if "openid" in words else []
    last = ["offline_access"] if "offline_access" in words else []
    return " ".join([*first, "profile", "email", *last])


@dataclass(frozen=True, slots=True)
class Stamp:
    """Who issues a token, when, and for how long."""

    issuer: str
    now_s: int
    life_s: int

    def claims(self) -> dict[str, Any]:
        """Return what every token says of itself."""
        return {
            "exp": self.now_s + self.life_s,
            "iat": self.now_s,
            "jti": str(uuid.uuid4()),
            "iss": self.issuer,
        }


def _common(stamp: Stamp, subject: str, client: Client, scope: str) -> dict[str, Any]:
    return {
        **stamp.claims(),
        "aud": AUDIENCE,
        "sub": subject,
        "typ": "Bearer",
        "azp": client.client_id,
        "acr": "1",
        "scope": scope,
    }


def _roles(realm: list[str], management: list[str]) -> dict[str, Any]:
    return {
        "realm_access": {"roles": realm},
        "resource_access": {"master-realm": {"roles": management}, "account": {"roles": _ACCOUNT_ROLES}},
    }


def profile(user: User) -> dict[str, Any]:
    """Return what tokens and userinfo say of the person; what is not known is left out."""
    name = " ".join(part for part in (user.first_name, user.last_name) if part)
    said = {
        "email_verified": user.email_verified,
        "name": name,
        "preferred_username": user.username,
        "given_name": user.first_name,
        "family_name": user.last_name,
        "email": user.email,
    }
    return {key: value for key, value in said.items() if value not in (None, "")}


def user_access(user: User, client: Client, session: LoginSession, stamp: Stamp) -> dict[str, Any]:
    """Return the claims of a user's access token."""
    hasura: dict[str, Any] = {
        "x-hasura-user-id": user.id,
        "x-hasura-user-email": user.email or "",
        "x-hasura-default-role": "admin_user" if user.is_admin else "user",
        "x-hasura-allowed-roles": ["user", "admin_user"] if user.is_admin else ["user"],
        "x-hasura-user-groups": "{}",
    }
    return {
        **_common(stamp, user.id, client, session.scope),
        "session_state": session.id,
        "sid": session.id,
        "allowed-origins": ["*"],
        **(_roles(_ADMIN_REALM_ROLES, _ADMIN_ROLES) if user.is_admin else _roles(_REALM_ROLES, _USER_ROLES)),
        HASURA: hasura,
        **profile(user),
    }


def service_access(client: Client, stamp: Stamp, address: str, scope: str) -> dict[str, Any]:
    """Return the claims of the access token that a confidential client gets for itself."""
    subject = client.service_user_id or ""
    return {
        **_common(stamp, subject, client, scope),
        "allowed-origins": ["*"],
        **_roles(_REALM_ROLES, [*_USER_ROLES, "impersonation"]),
        HASURA: {
            "x-hasura-user-id": subject,
            "x-hasura-default-role": "user",
            "x-hasura-allowed-roles": ["user"],
            "x-hasura-user-groups": "{}",
        },
        "email_verified": False,
        "preferred_username": service_username(client.client_id),
        "clientId": client.client_id,
        "clientHost": address,
        "clientAddress": address,
    }


def service_username(client_id: str) -> str:
    """Return the username of a client's own account."""
    return f"service-account-{client_id}"


def identity(user: User, client: Client, session: LoginSession, stamp: Stamp) -> dict[str, Any]:
    """Return the claims of an ID token."""
    return {
        **stamp.claims(),
        "auth_time": int(session.created_at.timestamp()),
        "aud": client.client_id,
        "sub": user.id,
        "typ": "ID",
        "azp": client.client_id,
        "session_state": session.id,
        "sid": session.id,
        "acr": "1",
        **profile(user),
    }
