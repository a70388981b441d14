"""What the workspace routes take and give."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.kit.wire import WireTime

WorkspaceIdField = Annotated[int, Field(ge=1, le=2**63 - 1, examples=[7], description="Number of the workspace.")]


class ListIn(BaseModel):
    """Which workspaces to list; without a user, all that the caller may see."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"user_id": "f1f32bdf-9bd9-4595-a531-aca5778ceaf0"}]})
    user_id: uuid.UUID | None = Field(None, description="Only workspaces this user belongs to.")


class WorkspaceOut(BaseModel):
    """A workspace; `models` holds the ids of model versions, `pipelines` those of pipelines."""

    id: int = Field(examples=[1])
    name: str = Field(examples=["jo@example.org - Default Workspace"])
    created_at: WireTime
    created_by: str | None = Field(examples=["f1f32bdf-9bd9-4595-a531-aca5778ceaf0"])
    archived: bool
    models: list[int]
    pipelines: list[int]


class ListOut(BaseModel):
    """The workspaces, oldest first."""

    workspaces: list[WorkspaceOut]


class CreateIn(BaseModel):
    """A new workspace."""

    workspace_name: str = Field(
        examples=["apiworkspace"],
        description="Unique; ASCII letters, digits and dashes, starts with a letter, at most 63 characters.",
    )


class CreateOut(BaseModel):
    """The number of the new workspace."""

    workspace_id: int = Field(examples=[7])


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class MemberIn(BaseModel):
    """A user, by e-mail or by id, and a workspace."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"email": "jo@example.org", "workspace_id": 7}]})
    workspace_id: WorkspaceIdField
    email: str | None = Field(None, description="E-mail (username) of the user.")
    user_id: str | None = Field(None, description="Id of the user.")


class AddUserIn(MemberIn):
    """A user to let in; `user_type` in upper or lower case."""

    user_type: Annotated[str | None, BeforeValidator(_upper)] = Field(
        None, pattern="^(OWNER|COLLABORATOR)$", examples=["COLLABORATOR"]
    )
    url: str | None = Field(None, description="Accepted for old clients; unused.")


class WorkspaceRef(BaseModel):
    """A workspace by its number."""

    workspace_id: WorkspaceIdField


class UserOut(BaseModel):
    """A member."""

    user_id: str = Field(examples=["f1f32bdf-9bd9-4595-a531-aca5778ceaf0"])
    user_type: str = Field(examples=["OWNER"])


class UsersOut(BaseModel):
    """The members, longest-standing first."""

    users: list[UserOut]


class Empty(BaseModel):
    """An empty object."""


class AffectedOut(BaseModel):
    """How many memberships went away: 0 or 1."""

    affected_rows: int = Field(examples=[1])


class WorkspaceBrief(BaseModel):
    """A workspace as other objects mention it."""

    id: int
    name: str
    archived: bool
    created_at: datetime
    created_by: str | None = None
    group_id: int | None = None
