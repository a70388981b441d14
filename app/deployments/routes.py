"""Deploying, undeploying and copying pipelines; status and inference URLs of what is deployed."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import StreamingResponse

from app.deployments import access, observed, schemas, service
from app.deployments.plan import ReplicaPhase
from app.deployments.resolve import Named
from app.deployments.status import status_of
from app.deployments.tables import Deployment
from app.errors import AppError, NotFound, Unavailable
from app.identity.caller import CurrentCaller, bearer_token
from app.identity.origin import base_url
from app.kit.clients import client_of
from app.kit.context import context_of
from app.kit.db import Session
from app.pipelines import service as pipelines
from engine.contract.definitions import ModelReference

router = APIRouter(prefix="/v1/api", tags=["pipelines"])
internal = APIRouter(prefix="/internal", include_in_schema=False)

UserAgent = Annotated[str | None, Header(include_in_schema=False)]


@router.post("/pipelines/deploy")
async def deploy(
    session: Session, caller: CurrentCaller, new: schemas.DeployIn, user_agent: UserAgent = None
) -> schemas.DeployOut:
    """Deploy a pipeline version; a pipeline that is deployed already changes over to it without a failed request.

    The models are those that the pipeline's steps name. Returns at once: poll status/get_deployment until it says
    Running.
    """
    order = service.Order(
        deploy_id=new.deploy_id,
        pipeline_version_pk_id=new.pipeline_version_pk_id,
        pipeline_version=new.pipeline_version,
        pipeline_id=new.pipeline_id,
        engine_config=new.engine_config,
        named=Named(
            references=[ModelReference(m.name, m.version, m.sha) for m in new.models or []],
            version_ids=new.model_ids or [],
            config_ids=new.model_configs or [],
        ),
    )
    try:
        row = await service.deploy(session, caller, order)
    except AppError as exc:
        if client_of(user_agent).wants_plain_deploy_errors:
            raise _as_plain_error(exc) from exc
        raise
    return schemas.DeployOut(id=row.id)


@router.post("/pipelines/undeploy")
async def undeploy(session: Session, caller: CurrentCaller, gone: schemas.UndeployIn) -> schemas.Empty:
    """Undeploy a pipeline; its inference URL stops answering, its log stays. Repeating it changes nothing."""
    await service.undeploy(session, caller, gone.deployment_id, gone.pipeline_id)
    return schemas.Empty()


@router.post("/pipelines/copy")
async def copy_pipeline(session: Session, caller: CurrentCaller, new: schemas.CopyIn) -> schemas.CopyOut:
    """Make a new pipeline from another one's newest version, or the one named; on request deploy it at once."""
    pipeline, version = await pipelines.copy(
        session, caller, new.name, new.workspace_id, new.source_pipeline, source_version=new.pipeline_version
    )
    deployment = None
    if new.deploy is not None:
        order = service.Order(new.deploy, pipeline_version_pk_id=version.id, engine_config=new.engine_config)
        deployment = schemas.DeployOut(id=(await service.deploy(session, caller, order)).id)
    return schemas.CopyOut(
        pipeline_pk_id=pipeline.id,
        pipeline_variant_pk_id=version.id,
        pipeline_version=version.version if new.pipeline_version is not None else None,
        deployment=deployment,
    )


@router.post("/status/get_deployment", tags=["status"])
async def get_deployment(
    session: Session, caller: CurrentCaller, wanted: schemas.StatusIn, user_agent: UserAgent = None
) -> schemas.StatusOut:
    """Show how a deployment is doing at this moment; 404 once it is undeployed and gone."""
    row = await service.deployment_named(session, caller, wanted.name)
    return status_of(row, client_of(user_agent))


@router.post("/admin/get_pipeline_external_url", tags=["admin"])
async def get_pipeline_external_url(
    request: Request, session: Session, caller: CurrentCaller, wanted: schemas.UrlIn
) -> schemas.UrlOut:
    """Return the URL at which a deployed pipeline infers for anybody who reaches this server."""
    row = await service.deployment_of(session, caller, wanted.pipeline_name, wanted.workspace_id)
    return schemas.UrlOut(
        url=f"{base_url(request)}/v1/api/pipelines/infer/{row.deploy_id}-{row.id}/{wanted.pipeline_name}"
    )


@router.post("/admin/get_pipeline_internal_url", tags=["admin"])
async def get_pipeline_internal_url(
    request: Request, session: Session, caller: CurrentCaller, wanted: schemas.UrlIn
) -> schemas.UrlOut:
    """Return the URL at which a deployed pipeline infers for whoever runs beside it: the cluster, or this machine."""
    row = await service.deployment_of(session, caller, wanted.pipeline_name, wanted.workspace_id)
    if context_of(request).settings.runtime == "kubernetes":
        base = f"http://engine-lb.{row.deploy_id}-{row.id}:29502"
    else:
        base = _engine_url(row)
    return schemas.UrlOut(url=f"{base}/pipelines/{wanted.pipeline_name}")


@internal.get("/access/{deployment_id}")
async def get_access(request: Request, deployment_id: Annotated[int, Path(ge=1, le=2**63 - 1)]) -> Response:
    """Tell an engine who may infer on its deployment; it proves itself by the secret it was started with."""
    context = context_of(request)
    access.check_access_token(context, deployment_id, bearer_token(request))
    document = await access.access_document(context, deployment_id)
    return Response(msgspec.json.encode(document), media_type="application/json")


@internal.get("/models/{deployment_id}/{version_id}")
async def get_model(
    request: Request,
    deployment_id: Annotated[int, Path(ge=1, le=2**63 - 1)],
    version_id: Annotated[int, Path(ge=1, le=2**63 - 1)],
) -> Response:
    """Give an engine on another machine the artifact of a model it is to run."""
    context = context_of(request)
    access.check_access_token(context, deployment_id, bearer_token(request))
    key = await access.artifact_key_of(context, deployment_id, version_id)
    size = await context.storage.size(key)
    if size is None:
        raise NotFound(f"The artifact of model version {version_id} is gone.")
    return StreamingResponse(
        context.storage.stream(key), headers={"Content-Length": str(size)}, media_type="application/octet-stream"
    )


def _engine_url(row: Deployment) -> str:
    for replica in observed.read(row.observed).replicas:
        if replica.phase is ReplicaPhase.RUNNING and replica.revision == row.running_revision:
            return f"http://{replica.host}:{replica.port}"
    raise Unavailable(f"Deployment {row.deploy_id}-{row.id} is not running; look at its status.")


def _as_plain_error(error: AppError) -> AppError:
    """Return `error` as a 500, the one status whose message clients up to 2023.4 show."""
    plain = AppError(error.message, **error.details)
    plain.code = error.code  # type: ignore[misc]  # the same error, under the status its reader understands
    return plain
