"""The keys that sign tokens, and what engines need to check tokens by themselves."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jose import jwk
from jose.backends.base import Key
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.identity.tables import Client, LoginSession, SigningKey, User
from app.kit.context import Context
from app.kit.events import notify
from app.kit.secrets import SecretBox, box_of

ALGORITHM = "RS256"
PART = "signing_keys"
TOPIC = "identity"
"""Wake-ups of this topic mean: users, sessions or keys changed, forget what was looked up."""

KEPT = timedelta(days=2)
"""How long a replaced key still verifies: longer than any access token lives."""
LEAD = timedelta(minutes=1)
"""How long before its first use a new key is published, so that everybody who verifies knows it in time."""


@dataclass(frozen=True, slots=True)
class Signer:
    """The key that signs now."""

    kid: str
    key: Key


class SigningKeys:
    """This process's copy of the keys; a key it does not know makes it look again."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._signers: list[tuple[Any, Signer]] = []
        self._publics: dict[str, Key] = {}
        self._jwks: list[dict[str, str]] = []
        self._looked_at = float("-inf")
        self._lock = asyncio.Lock()

    async def signer(self) -> Signer:
        """Return the newest key that is in use."""
        now = self._context.clock.now()
        await self._refresh(older_than_s=30)
        usable = [signer for active_from, signer in self._signers if active_from <= now]
        if not usable:
            raise LookupError("There is no signing key; the instance was never set up (bootstrap did not run).")
        return usable[0]

    async def public(self, kid: str) -> Key | None:
        """Return the public key `kid`, or None if it never was ours or is gone."""
        if kid not in self._publics:
            await self._refresh(older_than_s=1)
        return self._publics.get(kid)

    async def jwks(self) -> list[dict[str, str]]:
        """Return all public keys, newest first."""
        await self._refresh(older_than_s=1)
        return self._jwks

    def forget(self) -> None:
        """Look again at the next use."""
        self._looked_at = float("-inf")

    async def _refresh(self, older_than_s: float) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() - self._looked_at < older_than_s:
            return
        async with self._lock:
            if loop.time() - self._looked_at < older_than_s:
                return
            async with self._context.sessions() as session:
                rows = list(await session.scalars(select(SigningKey).order_by(SigningKey.active_from.desc())))
            box = box_of(self._context)
            known = {signer.kid: signer for _, signer in self._signers}
            self._signers = [
                (row.active_from, known.get(row.kid) or Signer(row.kid, _private_key(box, row))) for row in rows
            ]
            self._jwks = [row.public for row in rows]
            self._publics = {row.kid: self._publics.get(row.kid) or jwk.construct(row.public) for row in rows}
            self._looked_at = loop.time()


def _private_key(box: SecretBox, row: SigningKey) -> Key:
    return jwk.construct(box.decrypt(row.private).decode(), ALGORITHM)


def signing_keys_of(context: Context) -> SigningKeys:
    """Return the process's copy of the signing keys."""
    keys: SigningKeys | None = context.parts.get(PART)
    if keys is None:
        keys = context.parts[PART] = SigningKeys(context)
    return keys


async def add_key(context: Context, session: AsyncSession, *, at_once: bool = False) -> str:
    """Make a new signing key and return its id; it signs after `LEAD`, or `at_once`."""
    private = await asyncio.to_thread(rsa.generate_private_key, 65537, 2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    kid = uuid.uuid4().hex
    public = {k: v for k, v in jwk.construct(pem.decode(), ALGORITHM).public_key().to_dict().items() if k != "alg"}
    now = context.clock.now()
    session.add(
        SigningKey(
            kid=kid,
            private=box_of(context).encrypt(pem),
            public={"kid": kid, "use": "sig", "alg": ALGORITHM, **public},
            active_from=now if at_once else now + LEAD,
        )
    )
    await session.flush()
    await notify(session, TOPIC, "keys")
    return kid


async def rotate(context: Context, session: AsyncSession) -> bool:
    """Replace the signing key if it is due, and delete keys that nothing can need any more; tells if one was made."""
    now = context.clock.now()
    newest, *older = list(
        await session.scalars(select(SigningKey).order_by(SigningKey.active_from.desc()).with_for_update())
    )
    if older:  # what the newest replaced verifies until the last token it signed is over
        gone = [key.kid for key in older if newest.active_from + KEPT < now]
        await session.execute(delete(SigningKey).where(SigningKey.kid.in_(gone)))
    days = context.settings.key_rotation_days
    if not days or now - newest.active_from < timedelta(days=days):
        return False
    await add_key(context, session)
    return True


@dataclass(frozen=True, slots=True)
class AccessFacts:
    """What decides whether a token counts, on all deployments alike."""

    issuers: list[str]
    """Accepted `iss` claims; empty: any whose key is in `keys`."""
    keys: list[dict[str, str]]
    """JWKS."""
    revoked_sessions: list[str]
    """`sid`s that ended before their tokens."""
    not_before: dict[str, int]
    """By `sub`: tokens issued before this epoch second do not count."""
    admins: list[str]
    """Ids of the enabled administrators."""
    disabled: list[str]
    """Ids of users who may do nothing at the moment."""


async def access_facts(context: Context) -> AccessFacts:
    """Return the facts as of now. With an external Keycloak this may cross the network."""
    if context.settings.oidc_issuer:
        from app.identity.keycloak import access_facts as external_facts

        return await external_facts(context)
    recent = context.clock.now() - KEPT
    async with context.sessions() as session:
        revoked = list(await session.scalars(select(LoginSession.id).where(LoginSession.revoked_at > recent)))
        marks = await session.execute(select(User.id, User.not_before).where(User.not_before > int(recent.timestamp())))
        rotated = await session.execute(
            select(Client.service_user_id, Client.not_before).where(Client.not_before > int(recent.timestamp()))
        )
        not_before = {row[0]: row.not_before for row in (*marks, *rotated)}
        users = await session.execute(select(User.id, User.enabled).where(~User.enabled | User.is_admin))
        enabled = {row.id: row.enabled for row in users}
    return AccessFacts(
        issuers=[],
        keys=await signing_keys_of(context).jwks(),
        revoked_sessions=revoked,
        not_before=not_before,
        admins=[user_id for user_id, on in enabled.items() if on],
        disabled=[user_id for user_id, on in enabled.items() if not on],
    )
