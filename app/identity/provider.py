"""The identity provider for programs, on Keycloak's paths: tokens, keys, device codes, userinfo, logout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from app.errors import NotFound, Unauthenticated
from app.identity import claims, clients, device, login, tokens
from app.identity.authenticate import forget
from app.identity.caller import CurrentCaller
from app.identity.faces import NO_STORE, OAuthError, OAuthErrorBody
from app.identity.forms import read_form
from app.identity.keys import ALGORITHM, signing_keys_of
from app.identity.origin import REALM_PATH, client_address, issuer
from app.identity.schemas import DeviceOut, Discovery, Jwks, TokenOut, UserInfo
from app.identity.tables import Client, User
from app.kit.context import Context, context_of

log = structlog.get_logger()

_CONNECT = f"{REALM_PATH}/protocol/openid-connect"


async def built_in(request: Request) -> None:
    """Let requests through unless an external Keycloak is in use."""
    outside = context_of(request).settings.oidc_issuer
    if outside:
        raise NotFound(f"This instance signs users in at {outside}; ask there.")


router = APIRouter(
    tags=["sign-in"],
    dependencies=[Depends(built_in)],
    responses={
        status: {"model": OAuthErrorBody, "description": text}
        for status, text in {
            400: "The request or the grant is not valid.",
            401: "The client, the user or the token is not known.",
            403: "Not allowed.",
            404: "An external identity provider is in use.",
            409: "Never sent here.",
            413: "The form is too large.",
            429: "Too many failed logins; `Retry-After` says how long to wait.",
            500: "A bug.",
            503: "A part is away for the moment; try again.",
        }.items()
    },
)


def form_body(required: list[str], example: Mapping[str, str], **fields: str) -> dict[str, Any]:
    """Return what OpenAPI says of a form that is read by hand."""
    schema = {
        "type": "object",
        "required": required,
        "properties": {name: {"type": "string", "description": text} for name, text in fields.items()},
        "example": dict(example),
    }
    return {"requestBody": {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": schema}}}}


_OF_SESSION = "A token of the session that shall end."
_CLIENT_FIELDS = {
    "client_id": "Id of the client, unless HTTP Basic names it.",
    "client_secret": "Its secret, unless HTTP Basic gives it or the client is public.",
}


@router.get(f"{REALM_PATH}/.well-known/openid-configuration", summary="Discover the identity provider")
async def discovery(request: Request) -> Discovery:
    """Describe the provider as OpenID Connect Discovery has it."""
    realm = issuer(request)
    connect = f"{realm}/protocol/openid-connect"
    return Discovery(
        issuer=realm,
        token_endpoint=f"{connect}/token",
        jwks_uri=f"{connect}/certs",
        userinfo_endpoint=f"{connect}/userinfo",
        end_session_endpoint=f"{connect}/logout",
        revocation_endpoint=f"{connect}/revoke",
        device_authorization_endpoint=f"{connect}/auth/device",
        grant_types_supported=list(clients.GRANTS),
        scopes_supported=list(claims.SCOPES),
        id_token_signing_alg_values_supported=[ALGORITHM],
    )


@router.get(f"{_CONNECT}/certs", summary="Get the keys that verify tokens")
async def certs(request: Request) -> Jwks:
    """Return the public keys as a JWKS; a replaced key stays in it as long as tokens it signed may live."""
    return Jwks(keys=await signing_keys_of(context_of(request)).jwks())


@router.post(
    f"{_CONNECT}/token",
    summary="Get a token",
    response_model=TokenOut,
    openapi_extra=form_body(
        ["grant_type"],
        {"grant_type": "password", "username": "jo@example.org", "password": "Snugglebunnies1!"},
        grant_type=f"One of {', '.join(clients.GRANTS)}.",
        username="Username or e-mail (password grant).",
        password="Password (password grant).",  # noqa: S106 - a description
        refresh_token="Refresh token (refresh_token grant); it may be used again.",  # noqa: S106 - a description
        device_code="Device code (device grant).",
        scope="offline_access for a refresh token without end, openid for an ID token.",
        **_CLIENT_FIELDS,
    ),
)
async def token(request: Request) -> Response:
    """Exchange a password, a refresh token, a device code or a client's own secret for an access token.

    Confidential clients (`api-client`) prove themselves by HTTP Basic or in the form; `sdk-client` is public.
    """
    context = context_of(request)
    form = await read_form(request)
    grant = form.get("grant_type")
    if not grant:
        raise OAuthError(400, "invalid_request", "Missing form parameter: grant_type")
    async with context.sessions() as session:
        client = await clients.authenticate(session, request.headers.get("authorization", ""), form)
    if grant not in clients.GRANTS:
        raise OAuthError(400, "unsupported_grant_type", "Unsupported grant_type")
    if grant not in client.grants:
        raise OAuthError(400, "unauthorized_client", f"The client {client.client_id!r} may not use this grant")
    answers = {
        clients.PASSWORD: _password,
        clients.REFRESH: _refresh,
        clients.SERVICE: _service,
        clients.DEVICE: _device,
    }
    return JSONResponse(await answers[grant](request, context, client, form), headers=NO_STORE)


async def _password(request: Request, context: Context, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
    username, password = _field(form, "username"), _field(form, "password")
    scope = _scope(form)
    user = await login.check_password(context, username, password, client_address(request))
    if user.required_actions:
        raise OAuthError(400, "invalid_grant", "Account is not fully set up")
    async with context.sessions.begin() as session:
        current = await session.get_one(User, user.id, with_for_update=True)
        if not current.enabled or current.password_hash != user.password_hash:  # changed while the password was checked
            raise OAuthError(401, "invalid_grant", "Invalid user credentials")
        signed_in = await tokens.sign_in(context, session, current, client, scope)
    log.info("login.succeeded", user=user.id, client=client.client_id, session=signed_in.row.id)
    return await tokens.token_answer(context, signed_in, issuer(request))


async def _refresh(request: Request, context: Context, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
    refresh_token = _field(form, "refresh_token")
    async with context.sessions.begin() as session:
        signed_in = await tokens.refresh(context, session, client, refresh_token)
    return await tokens.token_answer(context, signed_in, issuer(request))


async def _service(request: Request, context: Context, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
    return await tokens.service_answer(context, client, issuer(request), client_address(request), _scope(form))


async def _device(request: Request, context: Context, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
    device_code = _field(form, "device_code")
    async with context.sessions.begin() as session:
        outcome = await device.poll(context, session, client, device_code)
    if isinstance(outcome, str):
        raise device.refusal(outcome)
    log.info("login.succeeded", user=outcome.user.id, client=client.client_id, session=outcome.row.id)
    return await tokens.token_answer(context, outcome, issuer(request))


@router.post(
    f"{_CONNECT}/auth/device",
    summary="Start the device flow",
    openapi_extra=form_body([], {"client_id": "sdk-client"}, scope="Scope to ask for.", **_CLIENT_FIELDS),
)
async def start_device(request: Request) -> DeviceOut:
    """Start a sign-in that the user confirms in a browser at `verification_uri_complete`."""
    context = context_of(request)
    form = await read_form(request)
    scope = _scope(form)
    async with context.sessions.begin() as session:
        client = await clients.authenticate(session, request.headers.get("authorization", ""), form)
        if clients.DEVICE not in client.grants:
            raise OAuthError(400, "unauthorized_client", f"The client {client.client_id!r} may not use the device flow")
        device_code, user_code = await device.start(context, session, client, scope)
    page = f"{issuer(request)}/device"
    return DeviceOut(
        device_code=device_code,
        user_code=user_code,
        verification_uri=page,
        verification_uri_complete=f"{page}?user_code={user_code}",
        expires_in=device.LIFE_S,
        interval=device.INTERVAL_S,
    )


@router.get(f"{_CONNECT}/userinfo", summary="Ask who a token belongs to", response_model_exclude_none=True)
@router.post(f"{_CONNECT}/userinfo", summary="Ask who a token belongs to", response_model_exclude_none=True)
async def userinfo(request: Request, caller: CurrentCaller) -> UserInfo:
    """Return what is known of the user of the access token."""
    async with context_of(request).sessions() as session:
        user = await session.get(User, caller.id)
    if user is None:
        raise Unauthenticated("The user of this token is gone.")
    return UserInfo(sub=user.id, **claims.profile(user))


@router.post(
    f"{_CONNECT}/logout",
    status_code=204,
    summary="End a session",
    openapi_extra=form_body(
        ["refresh_token"],
        {"client_id": "sdk-client", "refresh_token": "…"},
        refresh_token=_OF_SESSION,
        **_CLIENT_FIELDS,
    ),
)
async def logout(request: Request) -> Response:
    """End the session of a refresh token, and with it its access tokens."""
    form = await read_form(request)
    refresh_token = _field(form, "refresh_token")
    if not await _end_session(request, form, refresh_token):
        raise OAuthError(400, "invalid_grant", "Invalid refresh token")
    return Response(status_code=204)


@router.post(
    f"{_CONNECT}/revoke",
    summary="Revoke a token",
    response_class=Response,
    openapi_extra=form_body(["token"], {"client_id": "sdk-client", "token": "…"}, token=_OF_SESSION, **_CLIENT_FIELDS),
)
async def revoke(request: Request) -> Response:
    """Revoke a token as RFC 7009 has it: its session ends. A token nobody knows is no error."""
    form = await read_form(request)
    await _end_session(request, form, _field(form, "token"))
    return Response(status_code=200)


async def _end_session(request: Request, form: Mapping[str, str], given: str) -> bool:
    context = context_of(request)
    async with context.sessions.begin() as session:
        client = await clients.authenticate(session, request.headers.get("authorization", ""), form)
        row = await tokens.session_of(session, given, ("online", "offline"))
        session_id = row.id if row and row.client_id == client.client_id else None
        if session_id is None:
            session_id = await _session_of_access_token(context, client, given)
        if session_id is None:
            return False
        await tokens.revoke_session(context, session, session_id)
    forget(context)
    return True


async def _session_of_access_token(context: Context, client: Client, given: str) -> str | None:
    from app.identity.caller import authenticator_of

    try:
        caller = await authenticator_of(context).authenticate(given)
    except Unauthenticated:
        return None
    return caller.session_id if caller.client_id == client.client_id else None


def _field(form: Mapping[str, str], name: str) -> str:
    value = form.get(name)
    if not value:
        raise OAuthError(400, "invalid_request", f"Missing form parameter: {name}")
    return value


def _scope(form: Mapping[str, str]) -> str:
    scope = claims.granted_scope(form.get("scope", ""))
    if scope is None:
        raise OAuthError(400, "invalid_scope", f"Invalid scopes; known are {', '.join(claims.SCOPES)}")
    return scope
