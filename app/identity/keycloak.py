"""An external Keycloak in place of the built-in provider: its keys check tokens, its admin API holds the users."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import httpx
import structlog
from jose import JWTError, jwk, jwt
from jose.backends.base import Key
from jose.exceptions import JOSEError

from app.errors import Unauthenticated, Unavailable
from app.identity.caller import PART, Caller
from app.identity.keycloak_users import KeycloakUsers
from app.identity.keys import ALGORITHM, AccessFacts
from app.kit.context import Context

log = structlog.get_logger()

TRUST_S = 10.0
"""How long what Keycloak said of a user counts."""
_KEYS_S, _KEYS_LEAST_S = 300.0, 5.0
_QUIET_S = 7.0
"""How long after a failed look at the keys no other is tried: a little more than one time-out."""
_ROOM = 20_000


class Keycloak(KeycloakUsers):
    """Checks tokens by Keycloak's keys and asks its admin API whether their users are still enabled.

    What was seen once goes on counting while Keycloak is away; its tokens end by themselves.
    """

    def __init__(self, context: Context, http: httpx.AsyncClient | None = None) -> None:
        super().__init__(context.settings, http or httpx.AsyncClient(timeout=5.0))
        self._context = context
        self._audience = context.settings.oidc_audience
        self._keys: dict[str, Key] = {}
        self._jwks: list[dict[str, str]] = []
        self._looked_at = self._quiet_until = float("-inf")
        self._lock = asyncio.Lock()
        self._states: OrderedDict[str, tuple[float, bool, int]] = OrderedDict()
        self._facts: tuple[float, AccessFacts] | None = None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def authenticate(self, token: str) -> Caller:
        """Return whose token it is; raises `Unauthenticated` if it is unknown, expired or of somebody disabled."""
        stated = await self._verified(token)
        caller = _caller(stated)
        if not caller.is_service:
            enabled, not_before = await self._state(caller.id)
            if not enabled or stated["iat"] < not_before:
                raise Unauthenticated("The token does not count any more: its user is deactivated or was signed out.")
        return caller

    async def facts(self) -> AccessFacts:
        """Return what engines need to check tokens; a few seconds old at most, unless Keycloak is away."""
        now = asyncio.get_running_loop().time()
        if self._facts is not None and now - self._facts[0] < TRUST_S:
            return self._facts[1]
        try:
            await self._load_keys(older_than_s=_KEYS_S)
            disabled, admins = await self.disabled_ids(), await self.admins()
        except Unavailable:
            if self._facts is None:
                raise
            log.warning("keycloak.away", using="facts of before")
            return self._facts[1]
        made = AccessFacts(
            issuers=[self._issuer],
            keys=self._jwks,
            revoked_sessions=[],
            not_before={},
            admins=[one.id for one in admins],
            disabled=disabled,
        )
        self._facts = (now, made)
        return made

    def forget(self) -> None:
        """Ask Keycloak again about users."""
        super().forget()
        self._states.clear()
        if self._facts is not None:
            self._facts = (float("-inf"), self._facts[1])

    async def _verified(self, token: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            kid = header.get("kid")
            key = await self._key(kid) if isinstance(kid, str) else None
            if key is None or header.get("alg") != ALGORITHM:
                raise Unauthenticated(f"The token is not valid: {self._issuer} did not issue it.")
            stated: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=self._audience,
                issuer=self._issuer,
                options={"verify_exp": False, "verify_aud": self._audience is not None, "require_iat": True},
            )
        except JWTError as exc:
            raise Unauthenticated("The token is not valid.") from exc
        if stated.get("typ") != "Bearer" or not isinstance(stated.get("sub"), str):
            raise Unauthenticated("This is not an access token.")
        expires_at = stated.get("exp")
        if not isinstance(expires_at, int) or expires_at <= self._context.clock.now().timestamp():
            raise Unauthenticated("The token has expired; ask for a new one.")
        return stated

    async def _key(self, kid: str) -> Key | None:
        if kid in self._keys:
            try:
                await self._load_keys(older_than_s=_KEYS_S)
            except Unavailable:
                log.warning("keycloak.away", using="keys of before")
        else:
            await self._load_keys(older_than_s=_KEYS_LEAST_S)
        return self._keys.get(kid)

    async def _load_keys(self, older_than_s: float) -> None:
        loop = asyncio.get_running_loop()
        async with self._lock:
            if loop.time() - self._looked_at < older_than_s:
                return
            if loop.time() < self._quiet_until:  # whoever waited for the lock waits for one time-out, not for its own
                raise Unavailable("The identity provider does not answer.")
            self._quiet_until = loop.time() + _QUIET_S
            known = await self._get_json(f"{self._issuer}/.well-known/openid-configuration")
            if known.get("issuer") != self._issuer:
                raise Unavailable(
                    f"The identity provider calls itself {known.get('issuer')!r}; correct POTOROO_OIDC_ISSUER."
                )
            given = (await self._get_json(known["jwks_uri"])).get("keys", [])
            usable = [one for one in given if one.get("kty") == "RSA" and one.get("use", "sig") == "sig"]
            self._jwks = [
                {**{name: value for name, value in one.items() if isinstance(value, str)}, "alg": ALGORITHM}
                for one in usable
                if one.get("alg", ALGORITHM) == ALGORITHM and "kid" in one
            ]
            try:
                self._keys = {one["kid"]: jwk.construct(one, ALGORITHM) for one in self._jwks}
            except JOSEError as exc:
                raise Unavailable("The identity provider's keys cannot be read.") from exc
            self._looked_at, self._quiet_until = loop.time(), float("-inf")

    async def _state(self, user_id: str) -> tuple[bool, int]:
        """Return whether a user is enabled, and since when their tokens count."""
        if not self.is_managed:
            return True, 0
        now = asyncio.get_running_loop().time()
        known = self._states.get(user_id)
        if known is not None and now - known[0] < TRUST_S:
            return known[1], known[2]
        try:
            user = await self.find(user_id)
        except Unavailable:
            if known is None:
                raise
            return known[1], known[2]
        state = (now, user is not None and user.enabled, user.not_before if user else 0)
        self._states[user_id] = state
        while len(self._states) > _ROOM:
            self._states.popitem(last=False)
        return state[1], state[2]


async def access_facts(context: Context) -> AccessFacts:
    """Return what engines need to check the external provider's tokens."""
    part: Keycloak = context.parts[PART]
    return await part.facts()


def _caller(stated: dict[str, Any]) -> Caller:
    username = str(stated.get("preferred_username") or stated["sub"])
    roles = (stated.get("realm_access") or {}).get("roles") or []
    of_client = stated.get("clientId") or stated.get("client_id")
    caller = Caller(
        id=stated["sub"].lower(),
        username=username,
        email=stated.get("email"),
        is_admin="admin" in roles,
        client_id=str(stated.get("azp", "")),
        session_id=stated.get("sid"),
    )
    if of_client and username.startswith("service-account-"):
        return replace(caller, is_service=True, is_admin=False, email=None)
    return caller
