"""Programs that ask for tokens: who they are, and proof of it."""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
import uuid
from collections.abc import Mapping
from urllib.parse import unquote_plus

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Conflict
from app.identity.faces import OAuthError
from app.identity.tables import Client
from app.kit.secrets import digest

PASSWORD, REFRESH, SERVICE = "password", "refresh_token", "client_credentials"
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
GRANTS = (PASSWORD, REFRESH, SERVICE, DEVICE)

_BAD = "Invalid client or Invalid client credentials"


def make_secret() -> str:
    """Return a new client secret: letters and digits, fit for every header and form."""
    return secrets.token_hex(24)


async def add_confidential(session: AsyncSession, client_id: str, secret: str) -> Client:
    """Add a confidential client, for tokens of users and of its own; raises `Conflict` for an id that is taken."""
    row = Client(
        client_id=client_id,
        secret_hash=digest(secret),
        grants=[PASSWORD, REFRESH, SERVICE],
        access_s=0,
        service_user_id=str(uuid.uuid4()),
    )
    try:
        async with session.begin_nested():
            session.add(row)
    except IntegrityError as exc:
        raise Conflict(f"A client {client_id!r} exists already.") from exc
    return row


async def authenticate(session: AsyncSession, authorization: str, form: Mapping[str, str]) -> Client:
    """Return the client of a request, by HTTP Basic or by `client_id` and `client_secret` in the form.

    Raises `OAuthError` for one that is unknown or does not prove what it says.
    """
    client_id, secret = _credentials(authorization, form)
    if not client_id:
        raise OAuthError(401, "unauthorized_client", _BAD)
    client = await session.get(Client, client_id)
    stored = client.secret_hash if client and client.secret_hash is not None else digest("")
    right = hmac.compare_digest(stored, digest(secret))  # compared for unknown clients too, for the time it takes
    if client is None or (client.secret_hash is not None and not right):
        raise OAuthError(401, "unauthorized_client", _BAD)
    return client


def _credentials(authorization: str, form: Mapping[str, str]) -> tuple[str, str]:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return form.get("client_id", ""), form.get("client_secret", "")
    try:
        client_id, _, secret = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as exc:
        raise OAuthError(401, "unauthorized_client", _BAD) from exc
    client_id = unquote_plus(client_id)
    if "\x00" in client_id or form.get("client_id", client_id) != client_id:
        raise OAuthError(401, "unauthorized_client", _BAD)
    return client_id, unquote_plus(secret)
