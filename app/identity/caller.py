"""Who is calling: what every service gets as its second argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Request

from app.errors import Forbidden, Unauthenticated
from app.kit.context import Context, context_of

PART = "identity"
"""Under this name `Context.parts` holds the process's `Authenticator`."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A signed-in user, or a confidential client of its own (`is_service`)."""

    id: str
    """`sub` of the token: a UUID in lower case."""
    username: str
    email: str | None = None
    is_admin: bool = False
    is_service: bool = False
    client_id: str = ""
    """`azp` of the token."""
    session_id: str | None = None


class Authenticator(Protocol):
    """Checks bearer tokens."""

    async def authenticate(self, token: str) -> Caller:
        """Return whose token it is; raises `Unauthenticated` for one that is unknown, expired or revoked."""
        ...


def bearer_token(request: Request) -> str:
    """Return the bearer token of `request`; raises `Unauthenticated` when there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("No token came with the request; send `Authorization: Bearer <access token>`.")
    return token.strip()


def authenticator_of(context: Context) -> Authenticator:
    """Return the process's authenticator."""
    part: Authenticator = context.parts[PART]
    return part


async def any_caller(request: Request) -> Caller:
    """Return the caller of `request`, a confidential client's own token included."""
    return await authenticator_of(context_of(request)).authenticate(bearer_token(request))


async def current_caller(request: Request) -> Caller:
    """Return the user who makes `request`; raises `Forbidden` for a client's own token, fit for inference only."""
    caller = await any_caller(request)
    if caller.is_service:
        raise Forbidden("This token belongs to a client, not to a user; it serves for inference only.")
    return caller


async def admin_caller(request: Request) -> Caller:
    """Return the administrator who makes `request`; raises `Forbidden` for anybody else."""
    caller = await current_caller(request)
    if not caller.is_admin:
        raise Forbidden("Only an administrator may do this.")
    return caller


CHECKS = (any_caller, current_caller, admin_caller)
"""The dependencies that ask for a token; a route without one of them is public."""

AnyCaller = Annotated[Caller, Depends(any_caller)]
CurrentCaller = Annotated[Caller, Depends(current_caller)]
AdminCaller = Annotated[Caller, Depends(admin_caller)]
