"""Data connections and the workspaces that use them."""

from __future__ import annotations

import uuid

from sqlalchemy import ForeignKey, Index, LargeBinary, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.kit.db import Record, Table


class Connection(Record, Table):
    """A link to an outside data store; its name is unique in the whole instance."""

    __tablename__ = "connections"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    name: Mapped[str] = mapped_column(unique=True)
    type: Mapped[str]
    details: Mapped[bytes | None] = mapped_column(LargeBinary)
    """The JSON object of the details, encrypted."""
    owner_id: Mapped[str]

    workspace_connections: Mapped[list[WorkspaceConnection]] = relationship(back_populates="connection")


class WorkspaceConnection(Table):
    """A connection made available in a workspace."""

    __tablename__ = "workspace_connections"
    __table_args__ = (UniqueConstraint("workspace_id", "connection_id"), Index(None, "connection_id"))

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspace.id", ondelete="CASCADE"))
    connection_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("connections.id", ondelete="CASCADE"))

    connection: Mapped[Connection] = relationship(back_populates="workspace_connections")
