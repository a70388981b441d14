"""Removes what crashes and lost races left in storage."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog
from sqlalchemy import select

from app.kit.context import Context
from app.kit.db import leadership
from app.models import uploads
from app.models.tables import ModelVersion

log = structlog.get_logger()

_PAUSE_S = 3600.0
_GRACE = timedelta(hours=1)
"""An artifact younger than this may belong to an upload that has not made its row yet."""


async def run(context: Context) -> None:
    """Look at the start and then every hour, in one process of all."""
    while True:
        async with leadership(context.database, "models/upkeep") as leader:
            if leader is not None:
                await sweep(context, _GRACE)
        await asyncio.sleep(_PAUSE_S)


async def sweep(context: Context, grace: timedelta) -> None:
    """Remove broken uploads, and artifacts that no version uses and that are older than `grace`."""
    broken = await context.storage.sweep()
    stored = {key.rpartition("/")[2] for key in await context.storage.keys("models", older_than=grace)}
    async with context.sessions() as session:
        used = set(await session.scalars(select(ModelVersion.sha).distinct()))
    unused = sorted(stored - used)
    await uploads.free_artifacts(context, unused)
    if broken or unused:
        log.info("models.swept", broken_uploads=broken, unused_artifacts=len(unused))
