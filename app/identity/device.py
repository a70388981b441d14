"""The device flow of RFC 8628: a program shows a code, its user confirms it in a browser."""

from __future__ import annotations

import secrets
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Unavailable
from app.identity import tokens
from app.identity.faces import OAuthError
from app.identity.tables import Client, DeviceCode, User
from app.kit.context import Context
from app.kit.secrets import digest

LIFE_S, INTERVAL_S = 600, 5
_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels, no words
_TOO_FAST = timedelta(seconds=INTERVAL_S - 1.5)


async def start(context: Context, session: AsyncSession, client: Client, scope: str) -> tuple[str, str]:
    """Return the device code and the user code of a new request."""
    device_code = secrets.token_urlsafe(32)
    for _ in range(5):
        letters = "".join(secrets.choice(_LETTERS) for _ in range(8))
        row = DeviceCode(
            user_code=f"{letters[:4]}-{letters[4:]}",
            secret_hash=digest(device_code),
            client_id=client.client_id,
            scope=scope,
            expires_at=context.clock.now() + timedelta(seconds=LIFE_S),
        )
        try:
            async with session.begin_nested():
                session.add(row)
        except IntegrityError:  # the user code is taken
            continue
        return device_code, row.user_code
    raise Unavailable("No free user code was found; try again.")


async def find(context: Context, session: AsyncSession, user_code: str) -> DeviceCode | None:
    """Return the request that waits under `user_code`, however it was typed."""
    letters = "".join(c for c in user_code.upper() if c in _LETTERS)
    if len(letters) != 8:
        return None
    return await session.scalar(
        select(DeviceCode)
        .where(
            DeviceCode.user_code == f"{letters[:4]}-{letters[4:]}",
            DeviceCode.status == "pending",
            DeviceCode.expires_at > context.clock.now(),
        )
        .with_for_update()
    )


async def poll(context: Context, session: AsyncSession, client: Client, device_code: str) -> tokens.SignedIn | str:
    """Return the sign-in once the user has granted it, or the word of RFC 8628 for why not.

    A word and no exception: what was seen (the time of this poll, a code that is used up) has to be kept.
    """
    row = await session.scalar(
        select(DeviceCode)
        .where(DeviceCode.secret_hash == digest(device_code), DeviceCode.client_id == client.client_id)
        .with_for_update()
    )
    if row is None:
        return "invalid_grant"
    now = context.clock.now()
    if row.expires_at <= now:
        return "expired_token"
    if row.status == "pending":
        last, row.polled_at = row.polled_at, now
        return "slow_down" if last is not None and now - last < _TOO_FAST else "authorization_pending"
    user = await session.get(User, row.user_id) if row.user_id else None
    granted, scope = row.status == "granted", row.scope
    await session.execute(delete(DeviceCode).where(DeviceCode.user_code == row.user_code))
    if not granted or user is None:
        return "access_denied"
    if not user.enabled:
        return "disabled"
    return await tokens.sign_in(context, session, user, client, scope)


_REFUSALS = {
    "authorization_pending": ("authorization_pending", "The authorization request is still pending"),
    "slow_down": ("slow_down", "Slow down"),
    "expired_token": ("expired_token", "Device code is expired"),
    "access_denied": ("access_denied", "The end user denied the authorization request"),
    "disabled": ("invalid_grant", "Account disabled"),
    "invalid_grant": ("invalid_grant", "Device code not valid"),
}


def refusal(word: str) -> OAuthError:
    """Return the error that says what `poll` answered."""
    return OAuthError(400, *_REFUSALS[word])
