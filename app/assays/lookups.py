"""Finding pipelines and assays that a caller may see."""

from __future__ import annotations

import uuid

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import contains_eager

from app.assays.tables import Assay, AssayWatch
from app.errors import Invalid, NotFound
from app.identity.caller import Caller
from app.pipelines.tables import Pipeline
from app.workspaces.access import sees_workspace


async def visible_pipeline(session: AsyncSession, caller: Caller, pipeline_id: int) -> Pipeline:
    """Return the pipeline with its workspace; raises `NotFound` when it does not exist for `caller`."""
    found = await session.scalar(
        select(Pipeline)
        .join(Pipeline.workspace)
        .options(contains_eager(Pipeline.workspace))
        .where(Pipeline.id == pipeline_id, sees_workspace(caller, Pipeline.workspace_id))
    )
    if found is None:
        raise NotFound(f"There is no pipeline {pipeline_id}.")
    return found


async def pipeline_named(session: AsyncSession, caller: Caller, workspace_id: int | None, name: str) -> Pipeline:
    """Return the pipeline called `name` in a workspace, or in the only visible one that has it.

    Raises `NotFound`, and `Invalid` when the name alone does not tell.
    """
    query = (
        select(Pipeline)
        .join(Pipeline.workspace)
        .options(contains_eager(Pipeline.workspace))
        .where(Pipeline.pipeline_id == name, sees_workspace(caller, Pipeline.workspace_id))
    )
    if workspace_id is not None:
        query = query.where(Pipeline.workspace_id == workspace_id)
    found = list(await session.scalars(query.limit(2)))
    if not found:
        raise NotFound(f"There is no pipeline {name[:80]!r} in this workspace.")
    if len(found) > 1:
        raise Invalid(f"Several workspaces have a pipeline {name[:80]!r}; say which by `workspace_id`.")
    return found[0]


def watches(caller: Caller) -> Select[AssayWatch]:
    """Select the assays `caller` may see, with their pipelines and workspaces."""
    return (
        select(AssayWatch)
        .join(AssayWatch.pipeline)
        .join(Pipeline.workspace)
        .outerjoin(AssayWatch.assay)
        .options(
            contains_eager(AssayWatch.pipeline).contains_eager(Pipeline.workspace),
            contains_eager(AssayWatch.assay),
        )
        .where(sees_workspace(caller, Pipeline.workspace_id))
    )


async def visible_watch(session: AsyncSession, caller: Caller, assay_id: int | str) -> AssayWatch:
    """Return an assay of either generation by its number or UUID; raises `NotFound`."""
    query = watches(caller)
    if isinstance(assay_id, str) and assay_id.isdigit():
        assay_id = int(assay_id)
    if isinstance(assay_id, int):
        query = (
            query.where(AssayWatch.assay_id == assay_id) if 0 < assay_id < 2**63 else query.where(Assay.id.is_(None))
        )
    else:
        try:
            public_id = uuid.UUID(assay_id)
        except ValueError:
            raise NotFound(f"There is no assay {assay_id[:60]!r}.") from None
        query = query.where(AssayWatch.public_id == public_id, AssayWatch.assay_id.is_(None))
    found = await session.scalar(query)
    if found is None:
        raise NotFound(f"There is no assay {assay_id}.")
    return found
