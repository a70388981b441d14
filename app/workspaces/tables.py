"""Workspaces and who belongs to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.kit.db import Created, Key, Table

if TYPE_CHECKING:
    from app.models.tables import Model
    from app.pipelines.tables import Pipeline


class Workspace(Created, Table):
    """A room in which members keep models and pipelines; its name is unique in the whole instance."""

    __tablename__ = "workspace"

    id: Mapped[Key]
    name: Mapped[str] = mapped_column(unique=True)
    archived: Mapped[bool] = mapped_column(server_default=text("false"))
    created_by: Mapped[str | None]
    owner_id: Mapped[str | None]

    users: Mapped[list[WorkspaceUser]] = relationship(back_populates="workspace", order_by="WorkspaceUser.id")
    user_default_workspaces: Mapped[list[UserDefaultWorkspace]] = relationship(back_populates="workspace")
    models: Mapped[list[Model]] = relationship("Model", back_populates="workspace", order_by="Model.id")
    pipelines: Mapped[list[Pipeline]] = relationship("Pipeline", back_populates="workspace", order_by="Pipeline.id")


class WorkspaceUser(Table):
    """A membership; `user_type` is OWNER or COLLABORATOR."""

    __tablename__ = "workspace_users"
    __table_args__ = (UniqueConstraint("workspace_id", "user_id"), Index(None, "user_id"))

    id: Mapped[Key]
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspace.id", ondelete="CASCADE"))
    user_id: Mapped[str]
    user_type: Mapped[str] = mapped_column(server_default="COLLABORATOR")

    workspace: Mapped[Workspace] = relationship(back_populates="users")


class UserDefaultWorkspace(Table):
    """The workspace a client starts in."""

    __tablename__ = "user_default_workspace"

    id: Mapped[Key]
    user_id: Mapped[str] = mapped_column(unique=True)
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspace.id", ondelete="CASCADE"), index=True)

    workspace: Mapped[Workspace] = relationship(back_populates="user_default_workspaces")
