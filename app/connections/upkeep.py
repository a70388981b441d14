"""Follows a change of keys: what older keys encrypted is encrypted anew under the newest."""

from __future__ import annotations

import asyncio

import structlog

from app.connections import service
from app.kit.context import Context
from app.kit.secrets import box_of

log = structlog.get_logger()


async def run(context: Context) -> None:
    """Encrypt all details anew when there is more than one key, then wait for ever: keys change with a restart."""
    box = box_of(context)
    if box.has_older_keys:
        async with context.sessions.begin() as session:
            count = await service.reseal(session, box)
        log.info("connections.resealed", count=count)
    await asyncio.Event().wait()
