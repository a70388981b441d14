"""Checks bearer tokens against our own keys, users and sessions."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from jose import JWTError, jwt
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.errors import Unauthenticated
from app.identity.caller import PART, Caller
from app.identity.claims import AUDIENCE
from app.identity.keys import ALGORITHM, TOPIC, signing_keys_of
from app.identity.tables import Client, LoginSession, User
from app.kit.context import Context
from app.kit.http import is_away

TRUST_S = 3.0
"""How long what the database said of a session counts; a change in any process ends it at once."""
_ROOM = 20_000
_LONGEST_TOKEN = 16_384


@dataclass(frozen=True, slots=True)
class Checked:
    """What a token states, its signature found right."""

    subject: str
    session_id: str | None
    client_id: str
    issued_at: int
    expires_at: int
    is_service: bool


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller | None
    """None: the session, the user or the client does not count any more."""
    not_before: int
    looked_at: float


class OwnAuthenticator:
    """Verifies a token once, then asks the database every few seconds whether its session still counts.

    While the database is away, what it said last goes on counting: nobody can revoke anything meanwhile either.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._changed = context.events.subscribe(TOPIC)
        self._tokens: OrderedDict[bytes, Checked] = OrderedDict()
        self._known: OrderedDict[tuple[str, str | None], _Known] = OrderedDict()
        self._turn = 0

    async def authenticate(self, token: str) -> Caller:
        """Return whose token it is; raises `Unauthenticated` for one that is unknown, expired or revoked."""
        key = hashlib.sha256(token.encode()).digest()
        checked = self._tokens.get(key)
        if checked is None:
            checked = await self._checked(token)
            _put(self._tokens, key, checked)
        if checked.expires_at <= self._context.clock.now().timestamp():
            self._tokens.pop(key, None)
            raise Unauthenticated("The token has expired; ask for a new one.")
        known = await self._look_up(checked)
        if known.caller is None or checked.issued_at < known.not_before:
            raise Unauthenticated("The token does not count any more: its session ended or its user is deactivated.")
        return known.caller

    def forget(self) -> None:
        """Ask the database again at the next call."""
        self._turn += 1
        self._known.clear()
        signing_keys_of(self._context).forget()

    async def _checked(self, token: str) -> Checked:
        if len(token) > _LONGEST_TOKEN:
            raise Unauthenticated("The token is not valid.")
        try:
            header = jwt.get_unverified_header(token)
            kid = header.get("kid")
            key = await signing_keys_of(self._context).public(kid) if isinstance(kid, str) else None
            if key is None or header.get("alg") != ALGORITHM:
                raise Unauthenticated("The token is not valid: it was not issued here.")
            stated: dict[str, Any] = jwt.decode(
                token, key, algorithms=[ALGORITHM], audience=AUDIENCE[1], options={"verify_exp": False}
            )
        except JWTError as exc:
            raise Unauthenticated("The token is not valid.") from exc
        if stated.get("typ") != "Bearer":
            raise Unauthenticated("This is not an access token; send the `access_token` of the token endpoint.")
        return Checked(
            subject=stated["sub"],
            session_id=stated.get("sid"),
            client_id=stated["azp"],
            issued_at=stated["iat"],
            expires_at=stated["exp"],
            is_service="clientId" in stated,
        )

    async def _look_up(self, checked: Checked) -> _Known:
        if self._changed.is_set():
            self._changed.clear()
            self.forget()
        place = (checked.subject, checked.session_id)
        known = self._known.get(place)
        now = asyncio.get_running_loop().time()
        if known is not None and now - known.looked_at < TRUST_S:
            return known
        turn = self._turn
        try:
            fresh = await (self._service(checked, now) if checked.is_service else self._user(checked, now))
        except (DBAPIError, PoolTimeout, OSError) as exc:
            if known is None or not (isinstance(exc, OSError) or is_away(exc)):
                raise
            return known
        if turn == self._turn:  # nothing changed while the database answered
            _put(self._known, place, fresh)
        return fresh

    async def _user(self, checked: Checked, now: float) -> _Known:
        async with self._context.sessions() as session:
            row = (
                await session.execute(
                    select(User, LoginSession.revoked_at)
                    .join(LoginSession, LoginSession.user_id == User.id)
                    .where(User.id == checked.subject, LoginSession.id == checked.session_id)
                )
            ).first()
        if row is None or row.revoked_at is not None or not row.User.enabled:
            return _Known(None, 0, now)
        user = row.User
        caller = Caller(
            id=user.id,
            username=user.username,
            email=user.email,
            is_admin=user.is_admin,
            client_id=checked.client_id,
            session_id=checked.session_id,
        )
        return _Known(caller, user.not_before, now)

    async def _service(self, checked: Checked, now: float) -> _Known:
        async with self._context.sessions() as session:
            client = await session.get(Client, checked.client_id)
        if client is None or client.service_user_id != checked.subject:
            return _Known(None, 0, now)
        name = f"service-account-{client.client_id}"
        return _Known(
            Caller(id=checked.subject, username=name, is_service=True, client_id=client.client_id),
            client.not_before,
            now,
        )


def forget(context: Context) -> None:
    """Make this process ask again who may do what, right after a change it made; others hear of it by `TOPIC`."""
    part = context.parts.get(PART)
    if isinstance(part, OwnAuthenticator):
        part.forget()


def _put(cache: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    cache[key] = value
    cache.move_to_end(key)
    while len(cache) > _ROOM:
        cache.popitem(last=False)
