"""Deleting models and versions: only what nothing uses any more."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import String, bindparam, cast, column, delete, func, select, table, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Conflict, NotFound
from app.identity.caller import Caller
from app.models import queries, service
from app.models.tables import Model, ModelVersion

# Pipelines belong to a module above this one; only whether they name a version is asked here.
_PIPELINES = table("pipeline", column("id"), column("pipeline_id"), column("workspace_id"))
_PIPELINE_VERSIONS = table("pipeline_version", column("pipeline_pk_id"), column("definition"))


@dataclass(slots=True)
class Freed:
    """What a deletion frees: bytes of storage, and the artifacts to remove once it is committed."""

    bytes: int = 0
    shas: list[str] = field(default_factory=list)


async def delete_model(
    session: AsyncSession, caller: Caller, name: str, workspace_id: int, *, confirmed: bool
) -> Freed:
    """Delete a model with all its versions, or only tell what that would free.

    Raises `NotFound` when it does not exist for the caller, `Conflict` when a version is deployed or in a pipeline.
    """
    model = await service.model_by_name(session, caller, name, workspace_id)
    versions = list(
        await session.scalars(queries.visible_versions(caller).where(ModelVersion.models_pk_id == model.id))
    )
    freed = await _delete(session, versions, confirmed=confirmed)
    if confirmed:
        await session.execute(delete(Model).where(Model.id == model.id))
    return freed


async def delete_versions(
    session: AsyncSession, caller: Caller, wanted: Sequence[uuid.UUID], *, confirmed: bool
) -> Freed:
    """Delete versions, or only tell what that would free; a model that loses its last version stays.

    Raises `NotFound` when one does not exist for the caller, `Conflict` when one is deployed or in a pipeline.
    """
    names = {str(version) for version in wanted}
    versions = list(
        await session.scalars(queries.visible_versions(caller).where(ModelVersion.model_version.in_(names)))
    )
    if missing := names - {v.model_version for v in versions}:
        raise NotFound(f"There is no model version {min(missing)}.")
    return await _delete(session, versions, confirmed=confirmed)


async def _delete(session: AsyncSession, versions: Sequence[ModelVersion], *, confirmed: bool) -> Freed:
    if not versions:
        return Freed()
    ids = [v.id for v in versions]
    await session.execute(select(ModelVersion.id).where(ModelVersion.id.in_(ids)).with_for_update())
    await _check_unused(session, versions)
    shared = set(
        await session.scalars(
            select(ModelVersion.sha).where(
                ModelVersion.sha.in_({v.sha for v in versions if v.sha}), ModelVersion.id.not_in(ids)
            )
        )
    )
    sizes = {v.sha: v.file_size or 0 for v in versions if v.sha and v.sha not in shared}
    if confirmed:
        await session.execute(delete(ModelVersion).where(ModelVersion.id.in_(ids)))
    return Freed(sum(sizes.values()), sorted(sizes))


async def _check_unused(session: AsyncSession, versions: Sequence[ModelVersion]) -> None:
    by_id = {v.id: v for v in versions}
    deployed = await session.scalar(queries.deployed_version_ids().where(column("model_id").in_(by_id)).limit(1))
    if deployed is not None:
        row = by_id[deployed]
        raise Conflict(f"Version {row.model_version} of model {row.model_id!r} is deployed; undeploy it first.")
    names = bindparam("names", {"names": [v.model_version for v in versions]}, type_=JSONB)
    path: Any = text("'$.** ? (@.version == $names[*])'")
    used = await session.scalar(
        select(cast(_PIPELINES.c.pipeline_id, String))
        .join(_PIPELINE_VERSIONS, _PIPELINE_VERSIONS.c.pipeline_pk_id == _PIPELINES.c.id)
        .where(
            _PIPELINES.c.workspace_id.in_({v.model.workspace_id for v in versions}),
            func.jsonb_path_exists(_PIPELINE_VERSIONS.c.definition, path, names),
        )
        .limit(1)
    )
    if used is not None:
        what = f"model {versions[0].model_id!r}" if len({v.models_pk_id for v in versions}) == 1 else "the models"
        raise Conflict(f"Pipeline {used!r} has a version that uses {what}; delete that first.")
