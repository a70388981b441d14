"""Who sees what: decided here, for every other module.

A user sees the workspaces they belong to and all that lies in them; an administrator sees every workspace.
What a caller may not see does not exist for them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, exists, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Forbidden, NotFound
from app.identity.caller import Caller
from app.workspaces.tables import Workspace, WorkspaceUser

OWNER, COLLABORATOR = "OWNER", "COLLABORATOR"


def sees_workspace(caller: Caller, workspace_id: Any) -> ColumnElement[bool]:
    """Return the SQL condition that `caller` may see the workspace whose id the column `workspace_id` holds.

    Every query on workspace-owned rows carries this condition.
    """
    if caller.is_admin:
        return true()
    return exists(
        select(WorkspaceUser.id)
        .where(WorkspaceUser.workspace_id == workspace_id, WorkspaceUser.user_id == caller.id)
        .correlate_except(WorkspaceUser)
    )


async def visible_workspace(session: AsyncSession, caller: Caller, workspace_id: int) -> Workspace:
    """Return the workspace; raises `NotFound` when it does not exist for `caller`."""
    found = await session.scalar(
        select(Workspace).where(Workspace.id == workspace_id, sees_workspace(caller, Workspace.id))
    )
    if found is None:
        raise NotFound(f"There is no workspace {workspace_id}.")
    return found


async def owned_workspace(session: AsyncSession, caller: Caller, workspace_id: int) -> Workspace:
    """Return the workspace if `caller` may manage its members: its owners and administrators.

    Raises `NotFound` when it does not exist for `caller`, `Forbidden` when they are not an owner.
    """
    found = await visible_workspace(session, caller, workspace_id)
    if caller.is_admin:
        return found
    kind = await session.scalar(
        select(WorkspaceUser.user_type).where(
            WorkspaceUser.workspace_id == workspace_id, WorkspaceUser.user_id == caller.id
        )
    )
    if kind != OWNER:
        raise Forbidden(f"Only an owner of workspace {found.name!r} may change its members.")
    return found


async def member_ids(session: AsyncSession, workspace_id: int) -> list[str]:
    """Return the ids of the workspace's members."""
    rows = await session.scalars(select(WorkspaceUser.user_id).where(WorkspaceUser.workspace_id == workspace_id))
    return list(rows)
