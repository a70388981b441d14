"""`/v1/api/pipelines/…`, as far as it is about definitions and versions."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body

from app.identity.caller import CurrentCaller
from app.kit.db import Session
from app.pipelines import queries, schemas, service
from app.pipelines.tables import Pipeline, PipelineVersion

router = APIRouter(prefix="/v1/api/pipelines", tags=["pipelines"])


@router.post("/create")
async def create_pipeline(session: Session, caller: CurrentCaller, new: schemas.CreateIn) -> schemas.CreateOut:
    """Create a pipeline, or the next version of the one that has this name in the workspace."""
    pipeline, version = await service.create(session, caller, new.pipeline_id, new.workspace_id, new.definition)
    return schemas.CreateOut(
        pipeline_pk_id=pipeline.id, pipeline_variant_pk_id=version.id, pipeline_variant_version=version.version
    )


@router.post("/get_version")
async def get_pipeline_version(
    session: Session, caller: CurrentCaller, wanted: schemas.VersionIn
) -> schemas.VersionOut:
    """Show a pipeline version with its definition, exactly as it was sent."""
    version = await service.version_by_uuid(session, caller, wanted.version)
    return schemas.VersionOut(
        pipeline_id=version.pipeline.pipeline_id, version=version.version, definition=version.definition
    )


@router.post("/list_pipelines")
async def list_pipelines(
    session: Session, caller: CurrentCaller, wanted: Annotated[schemas.ListIn | None, Body()] = None
) -> schemas.ListOut:
    """List the pipelines the caller may see, newest first, each with its newest version."""
    wanted = wanted or schemas.ListIn()
    rows = await session.execute(queries.listing(caller, wanted.workspace_id, wanted.workspace_name))
    return schemas.ListOut(pipelines=[_listed(pipeline, version) for pipeline, version in rows])


@router.post("/list_pipeline_versions")
async def list_pipeline_versions(
    session: Session, caller: CurrentCaller, wanted: schemas.PipelineRef
) -> schemas.VersionsOut:
    """List the versions of a pipeline, newest first."""
    pipeline = await service.pipeline_by_name(session, caller, wanted.pipeline_id, wanted.workspace_id)
    await session.refresh(pipeline, ["deployment"])
    versions = await session.scalars(queries.versions_of(pipeline.id))
    return schemas.VersionsOut(pipeline_versions=[_listed(pipeline, version) for version in versions])


@router.post("/get_pipeline_by_name")
async def get_pipeline_by_name(
    session: Session, caller: CurrentCaller, wanted: schemas.PipelineByNameIn
) -> schemas.PipelineItem:
    """Find a pipeline by its name; without a workspace, the newest of that name that the caller may see."""
    pipeline = await service.pipeline_by_name(session, caller, wanted.pipeline_name, wanted.workspace_id)
    return schemas.PipelineItem(**_item(pipeline))


@router.post("/delete_pipeline")
async def delete_pipeline(session: Session, caller: CurrentCaller, gone: schemas.PipelineRef) -> schemas.PipelineRef:
    """Delete a pipeline with all its versions; refused while it is deployed or published. Its log stays."""
    await service.delete_pipeline(session, caller, gone.pipeline_id, gone.workspace_id)
    return gone


@router.post("/delete_pipeline_versions")
async def delete_pipeline_versions(
    session: Session, caller: CurrentCaller, gone: schemas.VersionsRef
) -> schemas.VersionsRef:
    """Delete pipeline versions, all or none; refused for one that is deployed, published or a pipeline's last."""
    await service.delete_versions(session, caller, gone.pipeline_versions)
    return gone


def _item(pipeline: Pipeline) -> dict[str, Any]:
    return {
        "pipeline": schemas.PipelineOut(
            id=pipeline.id,
            name=pipeline.pipeline_id,
            created_at=pipeline.created_at,
            updated_at=pipeline.updated_at,
        ),
        "workspace": schemas.WorkspaceOut.of(pipeline.workspace),
        "plateau_topic": service.topic_name(pipeline.workspace_id, pipeline.pipeline_id),
    }


def _listed(pipeline: Pipeline, version: PipelineVersion | None) -> schemas.ListedPipelineOut:
    return schemas.ListedPipelineOut(
        **_item(pipeline),
        deployment=_replicas(pipeline),
        pipeline_version=version
        and schemas.ListedVersionOut(
            id=pipeline.pipeline_id,
            workspace_id=pipeline.workspace_id,
            version=version.version,
            steps=version.definition,
            created_at=version.created_at,
            created_by=version.owner_id or None,
            created_on_version=version.created_on_version,
        ),
    )


def _replicas(pipeline: Pipeline) -> schemas.ReplicasOut | None:
    deployment = pipeline.deployment
    if deployment is None or not deployment.deployed:
        return None
    engine = deployment.engine_config.get("engine") or {}
    autoscale = engine.get("autoscale") or {}
    least = autoscale.get("replica_min", engine.get("replicas", 1))
    return schemas.ReplicasOut(prewarmed_replicas=least, maximum_replicas=autoscale.get("replica_max", max(least, 1)))
