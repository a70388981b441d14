"""The directory over the admin API of an external Keycloak."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import httpx

from app.errors import Conflict, Invalid, NotFound, Unavailable
from app.identity import passwords
from app.identity.directory import UNSET, Changes, Profile, Search
from app.settings import Settings

_PAGE = 500
_ADMINS_S = 10.0
_AT_ONCE = 8
ADMIN_ROLE = "admin"


class KeycloakUsers:
    """Finds and manages users by Keycloak's admin API, as the service account of a client of ours."""

    def __init__(self, settings: Settings, http: httpx.AsyncClient) -> None:
        self._issuer = (settings.oidc_issuer or "").rstrip("/")
        self._admin_url = self._issuer.replace("/realms/", "/admin/realms/", 1)
        self._client_id = settings.oidc_admin_client_id
        self._secret = settings.oidc_admin_client_secret
        self._http = http
        self._token: tuple[float, str] | None = None
        self._admin_ids: tuple[float, frozenset[str]] | None = None

    @property
    def is_managed(self) -> bool:
        """Tell whether an admin client is set, without which users cannot be looked up."""
        return bool(self._client_id and self._secret)

    def forget(self) -> None:
        """Ask again who the administrators are."""
        self._admin_ids = None

    async def by_email(self, email: str) -> Profile | None:
        """Return the user whose e-mail or username is `email`, in any case of letters."""
        low = email.strip().lower()
        for key in ("username", "email"):
            for one in await self._users({key: low, "exact": "true"}):
                if (one.get(key) or "").lower() == low:
                    return await self._profile(one)
        return None

    async def by_ids(self, ids: Iterable[str]) -> dict[str, Profile]:
        """Return those of the users `ids` that exist, by id."""
        turns = asyncio.Semaphore(_AT_ONCE)

        async def one(user_id: str) -> Profile | None:
            async with turns:
                return await self.find(user_id)

        found = await asyncio.gather(*(one(user_id) for user_id in dict.fromkeys(ids)))
        return {user.id: user for user in found if user is not None}

    async def admins(self) -> list[Profile]:
        """Return the enabled administrators: those with the realm role `admin`."""
        rows = await self._json("GET", f"/roles/{ADMIN_ROLE}/users", params={"max": 10_000})
        self._admin_ids = (asyncio.get_running_loop().time(), frozenset(row["id"] for row in rows))
        return [profile_of(row, is_admin=True) for row in rows if row.get("enabled")]

    async def everybody(self) -> list[Profile]:
        """Return all users, longest-standing first, without the accounts of clients."""
        rows = await self._all({})
        people = [row for row in rows if not row.get("serviceAccountClientId")]
        profiles = [await self._profile(row) for row in people]
        return sorted(profiles, key=lambda one: (one.created_ms, one.id))

    async def disabled_ids(self) -> list[str]:
        """Return the ids of the users who are deactivated."""
        return [row["id"] for row in await self._all({"enabled": "false"})]

    async def find(self, user_id: str) -> Profile | None:
        """Return the user `user_id`."""
        answer = await self._call("GET", f"/users/{quote(user_id, safe='')}")
        return None if answer.status_code == 404 else await self._profile(_json(answer))

    async def search(self, wanted: Search) -> list[Profile]:
        """Return the users that match; exact matches first."""
        given = {"email": wanted.email, "username": wanted.username, "search": wanted.text}
        params: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if wanted.enabled is not None:
            params["enabled"] = str(wanted.enabled).lower()
        if wanted.exact:
            params["exact"] = "true"
        rows = await self._users({**params, "first": wanted.first, "max": wanted.most})
        exact = [
            any((row.get(key) or "").lower() == (given[key] or "").lower() for key in ("email", "username"))
            for row in rows
        ]
        ordered = [row for _, row in sorted(zip(exact, rows, strict=True), key=lambda pair: not pair[0])]
        return [await self._profile(row) for row in ordered]

    async def invite(self, email: str, password: str, *, temporary: bool, is_admin: bool) -> str:
        """Add a user who signs in with `password` and return their id; raises `Conflict` for an e-mail in use."""
        body = {
            "username": email,
            "email": email,
            "enabled": True,
            "emailVerified": True,
            "credentials": [{"type": "password", "value": passwords.check(password), "temporary": temporary}],
            "requiredActions": ["UPDATE_PASSWORD"] if temporary else [],
        }
        answer = await self._call("POST", "/users", json=body)
        if answer.status_code == 409:
            raise Conflict(f"A user with the e-mail or username {email!r} exists already.")
        _check(answer)
        user_id = str(answer.headers.get("location", "")).rstrip("/").rpartition("/")[2]
        if not user_id:
            raise Unavailable("The identity provider made a user and did not say under which id.")
        if is_admin:
            await self._set_admin(user_id, True)
        return user_id

    async def change(self, user_id: str, changes: Changes) -> None:
        """Change a user; raises `NotFound`, or `Conflict` when an e-mail is taken or no administrator would be left."""
        path = f"/users/{quote(user_id, safe='')}"
        answer = await self._call("GET", path)
        if answer.status_code == 404:
            raise NotFound("User not found")
        body = _json(answer)
        if changes.enabled is False or changes.is_admin is False:
            admins = {one.id for one in await self.admins()}
            if admins == {user_id}:
                raise Conflict(f"{body.get('username')!r} is the only administrator; make somebody else one first.")
        names = {
            "enabled": changes.enabled,
            "email": changes.email,
            "emailVerified": changes.email_verified,
            "firstName": changes.first_name,
            "lastName": changes.last_name,
        }
        body.update({name: value for name, value in names.items() if value is not UNSET})
        if changes.required_actions is not UNSET:
            body["requiredActions"] = list(changes.required_actions)
        changed = await self._call("PUT", path, json=body)
        if changed.status_code == 409:
            raise Conflict(f"A user with the e-mail {changes.email!r} exists already.")
        _check(changed)
        if changes.is_admin is not UNSET:
            await self._set_admin(user_id, changes.is_admin)
        if changes.enabled is False:
            _check(await self._call("POST", f"{path}/logout"))
        self.forget()

    async def set_password(self, user_id: str, password: str, *, temporary: bool) -> None:
        """Give a user a new password and end their sessions; raises `NotFound`."""
        path = f"/users/{quote(user_id, safe='')}"
        body = {"type": "password", "value": passwords.check(password), "temporary": temporary}
        answer = await self._call("PUT", f"{path}/reset-password", json=body)
        if answer.status_code == 404:
            raise NotFound("User not found")
        _check(answer)
        _check(await self._call("POST", f"{path}/logout"))
        self.forget()

    async def _set_admin(self, user_id: str, is_admin: bool) -> None:
        role = await self._json("GET", f"/roles/{ADMIN_ROLE}")
        path = f"/users/{quote(user_id, safe='')}/role-mappings/realm"
        _check(await self._call("POST" if is_admin else "DELETE", path, json=[role]))
        self.forget()

    async def _profile(self, row: dict[str, Any]) -> Profile:
        now = asyncio.get_running_loop().time()
        if self._admin_ids is None or now - self._admin_ids[0] > _ADMINS_S:
            await self.admins()
        known = self._admin_ids
        return profile_of(row, is_admin=known is not None and row["id"] in known[1])

    async def _all(self, params: dict[str, Any]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while True:
            page = await self._users({**params, "first": len(rows), "max": _PAGE})
            rows += page
            if len(page) < _PAGE:
                return rows

    async def _users(self, params: dict[str, Any]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = await self._json("GET", "/users", params=params)
        return rows

    async def _json(self, method: str, path: str, **sent: Any) -> Any:
        return _json(await self._call(method, path, **sent))

    async def _get_json(self, url: str) -> dict[str, Any]:
        try:
            answer = await self._http.get(url)
        except httpx.HTTPError as exc:
            raise Unavailable("The identity provider does not answer.") from exc
        found: dict[str, Any] = _json(answer)
        return found

    async def _call(self, method: str, path: str, **sent: Any) -> httpx.Response:
        """Make one call of the admin API; a token that is refused is replaced once."""
        for fresh in (False, True):
            headers = {"Authorization": f"Bearer {await self._admin_token(fresh)}"}
            try:
                answer = await self._http.request(method, self._admin_url + path, headers=headers, **sent)
            except httpx.HTTPError as exc:
                raise Unavailable("The identity provider does not answer.") from exc
            if answer.status_code != 401:
                break
        return answer

    async def _admin_token(self, fresh: bool) -> str:
        if self._client_id is None or self._secret is None:
            raise Unavailable(
                "Users cannot be looked up: set POTOROO_OIDC_ADMIN_CLIENT_ID and POTOROO_OIDC_ADMIN_CLIENT_SECRET."
            )
        now = asyncio.get_running_loop().time()
        if not fresh and self._token is not None and now < self._token[0]:
            return self._token[1]
        try:
            answer = await self._http.post(
                f"{self._issuer}/protocol/openid-connect/token",
                data={"grant_type": "client_credentials"},
                auth=(self._client_id, self._secret.get_secret_value()),
            )
        except httpx.HTTPError as exc:
            raise Unavailable("The identity provider does not answer.") from exc
        given = _json(answer)
        self._token = (now + given.get("expires_in", 60) - 10, given["access_token"])
        return self._token[1]


def profile_of(row: dict[str, Any], *, is_admin: bool) -> Profile:
    """Return Keycloak's representation of a user as ours."""
    profile = Profile(row["id"], row["username"], row.get("email"), bool(row.get("enabled")), is_admin)
    return replace(
        profile,
        first_name=row.get("firstName"),
        last_name=row.get("lastName"),
        email_verified=bool(row.get("emailVerified")),
        created_ms=int(row.get("createdTimestamp") or 0),
        not_before=int(row.get("notBefore") or 0),
        required_actions=tuple(row.get("requiredActions") or ()),
        identities=tuple(row.get("federatedIdentities") or ()),
    )


def _check(answer: httpx.Response) -> None:
    """Raise what a refusal of Keycloak means to our caller."""
    if answer.is_success:
        return
    if answer.status_code in (401, 403):
        raise Unavailable(
            "The identity provider refuses our admin client: check its secret, and that its service account has the "
            "roles view-users and manage-users."
        )
    if answer.status_code == 404:
        raise NotFound("User not found")
    if answer.status_code == 400:
        raise Invalid(f"The identity provider refuses this: {_said(answer)}")
    raise Unavailable(f"The identity provider answered {answer.status_code}.")


def _json(answer: httpx.Response) -> Any:
    _check(answer)
    try:
        return answer.json()
    except ValueError as exc:
        raise Unavailable("The identity provider's answer is not JSON.") from exc


def _said(answer: httpx.Response) -> str:
    try:
        body = answer.json()
    except ValueError:
        return "no reason given"
    words = (body.get("errorMessage") or body.get("error")) if isinstance(body, dict) else None
    return str(words or "no reason given")[:200]
