"""Signing in with a password, from the token endpoint and from the login page."""

from __future__ import annotations

import asyncio

import structlog

from app.identity import attempts, passwords
from app.identity.faces import OAuthError
from app.identity.tables import User
from app.identity.tokens import find_user
from app.kit.context import Context

log = structlog.get_logger()

UPDATE_PASSWORD = "UPDATE_PASSWORD"  # noqa: S105 - Keycloak's name of a required action
_AT_ONCE = 4
# Each look at a password takes 19 MiB: a burst of logins waits for its turn and does not eat the machine.


async def check_password(context: Context, username: str, password: str, address: str) -> User:
    """Return the user who signs in, whatever is still required of them.

    Raises `OAuthError` for a wrong name or password or a deactivated account, `TooManyRequests` after many failures.
    """
    turns: asyncio.Semaphore = context.parts.setdefault("login_turns", asyncio.Semaphore(_AT_ONCE))
    keys = attempts.keys_of(username.strip().lower(), address)
    async with turns:
        await attempts.count(context, keys)
        async with context.sessions() as session:
            user = await find_user(session, username)
        right = await passwords.matches(user.password_hash if user else None, password)
        if user is None or not right:
            log.info("login.failed", address=address)
            raise OAuthError(401, "invalid_grant", "Invalid user credentials")
        await attempts.forgive(context, keys)
    if not user.enabled:
        log.info("login.disabled", user=user.id, address=address)
        raise OAuthError(400, "invalid_grant", "Account disabled")
    if user.password_hash and passwords.is_outdated(user.password_hash):
        user.password_hash = await _rehash(context, user.id, user.password_hash, password)
    return user


async def _rehash(context: Context, user_id: str, stored: str, password: str) -> str:
    """Store the password under today's costs and return its hash; `stored` if it was changed meanwhile."""
    fresh = await passwords.hashed(password)
    async with context.sessions.begin() as session:
        user = await session.get_one(User, user_id, with_for_update=True)
        if user.password_hash == stored:
            user.password_hash = fresh
            return fresh
        now = user.password_hash
    # Perhaps another login of the same moment was quicker with the same thing.
    return now if now and await passwords.matches(now, password) else stored
