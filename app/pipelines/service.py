"""The rules of pipelines."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from app.errors import Conflict, Invalid, NotFound
from app.identity.caller import Caller
from app.kit.names import check_label
from app.pipelines import queries
from app.pipelines.tables import Pipeline, PipelinePublish, PipelineVersion
from app.workspaces import access

DEFINITION_LIMIT = 1000
"""Most steps of one pipeline."""


def topic_name(workspace_id: int, pipeline_name: str) -> str:
    """Return the log topic of a pipeline's inferences."""
    return f"workspace-{workspace_id}-pipeline-{pipeline_name}-inference"


def check_definition(definition: dict[str, Any]) -> None:
    """Raise `Invalid` for what can be no definition; steps of kinds nobody knows are kept, and refused at a deploy."""
    steps = definition.get("steps", [])
    if not isinstance(steps, list):
        raise Invalid("definition.steps: must be a list of steps.")
    if len(steps) > DEFINITION_LIMIT:
        raise Invalid(f"definition.steps: at most {DEFINITION_LIMIT} steps.")
    for number, step in enumerate(steps):
        if not isinstance(step, dict) or len(step) != 1:
            raise Invalid(f"definition.steps.{number}: a step is an object with one key, its kind.")


async def create(
    session: AsyncSession, caller: Caller, name: str, workspace_id: int, definition: dict[str, Any] | None
) -> tuple[Pipeline, PipelineVersion]:
    """Add a version to the pipeline of this name, which is made when it is new.

    Raises `Invalid` for a name that is not allowed or a definition that is none, `NotFound` for a workspace that does
    not exist for the caller.
    """
    check_label("Pipeline", name)
    check_definition(definition or {})
    workspace = await access.visible_workspace(session, caller, workspace_id)
    values = {"pipeline_id": name, "workspace_id": workspace.id, "owner_id": caller.id}
    upsert = insert(Pipeline).values(values)
    pipeline = (
        await session.scalars(
            upsert.on_conflict_do_update(
                constraint="pipeline_pipeline_id_workspace_id_key", set_={"updated_at": func.now()}
            ).returning(Pipeline),
            execution_options={"populate_existing": True},
        )
    ).one()
    version = await add_version(session, caller, pipeline, definition)
    return pipeline, version


async def add_version(
    session: AsyncSession, caller: Caller, pipeline: Pipeline, definition: dict[str, Any] | None
) -> PipelineVersion:
    """Add a version with this definition to `pipeline`."""
    version = PipelineVersion(pipeline_pk_id=pipeline.id, definition=definition or {}, owner_id=caller.id)
    session.add(version)
    await session.flush()
    return version


async def pipeline_by_id(session: AsyncSession, caller: Caller, pipeline_id: int) -> Pipeline:
    """Return the pipeline; raises `NotFound` when it does not exist for `caller`."""
    found = await session.scalar(queries.visible_pipelines(caller).where(Pipeline.id == pipeline_id))
    if found is None:
        raise NotFound(f"There is no pipeline {pipeline_id}.")
    return found


async def pipeline_by_name(session: AsyncSession, caller: Caller, name: str, workspace_id: int | None) -> Pipeline:
    """Return the pipeline of this name, the newest when several workspaces have one and none is named.

    Raises `NotFound` when it does not exist for `caller`.
    """
    query = queries.visible_pipelines(caller).where(Pipeline.pipeline_id == name).order_by(Pipeline.id.desc()).limit(1)
    if workspace_id is not None:
        query = query.where(Pipeline.workspace_id == workspace_id)
    found = await session.scalar(query)
    if found is None:
        where = f" in workspace {workspace_id}" if workspace_id is not None else ""
        raise NotFound(f"There is no pipeline {name!r}{where}.")
    return found


async def version_by_uuid(session: AsyncSession, caller: Caller, version: uuid.UUID) -> PipelineVersion:
    """Return the version with its pipeline; raises `NotFound` when it does not exist for `caller`."""
    found = await session.scalar(queries.visible_versions(caller).where(PipelineVersion.version == version))
    if found is None:
        raise NotFound(f"There is no pipeline version {version}.")
    return found


async def version_by_id(session: AsyncSession, caller: Caller, version_id: int) -> PipelineVersion:
    """Return the version with its pipeline; raises `NotFound` when it does not exist for `caller`."""
    found = await session.scalar(queries.visible_versions(caller).where(PipelineVersion.id == version_id))
    if found is None:
        raise NotFound(f"There is no pipeline version {version_id}.")
    return found


async def newest_version(session: AsyncSession, pipeline: Pipeline) -> PipelineVersion:
    """Return the newest version of `pipeline`; raises `NotFound` when it has none."""
    found = await session.scalar(queries.versions_of(pipeline.id).limit(1))
    if found is None:
        raise NotFound(f"Pipeline {pipeline.pipeline_id!r} has no version.")
    return found


async def copy(
    session: AsyncSession,
    caller: Caller,
    name: str,
    workspace_id: int,
    source_id: int,
    *,
    source_version: uuid.UUID | None = None,
) -> tuple[Pipeline, PipelineVersion]:
    """Make a new pipeline with the definition of another: its newest, or the version named.

    Raises `NotFound` for a source or workspace that does not exist for the caller, `Conflict` for a name that is taken.
    """
    source = await pipeline_by_id(session, caller, source_id)
    if source_version is None:
        version = await newest_version(session, source)
    else:
        version = await version_by_uuid(session, caller, source_version)
        if version.pipeline_pk_id != source.id:
            raise NotFound(f"Pipeline {source.pipeline_id!r} has no version {source_version}.")
    check_label("Pipeline", name)
    workspace = await access.visible_workspace(session, caller, workspace_id)
    values = {"pipeline_id": name, "workspace_id": workspace.id, "owner_id": caller.id}
    made = await session.scalar(
        insert(Pipeline)
        .values(values)
        .on_conflict_do_nothing(constraint="pipeline_pipeline_id_workspace_id_key")
        .returning(Pipeline)
    )
    if made is None:
        raise Conflict(f"Workspace {workspace.name!r} has a pipeline named {name!r} already.")
    definition = dict(version.definition)
    if "id" in definition:
        definition["id"] = name
    return made, await add_version(session, caller, made, definition)


async def delete_pipeline(session: AsyncSession, caller: Caller, name: str, workspace_id: int) -> None:
    """Delete a pipeline with its versions; its inference log stays.

    Raises `NotFound` when it does not exist for the caller, `Conflict` while it is deployed or published.
    """
    pipeline = await pipeline_by_name(session, caller, name, workspace_id)
    locked = await session.scalar(
        select(Pipeline)
        .where(Pipeline.id == pipeline.id)
        .options(selectinload(Pipeline.deployment))
        .with_for_update(of=Pipeline)
    )
    if locked is not None and locked.deployment is not None and locked.deployment.deployed:
        raise Conflict(f"Pipeline {name!r} is deployed; undeploy it first.")
    published = select(PipelinePublish.id).join(PipelineVersion).where(PipelineVersion.pipeline_pk_id == pipeline.id)
    if await session.scalar(published.limit(1)) is not None:
        raise Conflict(f"Pipeline {name!r} is published; a published pipeline cannot be deleted.")
    await session.execute(delete(Pipeline).where(Pipeline.id == pipeline.id))


async def delete_versions(session: AsyncSession, caller: Caller, versions: list[uuid.UUID]) -> None:
    """Delete pipeline versions, all or none.

    Raises `NotFound` for one that does not exist for the caller, `Conflict` for one that is deployed or published, or
    when a pipeline would be left without any.
    """
    wanted = list(dict.fromkeys(versions))
    pipelines = set(
        await session.scalars(
            queries.visible_versions(caller)
            .with_only_columns(PipelineVersion.pipeline_pk_id)
            .where(PipelineVersion.version.in_(wanted))
        )
    )
    # Pipelines are locked in one order, so that two callers cannot wait for each other or both leave the last version.
    rows = await session.scalars(
        select(Pipeline)
        .where(Pipeline.id.in_(pipelines))
        .options(selectinload(Pipeline.pipeline_versions))
        .order_by(Pipeline.id)
        .with_for_update(of=Pipeline)
        .execution_options(populate_existing=True)
    )
    known = {v.version: (p, v) for p in rows for v in p.pipeline_versions}
    for each in wanted:
        if each not in known:
            raise NotFound(f"There is no pipeline version {each}.")
    gone = {known[each][1].id for each in wanted}
    await _refuse_in_use(session, [known[each] for each in wanted])
    for pipeline, version in (known[each] for each in wanted):
        if all(v.id in gone for v in pipeline.pipeline_versions):
            raise Conflict(
                f"{version.version} is among the last versions of pipeline {pipeline.pipeline_id!r}, which cannot be "
                "without any; delete the pipeline instead."
            )
    await session.execute(delete(PipelineVersion).where(PipelineVersion.id.in_(gone)))


async def _refuse_in_use(session: AsyncSession, versions: list[tuple[Pipeline, PipelineVersion]]) -> None:
    ids = [version.id for _, version in versions]
    published = set(
        await session.scalars(
            select(PipelinePublish.pipeline_version_id).where(PipelinePublish.pipeline_version_id.in_(ids))
        )
    )
    deployed = set(await session.scalars(queries.versions_in_force([pipeline.id for pipeline, _ in versions])))
    for pipeline, version in versions:
        if version.id in published:
            raise Conflict(f"Version {version.version} of pipeline {pipeline.pipeline_id!r} is published.")
        if version.id in deployed:
            raise Conflict(
                f"Version {version.version} of pipeline {pipeline.pipeline_id!r} is deployed; undeploy it first."
            )
