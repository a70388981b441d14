"""The rules of deployments: what should run. Making it so is the controller's."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import contains_eager

from app.deployments import engine_config, resolve
from app.deployments.plan import Phase
from app.deployments.resolve import Chosen, Named
from app.deployments.tables import Deployment, DeploymentModelConfig, DeploymentPipelineVersion
from app.errors import Conflict, Invalid, NotFound
from app.identity.caller import Caller
from app.kit.clock import SystemClock
from app.kit.events import notify
from app.kit.names import check_label
from app.models.tables import ModelVersion
from app.pipelines import service as pipelines
from app.pipelines.tables import Pipeline, PipelineVersion
from app.workspaces.access import sees_workspace

TOPIC = "deployments"
"""Wake-ups of this topic mean: something else is to run, or something else was seen to run."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a deploy asks for; the version by its number or UUID, or the newest of a pipeline."""

    deploy_id: str
    pipeline_version_pk_id: int | None = None
    pipeline_version: uuid.UUID | None = None
    pipeline_id: int | None = None
    engine_config: dict[str, Any] | None = None
    named: Named = field(default_factory=Named)


async def deploy(session: AsyncSession, caller: Caller, order: Order) -> Deployment:
    """Have a pipeline version run; a pipeline that is deployed already changes over to it.

    Raises `NotFound` for a pipeline, version or model that does not exist for the caller, `Invalid` for steps or
    settings that make no sense, `Conflict` for a model that is not ready.
    """
    check_label("Deployment", order.deploy_id)
    version = await _version_of(session, caller, order)
    config = engine_config.normalise(order.engine_config)
    chosen = await resolve.configs_of(session, caller, version.definition, order.named)
    config = engine_config.name_images(config, {c.version.model_id: c.version.id for c in chosen})
    row = await _locked(session, version.pipeline_pk_id, order.deploy_id)
    running = await _in_force(session, row.id)
    is_same = (
        row.deployed
        and row.phase != Phase.FAILED
        and row.deploy_id == order.deploy_id
        and row.engine_config == config
        and running == (version.id, sorted(c.config.id for c in chosen))
    )
    if is_same:
        return row
    row.deploy_id = order.deploy_id
    row.engine_config = config
    await _put_in_force(session, row.id, version.id, [c.config.id for c in chosen])
    await _ask_again(session, caller, row)
    return row


async def undeploy(session: AsyncSession, caller: Caller, deployment_id: int | None, pipeline_id: int | None) -> None:
    """Have a deployment stop; done twice it changes nothing.

    Raises `NotFound` when it does not exist for the caller, `Invalid` when none is named.
    """
    if deployment_id is None and pipeline_id is None:
        raise Invalid("Say which deployment: send `deployment_id` or `pipeline_id`.")
    if deployment_id is None and pipeline_id is not None:
        pipeline = await pipelines.pipeline_by_id(session, caller, pipeline_id)
        await session.refresh(pipeline, ["deployment"])
        if pipeline.deployment is None:
            return
        deployment_id = pipeline.deployment.id
    assert deployment_id is not None  # noqa: S101 - one of the two was given
    row = await visible_deployment(session, caller, deployment_id, for_change=True)
    if pipeline_id is not None and row.pipeline_id != pipeline_id:
        raise Invalid(f"Deployment {deployment_id} is not one of pipeline {pipeline_id}.")
    if not row.deployed:
        return
    row.deployed = False
    row.updated_by = caller.id
    if row.phase != Phase.STOPPED:
        _enter(row, Phase.STOPPING)
    await session.flush()
    await notify(session, TOPIC, str(row.id))


async def redeploy(session: AsyncSession, caller: Caller, deployment_id: int) -> Deployment:
    """Have a deployment run again what it ran last; one that runs stays as it is.

    Raises `NotFound` when it does not exist for the caller, `Conflict` when it never ran anything.
    """
    row = await visible_deployment(session, caller, deployment_id, for_change=True)
    if row.deployed and row.phase != Phase.FAILED:
        return row
    version_id, config_ids = await _in_force(session, row.id)
    if version_id is None:
        raise Conflict(f"Deployment {deployment_id} has no pipeline version to run; deploy one.")
    version = await pipelines.version_by_id(session, caller, version_id)
    await resolve.configs_of(session, caller, version.definition, Named(config_ids=config_ids))
    await _ask_again(session, caller, row)
    return row


async def replace_model(
    session: AsyncSession, caller: Caller, deployment_id: int, model_config_id: int
) -> DeploymentModelConfig:
    """Have a deployment run another configuration or version of one of its models; returns the row that says so.

    Another version makes another version of the pipeline: what a pipeline version runs never changes. Raises `NotFound`
    when deployment or configuration do not exist for the caller, `Conflict` when the deployment has no pipeline
    version, or does not run that model, or several versions of it.
    """
    row = await visible_deployment(session, caller, deployment_id, for_change=True)
    version_id, config_ids = await _in_force(session, row.id)
    if version_id is None:
        raise Conflict(f"Deployment {deployment_id} has no pipeline version to run; deploy one.")
    version = await pipelines.version_by_id(session, caller, version_id)
    wanted = (await resolve.configs_of(session, caller, {}, Named(config_ids=[model_config_id])))[0]
    current = await resolve.configs_of(session, caller, version.definition, Named(config_ids=config_ids))
    kept = [c.config.id for c in current if c.version.id != wanted.version.id]
    if len(kept) == len(current):
        old = _version_in_place_of(row, current, wanted)
        kept = [c.config.id for c in current if c.version.id != old.id]
        definition = resolve.with_version(version.definition, old, wanted.version)
        version_id = (await pipelines.add_version(session, caller, row.pipeline, definition)).id
    if model_config_id not in config_ids:
        await _put_in_force(session, row.id, version_id, [*kept, model_config_id])
        if row.deployed:
            await _ask_again(session, caller, row)
    found = await session.scalar(
        select(DeploymentModelConfig).where(
            DeploymentModelConfig.deployment_id == row.id,
            DeploymentModelConfig.model_config_id == model_config_id,
            DeploymentModelConfig.pipeline_version_pk_id == version_id,
        )
    )
    assert found is not None  # noqa: S101 - put there above, or before
    return found


def _version_in_place_of(row: Deployment, current: Sequence[Chosen], wanted: Chosen) -> ModelVersion:
    """Return the version of the wanted one's model that a deployment runs; raises `Conflict` unless there is one."""
    found = [c.version for c in current if c.version.models_pk_id == wanted.version.models_pk_id]
    if len(found) == 1:
        return found[0]
    name = wanted.version.model_id
    if not found:
        raise Conflict(f"Deployment {row.id} does not run model {name!r}; deploy a pipeline with it.")
    raise Conflict(
        f"Deployment {row.id} runs {len(found)} versions of model {name!r}: it is not clear which is to give way. "
        "Deploy the pipeline with other steps."
    )


async def visible_deployment(
    session: AsyncSession, caller: Caller, deployment_id: int, *, for_change: bool = False
) -> Deployment:
    """Return the deployment with its pipeline; raises `NotFound` when it does not exist for `caller`."""
    query = (
        select(Deployment)
        .join(Deployment.pipeline)
        .options(contains_eager(Deployment.pipeline))
        .where(Deployment.id == deployment_id, sees_workspace(caller, Pipeline.workspace_id))
    )
    if for_change:
        query = query.with_for_update(of=Deployment).execution_options(populate_existing=True)
    found = await session.scalar(query)
    if found is None:
        raise NotFound(f"There is no deployment {deployment_id}.")
    return found


async def deployment_named(session: AsyncSession, caller: Caller, name: str) -> Deployment:
    """Return the deployment that status and URLs call `<deploy id>-<id>`; raises `NotFound` when there is none."""
    deploy_id, _, number = name.rpartition("-")
    if number.isascii() and number.isdigit() and len(number) < 19:
        row = await session.scalar(
            select(Deployment)
            .join(Deployment.pipeline)
            .options(contains_eager(Deployment.pipeline))
            .where(
                Deployment.id == int(number),
                Deployment.deploy_id == deploy_id,
                sees_workspace(caller, Pipeline.workspace_id),
            )
        )
        if row is not None:
            return row
    raise NotFound(f"There is no deployment {name[:80]!r}.")


async def deployment_of(session: AsyncSession, caller: Caller, pipeline_name: str, workspace_id: int) -> Deployment:
    """Return the deployment of a pipeline; raises `NotFound` when there is none, or no such pipeline."""
    pipeline = await pipelines.pipeline_by_name(session, caller, pipeline_name, workspace_id)
    await session.refresh(pipeline, ["deployment"])
    if pipeline.deployment is None:
        raise NotFound(f"Pipeline {pipeline_name!r} is not deployed.")
    return pipeline.deployment


async def _version_of(session: AsyncSession, caller: Caller, order: Order) -> PipelineVersion:
    if order.pipeline_version_pk_id is not None:
        version = await pipelines.version_by_id(session, caller, order.pipeline_version_pk_id)
    elif order.pipeline_version is not None:
        version = await pipelines.version_by_uuid(session, caller, order.pipeline_version)
    elif order.pipeline_id is not None:
        pipeline = await pipelines.pipeline_by_id(session, caller, order.pipeline_id)
        return await pipelines.newest_version(session, pipeline)
    else:
        raise Invalid("Say what to deploy: send `pipeline_version_pk_id`, `pipeline_version` or `pipeline_id`.")
    if order.pipeline_id is not None and version.pipeline_pk_id != order.pipeline_id:
        raise Invalid(f"Version {version.id} is not one of pipeline {order.pipeline_id}.")
    if order.pipeline_version is not None and version.version != order.pipeline_version:
        raise Invalid(f"Version {version.id} has the UUID {version.version}, not {order.pipeline_version}.")
    return version


async def _locked(session: AsyncSession, pipeline_id: int, deploy_id: str) -> Deployment:
    """Return the pipeline's deployment row, made if it is new, locked against other changes."""
    await session.execute(
        insert(Deployment)
        .values(pipeline_id=pipeline_id, deploy_id=deploy_id, revision=0, phase=Phase.STOPPED)
        .on_conflict_do_nothing(constraint="deployment_pipeline_id_key")
    )
    row = await session.scalar(
        select(Deployment)
        .where(Deployment.pipeline_id == pipeline_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if row is None:  # the pipeline was deleted this moment
        raise NotFound(f"There is no pipeline {pipeline_id}.")
    return row


async def _in_force(session: AsyncSession, deployment_id: int) -> tuple[int | None, list[int]]:
    """Return the pipeline version that a deployment runs, and the ids of its model configurations."""
    version_id = await session.scalar(
        select(DeploymentPipelineVersion.pipeline_version_pk_id)
        .where(DeploymentPipelineVersion.deployment_id == deployment_id)
        .order_by(DeploymentPipelineVersion.id.desc())
        .limit(1)
    )
    configs = await session.scalars(
        select(DeploymentModelConfig.model_config_id)
        .where(
            DeploymentModelConfig.deployment_id == deployment_id,
            DeploymentModelConfig.pipeline_version_pk_id == version_id,
        )
        .order_by(DeploymentModelConfig.model_config_id)
    )
    return version_id, list(configs)


async def _put_in_force(session: AsyncSession, deployment_id: int, version_id: int, ids: Sequence[int]) -> None:
    """Write down that a deployment is to run this version with these configurations, and no others of that version."""
    await session.execute(
        delete(DeploymentModelConfig).where(
            DeploymentModelConfig.deployment_id == deployment_id,
            DeploymentModelConfig.pipeline_version_pk_id == version_id,
            DeploymentModelConfig.model_config_id.not_in(ids),
        )
    )
    if ids:
        rows = [
            {"deployment_id": deployment_id, "model_config_id": i, "pipeline_version_pk_id": version_id} for i in ids
        ]
        await session.execute(insert(DeploymentModelConfig).values(rows).on_conflict_do_nothing())
    newest = (await _in_force(session, deployment_id))[0]
    if newest != version_id:
        session.add(DeploymentPipelineVersion(deployment_id=deployment_id, pipeline_version_pk_id=version_id))
    await session.flush()


async def _ask_again(session: AsyncSession, caller: Caller, row: Deployment) -> None:
    row.deployed = True
    row.revision += 1
    row.updated_by = caller.id
    row.reason = None
    _enter(row, Phase.STARTING)
    await session.flush()
    await notify(session, TOPIC, str(row.id))


def _enter(row: Deployment, phase: Phase) -> None:
    row.phase = phase
    row.phase_since = SystemClock().now()
