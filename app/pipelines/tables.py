"""Pipelines, their versions, and the tags and comments on them and on models."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from sqlalchemy import ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.kit.db import Created, Key, Record, Table
from app.models.tables import CREATED_ON_VERSION, ModelVersion
from app.workspaces.tables import Workspace

if TYPE_CHECKING:
    from app.deployments.tables import Deployment, DeploymentModelConfig, DeploymentPipelineVersion


class Pipeline(Record, Table):
    """A pipeline's name (`pipeline_id`) in a workspace."""

    __tablename__ = "pipeline"
    __table_args__ = (UniqueConstraint("pipeline_id", "workspace_id"), Index(None, "workspace_id"))

    id: Mapped[Key]
    pipeline_id: Mapped[str]
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspace.id"))
    owner_id: Mapped[str] = mapped_column(server_default="")
    visibility: Mapped[str] = mapped_column(server_default="private")

    workspace: Mapped[Workspace] = relationship(back_populates="pipelines")
    pipeline_versions: Mapped[list[PipelineVersion]] = relationship(
        back_populates="pipeline", order_by="PipelineVersion.id.desc()"
    )
    pipeline_tags: Mapped[list[PipelineTag]] = relationship(back_populates="pipeline", order_by="PipelineTag.id")
    deployment: Mapped[Deployment | None] = relationship("Deployment", back_populates="pipeline", uselist=False)
    pipeline_comments: Mapped[list[PipelineComment]] = relationship(back_populates="pipeline")


class PipelineVersion(Record, Table):
    """A definition, kept exactly as it was sent."""

    __tablename__ = "pipeline_version"
    __table_args__ = (Index(None, "pipeline_pk_id"), UniqueConstraint("version"))

    id: Mapped[Key]
    pipeline_pk_id: Mapped[int] = mapped_column(ForeignKey("pipeline.id", ondelete="CASCADE"))
    version: Mapped[uuid.UUID] = mapped_column(server_default=text("gen_random_uuid()"))
    definition: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    owner_id: Mapped[str] = mapped_column(server_default="")
    created_on_version: Mapped[str] = mapped_column(server_default=CREATED_ON_VERSION)

    pipeline: Mapped[Pipeline] = relationship(back_populates="pipeline_versions")
    deployment_pipeline_versions: Mapped[list[DeploymentPipelineVersion]] = relationship(
        "DeploymentPipelineVersion", back_populates="pipeline_version", order_by="DeploymentPipelineVersion.id"
    )
    deployment_model_configs: Mapped[list[DeploymentModelConfig]] = relationship(
        "DeploymentModelConfig", back_populates="pipeline_version", order_by="DeploymentModelConfig.id"
    )
    pipeline_publishes: Mapped[list[PipelinePublish]] = relationship(
        back_populates="pipeline_version", order_by="PipelinePublish.id"
    )


class PipelinePublish(Record, Table):
    """A pipeline version put into a registry for edges."""

    __tablename__ = "pipeline_publish"
    __table_args__ = (Index(None, "pipeline_version_id"),)

    id: Mapped[Key]
    pipeline_version_id: Mapped[int] = mapped_column(ForeignKey("pipeline_version.id", ondelete="CASCADE"))
    status: Mapped[str]
    chart_url: Mapped[str | None]
    engine_url: Mapped[str | None]
    pipeline_url: Mapped[str | None]
    engine_config: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    user_images: Mapped[list[str]] = mapped_column(server_default=text("'[]'::jsonb"))
    created_by: Mapped[str | None]
    created_on_version: Mapped[str] = mapped_column(server_default=CREATED_ON_VERSION)

    pipeline_version: Mapped[PipelineVersion] = relationship(back_populates="pipeline_publishes")


class AlertConfiguration(Created, Table):
    """An alert of old clients; they put the pipeline's id where the version's belongs, so there is no foreign key."""

    __tablename__ = "alert_configuration"

    id: Mapped[Key]
    name: Mapped[str | None]
    expression: Mapped[str | None]
    notifications: Mapped[dict[str, Any] | None]
    pipeline_version_pk_id: Mapped[int | None]


class Tag(Created, Table):
    """A word that marks models and pipelines; seen by whoever sees one of those."""

    __tablename__ = "tag"

    id: Mapped[Key]
    tag: Mapped[str]
    owner_id: Mapped[str | None]
    """Who made it, or took it off the last thing it was on; they may put it on something while nobody sees it. Ours."""

    model_tags: Mapped[list[ModelTag]] = relationship(back_populates="tag", order_by="ModelTag.id")
    pipeline_tags: Mapped[list[PipelineTag]] = relationship(back_populates="tag", order_by="PipelineTag.id")


class ModelTag(Table):
    """A tag on a model version."""

    __tablename__ = "model_tag"
    __table_args__ = (Index(None, "model_id"), Index(None, "tag_id"))

    id: Mapped[Key]
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id", ondelete="CASCADE"))
    tag_id: Mapped[int] = mapped_column(ForeignKey("tag.id", ondelete="CASCADE"))

    model: Mapped[ModelVersion] = relationship(back_populates="model_tags")
    tag: Mapped[Tag] = relationship(back_populates="model_tags")


class PipelineTag(Table):
    """A tag on a pipeline."""

    __tablename__ = "pipeline_tag"
    __table_args__ = (Index(None, "pipeline_pk_id"), Index(None, "tag_pk_id"))

    id: Mapped[Key]
    pipeline_pk_id: Mapped[int] = mapped_column(ForeignKey("pipeline.id", ondelete="CASCADE"))
    tag_pk_id: Mapped[int] = mapped_column(ForeignKey("tag.id", ondelete="CASCADE"))

    pipeline: Mapped[Pipeline] = relationship(back_populates="pipeline_tags")
    tag: Mapped[Tag] = relationship(back_populates="pipeline_tags")


class Comment(Record, Table):
    """A remark on model versions and pipelines."""

    __tablename__ = "comment"

    id: Mapped[Key]
    message: Mapped[str]
    user_id: Mapped[str | None]

    model_variant_comments: Mapped[list[ModelComment]] = relationship(back_populates="comment")
    pipeline_comments: Mapped[list[PipelineComment]] = relationship(back_populates="comment")


class ModelComment(Table):
    """A comment on a model version."""

    __tablename__ = "model_variant_comment"
    __table_args__ = (Index(None, "model_pk_id"),)

    id: Mapped[Key]
    model_pk_id: Mapped[int] = mapped_column(ForeignKey("model.id", ondelete="CASCADE"))
    comment_id: Mapped[int] = mapped_column(ForeignKey("comment.id", ondelete="CASCADE"))

    model: Mapped[ModelVersion] = relationship(back_populates="model_variant_comments")
    comment: Mapped[Comment] = relationship(back_populates="model_variant_comments")


class PipelineComment(Table):
    """A comment on a pipeline."""

    __tablename__ = "pipeline_comment"
    __table_args__ = (Index(None, "pipeline_pk_id"),)

    id: Mapped[Key]
    pipeline_pk_id: Mapped[int] = mapped_column(ForeignKey("pipeline.id", ondelete="CASCADE"))
    comment_pk_id: Mapped[int] = mapped_column(ForeignKey("comment.id", ondelete="CASCADE"))

    pipeline: Mapped[Pipeline] = relationship(back_populates="pipeline_comments")
    comment: Mapped[Comment] = relationship(back_populates="pipeline_comments")
