"""Models, their versions and how those are to be run.

The table names are the contract's: `models` holds names, `model` holds versions.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from sqlalchemy import CHAR, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.kit.db import Created, Key, Record, Table
from app.workspaces.tables import Workspace

if TYPE_CHECKING:
    from app.pipelines.tables import ModelComment, ModelTag

CREATED_ON_VERSION = "2024.1.0"
"""The only release that every client from 2024.1 accepts in `created_on_version`."""


class Model(Record, Table):
    """A model's name in a workspace."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("name", "workspace_id"), Index(None, "workspace_id"))

    id: Mapped[Key]
    name: Mapped[str]
    owner_id: Mapped[str] = mapped_column(server_default="")
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspace.id"))

    workspace: Mapped[Workspace] = relationship(back_populates="models")
    models: Mapped[list[ModelVersion]] = relationship(back_populates="model", order_by="ModelVersion.id")


class ModelVersion(Record, Table):
    """One uploaded artifact; `model_id` repeats the model's name, `status` ends in `ready` or `error`."""

    __tablename__ = "model"
    __table_args__ = (Index(None, "models_pk_id"), Index(None, "model_id"), UniqueConstraint("model_version"))

    id: Mapped[Key]
    model_id: Mapped[str]
    model_version: Mapped[str] = mapped_column(server_default=text("gen_random_uuid()::text"))
    models_pk_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    sha: Mapped[str | None] = mapped_column(CHAR(64))
    status: Mapped[str]
    error_summary: Mapped[str | None]
    file_name: Mapped[str | None]
    file_size: Mapped[int | None]
    image_path: Mapped[str | None]
    owner_id: Mapped[str] = mapped_column(server_default="")
    created_by: Mapped[str | None]
    visibility: Mapped[str] = mapped_column(server_default="private")
    conversion: Mapped[dict[str, Any] | None]
    task_id: Mapped[uuid.UUID | None]
    created_on_version: Mapped[str] = mapped_column(server_default=CREATED_ON_VERSION)
    inspection: Mapped[dict[str, Any] | None]
    """What the artifact was found to be: inputs, outputs, shapes, dtypes, opsets. Ours, not published."""

    model: Mapped[Model] = relationship(back_populates="models")
    model_configs: Mapped[list[ModelConfig]] = relationship(back_populates="model", order_by="ModelConfig.id")
    model_tags: Mapped[list[ModelTag]] = relationship("ModelTag", back_populates="model", order_by="ModelTag.id")
    model_variant_comments: Mapped[list[ModelComment]] = relationship("ModelComment", back_populates="model")


class ModelConfig(Created, Table):
    """How a version is to be run; the newest row of a version is the one in force."""

    __tablename__ = "model_config"
    __table_args__ = (Index(None, "model_id"),)

    id: Mapped[Key]
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id", ondelete="CASCADE"))
    runtime: Mapped[str] = mapped_column(server_default="onnx")
    tensor_fields: Mapped[list[str] | None]
    filter_threshold: Mapped[float | None]
    input_schema: Mapped[str | None]
    output_schema: Mapped[str | None]
    batch_config: Mapped[str | None]
    dynamic_batching_config: Mapped[dict[str, Any] | None]
    continuous_batching_config: Mapped[dict[str, Any] | None]
    openai: Mapped[dict[str, Any] | None]

    model: Mapped[ModelVersion] = relationship(back_populates="model_configs")
