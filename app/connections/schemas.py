"""What the connection routes take and give."""

from __future__ import annotations

import uuid
from typing import Any

from pydantic import BaseModel, Field

from app.kit.wire import WireTime
from app.workspaces.schemas import WorkspaceIdField

_ID = "02e587e9-e564-4af4-b3c4-0800994febfd"
_DETAILS = {"host": "db.example.org", "port": 5432, "username": "dataperson", "password": "datapassword"}


class ConnectionIn(BaseModel):
    """A new connection; `details` is whatever its users need, kept encrypted."""

    name: str = Field(min_length=1, max_length=255, examples=["houseprices"], description="Unique in the instance.")
    type: str = Field(min_length=1, max_length=255, examples=["POSTGRES"], description="Any word.")
    details: dict[str, Any] | None = Field(None, examples=[_DETAILS])


class ConnectionId(BaseModel):
    """The id of a connection, or of its link to a workspace."""

    id: uuid.UUID = Field(examples=[_ID])


class ConnectionName(BaseModel):
    """A connection by its name."""

    name: str = Field(examples=["houseprices"])


class ListIn(BaseModel):
    """Which connections to list: those of one workspace, or all the caller may see."""

    workspace_id: WorkspaceIdField | None = None


class LinkIn(BaseModel):
    """A connection and a workspace."""

    workspace_id: WorkspaceIdField
    connection_id: uuid.UUID = Field(examples=[_ID])


class ConnectionOut(BaseModel):
    """A connection with its details in clear, and the names of the caller's workspaces it is attached to."""

    id: uuid.UUID = Field(examples=[_ID])
    name: str = Field(examples=["houseprices"])
    type: str = Field(examples=["POSTGRES"])
    details: dict[str, Any] | None = Field(examples=[_DETAILS])
    created_at: WireTime
    workspace_names: list[str] = Field(examples=[["apiworkspace"]])


class ConnectionsOut(BaseModel):
    """Connections, oldest first."""

    connections: list[ConnectionOut]
