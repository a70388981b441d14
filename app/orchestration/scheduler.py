"""The clock of tasks: makes a run of every tick, exactly one, and sees kills through."""

from __future__ import annotations

from datetime import timedelta

import structlog
from sqlalchemy import exists, select, update
from sqlalchemy.dialects.postgresql import insert

from app.kit.context import Context
from app.kit.events import notify
from app.orchestration import cron, service
from app.orchestration.tables import Task, TaskRun

log = structlog.get_logger()

_BATCH = 200
_POLL_S = 1.0
_UPKEEP = timedelta(hours=1)


async def run(context: Context) -> None:
    """Look at the clock every second, and at each wake-up, until cancelled."""
    wake = context.events.subscribe(service.TOPIC)
    upkeep_at = context.clock.now()
    while True:
        while await tick(context) == _BATCH:
            pass
        await see_kills_through(context)
        if context.clock.now() >= upkeep_at:
            await drop_old_logs(context)
            upkeep_at = context.clock.now() + _UPKEEP
        await context.events.wait(wake, _POLL_S)


async def tick(context: Context) -> int:
    """Make the runs that are due; returns how many tasks were looked at.

    Missed ticks are coalesced into one; a tick that falls due while a run of its task goes on is left out, unless the
    task may overlap.
    """
    now = context.clock.now()
    async with context.sessions.begin() as session:
        due = list(
            await session.scalars(
                select(Task)
                .where(Task.next_run_at <= now, Task.killed.is_(False), Task.paused.is_(False))
                .order_by(Task.next_run_at)
                .limit(_BATCH)
                .with_for_update(skip_locked=True)
            )
        )
        for task in due:
            assert task.next_run_at is not None  # noqa: S101 - selected by it
            moment = task.next_run_at
            if task.schedule is not None:
                moment = cron.last_up_to(task.schedule, moment, now)
                task.next_run_at = cron.next_after(task.schedule, now)
            else:
                task.next_run_at = None
            busy = await session.scalar(
                select(exists().where(TaskRun.task_id == task.id, TaskRun.status.in_(service.UNFINISHED)))
            )
            if busy and not task.may_overlap:
                log.info("task.tick_left_out", task=str(task.id), due=moment.isoformat())
                continue
            await session.execute(insert(TaskRun).values(task_id=task.id, due_at=moment).on_conflict_do_nothing())
        if due:
            await notify(session, service.TOPIC)
    return len(due)


async def see_kills_through(context: Context) -> None:
    """Mark tasks as killed that were asked to end and have no run left."""
    now = context.clock.now()
    unfinished = exists().where(TaskRun.task_id == Task.id, TaskRun.status.in_(service.UNFINISHED))
    async with context.sessions.begin() as session:
        await session.execute(
            update(TaskRun)
            .where(TaskRun.status == "queued", TaskRun.kill_requested)
            .values(status="killed", reason="The task was killed before it started.", finished_at=now)
        )
        await session.execute(
            update(Task)
            .where(Task.status == "pending_kill", Task.killed.is_(False), ~unfinished)
            .values(killed=True, status="killed")
        )


async def drop_old_logs(context: Context) -> None:
    """Delete the output of runs that ended longer ago than it is kept."""
    oldest = context.clock.now() - timedelta(days=context.settings.task_log_days)
    async with context.sessions() as session:
        rows = list(
            await session.execute(
                select(TaskRun.id, TaskRun.log_key).where(TaskRun.finished_at < oldest, TaskRun.log_key.is_not(None))
            )
        )
    for key, blob in rows:
        async with context.sessions.begin() as session:
            await session.execute(update(TaskRun).where(TaskRun.id == key).values(log_key=None))
            shared = await session.scalar(select(exists().where(TaskRun.log_key == blob)))
        if not shared and blob is not None:
            await context.storage.delete(blob)
