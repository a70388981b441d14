"""Turns a deployment's rows into what a runtime starts engines from."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload

from app.deployments.access import access_token
from app.deployments.engine_config import interpret
from app.deployments.runtimes.base import Launch, RuntimeFailure
from app.deployments.tables import Deployment, DeploymentModelConfig, DeploymentPipelineVersion
from app.kit.context import Context
from app.models.service import artifact_key, version_record
from app.models.tables import ModelConfig, ModelVersion
from app.pipelines.service import topic_name
from app.pipelines.tables import Pipeline, PipelineVersion
from app.settings import Settings
from engine.contract.deployment import (
    DeploymentDocument,
    LogDocument,
    ModelConfigDocument,
    ModelDocument,
    PipelineDocument,
)


async def launch_of(context: Context, session: AsyncSession, row: Deployment, replicas: int) -> Launch:
    """Return what it takes to run the revision that `row` asks for.

    Raises `RuntimeFailure` when what it is to run has gone.
    """
    pipeline = await session.get_one(Pipeline, row.pipeline_id)
    version = await _version(session, row)
    configs = await _configs(session, row, version)
    document = DeploymentDocument(
        deployment_id=row.id,
        deploy_id=row.deploy_id,
        revision=row.revision,
        workspace_id=pipeline.workspace_id,
        replica="",
        pipelines=[
            PipelineDocument(
                id=pipeline.pipeline_id,
                version=str(version.version),
                definition=version.definition,
                topic=topic_name(pipeline.workspace_id, pipeline.pipeline_id),
            )
        ],
        models=[_model(config) for config in configs],
        log=_log(context.settings),
        check_columns=context.settings.check_columns,
    )
    return Launch(
        document=document,
        blobs={config.model_id: artifact_key(config.model.sha or "") for config in configs},
        access_token=access_token(context, row.id),
        replicas=replicas,
        wanted=interpret(row.engine_config),
        engine_config=row.engine_config,
    )


def _log(settings: Settings) -> LogDocument:
    return LogDocument(
        root=settings.logs_root,
        fsync_interval_s=settings.log_sync_s,
        when_full=settings.log_when_full,
        record_bytes_limit=settings.log_record_bytes,
        spool_bytes_limit=settings.log_spool_bytes,
    )


def wanted_replicas(row: Deployment) -> int:
    """Return how many replicas `row` asks for to begin with; autoscaled ones start from their minimum, or one."""
    wanted = interpret(row.engine_config)
    if wanted.autoscale is None:
        return wanted.replicas
    return min(max(wanted.replicas, wanted.autoscale.least, 1), wanted.autoscale.most)


async def _version(session: AsyncSession, row: Deployment) -> PipelineVersion:
    version = await session.scalar(
        select(PipelineVersion)
        .join(DeploymentPipelineVersion)
        .where(DeploymentPipelineVersion.deployment_id == row.id)
        .order_by(DeploymentPipelineVersion.id.desc())
        .limit(1)
    )
    if version is None:
        raise RuntimeFailure("The pipeline version that was deployed has been deleted; deploy another.")
    return version


async def _configs(session: AsyncSession, row: Deployment, version: PipelineVersion) -> list[ModelConfig]:
    rows = await session.scalars(
        select(ModelConfig)
        .join(DeploymentModelConfig)
        .options(joinedload(ModelConfig.model).joinedload(ModelVersion.model))
        .where(
            DeploymentModelConfig.deployment_id == row.id,
            DeploymentModelConfig.pipeline_version_pk_id == version.id,
        )
        .order_by(DeploymentModelConfig.id)
    )
    return list(rows)


def _model(config: ModelConfig) -> ModelDocument:
    version = config.model
    conversion = version.conversion or {}
    return ModelDocument(
        model_version_id=version.id,
        name=version.model_id,
        version=version.model_version,
        sha=version.sha or "",
        framework=str(conversion.get("framework", "onnx")),
        path="",
        arch=conversion.get("arch") or "x86",
        accel=conversion.get("accel") or "none",
        config=ModelConfigDocument(
            id=config.id,
            runtime=config.runtime,
            tensor_fields=config.tensor_fields,
            filter_threshold=config.filter_threshold,
            input_schema=config.input_schema,
            output_schema=config.output_schema,
            batch_config=config.batch_config,
            dynamic_batching_config=config.dynamic_batching_config,
        ),
        record=version_record(version, config, deployed=True),
    )
