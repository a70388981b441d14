"""The loop that keeps the log store in shape."""

from __future__ import annotations

import asyncio

from app.kit.context import Context
from app.kit.db import leadership
from app.logs import service

INTERVAL_S = 60.0


async def run(context: Context) -> None:
    """Do what is due in the log store every minute; one process at a time does it."""
    while True:
        async with leadership(context.database, "logs-upkeep") as held:
            if held is not None:
                await service.maintain(context)
        await asyncio.sleep(INTERVAL_S)
