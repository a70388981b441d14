"""`/v1/api/connections/…`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Body, Request

from app.connections import schemas, service
from app.connections.tables import Connection
from app.identity.caller import CurrentCaller
from app.kit.context import context_of
from app.kit.db import Session
from app.kit.secrets import SecretBox, box_of

router = APIRouter(prefix="/v1/api/connections", tags=["connections"])


@router.post("/create")
async def create_connection(
    request: Request, session: Session, caller: CurrentCaller, new: schemas.ConnectionIn
) -> schemas.ConnectionId:
    """Create a data connection; its details are encrypted at rest."""
    row = await service.create(session, caller, box_of(context_of(request)), new)
    return schemas.ConnectionId(id=row.id)


@router.post("/list")
async def list_connections(
    request: Request, session: Session, caller: CurrentCaller, wanted: Annotated[schemas.ListIn | None, Body()] = None
) -> schemas.ConnectionsOut:
    """List the connections of a workspace, or all that the caller may see."""
    found: Sequence[tuple[Connection, list[str]]]
    if wanted is None or wanted.workspace_id is None:
        found = [(row, names) for row, names in await session.execute(service.listing(caller))]
    else:
        found = await service.in_workspace(session, caller, wanted.workspace_id)
    box = box_of(context_of(request))
    return schemas.ConnectionsOut(connections=[_shown(box, row, names) for row, names in found])


@router.post("/get")
async def get_connection(
    request: Request, session: Session, caller: CurrentCaller, wanted: schemas.ConnectionName
) -> schemas.ConnectionOut:
    """Return a connection by its name."""
    return _shown(box_of(context_of(request)), *await service.get(session, caller, name=wanted.name))


@router.post("/get_by_id")
async def get_connection_by_id(
    request: Request, session: Session, caller: CurrentCaller, wanted: schemas.ConnectionId
) -> schemas.ConnectionOut:
    """Return a connection by its id."""
    return _shown(box_of(context_of(request)), *await service.get(session, caller, key=wanted.id))


@router.post("/add_to_workspace")
async def add_to_workspace(session: Session, caller: CurrentCaller, link: schemas.LinkIn) -> schemas.ConnectionId:
    """Make a connection available in a workspace; the reply's id is that of the link."""
    return schemas.ConnectionId(id=await service.attach(session, caller, link.workspace_id, link.connection_id))


@router.post("/remove_from_workspace", status_code=204)
async def remove_from_workspace(session: Session, caller: CurrentCaller, link: schemas.LinkIn) -> None:
    """Take a connection off a workspace."""
    await service.detach(session, caller, link.workspace_id, link.connection_id)


@router.post("/delete", status_code=204)
async def delete_connection(session: Session, caller: CurrentCaller, gone: schemas.ConnectionName) -> None:
    """Delete a connection that no workspace uses."""
    await service.remove(session, caller, gone.name)


def _shown(box: SecretBox, row: Connection, names: list[str]) -> schemas.ConnectionOut:
    return schemas.ConnectionOut(
        id=row.id,
        name=row.name,
        type=row.type,
        details=service.details_of(box, row),
        created_at=row.created_at,
        workspace_names=names,
    )
