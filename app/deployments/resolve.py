"""Which models, in which configurations, a deploy means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import contains_eager

from app.errors import Conflict, Invalid, NotFound
from app.identity.caller import Caller
from app.models import service as models
from app.models.frameworks import RUNTIMES
from app.models.queries import visible_versions
from app.models.tables import Model, ModelConfig, ModelVersion
from app.workspaces.access import sees_workspace
from engine.contract.definitions import DefinitionError, ModelReference, model_references


@dataclass(frozen=True, slots=True)
class Chosen:
    """A model version and the configuration it is to run with."""

    version: ModelVersion
    config: ModelConfig


@dataclass(frozen=True, slots=True)
class Named:
    """What a request names beside the pipeline's own steps."""

    references: Sequence[ModelReference] = ()
    version_ids: Sequence[int] = ()
    config_ids: Sequence[int] = ()


def references_of(definition: dict[str, Any]) -> tuple[ModelReference, ...]:
    """Return the models that a definition's steps mention; raises `Invalid` for steps that cannot be run."""
    try:
        return model_references(definition)
    except DefinitionError as exc:
        raise Invalid(f"The pipeline cannot be deployed: {exc}.", problem="definition") from exc


def with_version(definition: dict[str, Any], old: ModelVersion, new: ModelVersion) -> dict[str, Any]:
    """Return the definition with another version of a model wherever its steps mention the old one."""

    def renewed(part: Any) -> Any:
        if isinstance(part, list):
            return [renewed(inner) for inner in part]
        if not isinstance(part, dict):
            return part
        if part.get("name") == old.model_id and part.get("version") == old.model_version:
            return part | {"version": new.model_version, "sha": new.sha}
        return {key: renewed(inner) for key, inner in part.items()}

    replaced: dict[str, Any] = renewed(definition)
    return replaced


async def configs_of(session: AsyncSession, caller: Caller, definition: dict[str, Any], named: Named) -> list[Chosen]:
    """Return every model that a deploy needs, with the configuration in force.

    A configuration that is named wins over a version's newest; a version without any gets one. Raises `NotFound` for a
    model the caller may not see, `Invalid` for one that is not what it is said to be, `Conflict` for one that is not
    ready.
    """
    chosen = {c.model_id: c for c in await _named_configs(session, caller, named.config_ids)}
    versions = {c.model.id: c.model for c in chosen.values()}
    for version in await _by_ids(session, caller, named.version_ids):
        versions[version.id] = version
    wanted = list(dict.fromkeys([*references_of(definition), *named.references]))
    for version in await _by_references(session, caller, wanted):
        versions[version.id] = version
    for version in versions.values():
        _check_ready(version)
    missing = [version_id for version_id in versions if version_id not in chosen]
    chosen |= await models.latest_configs(session, missing)
    for version_id, version in versions.items():
        if version_id not in chosen:
            chosen[version_id] = await _default_config(session, version)
    return [Chosen(version, chosen[version_id]) for version_id, version in versions.items()]


async def _by_ids(session: AsyncSession, caller: Caller, ids: Sequence[int]) -> list[ModelVersion]:
    found = (
        {v.id: v for v in await session.scalars(visible_versions(caller).where(ModelVersion.id.in_(ids)))}
        if ids
        else {}
    )
    for version_id in ids:
        if version_id not in found:
            raise NotFound(f"There is no model version {version_id}.")
    return list(found.values())


async def _by_references(
    session: AsyncSession, caller: Caller, references: Iterable[ModelReference]
) -> list[ModelVersion]:
    wanted = list(references)
    if not wanted:
        return []
    query = visible_versions(caller).where(ModelVersion.model_version.in_([r.version for r in wanted]))
    found = {v.model_version: v for v in await session.scalars(query)}
    for reference in wanted:
        version = found.get(reference.version)
        if version is None or version.model_id != reference.name:
            raise NotFound(f"There is no version {reference.version!r} of a model {reference.name!r}.")
        if reference.sha and version.sha is not None and reference.sha.lower() != version.sha:
            raise Invalid(
                f"Version {reference.version} of model {reference.name!r} has the hash {version.sha}, "
                f"not {reference.sha}."
            )
    return list(found.values())


async def _named_configs(session: AsyncSession, caller: Caller, ids: Sequence[int]) -> list[ModelConfig]:
    if not ids:
        return []
    query = (
        select(ModelConfig)
        .join(ModelConfig.model)
        .join(ModelVersion.model)
        .options(contains_eager(ModelConfig.model).contains_eager(ModelVersion.model))
        .where(ModelConfig.id.in_(ids), sees_workspace(caller, Model.workspace_id))
    )
    found = {c.id: c for c in await session.scalars(query)}
    for config_id in ids:
        if config_id not in found:
            raise NotFound(f"There is no model configuration {config_id}.")
    return [found[config_id] for config_id in ids]


async def _default_config(session: AsyncSession, version: ModelVersion) -> ModelConfig:
    config = ModelConfig(
        model_id=version.id, runtime=RUNTIMES.get((version.conversion or {}).get("framework", ""), "onnx")
    )
    session.add(config)
    await session.flush()
    return config


def _check_ready(version: ModelVersion) -> None:
    if version.status == models.READY:
        return
    if version.status == models.ERROR:
        why = version.error_summary or "it could not be read"
        raise Conflict(f"Model {version.model_id!r} cannot be deployed: {why}")
    raise Conflict(f"Model {version.model_id!r} is not ready yet ({version.status}); try again when it is.")
