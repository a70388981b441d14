"""What every service, loop and route of one process shares."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from app.kit.clock import Clock, SystemClock
from app.kit.events import Events
from app.kit.storage import Storage
from app.settings import Settings


@dataclass(slots=True)
class Context:
    """The settings and the open resources of one process; made once by `main`, handed to whoever needs it."""

    settings: Settings
    database: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    events: Events
    storage: Storage
    clock: Clock = field(default_factory=SystemClock)
    parts: dict[str, Any] = field(default_factory=dict)
    """Long-lived objects that a module keeps for the process (its key ring, its client), under the module's name."""


Loop = Callable[[Context], Coroutine[Any, Any, None]]
"""A role's endless task: runs until it is cancelled."""


def context_of(request: Request) -> Context:
    """Return the context of the process that serves `request`."""
    context: Context = request.app.state.context
    return context
