"""Keycloak's admin API for users, as far as clients call it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query, Request
from fastapi.responses import Response

from app.errors import NotFound
from app.identity import users
from app.identity.caller import CurrentCaller
from app.identity.directory import Search, managed_directory_of
from app.identity.faces import AdminErrorBody
from app.identity.representation import changes_of, represent
from app.identity.schemas import Representation, RepresentationIn, SearchIn
from app.kit.context import context_of

router = APIRouter(
    prefix="/auth/admin/realms/master",
    tags=["users"],
    responses={
        status: {"model": AdminErrorBody, "description": text}
        for status, text in {
            400: "The request cannot be carried out as it stands.",
            401: "No valid token.",
            403: "Not allowed for this caller.",
            404: "No such user.",
            409: "The e-mail or username is in use.",
            500: "A bug.",
            503: "A part is away for the moment; try again.",
        }.items()
    },
)

UserId = Annotated[str, Path(description="Id of the user.", examples=["f1f32bdf-9bd9-4595-a531-aca5778ceaf0"])]


@router.get("/users", summary="Search users", response_model_exclude_unset=True)
async def search_users(
    request: Request,
    caller: CurrentCaller,
    wanted: Annotated[SearchIn, Query()],
) -> list[Representation]:
    """Return users whose e-mail, username or name contains what is asked for; exact matches come first."""
    asked = Search(
        email=wanted.email,
        username=wanted.username,
        text=wanted.search,
        exact=wanted.exact,
        enabled=wanted.enabled,
        first=wanted.first,
        most=wanted.max,
    )
    found = await managed_directory_of(context_of(request)).search(asked)
    return [represent(one, caller) for one in found]


@router.get("/users/{user_id}", summary="Get a user", response_model_exclude_unset=True)
async def get_user(request: Request, caller: CurrentCaller, user_id: UserId) -> Representation:
    """Return one user."""
    user = await managed_directory_of(context_of(request)).find(user_id)
    if user is None:
        raise NotFound("User not found")
    return represent(user, caller, single=True)


@router.put("/users/{user_id}", status_code=204, summary="Change a user")
async def put_user(
    request: Request, caller: CurrentCaller, user_id: UserId, body: Annotated[RepresentationIn, Body()]
) -> Response:
    """Change what the representation names; a whole one may be sent back. For administrators, or for one's own name."""
    context = context_of(request)
    user = await managed_directory_of(context).find(user_id)
    if user is None:
        raise NotFound("User not found")
    await users.change(context, caller, user, changes_of(body))
    return Response(status_code=204)
