"""Analyses off the event loop: a few at a time, in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from app.assays.analysis import NoBaseline
from app.assays.timeline import Scan, scan_of
from app.errors import Invalid
from app.kit.context import Context
from engine.assays import BadSpec, NoFiniteValues, NotNumbers
from engine.logs.errors import LogError

T = TypeVar("T")

PART = "assays"
AT_ONCE = 2
"""Runs that read the log at the same time; the others wait their turn."""


async def in_thread(context: Context, work: Callable[[Scan], T]) -> T:
    """Return what `work` makes of the log; raises `Invalid` with its reason where it cannot."""
    turns: asyncio.Semaphore = context.parts.setdefault(PART, asyncio.Semaphore(AT_ONCE))
    async with turns:
        try:
            return await asyncio.to_thread(work, scan_of(context.settings.logs_root))
        except (NoBaseline, BadSpec, NoFiniteValues, NotNumbers, LogError) as exc:
            raise Invalid(str(exc)) from exc
