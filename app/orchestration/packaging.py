"""Packages bundles: makes the environment that their tasks will run in."""

from __future__ import annotations

import asyncio
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from sqlalchemy import or_, select, update

from app.errors import AppError
from app.kit import worker
from app.kit.context import Context
from app.kit.events import notify
from app.orchestration import bundles, environments, service
from app.orchestration.tables import Orchestration

log = structlog.get_logger()

_LOG_CHARS = 200_000
_POLL_S = 5.0


async def work(context: Context) -> None:
    """Package one bundle after another, for ever."""
    wake = context.events.subscribe(service.TOPIC)
    await release_own(context)
    while True:
        while await package_next(context):
            pass
        await context.events.wait(wake, _POLL_S)


async def release_own(context: Context) -> None:
    """Hand back what a former worker of this machine had claimed and cannot finish any more."""
    async with context.sessions.begin() as session:
        await session.execute(
            update(Orchestration)
            .where(Orchestration.status == "packaging", Orchestration.claimed_by.startswith(worker.host() + ":"))
            .values(status="pending_packaging", claimed_by=None)
        )


async def package_next(context: Context) -> bool:
    """Package the bundle that waits longest; returns whether there was one."""
    now = context.clock.now()
    given_up = now - timedelta(seconds=context.settings.packaging_timeout_s + 60)
    async with context.sessions.begin() as session:
        row = await session.scalar(
            select(Orchestration)
            .where(
                or_(
                    Orchestration.status == "pending_packaging",
                    (Orchestration.status == "packaging") & (Orchestration.claimed_at < given_up),
                )
            )
            .order_by(Orchestration.created_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if row is None:
            return False
        row.status, row.claimed_by, row.claimed_at = "packaging", worker.name(), now
    lines: list[str] = []

    def say(text: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        lines.append(f"{stamp} stdout F {text}")

    status, reason, environment = "ready", None, None
    try:
        wanted = environments.requirements_of(context.settings, await _requirements(context, row.sha))
        environment = await environments.ensure(context.settings, wanted, say)
    except environments.PackagingFailed as exc:
        status, reason = "error", str(exc)
    except AppError as exc:  # the bundle's file is gone
        status, reason = "error", exc.message
    async with context.sessions.begin() as session:
        await session.execute(
            update(Orchestration)
            .where(Orchestration.id == row.id)
            .values(
                status=status,
                error_summary=reason,
                environment=environment,
                packaging_log="\n".join(lines)[-_LOG_CHARS:],
                claimed_by=None,
            )
        )
        await notify(session, service.TOPIC)
    log.info("orchestration.packaged", orchestration=str(row.id), status=status, reason=reason)
    return True


async def _requirements(context: Context, sha: str) -> str:
    with tempfile.TemporaryDirectory(prefix="potoroo-bundle-") as folder:
        path = Path(folder) / "bundle.zip"
        await context.storage.fetch(service.blob_key(sha), path)
        return (await asyncio.to_thread(bundles.inspect, path)).requirements
