"""`/v1/api/workspaces/…`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request
from sqlalchemy import select

from app.errors import NotFound
from app.identity.caller import CurrentCaller
from app.identity.directory import directory_of
from app.kit.context import context_of
from app.kit.db import Session
from app.workspaces import access, queries, schemas, service
from app.workspaces.tables import WorkspaceUser

router = APIRouter(prefix="/v1/api/workspaces", tags=["workspaces"])


@router.post("/list")
async def list_workspaces(
    session: Session, caller: CurrentCaller, wanted: Annotated[schemas.ListIn | None, Body()] = None
) -> schemas.ListOut:
    """List the workspaces the caller may see, with the ids of their model versions and pipelines.

    The caller's default workspace is made at the first look.
    """
    await service.ensure_default(session, caller)
    user_id = str(wanted.user_id) if wanted and wanted.user_id else None
    rows = await session.execute(queries.listing(caller, user_id))
    return schemas.ListOut(
        workspaces=[
            schemas.WorkspaceOut(
                id=w.id,
                name=w.name,
                created_at=w.created_at,
                created_by=w.created_by,
                archived=w.archived,
                models=models or [],
                pipelines=pipelines or [],
            )
            for w, models, pipelines in rows
        ]
    )


@router.post("/create")
async def create_workspace(session: Session, caller: CurrentCaller, new: schemas.CreateIn) -> schemas.CreateOut:
    """Create a workspace; the caller becomes its owner."""
    return schemas.CreateOut(workspace_id=(await service.create(session, caller, new.workspace_name)).id)


@router.post("/list_users")
async def list_users(session: Session, caller: CurrentCaller, wanted: schemas.WorkspaceRef) -> schemas.UsersOut:
    """List the members of a workspace."""
    workspace = await access.visible_workspace(session, caller, wanted.workspace_id)
    rows = await session.scalars(
        select(WorkspaceUser).where(WorkspaceUser.workspace_id == workspace.id).order_by(WorkspaceUser.id)
    )
    return schemas.UsersOut(users=[schemas.UserOut(user_id=u.user_id, user_type=u.user_type) for u in rows])


@router.post("/add_user")
async def add_user(request: Request, caller: CurrentCaller, new: schemas.AddUserIn) -> schemas.Empty:
    """Let a user into a workspace, or change what they are there; a repeated call changes nothing."""
    user_id = await _user_id(request, new)
    async with context_of(request).sessions.begin() as session:
        await service.add_user(session, caller, new.workspace_id, user_id, new.user_type)
    return schemas.Empty()


@router.post("/remove_user")
async def remove_user(request: Request, caller: CurrentCaller, gone: schemas.MemberIn) -> schemas.AffectedOut:
    """Put a user out of a workspace."""
    async with context_of(request).sessions() as session:  # an outsider learns nothing about users either
        await access.visible_workspace(session, caller, gone.workspace_id)
    user_id = await _user_id(request, gone)
    async with context_of(request).sessions.begin() as session:
        rows = await service.remove_user(session, caller, gone.workspace_id, user_id)
    return schemas.AffectedOut(affected_rows=rows)


@router.post("/validate")
async def validate_workspaces(caller: CurrentCaller) -> schemas.Empty:
    """Answer an empty object: workspace names are validated when they are made, there is nothing to migrate."""
    return schemas.Empty()


async def _user_id(request: Request, named: schemas.MemberIn) -> str:
    wanted = service.wanted_user(named.email, named.user_id)
    directory = directory_of(context_of(request))
    if named.user_id:
        found = (await directory.by_ids([named.user_id])).get(named.user_id)
    else:
        found = await directory.by_email(wanted)
    if found is None:
        raise NotFound(f"There is no user {wanted!r}; invite them first.")
    return found.id
