"""Sign-ins and the tokens they give.

A refresh token is `<session>.<secret>`; only the hash of the secret is stored. It may be used again and again: clients
present the same one twice in a row. Each use moves its end, up to the longest life of a sign-in.
"""

from __future__ import annotations

import hmac
import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from jose import jwt
from sqlalchemy import or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import NotFound, Unavailable
from app.identity import claims
from app.identity.claims import Stamp
from app.identity.faces import OAuthError
from app.identity.keys import ALGORITHM, TOPIC, Signer, signing_keys_of
from app.identity.origin import REALM_PATH
from app.identity.tables import Client, LoginSession, User
from app.kit.context import Context
from app.kit.events import notify
from app.kit.secrets import digest
from app.settings import Settings

SDK_CLIENT = "sdk-client"
TASK_TOKEN_S = 86400


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A session together with the token that was given out for it."""

    row: LoginSession
    user: User
    client: Client
    refresh_token: str

    def __repr__(self) -> str:
        return f"SignedIn({self.row.id})"


async def sign_in(context: Context, session: AsyncSession, user: User, client: Client, scope: str) -> SignedIn:
    """Open a session of `user` through `client`; one that asked for `offline_access` has no end."""
    offline = "offline_access" in scope.split()
    now = context.clock.now()
    life = timedelta(seconds=min(context.settings.refresh_token_s, context.settings.session_s))
    row, token = new_session(user.id, "offline" if offline else "online", now, None if offline else now + life)
    row.client_id, row.scope = client.client_id, scope
    session.add(row)
    user.last_login = now
    await session.flush()
    return SignedIn(row, user, client, token)


def new_session(user_id: str, kind: str, now: datetime, expires_at: datetime | None) -> tuple[LoginSession, str]:
    """Return a new session, not yet stored, and the token `<id>.<secret>` that proves it."""
    session_id, secret = str(uuid.uuid4()), secrets.token_urlsafe(32)
    row = LoginSession(
        id=session_id, kind=kind, user_id=user_id, secret_hash=digest(secret), expires_at=expires_at, created_at=now
    )
    return row, f"{session_id}.{secret}"


async def session_of(session: AsyncSession, token: str, kinds: tuple[str, ...]) -> LoginSession | None:
    """Return the session that `token` proves, alive or not; None when it proves nothing."""
    session_id, _, secret = token.partition(".")
    try:
        session_id = str(uuid.UUID(session_id))
    except ValueError:
        return None
    row = await session.get(LoginSession, session_id)
    if row is None or row.kind not in kinds:
        return None
    return row if hmac.compare_digest(row.secret_hash, digest(secret)) else None


async def refresh(context: Context, session: AsyncSession, client: Client, token: str) -> SignedIn:
    """Return the session of a refresh token that still serves, its end moved; raises `OAuthError` otherwise."""
    row = await session_of(session, token, ("online", "offline"))
    if row is None or row.client_id != client.client_id:
        raise OAuthError(400, "invalid_grant", "Invalid refresh token")
    now = context.clock.now()
    if row.revoked_at is not None:
        raise OAuthError(400, "invalid_grant", "Session not active")
    if row.expires_at is not None and row.expires_at <= now:
        raise OAuthError(400, "invalid_grant", "Token is not active")
    user = await session.get_one(User, row.user_id)
    if not user.enabled:
        raise OAuthError(400, "invalid_grant", "Account disabled")
    if row.expires_at is not None:
        longest = row.created_at + timedelta(seconds=context.settings.session_s)
        row.expires_at = min(now + timedelta(seconds=context.settings.refresh_token_s), longest)
    return SignedIn(row, user, client, token)


async def token_answer(context: Context, signed_in: SignedIn, issuer: str, life_s: int | None = None) -> dict[str, Any]:
    """Return the answer of the token endpoint for a session."""
    row, user, client = signed_in.row, signed_in.user, signed_in.client
    signer = await signing_keys_of(context).signer()
    now = context.clock.now()
    life_s = life_s or lifetime(context.settings, client)
    stamp = Stamp(issuer, int(now.timestamp()), life_s)
    access = _signed(claims.user_access(user, client, row, stamp), signer)
    answer: dict[str, Any] = {
        "access_token": access,
        "expires_in": life_s,
        "refresh_expires_in": 0 if row.expires_at is None else max(0, int((row.expires_at - now).total_seconds())),
        "refresh_token": signed_in.refresh_token,
        "token_type": "Bearer",
        "not-before-policy": 0,
        "session_state": row.id,
        "scope": row.scope,
    }
    if "openid" in row.scope.split():
        answer["id_token"] = _signed(claims.identity(user, client, row, stamp), signer, access_token=access)
    return answer


async def service_answer(context: Context, client: Client, issuer: str, address: str, scope: str) -> dict[str, Any]:
    """Return the answer of the token endpoint for a client of its own: no session, nothing to refresh."""
    signer = await signing_keys_of(context).signer()
    life_s = lifetime(context.settings, client)
    stamp = Stamp(issuer, int(context.clock.now().timestamp()), life_s)
    return {
        "access_token": _signed(claims.service_access(client, stamp, address, scope), signer),
        "expires_in": life_s,
        "refresh_expires_in": 0,
        "token_type": "Bearer",
        "not-before-policy": 0,
        "scope": scope,
    }


def lifetime(settings: Settings, client: Client) -> int:
    """Return how long access tokens of `client` live, seconds."""
    if client.access_s:
        return client.access_s
    return settings.access_token_s if client.secret_hash is not None else settings.sdk_token_s


def _signed(stated: dict[str, Any], signer: Signer, access_token: str | None = None) -> str:
    token: str = jwt.encode(
        stated, signer.key, algorithm=ALGORITHM, headers={"kid": signer.kid}, access_token=access_token
    )
    return token


async def revoke_sessions(context: Context, session: AsyncSession, user_id: str, *, keep: str | None = None) -> None:
    """End every session of a user but `keep`, and with them their tokens."""
    await session.execute(
        update(LoginSession)
        .where(LoginSession.user_id == user_id, LoginSession.revoked_at.is_(None), LoginSession.id != (keep or ""))
        .values(revoked_at=context.clock.now())
    )
    await notify(session, TOPIC, user_id)


async def revoke_session(context: Context, session: AsyncSession, session_id: str) -> None:
    """End one session, and with it its tokens."""
    await session.execute(
        update(LoginSession)
        .where(LoginSession.id == session_id, LoginSession.revoked_at.is_(None))
        .values(revoked_at=context.clock.now())
    )
    await notify(session, TOPIC, session_id)


@dataclass(frozen=True, slots=True)
class OfflineToken:
    """A task's own sign-in; `session_id` ends it again, by `revoke_session`."""

    session_id: str
    document: dict[str, Any]
    """Content of the client's token cache file, `<cache>/wallaroo_sdk/auth/keycloak.json`; to be written 0600."""

    def __repr__(self) -> str:
        return f"OfflineToken({self.session_id})"


async def offline_token(
    context: Context, session: AsyncSession, user_id: str, *, base_url: str, access_s: int = TASK_TOKEN_S
) -> OfflineToken:
    """Sign a task in as the user it runs for; its tokens serve until the session is revoked.

    `base_url` is where the task reaches this server. Raises `NotFound` for somebody who does not exist or is
    deactivated, `Unavailable` when an external identity provider is in use, which gives no tokens for others.
    """
    if context.settings.oidc_issuer:
        raise Unavailable("Tasks cannot sign in: the external identity provider gives no offline tokens for others.")
    user = await session.get(User, user_id)
    if user is None or not user.enabled:
        raise NotFound(f"There is no active user {user_id!r} to run the task for.")
    client = await session.get_one(Client, SDK_CLIENT)
    row, token = new_session(user.id, "offline", context.clock.now(), None)
    row.client_id, row.scope = client.client_id, "profile email offline_access"
    session.add(row)
    await session.flush()
    answer = await token_answer(
        context, SignedIn(row, user, client, token), base_url.rstrip("/") + REALM_PATH, life_s=access_s
    )
    now_s = context.clock.now().timestamp()
    return OfflineToken(
        row.id,
        {
            "access_token": answer["access_token"],
            "expiry": now_s + access_s,
            "refresh_token": token,
            "refresh_token_expiry": now_s + 10 * 365 * 86400,
            "user_id": user.id,
            "user_email": user.email or user.username,
        },
    )


async def find_user(session: AsyncSession, name: str) -> User | None:
    """Return the user whose username or e-mail is `name`, in any case of letters; the username counts first."""
    wanted = name.strip().lower()
    if not wanted or "\x00" in wanted:
        return None
    rows = list(await session.scalars(select(User).where(or_(User.username == wanted, User.email == wanted))))
    return next((row for row in rows if row.username == wanted), rows[0] if rows else None)
