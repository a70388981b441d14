"""The rules of models: who finds which version, which configuration is in force, how both are shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import select, tuple_
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload

from app.errors import NotFound
from app.identity.caller import Caller
from app.kit.wire import wire_time
from app.models import queries
from app.models.tables import Model, ModelConfig, ModelVersion
from app.workspaces import access

PENDING, ATTEMPTING, READY, ERROR = "pending_load_native", "attempting_load_native", "ready", "error"
"""The states of a version that this server uses; it settles in one of the last two."""

NO_SHA = "0" * 64


def artifact_key(sha: str) -> str:
    """Return the storage key of the artifact whose SHA-256 is `sha`; versions with the same bytes share it."""
    return f"models/{sha}"


def version_record(version: ModelVersion, config: ModelConfig, *, deployed: bool = False) -> dict[str, Any]:
    """Return a version and its configuration as the API shows them; `version.model` must be loaded."""
    return record_of(version, config, workspace_id=version.model.workspace_id, deployed=deployed)


def record_of(version: Any, config: Any, *, workspace_id: Any, deployed: bool) -> dict[str, Any]:
    """Return the same record from two rows, or anything else with the columns' names."""
    return {
        "model_version": {
            "id": version.id,
            "name": version.model_id,
            "visibility": version.visibility,
            "workspace_id": workspace_id,
            "conversion": version.conversion,
            "image_path": version.image_path,
            "status": version.status,
            "task_id": str(version.task_id) if version.task_id else None,
            "file_info": {
                "version": version.model_version,
                "sha": version.sha or NO_SHA,
                "file_name": version.file_name or "",
                "size": version.file_size or 0,
            },
            "created_on_version": version.created_on_version,
            "created_by": version.created_by,
            "created_at": wire_time(version.created_at),
            "deployed": deployed,
            "error_summary": version.error_summary,
        },
        "config": config_record(config),
    }


def config_record(config: Any) -> dict[str, Any]:
    """Return a configuration as the API shows it."""
    return {
        "id": config.id,
        "model_version_id": config.model_id,
        "runtime": config.runtime,
        "filter_threshold": config.filter_threshold,
        "tensor_fields": config.tensor_fields,
        "input_schema": config.input_schema,
        "output_schema": config.output_schema,
        "batch_config": config.batch_config,
        "dynamic_batching_config": config.dynamic_batching_config,
        "continuous_batching_config": config.continuous_batching_config,
        "queue_depth": None,
        "sidekick_uri": None,
        "openai": config.openai,
    }


async def version_by_id(session: AsyncSession, caller: Caller, version_id: int) -> ModelVersion:
    """Return the version with its model; raises `NotFound` when it does not exist for `caller`."""
    query = queries.visible_versions(caller).where(ModelVersion.id == version_id)
    found: ModelVersion | None = await session.scalar(query)
    if found is None:
        raise NotFound(f"There is no model version {version_id}.")
    return found


async def model_by_id(session: AsyncSession, caller: Caller, model_id: int) -> Model:
    """Return the model with its workspace; raises `NotFound` when it does not exist for `caller`."""
    found = await session.scalar(
        select(Model)
        .options(joinedload(Model.workspace))
        .where(Model.id == model_id, access.sees_workspace(caller, Model.workspace_id))
    )
    if found is None:
        raise NotFound(f"There is no model {model_id}.")
    return found


async def model_by_name(session: AsyncSession, caller: Caller, name: str, workspace_id: int) -> Model:
    """Return the model of this name in a workspace; raises `NotFound` when it does not exist for `caller`."""
    found = await session.scalar(
        select(Model)
        .options(joinedload(Model.workspace))
        .where(
            Model.name == name,
            Model.workspace_id == workspace_id,
            access.sees_workspace(caller, Model.workspace_id),
        )
    )
    if found is None:
        raise NotFound(f"There is no model {name[:80]!r} in workspace {workspace_id}.")
    return found


async def resolve(
    session: AsyncSession, workspace_id: int, name: str, version: str, sha: str | None = None
) -> ModelVersion:
    """Return the version that a pipeline step names, with its model; the workspace has been checked already.

    Raises `NotFound` when the workspace has no such version, or when `sha` is not that of its artifact.
    """
    found = await session.scalar(
        select(ModelVersion)
        .join(ModelVersion.model)
        .options(joinedload(ModelVersion.model))
        .where(
            Model.workspace_id == workspace_id,
            ModelVersion.model_id == name,
            ModelVersion.model_version == version.lower(),
        )
    )
    if found is None:
        raise NotFound(f"Workspace {workspace_id} has no version {version[:80]} of a model {name[:80]!r}.")
    if sha and found.sha and found.sha != sha.lower():
        raise NotFound(f"Version {version} of model {name!r} has SHA-256 {found.sha}, not {sha[:80]}.")
    return found


async def version_ids(
    session: AsyncSession, workspace_id: int, named: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], str]:
    """Return the newest version of each model, by its name and SHA-256; those that the workspace lacks are left out."""
    query = (
        select(ModelVersion.model_id, ModelVersion.sha, ModelVersion.model_version)
        .join(ModelVersion.model)
        .where(Model.workspace_id == workspace_id, tuple_(ModelVersion.model_id, ModelVersion.sha).in_(list(named)))
        .order_by(ModelVersion.id)
    )
    return {(name, sha or ""): version for name, sha, version in await session.execute(query)}


async def config_in_force(session: AsyncSession, version_id: int) -> ModelConfig | None:
    """Return the newest configuration of a version, or None when it has none."""
    return (await latest_configs(session, [version_id])).get(version_id)


async def latest_configs(session: AsyncSession, version_ids: Iterable[int]) -> dict[int, ModelConfig]:
    """Return the configuration in force of each version, by the version's id, in one statement."""
    wanted = list(version_ids)
    if not wanted:
        return {}
    rows = await session.scalars(
        select(ModelConfig)
        .ext(distinct_on(ModelConfig.model_id))
        .where(ModelConfig.model_id.in_(wanted))
        .order_by(ModelConfig.model_id, ModelConfig.id.desc())
    )
    return {row.model_id: row for row in rows}


async def configured_version(session: AsyncSession, caller: Caller, version_id: int) -> dict[str, Any]:
    """Return the record of one version; raises `NotFound` when it does not exist for `caller`."""
    rows = await records(session, queries.configured(caller).where(ModelVersion.id == version_id))
    if not rows:
        raise NotFound(f"There is no model version {version_id}.")
    return rows[0]


async def records(session: AsyncSession, query: Any) -> list[dict[str, Any]]:
    """Return the records of the versions that a select made from `queries.configured` finds."""
    rows = await session.execute(query)
    return [
        record_of(version, config, workspace_id=workspace_id, deployed=deployed)
        for version, config, workspace_id, deployed in rows
    ]
