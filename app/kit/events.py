"""Wake-ups between processes over Postgres NOTIFY: delivered if and when the sender's transaction commits.

A lost wake-up costs seconds, never correctness: whoever waits also polls.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict

import psycopg
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

log = structlog.get_logger()

_CHANNEL = "potoroo"


async def notify(session: AsyncSession, topic: str, key: str = "") -> None:
    """Wake whoever listens to `topic`, in any process, when the transaction of `session` commits."""
    await session.execute(
        text("SELECT pg_notify(:channel, :payload)"), {"channel": _CHANNEL, "payload": f"{topic}:{key}"}
    )


class Events:
    """The wake-ups that reach this process."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._waiters: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None

    def subscribe(self, *topics: str) -> asyncio.Event:
        """Return an event that is set at each wake-up of one of `topics`; the waiter clears it."""
        event = asyncio.Event()
        for topic in topics:
            self._waiters[topic].add(event)
        return event

    async def wait(self, event: asyncio.Event, timeout_s: float) -> None:
        """Return at the next wake-up of `event`, or after `timeout_s` at the latest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()
        event.clear()

    def start(self) -> None:
        """Begin to listen; the connection is made again whenever it is lost."""
        self._task = asyncio.create_task(self._listen(), name="events")

    async def stop(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wake(self, topic: str) -> None:
        """Set the events of `topic` in this process."""
        for event in self._waiters[topic]:
            event.set()

    async def _listen(self) -> None:
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {_CHANNEL}")
                    for topic in list(self._waiters):  # whatever was missed while nobody listened
                        self.wake(topic)
                    async for notice in connection.notifies():
                        self.wake(notice.payload.partition(":")[0])
            except (psycopg.Error, OSError) as exc:
                log.warning("events.lost", error=str(exc).strip().splitlines()[0] if str(exc).strip() else repr(exc))
                await asyncio.sleep(1.0)
