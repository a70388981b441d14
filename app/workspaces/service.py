"""The rules of workspaces."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Conflict, Invalid
from app.identity.caller import Caller
from app.kit.names import check_name
from app.workspaces import access
from app.workspaces.tables import UserDefaultWorkspace, Workspace, WorkspaceUser


async def create(session: AsyncSession, caller: Caller, name: str) -> Workspace:
    """Add a workspace owned by the caller.

    Raises `Invalid` for a name that is not allowed, `Conflict` for one that is taken.
    """
    check_name("Workspace", name)
    row = Workspace(name=name, created_by=caller.id, owner_id=caller.id)
    try:
        async with session.begin_nested():
            session.add(row)
    except IntegrityError as exc:
        raise Conflict(f"A workspace named {name!r} exists already; names are unique in the whole instance.") from exc
    session.add(WorkspaceUser(workspace_id=row.id, user_id=caller.id, user_type=access.OWNER))
    await session.flush()
    return row


def default_name(caller: Caller) -> str:
    """Return the name of the caller's default workspace, as clients make it."""
    return f"{caller.email or caller.username} - Default Workspace"


async def ensure_default(session: AsyncSession, caller: Caller) -> Workspace:
    """Return the caller's default workspace; it is made at the first look."""
    current = select(Workspace).join(UserDefaultWorkspace).where(UserDefaultWorkspace.user_id == caller.id)
    if found := await session.scalar(current):
        return found
    name = default_name(caller)
    values = {"name": name, "created_by": caller.id, "owner_id": caller.id}
    await session.execute(insert(Workspace).values(values).on_conflict_do_nothing(constraint="workspace_name_key"))
    made = await session.scalar(select(Workspace).where(Workspace.name == name))
    if made is None or made.owner_id != caller.id:  # the name fell to somebody who had this e-mail before
        values["name"] = f"{name} {caller.id[:8]}"
        await session.execute(insert(Workspace).values(values).on_conflict_do_nothing(constraint="workspace_name_key"))
        made = await session.scalar(select(Workspace).where(Workspace.name == values["name"]))
        assert made is not None  # noqa: S101 - inserted above, or by a twin of this request
    member = {"workspace_id": made.id, "user_id": caller.id, "user_type": access.OWNER}
    await session.execute(insert(WorkspaceUser).values(member).on_conflict_do_nothing())
    default = {"workspace_id": made.id, "user_id": caller.id}
    await session.execute(insert(UserDefaultWorkspace).values(default).on_conflict_do_nothing())
    chosen = await session.scalar(current)
    assert chosen is not None  # noqa: S101
    return chosen


async def add_user(
    session: AsyncSession, caller: Caller, workspace_id: int, user_id: str, user_type: str | None
) -> None:
    """Let a user in, or change what they are there; done twice it changes nothing.

    Raises `NotFound` or `Forbidden` as `access.owned_workspace` does, `Conflict` when the last owner would be lost.
    """
    workspace = await access.owned_workspace(session, caller, workspace_id)
    kind = user_type or access.COLLABORATOR
    if kind != access.OWNER:
        await _keep_an_owner(session, workspace, user_id)
    row = insert(WorkspaceUser).values(workspace_id=workspace_id, user_id=user_id, user_type=kind)
    await session.execute(
        row.on_conflict_do_update(
            constraint="workspace_users_workspace_id_user_id_key", set_={"user_type": row.excluded.user_type}
        )
    )


async def remove_user(session: AsyncSession, caller: Caller, workspace_id: int, user_id: str) -> int:
    """Put a user out; returns how many memberships went away, 0 when they were no member.

    Members may leave by themselves; putting others out takes an owner. Raises `Conflict` when the last owner would be
    lost, or when it is the user's default workspace.
    """
    if user_id == caller.id:
        workspace = await access.visible_workspace(session, caller, workspace_id)
    else:
        workspace = await access.owned_workspace(session, caller, workspace_id)
    default = await session.scalar(
        select(UserDefaultWorkspace.id).where(
            UserDefaultWorkspace.user_id == user_id, UserDefaultWorkspace.workspace_id == workspace_id
        )
    )
    if default is not None:
        raise Conflict(f"{workspace.name!r} is this user's default workspace; they cannot be removed from it.")
    await _keep_an_owner(session, workspace, user_id)
    member = (WorkspaceUser.workspace_id == workspace_id, WorkspaceUser.user_id == user_id)
    return len((await session.scalars(delete(WorkspaceUser).where(*member).returning(WorkspaceUser.id))).all())


async def _keep_an_owner(session: AsyncSession, workspace: Workspace, leaving: str) -> None:
    """Raise `Conflict` if without `leaving` the workspace has no owner; holds the workspace's row meanwhile."""
    await session.execute(select(Workspace.id).where(Workspace.id == workspace.id).with_for_update())
    owners = set(
        await session.scalars(
            select(WorkspaceUser.user_id).where(
                WorkspaceUser.workspace_id == workspace.id, WorkspaceUser.user_type == access.OWNER
            )
        )
    )
    if owners == {leaving}:
        raise Conflict(f"This user is the only owner of {workspace.name!r}; make somebody else an owner first.")


def wanted_user(email: str | None, user_id: str | None) -> str:
    """Return the e-mail or id that a request names; raises `Invalid` when it names neither."""
    if not email and not user_id:
        raise Invalid("Say which user: send `email` or `user_id`.")
    return email or user_id or ""
