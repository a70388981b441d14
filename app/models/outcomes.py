"""Waiting for inspections to end: one look for all who wait in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict

from sqlalchemy import select

from app.kit.context import Context
from app.models import service
from app.models.tables import ModelVersion

SETTLED_TOPIC = "models.settled"
"""Woken when a version has become ready, or has failed."""

_PART = "models.outcomes"


class Outcomes:
    """Those who wait for versions to settle."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._wake = context.events.subscribe(SETTLED_TOPIC)
        self._waiting: dict[int, set[asyncio.Event]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None

    async def wait(self, version_id: int, patience_s: float) -> None:
        """Return when the version is ready or has failed, or after `patience_s`."""
        if patience_s <= 0:
            return
        settled = asyncio.Event()
        self._waiting[version_id].add(settled)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(), name=_PART)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await settled.wait()
        finally:
            self._waiting[version_id].discard(settled)
            if not self._waiting[version_id]:
                del self._waiting[version_id]

    async def _look(self) -> None:
        while self._waiting:
            async with self._context.sessions() as session:
                settled = await session.scalars(
                    select(ModelVersion.id).where(
                        ModelVersion.id.in_(list(self._waiting)),
                        ModelVersion.status.in_((service.READY, service.ERROR)),
                    )
                )
            for version_id in settled:
                for event in self._waiting.get(version_id, ()):
                    event.set()
            await self._context.events.wait(self._wake, 0.5)


def outcomes_of(context: Context) -> Outcomes:
    """Return the process's `Outcomes`."""
    part: Outcomes = context.parts.setdefault(_PART, None) or Outcomes(context)
    context.parts[_PART] = part
    return part
