"""What should run, and what was last seen of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.kit.db import Key, Record, Table
from app.models.tables import ModelConfig
from app.pipelines.tables import Pipeline, PipelineVersion


class Deployment(Record, Table):
    """The one deployment of a pipeline; deploying again changes this row, so its id and URL stay."""

    __tablename__ = "deployment"
    __table_args__ = (UniqueConstraint("pipeline_id"),)

    id: Mapped[Key]
    deploy_id: Mapped[str] = mapped_column(index=True)
    deployed: Mapped[bool] = mapped_column(server_default=text("false"))
    engine_config: Mapped[dict[str, Any]] = mapped_column(server_default=text("""'{"engine": {}}'::jsonb"""))
    limit_status: Mapped[str | None]
    pipeline_id: Mapped[int] = mapped_column(ForeignKey("pipeline.id", ondelete="CASCADE"))
    updated_by: Mapped[str | None]
    revision: Mapped[int] = mapped_column(server_default=text("1"))
    """Counts what was asked for: a change of version, models or engine configuration makes the next one."""
    phase: Mapped[str] = mapped_column(server_default="stopped")
    phase_since: Mapped[datetime] = mapped_column(server_default=text("now()"))
    reason: Mapped[str | None]
    running_revision: Mapped[int | None]
    failed_revision: Mapped[int | None]
    observed: Mapped[dict[str, Any] | None]
    """What the runtime last saw of it: replicas, addresses, their states."""

    pipeline: Mapped[Pipeline] = relationship(back_populates="deployment")
    deployment_model_configs: Mapped[list[DeploymentModelConfig]] = relationship(
        back_populates="deployment", order_by="DeploymentModelConfig.id"
    )
    deployment_pipeline_versions: Mapped[list[DeploymentPipelineVersion]] = relationship(
        back_populates="deployment", order_by="DeploymentPipelineVersion.id.desc()"
    )


class DeploymentModelConfig(Table):
    """A model configuration that a deployment runs, or ran."""

    __tablename__ = "deployment_model_configs"
    __table_args__ = (
        UniqueConstraint(
            "deployment_id",
            "model_config_id",
            "pipeline_version_pk_id",
            name="deployment_model_configs_deployment_id_model_config_id_pipeline",
        ),
        Index(None, "model_config_id"),
        Index(None, "pipeline_version_pk_id"),
    )

    id: Mapped[Key]
    deployment_id: Mapped[int] = mapped_column(ForeignKey("deployment.id", ondelete="CASCADE"))
    model_config_id: Mapped[int] = mapped_column(ForeignKey("model_config.id", ondelete="CASCADE"))
    pipeline_version_pk_id: Mapped[int | None] = mapped_column(ForeignKey("pipeline_version.id", ondelete="CASCADE"))

    deployment: Mapped[Deployment] = relationship(back_populates="deployment_model_configs")
    model_config: Mapped[ModelConfig] = relationship()
    pipeline_version: Mapped[PipelineVersion | None] = relationship(back_populates="deployment_model_configs")


class DeploymentPipelineVersion(Record, Table):
    """A pipeline version that a deployment runs, or ran; the newest row is the one in force."""

    __tablename__ = "deployment_pipeline_version"
    __table_args__ = (Index(None, "deployment_id"), Index(None, "pipeline_version_pk_id"))

    id: Mapped[Key]
    deployment_id: Mapped[int] = mapped_column(ForeignKey("deployment.id", ondelete="CASCADE"))
    pipeline_version_pk_id: Mapped[int] = mapped_column(ForeignKey("pipeline_version.id", ondelete="CASCADE"))

    deployment: Mapped[Deployment] = relationship(back_populates="deployment_pipeline_versions")
    pipeline_version: Mapped[PipelineVersion] = relationship(back_populates="deployment_pipeline_versions")
