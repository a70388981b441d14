"""First start: the signing key, the clients, and an administrator whose password is written to the home once."""

from __future__ import annotations

import asyncio
import json
import uuid

import structlog
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.identity import clients, keys, passwords
from app.identity.tables import Client, SigningKey, User
from app.identity.tokens import SDK_CLIENT
from app.kit.context import Context
from app.kit.secrets import box_of, write_private

log = structlog.get_logger()

API_CLIENT = "api-client"
CREDENTIALS = "creds.json"
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('potoroo.bootstrap', 0))")


async def bootstrap(context: Context) -> None:
    """Make what identity needs and is not there yet; doing it again changes nothing.

    At the first start `<home>/creds.json` gets the administrator's name and password and the confidential client's: the
    only place where they are ever readable.
    """
    if context.settings.oidc_issuer:
        return
    box_of(context)  # a wrong key shows here, and not at the first login
    password_hash, password = "", passwords.make_up()
    async with context.sessions.begin() as session:
        await session.execute(_LOCK)
        if not await session.scalar(select(func.count()).select_from(SigningKey)):
            kid = await keys.add_key(context, session, at_once=True)
            log.info("identity.key_made", kid=kid)
        if await session.get(Client, SDK_CLIENT) is None:
            grants = [clients.PASSWORD, clients.REFRESH, clients.DEVICE]
            session.add(Client(client_id=SDK_CLIENT, secret_hash=None, grants=grants, access_s=0))
        secret = await _api_client(session)
        if not await session.scalar(select(func.count()).select_from(User)):
            password_hash = await passwords.hashed(password)
            await _administrator(context, session, password_hash)
        if secret and password_hash:
            await asyncio.to_thread(_write_credentials, context, password, secret)
    await keys.signing_keys_of(context).signer()  # readable with this key, or say so now


async def _api_client(session: AsyncSession) -> str | None:
    """Add the confidential client; returns its secret, or None if it is there already."""
    if await session.get(Client, API_CLIENT) is not None:
        return None
    secret = clients.make_secret()
    await clients.add_confidential(session, API_CLIENT, secret)
    return secret


async def _administrator(context: Context, session: AsyncSession, password_hash: str) -> None:
    email = context.settings.admin_email.strip().lower()
    session.add(User(id=str(uuid.uuid4()), username=email, email=email, password_hash=password_hash, is_admin=True))
    await session.flush()


def _write_credentials(context: Context, password: str, secret: str) -> None:
    """Write the file before the transaction commits: credentials without a user are harmless, the reverse locks out."""
    email = context.settings.admin_email.strip().lower()
    path = context.settings.home / CREDENTIALS
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    content = {
        "username": email,
        "password": password,
        "email": email,
        "confidentialClient": API_CLIENT,
        "confidentialPassword": secret,
    }
    write_private(path, json.dumps(content, indent=2) + "\n", replace=True)
    log.info("identity.credentials_written", path=str(path))
