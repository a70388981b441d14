"""The rules of connections.

A connection is seen, with its details, by whoever made it, by the members of the workspaces it is attached to, and by
administrators. For anybody else it does not exist: whoever could attach it could read its secrets.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, exists, func, or_, select, true
from sqlalchemy.dialects.postgresql import aggregate_order_by, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.connections.schemas import ConnectionIn
from app.connections.tables import Connection, WorkspaceConnection
from app.errors import Conflict, Invalid, NotFound
from app.identity.caller import Caller
from app.kit.secrets import SecretBox
from app.workspaces import access
from app.workspaces.access import sees_workspace
from app.workspaces.tables import Workspace


async def create(session: AsyncSession, caller: Caller, box: SecretBox, new: ConnectionIn) -> Connection:
    """Add a connection that belongs to the caller.

    Raises `Conflict` for a name that is taken.
    """
    row = Connection(name=new.name, type=new.type, details=_seal(box, new.details), owner_id=caller.id)
    try:
        async with session.begin_nested():
            session.add(row)
    except IntegrityError as exc:
        raise Conflict(
            f"A connection named {new.name!r} exists already; names are unique in the whole instance."
        ) from exc
    return row


def sees(caller: Caller) -> ColumnElement[bool]:
    """Return the SQL condition that `caller` may see the row of `connections`."""
    attached = exists(
        select(WorkspaceConnection.id).where(
            WorkspaceConnection.connection_id == Connection.id,
            sees_workspace(caller, WorkspaceConnection.workspace_id),
        )
    )
    return true() if caller.is_admin else or_(Connection.owner_id == caller.id, attached)


def listing(caller: Caller) -> Select[Connection, list[str]]:
    """Return the select of the connections the caller sees, each with the names of the workspaces they see it in."""
    names = (
        select(func.array_agg(aggregate_order_by(Workspace.name, Workspace.name)))
        .join(WorkspaceConnection, WorkspaceConnection.workspace_id == Workspace.id)
        .where(WorkspaceConnection.connection_id == Connection.id, sees_workspace(caller, Workspace.id))
        .correlate(Connection)
        .scalar_subquery()
    )
    return (
        select(Connection, func.coalesce(names, [])).where(sees(caller)).order_by(Connection.created_at, Connection.id)
    )


async def in_workspace(session: AsyncSession, caller: Caller, workspace_id: int) -> list[tuple[Connection, list[str]]]:
    """Return the connections attached to a workspace; raises `NotFound` when it does not exist for the caller."""
    await access.visible_workspace(session, caller, workspace_id)
    attached = select(WorkspaceConnection.connection_id).where(WorkspaceConnection.workspace_id == workspace_id)
    rows = await session.execute(listing(caller).where(Connection.id.in_(attached)))
    return [(row, names) for row, names in rows]


async def get(
    session: AsyncSession, caller: Caller, *, name: str | None = None, key: uuid.UUID | None = None
) -> tuple[Connection, list[str]]:
    """Return a connection by name or id, with its workspaces' names; raises `NotFound` when the caller sees none."""
    chosen = Connection.name == name if key is None else Connection.id == key
    found = (await session.execute(listing(caller).where(chosen))).first()
    if found is None:
        raise NotFound(f"There is no connection {name if key is None else key!s}.")
    return found[0], found[1]


async def attach(session: AsyncSession, caller: Caller, workspace_id: int, key: uuid.UUID) -> uuid.UUID:
    """Make a connection available in a workspace; returns the id of the link, the same one when repeated.

    Raises `NotFound` when workspace or connection do not exist for the caller.
    """
    await access.visible_workspace(session, caller, workspace_id)
    await get(session, caller, key=key)
    link = {"workspace_id": workspace_id, "connection_id": key}
    await session.execute(insert(WorkspaceConnection).values(link).on_conflict_do_nothing())
    found = await session.scalar(
        select(WorkspaceConnection.id).where(
            WorkspaceConnection.workspace_id == workspace_id, WorkspaceConnection.connection_id == key
        )
    )
    if found is None:
        raise Conflict("The connection was taken off the workspace at the same moment; try again.")
    return found


async def detach(session: AsyncSession, caller: Caller, workspace_id: int, key: uuid.UUID) -> None:
    """Take a connection off a workspace; no error when it was not attached.

    Raises `NotFound` when workspace or connection do not exist for the caller.
    """
    await access.visible_workspace(session, caller, workspace_id)
    await get(session, caller, key=key)
    await session.execute(
        delete(WorkspaceConnection).where(
            WorkspaceConnection.workspace_id == workspace_id, WorkspaceConnection.connection_id == key
        )
    )


async def remove(session: AsyncSession, caller: Caller, name: str) -> None:
    """Delete a connection.

    Raises `NotFound` when the caller sees none of this name, `Invalid` while a workspace uses it.
    """
    row, names = await get(session, caller, name=name)
    if await session.scalar(select(WorkspaceConnection.id).where(WorkspaceConnection.connection_id == row.id).limit(1)):
        where = ", ".join(names) or "a workspace of others"
        raise Invalid(f"Connection {name!r} is attached to {where}; remove it from there first.")
    await session.delete(row)
    await session.flush()


def details_of(box: SecretBox, row: Connection) -> dict[str, Any] | None:
    """Return the details in clear."""
    if row.details is None:
        return None
    opened: dict[str, Any] = json.loads(box.decrypt(row.details))
    return opened


async def reseal(session: AsyncSession, box: SecretBox) -> int:
    """Encrypt all details anew under the first key of `box`; returns how many. For after a change of keys."""
    rows = (await session.scalars(select(Connection).where(Connection.details.is_not(None)).with_for_update())).all()
    for row in rows:
        row.details = _seal(box, details_of(box, row))
    return len(rows)


def _seal(box: SecretBox, details: dict[str, Any] | None) -> bytes | None:
    return None if details is None else box.encrypt(json.dumps(details).encode())
