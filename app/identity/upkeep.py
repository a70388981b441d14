"""The scheduler's turn in identity: keys are replaced in time, and what is over is deleted."""

from __future__ import annotations

import asyncio

from sqlalchemy import and_, delete, or_

from app.identity import attempts, keys
from app.identity.tables import DeviceCode, LoginSession
from app.kit.context import Context
from app.kit.db import leadership

EVERY_S = 60.0


async def keep_up(context: Context) -> None:
    """Tidy every minute, in one process of all."""
    if context.settings.oidc_issuer:
        await asyncio.Event().wait()  # an external provider keeps its own house
    while True:
        async with leadership(context.database, "identity.upkeep") as leader:
            if leader is not None:
                await tidy(context)
        await asyncio.sleep(EVERY_S)


async def tidy(context: Context) -> None:
    """Replace the signing key if it is due; delete sessions, codes and counters that nothing can need any more."""
    now = context.clock.now()
    async with context.sessions.begin() as session:
        await keys.rotate(context, session)
        await session.execute(delete(DeviceCode).where(DeviceCode.expires_at < now))
        # An access token may outlive its session's refresh token, and a revocation must outlive the access token.
        past = now - keys.KEPT
        await session.execute(
            delete(LoginSession).where(
                or_(
                    and_(LoginSession.expires_at < past, LoginSession.revoked_at.is_(None)),
                    LoginSession.revoked_at < past,
                )
            )
        )
        await attempts.sweep(context, session)
