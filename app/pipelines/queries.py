"""Selects on pipelines."""

from __future__ import annotations

from sqlalchemy import Boolean, Select, column, func, select, table
from sqlalchemy.orm import aliased, contains_eager, joinedload

from app.identity.caller import Caller
from app.pipelines.tables import Pipeline, PipelineVersion
from app.workspaces.access import sees_workspace
from app.workspaces.tables import Workspace

# Deployments belong to the module above this one; only what runs which version is looked at here.
_DEPLOYMENTS = table("deployment", column("id"), column("pipeline_id"), column("deployed", Boolean()))
_RUNS = table("deployment_pipeline_version", column("id"), column("deployment_id"), column("pipeline_version_pk_id"))


def visible_pipelines(caller: Caller) -> Select[Pipeline]:
    """Return the select of the pipelines that `caller` may see, each with its workspace."""
    return (
        select(Pipeline)
        .join(Pipeline.workspace)
        .options(contains_eager(Pipeline.workspace))
        .where(sees_workspace(caller, Pipeline.workspace_id))
    )


def visible_versions(caller: Caller) -> Select[PipelineVersion]:
    """Return the select of the pipeline versions that `caller` may see, each with its pipeline."""
    return (
        select(PipelineVersion)
        .join(PipelineVersion.pipeline)
        .options(contains_eager(PipelineVersion.pipeline))
        .where(sees_workspace(caller, Pipeline.workspace_id))
    )


def listing(
    caller: Caller, workspace_id: int | None = None, workspace_name: str | None = None
) -> Select[Pipeline, PipelineVersion]:
    """Return the select of pipelines with their newest versions, newest pipeline first."""
    any_version = aliased(PipelineVersion)
    newest = (
        select(func.max(any_version.id)).where(any_version.pipeline_pk_id == Pipeline.id).correlate(Pipeline)
    ).scalar_subquery()
    query = (
        select(Pipeline, PipelineVersion)
        .join(Pipeline.workspace)
        .outerjoin(PipelineVersion, PipelineVersion.id == newest)
        .options(contains_eager(Pipeline.workspace), joinedload(Pipeline.deployment))
        .where(sees_workspace(caller, Pipeline.workspace_id))
        .order_by(Pipeline.id.desc())
    )
    if workspace_id is not None:
        query = query.where(Pipeline.workspace_id == workspace_id)
    if workspace_name is not None:
        query = query.where(Workspace.name == workspace_name)
    return query


def versions_of(pipeline_id: int) -> Select[PipelineVersion]:
    """Return the select of the versions of a pipeline, newest first."""
    return (
        select(PipelineVersion).where(PipelineVersion.pipeline_pk_id == pipeline_id).order_by(PipelineVersion.id.desc())
    )


def versions_in_force(pipeline_ids: list[int]) -> Select[int]:
    """Return the select of the version ids that the deployments of these pipelines run now."""
    newest = func.max(_RUNS.c.id).label("id")
    current = select(newest).join(_DEPLOYMENTS, _DEPLOYMENTS.c.id == _RUNS.c.deployment_id)
    current = current.where(_DEPLOYMENTS.c.pipeline_id.in_(pipeline_ids), _DEPLOYMENTS.c.deployed)
    return select(_RUNS.c.pipeline_version_pk_id).where(_RUNS.c.id.in_(current.group_by(_RUNS.c.deployment_id)))
