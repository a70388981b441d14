"""`/v1/api/models/…`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Body, Request, Response
from sqlalchemy import or_, select

from app.errors import Invalid
from app.identity.caller import CurrentCaller
from app.kit.clients import client_of
from app.kit.context import context_of
from app.kit.db import Session
from app.models import configs, deletion, listing, queries, schemas, service, uploads
from app.models.tables import ModelVersion
from app.workspaces import access

router = APIRouter(prefix="/v1/api/models", tags=["models"])


def _json(body: Any) -> Response:
    """Answer with a body that is the contract's shape already: a listing is not built, checked and copied again."""
    return Response(msgspec.json.encode(body), media_type="application/json")


@router.post("/get_version_by_id", response_model=schemas.VersionByIdOut)
async def get_version_by_id(session: Session, caller: CurrentCaller, wanted: schemas.VersionRef) -> Response:
    """Return a model version with its configuration in force; clients ask again and again until it is ready."""
    return _json({"model_version": await service.configured_version(session, caller, wanted.model_version_id)})


@router.post("/get_model_version_by_id", response_model=schemas.VersionByIdOut)
async def get_model_version_by_id(session: Session, caller: CurrentCaller, wanted: schemas.VersionRef) -> Response:
    """Return a model version with its configuration in force, as get_version_by_id does."""
    return await get_version_by_id(session, caller, wanted)


@router.post("/list", response_model=schemas.ListOut)
async def list_models(
    session: Session, caller: CurrentCaller, wanted: Annotated[schemas.ListIn | None, Body()] = None
) -> Response:
    """List the models of a workspace, the newest first, or all that the caller may see."""
    wanted = wanted or schemas.ListIn()
    if wanted.workspace_id is not None:
        await access.visible_workspace(session, caller, wanted.workspace_id)
    found = await listing.items(session, caller, workspace_id=wanted.workspace_id, workspace_name=wanted.workspace_name)
    return _json({"models": found})


@router.post("/list_versions")
async def list_versions(
    session: Session, caller: CurrentCaller, wanted: schemas.VersionsIn
) -> list[schemas.ListedVersionOut]:
    """List versions by their model's name, in all workspaces the caller may see, or by its number; the newest last."""
    matches = []
    if wanted.model_id is not None:
        matches.append(ModelVersion.model_id == wanted.model_id)
    if wanted.models_pk_id is not None:
        matches.append(ModelVersion.models_pk_id == wanted.models_pk_id)
    if not matches:
        raise Invalid("Name the model: model_id is its name, models_pk_id its number.")
    rows = await session.scalars(queries.visible_versions(caller).where(or_(*matches)).order_by(ModelVersion.id))
    return [schemas.ListedVersionOut.model_validate(_brief(v)) for v in rows]


@router.post("/list_versions_for_model", response_model=schemas.ListOut)
async def list_versions_for_model(session: Session, caller: CurrentCaller, wanted: schemas.NamedModel) -> Response:
    """Return one model with its versions, in the shape of a listing."""
    await service.model_by_name(session, caller, wanted.model_id, wanted.workspace_id)
    return _json(
        {"models": await listing.items(session, caller, workspace_id=wanted.workspace_id, name=wanted.model_id)}
    )


@router.post("/get")
async def get_model(
    request: Request, session: Session, caller: CurrentCaller, wanted: schemas.ModelRef
) -> schemas.ModelOut:
    """Return a model with its versions, the one that changed last first; old clients look for it at the end."""
    model = await service.model_by_id(session, caller, wanted.id)
    versions = await session.scalars(
        select(ModelVersion)
        .where(ModelVersion.models_pk_id == model.id)
        .order_by(ModelVersion.updated_at.desc(), ModelVersion.id.desc())
    )
    newest_first = list(versions)
    if client_of(request.headers.get("user-agent")).takes_last_version_as_newest:
        newest_first.reverse()
    return schemas.ModelOut.model_validate(
        {
            "id": model.id,
            "name": model.name,
            "owner_id": model.owner_id,
            "created_at": model.created_at,
            "updated_at": model.updated_at,
            "workspace": {"id": model.workspace.id, "name": model.workspace.name},
            "models": [_detailed(v) for v in newest_first],
        }
    )


@router.post("/get_by_id")
async def get_model_by_id(session: Session, caller: CurrentCaller, wanted: schemas.ModelRef) -> schemas.ModelByIdOut:
    """Return a model, with the configuration in force of its newest version."""
    model = await service.model_by_id(session, caller, wanted.id)
    newest = await session.scalar(
        select(ModelVersion.id).where(ModelVersion.models_pk_id == model.id).order_by(ModelVersion.id.desc()).limit(1)
    )
    config = await service.config_in_force(session, newest) if newest is not None else None
    return schemas.ModelByIdOut.model_validate(
        {
            "id": model.id,
            "owner_id": model.owner_id,
            "workspace_id": model.workspace_id,
            "name": model.name,
            "updated_at": model.updated_at,
            "created_at": model.created_at,
            "model_config": service.config_record(config) if config else None,
        }
    )


@router.post("/get_config_by_id", response_model=schemas.ConfigByIdOut)
async def get_config_by_id(session: Session, caller: CurrentCaller, wanted: schemas.ConfigRef) -> Response:
    """Return the configuration in force of a model version."""
    version = await service.version_by_id(session, caller, wanted.model_id)
    config = await service.config_in_force(session, version.id)
    return _json({"model_config": service.config_record(config) if config else None})


@router.post("/insert_model_config", response_model=schemas.ConfigByIdOut)
async def insert_model_config(session: Session, caller: CurrentCaller, new: schemas.ConfigIn) -> Response:
    """Configure a model version; what is not given stays as it is. Deployments keep what they were deployed with."""
    return _json({"model_config": service.config_record(await configs.insert(session, caller, new))})


@router.post("/delete_model")
async def delete_model(request: Request, caller: CurrentCaller, gone: schemas.DeleteModelIn) -> schemas.FreedOut:
    """Delete a model with its versions; without `confirm_delete` only tell how many bytes that would free."""
    confirmed = bool(gone.confirm_delete)
    async with context_of(request).sessions.begin() as session:
        freed = await deletion.delete_model(session, caller, gone.model_id, gone.workspace_id, confirmed=confirmed)
    if confirmed:
        await uploads.free_artifacts(context_of(request), freed.shas)
    return schemas.FreedOut(bytes=freed.bytes)


@router.post("/delete_model_versions")
async def delete_model_versions(
    request: Request, caller: CurrentCaller, gone: schemas.DeleteVersionsIn
) -> schemas.FreedOut:
    """Delete model versions; without `confirm_delete` only tell how many bytes that would free."""
    confirmed = bool(gone.confirm_delete)
    async with context_of(request).sessions.begin() as session:
        freed = await deletion.delete_versions(session, caller, gone.model_versions, confirmed=confirmed)
    if confirmed:
        await uploads.free_artifacts(context_of(request), freed.shas)
    return schemas.FreedOut(bytes=freed.bytes)


@router.post("/get_upload_logs")
async def get_upload_logs(session: Session, caller: CurrentCaller, wanted: schemas.LogsIn) -> schemas.LogsOut:
    """Return what was done with an upload, line by line."""
    version = await service.version_by_id(session, caller, wanted.model_version_id)
    lines = (version.inspection or {}).get("log", [])
    if wanted.lines is not None:
        lines = lines[-wanted.lines :] if wanted.lines else []
    return schemas.LogsOut(logs=lines)


def _brief(version: ModelVersion) -> dict[str, Any]:
    return {
        "sha": version.sha or service.NO_SHA,
        "models_pk_id": version.models_pk_id,
        "model_version": version.model_version,
        "owner_id": version.owner_id,
        "model_id": version.model_id,
        "id": version.id,
        "file_name": version.file_name,
        "image_path": version.image_path,
        "status": version.status,
    }


def _detailed(version: ModelVersion) -> dict[str, Any]:
    conversion = version.conversion or {}
    return _brief(version) | {
        "visibility": version.visibility,
        "arch": conversion.get("arch"),
        "accel": conversion.get("accel"),
        "updated_at": version.updated_at,
        "error_summary": version.error_summary,
    }
