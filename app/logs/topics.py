"""Which topics a caller may see: those of the pipelines of their workspaces."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.deployments import access as deployments
from app.errors import NotFound
from app.identity.caller import Caller
from app.pipelines import service as pipelines
from app.pipelines.tables import Pipeline
from app.workspaces import access
from app.workspaces.tables import Workspace

FAILURES = "-failures"
_TOPIC = re.compile(r"workspace-(\d{1,18})-pipeline-([A-Za-z0-9-]{1,253})-inference(-failures)?", re.ASCII)


def parse(topic: str) -> tuple[int, str] | None:
    """Return workspace and pipeline of a topic; None for a name that no pipeline has."""
    found = _TOPIC.fullmatch(topic)
    return (int(found[1]), found[2]) if found else None


async def of_pipeline(
    session: AsyncSession, caller: Caller, *, pipeline_id: int | None, name: str | None, workspace_id: int | None
) -> str:
    """Return the topic of a pipeline; raises `NotFound` when it does not exist for `caller`."""
    pipeline: Pipeline
    if pipeline_id is not None:
        pipeline = await pipelines.pipeline_by_id(session, caller, pipeline_id)
    else:
        pipeline = await pipelines.pipeline_by_name(session, caller, name or "", workspace_id)
    return pipelines.topic_name(pipeline.workspace_id, pipeline.pipeline_id)


async def sees(session: AsyncSession, caller: Caller, topic: str) -> bool:
    """Tell whether a topic exists as far as `caller` is concerned."""
    return topic in await visible(session, caller, [topic])


async def visible(session: AsyncSession, caller: Caller, topics: Iterable[str]) -> list[str]:
    """Return those of `topics` that `caller` may see: those of their workspaces; of an administrator, all."""
    topics = list(topics)
    if caller.is_admin:
        return topics
    workspaces = {topic: found[0] for topic in topics if (found := parse(topic)) is not None}
    if not workspaces:
        return []
    query = select(Workspace.id).where(
        Workspace.id.in_(set(workspaces.values())), access.sees_workspace(caller, Workspace.id)
    )
    seen = set(await session.scalars(query))
    return [topic for topic in topics if workspaces.get(topic) in seen]


async def check_appendable(session: AsyncSession, caller: Caller, topic: str) -> None:
    """Raise `NotFound` unless the topic is that of a pipeline that `caller` may see."""
    found = parse(topic)
    if found is None:
        raise _unknown(topic)
    await pipelines.pipeline_by_name(session, caller, found[1], found[0])


async def check_engine_appends(session: AsyncSession, deployment_id: int, topic: str) -> None:
    """Raise `NotFound` unless the topic is one of the workspace that the engine's deployment runs in."""
    found = parse(topic)
    workspace_id = await deployments.workspace_of(session, deployment_id)
    if found is None or found[0] != workspace_id:
        raise _unknown(topic)


def _unknown(topic: str) -> NotFound:
    return NotFound(f"There is no topic {topic[:300]!r}.")
