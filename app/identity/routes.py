"""`/v1/api/users/…`, `/v1/api/user`, `/v1/api/config` and `/v1/api/features/list`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request

from app.errors import NotFound
from app.identity import users
from app.identity.caller import CurrentCaller
from app.identity.directory import Changes, managed_directory_of
from app.identity.origin import REALM_PATH, base_url
from app.identity.representation import represent
from app.identity.schemas import (
    ConfigOut,
    EditIn,
    EmailIn,
    Empty,
    FeaturesOut,
    InviteIn,
    InviteOut,
    QueryIn,
    QueryOut,
)
from app.kit.context import context_of

router = APIRouter(prefix="/v1/api", tags=["users"])


@router.post("/users/query", summary="Get users", response_model_exclude_unset=True)
async def query_users(
    request: Request, caller: CurrentCaller, wanted: Annotated[QueryIn | None, Body()] = None
) -> QueryOut:
    """Return all users, or those with the given ids, by id. Everybody who is signed in may ask."""
    directory = managed_directory_of(context_of(request))
    if wanted is None or wanted.user_ids is None:
        return QueryOut(users={one.id: represent(one, caller, listing=True) for one in await directory.everybody()})
    ids = [str(one) for one in wanted.user_ids]
    found = await directory.by_ids(ids)
    return QueryOut(users={i: represent(found[i], caller, single=True) if i in found else None for i in ids})


@router.post("/users/invite", summary="Invite a user")
async def invite_user(request: Request, caller: CurrentCaller, new: InviteIn) -> InviteOut:
    """Add a user. Without `password` a temporary one is made up, to be changed at the first login.

    A mail goes out when a mail server is set up; the reply carries the password in any case. Everybody who is signed in
    may invite, unless the instance leaves that to administrators; the role `admin` takes an administrator.
    """
    guest = users.Guest(
        email=new.email, password=new.password, roles=tuple(new.roles or ()), require_reset=new.require_reset
    )
    made = await users.invite(context_of(request), caller, guest, f"{base_url(request)}{REALM_PATH}/account")
    return InviteOut(id=made.user_id, password=made.password)


@router.post("/users/activate", summary="Activate a user")
async def activate_user(request: Request, caller: CurrentCaller, named: EmailIn) -> Empty:
    """Let a deactivated user sign in again. For administrators."""
    await users.set_enabled(context_of(request), caller, named.email, True)
    return Empty()


@router.post("/users/deactivate", summary="Deactivate a user")
async def deactivate_user(request: Request, caller: CurrentCaller, named: EmailIn) -> Empty:
    """Keep a user from signing in; their sessions and tokens end at once. For administrators."""
    await users.set_enabled(context_of(request), caller, named.email, False)
    return Empty()


@router.post("/user", summary="Change a user")
async def edit_user(request: Request, caller: CurrentCaller, wanted: EditIn) -> Empty:
    """Set a user's names, e-mail, state and role. For administrators; their own names everybody may set."""
    context = context_of(request)
    user = await managed_directory_of(context).find(str(wanted.id))
    if user is None:
        raise NotFound(f"There is no user {wanted.id}.")
    changes = Changes(
        first_name=wanted.firstName or None,
        last_name=wanted.lastName or None,
        email=wanted.email,
        enabled=wanted.enabled,
        is_admin=wanted.isAdmin,
    )
    await users.change(context, caller, user, changes)
    return Empty()


@router.get("/config", summary="Get what a client needs before it signs in")
async def config(request: Request) -> ConfigOut:
    """Return the instance's defaults for clients; needs no token."""
    return ConfigOut(default_arch=context_of(request).settings.default_arch)


@router.post("/features/list", tags=["features"], summary="List enablement features")
async def list_features(request: Request, caller: CurrentCaller) -> FeaturesOut:
    """Return which features are enabled, the name of the instance, and that it asks who is calling."""
    name = context_of(request).settings.instance_name
    return FeaturesOut(features={"plateau": "true"}, name=name, is_auth_enabled=True)
