"""An external Keycloak in place of the built-in provider, against a small stand-in of its admin API."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jose import jwk, jwt
from pydantic import SecretStr

from app.errors import NotFound, Unauthenticated, Unavailable
from app.identity import caller as callers
from app.identity import directory as directories
from app.identity.directory import Changes
from app.identity.keycloak import Keycloak
from app.identity.keys import access_facts
from app.identity.tokens import offline_token
from app.kit.context import Context
from tests.identity.conftest import app_on

ISSUER = "https://sso.example.test/auth/realms/people"
ADMIN = "https://sso.example.test/auth/admin/realms/people"


def make_key() -> tuple[str, dict[str, Any]]:
    private = rsa.generate_private_key(65537, 2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return pem, jwk.construct(pem, "RS256").public_key().to_dict()


PEM, PUBLIC = make_key()
OTHER_PEM, _ = make_key()


class StandIn:
    """Answers as a Keycloak does: discovery, keys, its admin client's token, users, roles."""

    def __init__(self) -> None:
        self.users: dict[str, dict[str, Any]] = {}
        self.admins: set[str] = set()
        self.is_up = True
        self.admin_tokens = 0
        self.refused_tokens: set[str] = set()
        self.calls: list[str] = []

    def add(self, email: str, **more: Any) -> str:
        user_id = str(uuid.uuid4())
        self.users[user_id] = {
            "id": user_id,
            "username": email,
            "email": email,
            "enabled": True,
            "emailVerified": False,
            "createdTimestamp": 1_700_000_000_000 + len(self.users),
            "requiredActions": [],
        } | more
        return user_id

    def token(self, user_id: str, pem: str = PEM, **more: Any) -> str:
        now = int(time.time())
        stated = {
            "sub": user_id,
            "iss": ISSUER,
            "typ": "Bearer",
            "azp": "sdk-client",
            "iat": now - 1,
            "exp": now + 60,
            "sid": "a session",
            "preferred_username": self.users.get(user_id, {}).get("username", "x"),
            "email": self.users.get(user_id, {}).get("email"),
            "realm_access": {"roles": ["admin"] if user_id in self.admins else []},
        }
        return str(jwt.encode(stated | more, pem, algorithm="RS256", headers={"kid": "k1"}))

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if not self.is_up:
            raise httpx.ConnectError("refused")
        url = str(request.url).partition("?")[0]
        self.calls.append(f"{request.method} {url.removeprefix(ADMIN)}")
        if url == f"{ISSUER}/.well-known/openid-configuration":
            return httpx.Response(200, json={"issuer": ISSUER, "jwks_uri": f"{ISSUER}/certs"})
        if url == f"{ISSUER}/certs":
            key = PUBLIC | {"kid": "k1", "use": "sig", "x5c": ["ignored"]}
            return httpx.Response(200, json={"keys": [key, {"kid": "k2", "kty": "RSA", "use": "enc"}, {"kty": "EC"}]})
        if url == f"{ISSUER}/protocol/openid-connect/token":
            assert parse_qs(request.content.decode()) == {"grant_type": ["client_credentials"]}
            assert request.headers["authorization"] == "Basic " + base64.b64encode(b"potoroo:secret").decode()
            self.admin_tokens += 1
            return httpx.Response(200, json={"access_token": f"t{self.admin_tokens}", "expires_in": 60})
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not bearer.startswith("t") or bearer in self.refused_tokens:
            return httpx.Response(401, json={"error": "HTTP 401 Unauthorized"})
        return self.admin(request, url.removeprefix(ADMIN))

    def admin(self, request: httpx.Request, path: str) -> httpx.Response:
        parts = path.strip("/").split("/")
        body = json.loads(request.content) if request.content else None
        if parts[0] == "roles":
            known = [self.users[one] for one in self.admins]
            return httpx.Response(200, json=known if parts[-1] == "users" else {"id": "r", "name": "admin"})
        if len(parts) == 1 and request.method == "POST":
            if any(one["username"] == body["username"] for one in self.users.values()):
                return httpx.Response(409, json={"errorMessage": "User exists with same username"})
            if body["credentials"][0]["value"] == "too simple":
                return httpx.Response(400, json={"errorMessage": "invalidPasswordMinSpecialCharsMessage"})
            user_id = self.add(body["email"], requiredActions=body["requiredActions"])
            return httpx.Response(201, headers={"Location": f"{ADMIN}/users/{user_id}"})
        if len(parts) == 1:
            return httpx.Response(200, json=self.matching(dict(request.url.params)))
        user = self.users.get(parts[1])
        if user is None:
            return httpx.Response(404, json={"error": "User not found"})
        if request.method == "GET":
            return httpx.Response(200, json=user)
        if parts[2:] == ["role-mappings", "realm"]:
            (self.admins.add if request.method == "POST" else self.admins.discard)(user["id"])
        elif request.method == "PUT" and parts[2:] == []:
            user.update(body)
        return httpx.Response(204)

    def matching(self, asked: dict[str, str]) -> list[dict[str, Any]]:
        rows = list(self.users.values())
        for key in ("email", "username"):
            if key in asked:
                exact = asked.get("exact") == "true"
                rows = [r for r in rows if (r[key] == asked[key] if exact else asked[key] in r[key])]
        if "search" in asked:
            rows = [r for r in rows if asked["search"] in r["username"]]
        if "enabled" in asked:
            rows = [r for r in rows if str(r["enabled"]).lower() == asked["enabled"]]
        first = int(asked.get("first", 0))
        return rows[first : first + int(asked.get("max", 100))]


@pytest.fixture
def realm() -> StandIn:
    """A realm with Ada, an administrator, and Ann."""
    made = StandIn()
    made.admins.add(made.add("ada@example.test"))
    made.add("ann@example.test", firstName="Ann")
    return made


@pytest.fixture
async def keycloak(context: Context, realm: StandIn) -> AsyncIterator[Keycloak]:
    """This instance's connection to the realm."""
    context.settings.oidc_issuer = ISSUER
    context.settings.oidc_admin_client_id = "potoroo"
    context.settings.oidc_admin_client_secret = SecretStr("secret")
    made = Keycloak(context, httpx.AsyncClient(transport=httpx.MockTransport(realm)))
    context.parts[callers.PART] = context.parts[directories.PART] = made
    yield made
    await made.aclose()


@pytest.fixture
async def http(context: Context, keycloak: Keycloak) -> AsyncIterator[httpx.AsyncClient]:
    """A client of this instance."""
    transport = httpx.ASGITransport(app_on(context), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://potoroo.test") as made:
        yield made


def of(realm: StandIn, email: str) -> str:
    return next(one["id"] for one in realm.users.values() if one["email"] == email)


async def test_its_tokens_say_who_is_calling(keycloak: Keycloak, realm: StandIn) -> None:
    ada = await keycloak.authenticate(realm.token(of(realm, "ada@example.test")))
    ann = await keycloak.authenticate(realm.token(of(realm, "ann@example.test")))
    robot = await keycloak.authenticate(
        realm.token(str(uuid.uuid4()), clientId="api-client", preferred_username="service-account-api-client")
    )

    assert (ada.username, ada.is_admin, ada.is_service) == ("ada@example.test", True, False)
    assert (ann.email, ann.is_admin, ann.client_id) == ("ann@example.test", False, "sdk-client")
    assert robot.is_service


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "https://evil.example.test/auth/realms/people"},
        {"typ": "ID"},
        {"typ": "Refresh"},
        {"exp": int(time.time()) - 1},
        {"exp": None},
        {"sub": None},
    ],
)
async def test_a_token_that_does_not_fit_is_refused(
    keycloak: Keycloak, realm: StandIn, changed: dict[str, Any]
) -> None:
    with pytest.raises(Unauthenticated):
        await keycloak.authenticate(realm.token(of(realm, "ann@example.test"), **changed))


async def test_a_token_signed_by_another_key_or_algorithm_is_refused(keycloak: Keycloak, realm: StandIn) -> None:
    ann = of(realm, "ann@example.test")
    stated = jwt.get_unverified_claims(realm.token(ann))

    for bad in (
        realm.token(ann, pem=OTHER_PEM),
        jwt.encode(stated, "secret", algorithm="HS256", headers={"kid": "k1"}),
        jwt.encode(stated, PEM, algorithm="RS384", headers={"kid": "k1"}),
        jwt.encode(stated, PEM, algorithm="RS256", headers={"kid": "k9"}),
        "junk",
    ):
        with pytest.raises(Unauthenticated):
            await keycloak.authenticate(bad)


async def test_the_audience_counts_when_it_is_set(context: Context, realm: StandIn, keycloak: Keycloak) -> None:
    context.settings.oidc_audience = "potoroo"
    picky = Keycloak(context, httpx.AsyncClient(transport=httpx.MockTransport(realm)))
    ann = of(realm, "ann@example.test")

    assert await picky.authenticate(realm.token(ann, aud=["potoroo", "account"]))
    with pytest.raises(Unauthenticated):
        await picky.authenticate(realm.token(ann, aud="account"))
    await picky.aclose()


async def test_a_user_disabled_there_is_refused_here(keycloak: Keycloak, realm: StandIn) -> None:
    ann = of(realm, "ann@example.test")
    token = realm.token(ann)
    await keycloak.authenticate(token)

    realm.users[ann]["enabled"] = False
    keycloak.forget()

    with pytest.raises(Unauthenticated):
        await keycloak.authenticate(token)


async def test_tokens_from_before_a_sign_out_of_all_are_refused(keycloak: Keycloak, realm: StandIn) -> None:
    ann = of(realm, "ann@example.test")
    realm.users[ann]["notBefore"] = int(time.time()) + 1

    with pytest.raises(Unauthenticated):
        await keycloak.authenticate(realm.token(ann))


async def test_while_it_is_away_those_it_knew_go_on_and_others_wait(
    keycloak: Keycloak, realm: StandIn, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = realm.token(of(realm, "ann@example.test"))
    await keycloak.authenticate(token)
    before = await access_facts(context)
    monkeypatch.setattr("app.identity.keycloak.TRUST_S", -1.0)
    monkeypatch.setattr("app.identity.keycloak._KEYS_S", -1.0)

    realm.is_up = False

    assert (await keycloak.authenticate(token)).username == "ann@example.test"
    assert await access_facts(context) == before
    with pytest.raises(Unavailable):
        await keycloak.authenticate(realm.token(of(realm, "ada@example.test")))
    with pytest.raises(Unavailable):
        await keycloak.by_email("ann@example.test")


async def test_a_refused_admin_token_is_replaced_once(keycloak: Keycloak, realm: StandIn) -> None:
    await keycloak.everybody()
    realm.refused_tokens.add("t1")

    assert len(await keycloak.everybody()) == 2
    assert realm.admin_tokens == 2

    realm.refused_tokens |= {f"t{n}" for n in range(10)}
    with pytest.raises(Unavailable, match="admin client"):
        await keycloak.everybody()


async def test_users_are_found_and_managed_through_its_admin_api(
    http: httpx.AsyncClient, realm: StandIn, keycloak: Keycloak
) -> None:
    ada = {"Authorization": f"Bearer {realm.token(of(realm, 'ada@example.test'))}"}
    email = "new@example.test"

    made = await http.post("/v1/api/users/invite", json={"email": email, "roles": ["admin"]}, headers=ada)
    twice = await http.post("/v1/api/users/invite", json={"email": email}, headers=ada)
    simple = await http.post(
        "/v1/api/users/invite", json={"email": "b@example.test", "password": "too simple"}, headers=ada
    )
    listed = (await http.post("/v1/api/users/query", json={}, headers=ada)).json()["users"]
    off = await http.post("/v1/api/users/deactivate", json={"email": email}, headers=ada)
    found = await http.get(f"/auth/admin/realms/master/users?email={email}", headers=ada)

    assert (made.status_code, twice.status_code, simple.status_code, off.status_code) == (200, 409, 400, 200)
    assert "invalidPasswordMinSpecialCharsMessage" in simple.json()["msg"]
    row = listed[made.json()["id"]]
    assert (row["requiredActions"], row["realmRoles"]) == (["UPDATE_PASSWORD"], ["admin"])
    assert found.json()[0]["enabled"] is False
    assert f"POST /users/{made.json()['id']}/logout" in realm.calls


async def test_the_last_administrator_stays(keycloak: Keycloak, realm: StandIn, http: httpx.AsyncClient) -> None:
    ada, ann = of(realm, "ada@example.test"), of(realm, "ann@example.test")
    await keycloak.change(ann, Changes(is_admin=True))
    token = {"Authorization": f"Bearer {realm.token(ann)}"}

    first = await http.put(f"/auth/admin/realms/master/users/{ada}", json={"enabled": False}, headers=token)
    realm.admins.discard(ada)
    body = {"id": ann, "firstName": "", "lastName": "", "email": "ann@example.test", "enabled": True, "isAdmin": False}
    second = await http.post("/v1/api/user", json=body, headers=token)

    assert (first.status_code, second.status_code) == (204, 409)


async def test_many_users_are_read_page_by_page(
    keycloak: Keycloak, realm: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.identity.keycloak_users._PAGE", 3)
    for number in range(7):
        realm.add(f"user{number}@example.test")
    realm.add("service-account-x", serviceAccountClientId="x")

    everybody = await keycloak.everybody()

    assert len(everybody) == 9
    assert everybody[0].username == "ada@example.test"


async def test_a_new_password_and_strangers(keycloak: Keycloak, realm: StandIn) -> None:
    ann = of(realm, "ann@example.test")

    await keycloak.set_password(ann, "long enough", temporary=True)

    assert f"PUT /users/{ann}/reset-password" in realm.calls
    assert await keycloak.find("../../clients") is None
    assert await keycloak.by_ids([ann, "nobody"]) == {ann: await keycloak.find(ann)}
    for call in (
        keycloak.change("nobody", Changes(enabled=True)),
        keycloak.set_password("nobody", "x" * 8, temporary=True),
    ):
        with pytest.raises(NotFound):
            await call


async def test_engines_are_told_its_issuer_and_keys(keycloak: Keycloak, realm: StandIn, context: Context) -> None:
    gone = realm.add("gone@example.test", enabled=False)

    facts = await access_facts(context)

    assert facts.issuers == [ISSUER]
    assert [key["kid"] for key in facts.keys] == ["k1"]
    assert all(isinstance(value, str) for key in facts.keys for value in key.values())
    assert (facts.admins, facts.disabled) == ([of(realm, "ada@example.test")], [gone])


async def test_our_own_provider_says_where_to_go(http: httpx.AsyncClient, context: Context) -> None:
    token = await http.post("/auth/realms/master/protocol/openid-connect/token", data={"grant_type": "password"})
    page = await http.get("/auth/realms/master/login")

    assert (token.status_code, page.status_code) == (404, 404)
    assert ISSUER in token.json()["error_description"]
    assert ISSUER in page.text
    async with context.sessions() as session:
        with pytest.raises(Unavailable):
            await offline_token(context, session, "someone", base_url="http://potoroo.test")


async def test_without_an_admin_client_tokens_count_and_users_cannot_be_looked_up(
    context: Context, realm: StandIn
) -> None:
    context.settings.oidc_issuer = ISSUER
    alone = Keycloak(context, httpx.AsyncClient(transport=httpx.MockTransport(realm)))

    assert (await alone.authenticate(realm.token(of(realm, "ann@example.test")))).username == "ann@example.test"
    with pytest.raises(Unavailable, match="POTOROO_OIDC_ADMIN_CLIENT_ID"):
        await alone.everybody()
    await alone.aclose()
