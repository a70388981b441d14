"""Lists of orchestrations, tasks and runs; a constant number of statements, however many there are."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload

from app.identity.caller import Caller
from app.kit.clients import Client
from app.orchestration import schemas, service, views
from app.orchestration.tables import Orchestration, Task, TaskRun
from app.workspaces import access
from app.workspaces.schemas import WorkspaceBrief


async def in_workspace(session: AsyncSession, caller: Caller, workspace_id: int) -> list[schemas.OrchestrationOut]:
    """Return the orchestrations of a workspace; raises `NotFound` when it does not exist for the caller."""
    await access.visible_workspace(session, caller, workspace_id)
    query = service.orchestrations(caller).where(Orchestration.workspace_id == workspace_id)
    return [views.orchestration(row) for row in await session.scalars(query)]


async def everything(
    session: AsyncSession, caller: Caller, client: Client, wanted: schemas.ListAllIn
) -> list[schemas.OrchestrationItem]:
    """Return orchestrations with their tasks; the filters on tasks and runs choose orchestrations that have such."""
    query = service.orchestrations(caller).options(joinedload(Orchestration.workspace))
    if wanted.workspace_ids:
        query = query.where(Orchestration.workspace_id.in_(wanted.workspace_ids))
    if wanted.time_range:
        query = query.where(Orchestration.created_at.between(*wanted.time_range))
    if wanted.task_run_status:
        ran = select(Task.orch_id).join(TaskRun).where(TaskRun.status.in_(wanted.task_run_status))
        query = query.where(Orchestration.id.in_(ran))
    rows = list(await session.scalars(query))
    owned = service.tasks(caller).where(Task.orch_id.in_([row.id for row in rows]))
    if wanted.killed is False:
        owned = owned.where(Task.killed.is_(False))
    tasks_of: dict[uuid.UUID, list[schemas.TaskOut]] = {row.id: [] for row in rows}
    found = list(await session.scalars(owned))
    for row, shown in zip(found, await shown_tasks(session, found, client), strict=True):
        tasks_of[row.orch_id].append(shown)
    return [
        schemas.OrchestrationItem(
            orchestration=views.orchestration(row),
            tasks=tasks_of[row.id],
            workspace=WorkspaceBrief.model_validate(row.workspace, from_attributes=True),
        )
        for row in rows
    ]


async def shown_tasks(
    session: AsyncSession, rows: Sequence[Task], client: Client, run_limit: int = 10
) -> list[schemas.TaskOut]:
    """Return tasks with their last runs, as `client` can read them."""
    runs = await service.last_runs(session, [row.id for row in rows], run_limit)
    return [views.task(row, runs[row.id], client) for row in rows]


async def tasks(
    session: AsyncSession, caller: Caller, client: Client, wanted: schemas.TaskListIn
) -> list[schemas.TaskOut]:
    """Return the tasks that `wanted` describes; raises `NotFound` for an unknown workspace."""
    query = service.tasks(caller)
    if wanted.workspace_id is not None:
        await access.visible_workspace(session, caller, wanted.workspace_id)
        query = query.where(Task.workspace_id == wanted.workspace_id)
    if wanted.killed is False:
        query = query.where(Task.killed.is_(False))
    if wanted.orch_id is not None:
        query = query.where(Task.orch_id == wanted.orch_id)
    if wanted.orch_sha is not None:
        query = query.where(Orchestration.sha == wanted.orch_sha)
    return await shown_tasks(session, list(await session.scalars(query)), client, wanted.run_limit or 10)


async def ids_by_sha(session: AsyncSession, caller: Caller, sha: str) -> list[uuid.UUID]:
    """Return the ids of the tasks made of the bundle with this hash, oldest first."""
    query = service.tasks(caller).where(Orchestration.sha == sha).order_by(None).order_by(Task.created_at, Task.id)
    return [row.id for row in await session.scalars(query)]


async def runs(session: AsyncSession, client: Client, wanted: schemas.RunsIn) -> list[schemas.TaskRunOut]:
    """Return runs of a task, last changed first."""
    query = select(TaskRun).where(TaskRun.task_id == wanted.task_id, TaskRun.status != "queued")
    if wanted.status == "failure":
        same = [s for s, known in (("timed_out", client.knows_timed_out), ("killed", client.knows_killed)) if not known]
        query = query.where(TaskRun.status.in_(["failure", *same]))
    elif wanted.status not in (None, "all"):
        query = query.where(TaskRun.status == wanted.status)
    if wanted.time_range:
        query = query.where(TaskRun.created_at.between(*wanted.time_range))
    query = query.order_by(TaskRun.updated_at.desc(), TaskRun.id).limit(wanted.limit or 10)
    return [views.run_of_task(row, client) for row in await session.scalars(query)]
