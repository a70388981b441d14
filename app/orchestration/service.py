"""The rules of orchestrations, tasks and runs."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import contains_eager

from app.errors import Conflict, Invalid, NotFound
from app.identity.caller import Caller
from app.kit.events import notify
from app.kit.storage import Blob
from app.orchestration import cron
from app.orchestration.bundles import Bundle
from app.orchestration.schemas import RunIn
from app.orchestration.tables import Orchestration, Task, TaskRun
from app.workspaces import access
from app.workspaces.access import sees_workspace

ONCE, SCHEDULED, CONTINUOUS = "Oneshot", "CronJob", "NetworkService"
UNFINISHED = ("queued", "running")
TOPIC = "tasks"
"""Wake-ups for workers and the scheduler."""


async def add_bundle(
    session: AsyncSession,
    caller: Caller,
    *,
    workspace_id: int,
    name: str | None,
    file_name: str,
    blob: Blob,
    bundle: Bundle,
) -> Orchestration:
    """Add an uploaded bundle; a worker packages it.

    Raises `NotFound` when the workspace does not exist for the caller.
    """
    await access.visible_workspace(session, caller, workspace_id)
    row = Orchestration(
        name=name,
        file_name=file_name,
        file_size=blob.size_bytes,
        sha=blob.sha256,
        owner_id=caller.id,
        created_by=caller.email or caller.id,
        workspace_id=workspace_id,
        task_id=uuid.uuid4(),
        entry_point=bundle.entry_point,
    )
    session.add(row)
    await session.flush()
    await notify(session, TOPIC)
    return row


def blob_key(sha: str) -> str:
    """Return the key under which a bundle's bytes lie."""
    return f"bundles/{sha}"


async def blob_is_used(session: AsyncSession, key: str) -> bool:
    """Tell whether an orchestration has the blob `key`."""
    sha = key.rpartition("/")[2]
    return await session.scalar(select(Orchestration.id).where(Orchestration.sha == sha).limit(1)) is not None


def orchestrations(caller: Caller) -> Select[Orchestration]:
    """Return the select of the orchestrations the caller sees, newest first."""
    return (
        select(Orchestration)
        .where(sees_workspace(caller, Orchestration.workspace_id))
        .order_by(Orchestration.created_at.desc(), Orchestration.id)
    )


async def orchestration(session: AsyncSession, caller: Caller, key: uuid.UUID) -> Orchestration:
    """Return an orchestration; raises `NotFound` when it does not exist for the caller."""
    found = await session.scalar(orchestrations(caller).where(Orchestration.id == key))
    if found is None:
        raise NotFound(f"There is no orchestration {key}.")
    return found


async def remove(
    session: AsyncSession, caller: Caller, keys: Sequence[uuid.UUID], *, confirmed: bool
) -> tuple[int, list[str]]:
    """Delete orchestrations with their tasks; returns the bytes freed and the blobs that nobody needs any more.

    Unless `confirmed`, nothing is deleted. Raises `NotFound` for one that does not exist for the caller, `Conflict`
    while a task of one is not finished.
    """
    rows = [await orchestration(session, caller, key) for key in dict.fromkeys(keys)]
    ids = [row.id for row in rows]
    active = await session.scalar(
        select(Orchestration.name)
        .join(Task, Task.orch_id == Orchestration.id)
        .where(Orchestration.id.in_(ids), Task.killed.is_(False), _is_live())
        .limit(1)
    )
    if active is not None:
        raise Conflict(f"A task of orchestration {active or ''!r} is not finished; kill it first.")
    shas = {row.sha: row.file_size for row in rows}
    kept = set(
        await session.scalars(
            select(Orchestration.sha).where(Orchestration.sha.in_(shas), Orchestration.id.not_in(ids)).distinct()
        )
    )
    freed = {sha: size for sha, size in shas.items() if sha not in kept}
    if confirmed:
        await session.execute(delete(Orchestration).where(Orchestration.id.in_(ids)))
    return sum(freed.values()), [blob_key(sha) for sha in freed]


def _is_live() -> Any:
    """Return the SQL condition that a task may still run."""
    unfinished = exists(select(TaskRun.id).where(TaskRun.task_id == Task.id, TaskRun.status.in_(UNFINISHED)))
    return (Task.run_type != ONCE) | unfinished


async def add_task(
    session: AsyncSession,
    caller: Caller,
    new: RunIn,
    run_type: str,
    *,
    now: datetime,
    schedule: str | None = None,
    may_overlap: bool = False,
) -> Task:
    """Add a task; one that is not scheduled is queued at once.

    Raises `NotFound` when workspace or orchestration do not exist for the caller, `Invalid` for a bad schedule or an
    orchestration that could not be packaged.
    """
    await access.visible_workspace(session, caller, new.workspace_id)
    bundle = await orchestration(session, caller, new.orch_id)
    if bundle.status == "error":
        raise Invalid(f"Orchestration {bundle.id} could not be packaged: {bundle.error_summary}")
    next_run_at = None
    if schedule is not None:
        cron.check(schedule)
        next_run_at = cron.next_after(schedule, now)
    row = Task(
        name=new.name,
        orch_id=bundle.id,
        workspace_id=new.workspace_id,
        owner_id=caller.id,
        run_type=run_type,
        schedule=schedule,
        input_data=new.arguments or {},
        timeout_s=new.timeout,
        debug=bool(new.debug),
        next_run_at=next_run_at,
        may_overlap=may_overlap,
    )
    session.add(row)
    await session.flush()
    if schedule is None:
        session.add(TaskRun(task_id=row.id, due_at=now))
        await session.flush()
    await notify(session, TOPIC)
    return row


def tasks(caller: Caller) -> Select[Task]:
    """Return the select of the tasks the caller sees with their bundles, last changed first."""
    return (
        select(Task)
        .join(Task.orchestration)
        .options(contains_eager(Task.orchestration))
        .where(sees_workspace(caller, Task.workspace_id))
        .order_by(Task.updated_at.desc(), Task.id)
    )


async def task(session: AsyncSession, caller: Caller, key: uuid.UUID) -> Task:
    """Return a task; raises `NotFound` when it does not exist for the caller."""
    found = await session.scalar(tasks(caller).where(Task.id == key))
    if found is None:
        raise NotFound(f"There is no task {key}.")
    return found


async def run(session: AsyncSession, caller: Caller, key: uuid.UUID) -> TaskRun:
    """Return a run; raises `NotFound` when it does not exist for the caller."""
    found = await session.scalar(
        select(TaskRun).join(TaskRun.task).where(TaskRun.id == key, sees_workspace(caller, Task.workspace_id))
    )
    if found is None:
        raise NotFound(f"There is no task run {key}.")
    return found


async def last_runs(session: AsyncSession, ids: Sequence[uuid.UUID], limit: int = 10) -> dict[uuid.UUID, list[TaskRun]]:
    """Return the newest `limit` started runs of each task, oldest first."""
    rank = func.row_number().over(partition_by=TaskRun.task_id, order_by=TaskRun.created_at.desc()).label("rank")
    ranked = select(TaskRun.id, rank).where(TaskRun.task_id.in_(ids), TaskRun.status != "queued").subquery()
    rows = await session.scalars(
        select(TaskRun)
        .join(ranked, ranked.c.id == TaskRun.id)
        .where(ranked.c.rank <= limit)
        .order_by(TaskRun.created_at)
    )
    found: dict[uuid.UUID, list[TaskRun]] = {key: [] for key in ids}
    for row in rows:
        found[row.task_id].append(row)
    return found


async def kill(session: AsyncSession, caller: Caller, key: uuid.UUID) -> Task:
    """Ask for a task's end: no further runs, and the running one is stopped.

    The worker and the scheduler carry it out; a task that is killed already stays as it is.
    """
    row = await task(session, caller, key)
    if not row.killed:
        row.status = "pending_kill"
        row.next_run_at = None
        await session.execute(
            update(TaskRun).where(TaskRun.task_id == key, TaskRun.status.in_(UNFINISHED)).values(kill_requested=True)
        )
        await notify(session, TOPIC)
        await session.flush()
    return row


async def pause(session: AsyncSession, caller: Caller, key: uuid.UUID, *, paused: bool, now: datetime) -> Task:
    """Stop a task from starting again, or let it start again; a run under way goes on.

    Raises `Conflict` for a task that is killed.
    """
    row = await task(session, caller, key)
    if row.killed or row.status == "pending_kill":
        raise Conflict(f"Task {key} was killed; it cannot be paused or resumed.")
    row.paused = paused
    row.status = "paused" if paused else "started"
    if not paused and row.schedule is not None:
        row.next_run_at = cron.next_after(row.schedule, now)
    elif not paused and row.run_type == CONTINUOUS:
        row.next_run_at = now
    await notify(session, TOPIC)
    await session.flush()
    return row
