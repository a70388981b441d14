"""The token endpoint, the keys, and what tokens open."""

from __future__ import annotations

import base64
import json
import stat
from typing import Any

import pytest
from jose import jwk, jwt
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.identity import keys
from app.identity.bootstrap import bootstrap
from app.identity.keys import access_facts
from app.identity.tables import LoginSession, SigningKey, User
from app.identity.tokens import offline_token, revoke_session
from app.identity.upkeep import tidy
from tests.identity.conftest import REALM, TOKEN, Instance

DEVICE = "urn:ietf:params:oauth:grant-type:device_code"


def claims(token: str) -> dict[str, Any]:
    return dict(jwt.get_unverified_claims(token))


def forged(header: dict[str, Any], stated: dict[str, Any], signature: str = "") -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part(header)}.{part(stated)}.{signature}"


async def test_the_first_start_writes_the_credentials_for_their_owner_alone_and_only_once(instance: Instance) -> None:
    path = instance.context.settings.home / "creds.json"
    before = path.read_text()

    await bootstrap(instance.context)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == before
    assert set(instance.creds) == {"username", "password", "email", "confidentialClient", "confidentialPassword"}
    assert instance.creds["username"] == instance.creds["email"] == "admin@potoroo.local"


async def test_a_password_gives_a_token_with_the_claims_of_the_contract(instance: Instance) -> None:
    answer = await instance.login()

    stated = claims(answer["access_token"])
    now = int(instance.clock.now().timestamp())
    assert (answer["expires_in"], answer["refresh_expires_in"], answer["token_type"]) == (3600, 1800, "Bearer")
    assert (answer["scope"], answer["not-before-policy"]) == ("profile email", 0)
    assert answer["session_state"] == stated["sid"] == stated["session_state"]
    assert (stated["iat"], stated["exp"]) == (now, now + 3600)
    assert stated["iss"] == "http://potoroo.test/auth/realms/master"
    assert stated["aud"] == ["master-realm", "account"]
    assert (stated["typ"], stated["azp"], stated["acr"]) == ("Bearer", "api-client", "1")
    assert stated["preferred_username"] == stated["email"] == instance.creds["username"]
    assert stated["https://hasura.io/jwt/claims"] == {
        "x-hasura-user-id": stated["sub"],
        "x-hasura-user-email": stated["email"],
        "x-hasura-default-role": "admin_user",
        "x-hasura-allowed-roles": ["user", "admin_user"],
        "x-hasura-user-groups": "{}",
    }
    assert "admin" in stated["realm_access"]["roles"]


async def test_an_ordinary_users_token_carries_the_roles_clients_look_for(instance: Instance) -> None:
    await instance.invite("ann@example.test")

    stated = claims((await instance.login("ann@example.test"))["access_token"])

    assert stated["resource_access"]["master-realm"]["roles"] == [
        "manage-users",
        "view-users",
        "query-groups",
        "query-users",
    ]
    assert stated["https://hasura.io/jwt/claims"]["x-hasura-default-role"] == "user"
    assert "admin" not in stated["realm_access"]["roles"]


async def test_a_refresh_token_serves_again_and_again_and_keeps_the_session(instance: Instance) -> None:
    first = await instance.login()

    second = (await instance.token(grant_type="refresh_token", refresh_token=first["refresh_token"])).json()
    third = (await instance.token(grant_type="refresh_token", refresh_token=first["refresh_token"])).json()

    assert claims(second["access_token"])["sid"] == claims(third["access_token"])["sid"] == first["session_state"]
    assert claims(second["access_token"])["jti"] != claims(third["access_token"])["jti"]
    assert second["refresh_token"]


async def test_a_refresh_token_ends_when_it_is_not_used_and_moves_on_when_it_is(instance: Instance) -> None:
    first = await instance.login()
    form = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}

    instance.clock.move(minutes=29)
    used = await instance.token(**form)
    instance.clock.move(minutes=29)
    again = await instance.token(**form)
    instance.clock.move(minutes=31)
    late = await instance.token(**form)

    assert (used.status_code, again.status_code) == (200, 200)
    assert late.status_code == 400
    assert late.json() == {"error": "invalid_grant", "error_description": "Token is not active"}


async def test_a_session_has_a_longest_life_however_often_it_is_refreshed(instance: Instance) -> None:
    form = {"grant_type": "refresh_token", "refresh_token": (await instance.login())["refresh_token"]}

    outcomes = []
    for _ in range(22):
        instance.clock.move(minutes=29)
        outcomes.append((await instance.token(**form)).status_code)

    assert outcomes[:20] == [200] * 20
    assert outcomes[-1] == 400


async def test_an_offline_token_has_no_end(instance: Instance) -> None:
    answer = await instance.login(scope="offline_access openid")
    assert (answer["refresh_expires_in"], answer["scope"]) == (0, "openid profile email offline_access")
    assert claims(answer["id_token"])["typ"] == "ID"

    instance.clock.move(days=400)
    await tidy(instance.context)
    later = await instance.token(grant_type="refresh_token", refresh_token=answer["refresh_token"])

    assert later.status_code == 200
    assert await instance.works(later.json()["access_token"])


async def test_an_id_token_opens_nothing(instance: Instance) -> None:
    answer = await instance.login(scope="openid")

    assert not await instance.works(answer["id_token"])
    assert not await instance.works(answer["refresh_token"])


async def test_the_public_client_gets_shorter_tokens_and_none_of_its_own(instance: Instance) -> None:
    form = {"client_id": "sdk-client", "username": instance.creds["username"], "password": instance.creds["password"]}

    answer = await instance.http.post(TOKEN, data=form | {"grant_type": "password"})
    own = await instance.http.post(TOKEN, data={"client_id": "sdk-client", "grant_type": "client_credentials"})

    assert answer.json()["expires_in"] == 300
    assert claims(answer.json()["access_token"])["azp"] == "sdk-client"
    assert (own.status_code, own.json()["error"]) == (400, "unauthorized_client")


async def test_a_refresh_token_belongs_to_the_client_that_got_it(instance: Instance) -> None:
    refresh = (await instance.login())["refresh_token"]
    form = {"client_id": "sdk-client", "grant_type": "refresh_token", "refresh_token": refresh}

    answer = await instance.http.post(TOKEN, data=form)

    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


async def test_a_clients_own_token_is_for_inference_alone(instance: Instance) -> None:
    answer = (await instance.token(grant_type="client_credentials")).json()

    stated = claims(answer["access_token"])
    refused = await instance.http.post(
        "/v1/api/users/query", json={}, headers={"Authorization": f"Bearer {answer['access_token']}"}
    )
    caller = await instance.context.parts["identity"].authenticate(answer["access_token"])

    assert (answer["refresh_expires_in"], "refresh_token" in answer, "session_state" in answer) == (0, False, False)
    assert (stated["preferred_username"], stated["clientId"]) == ("service-account-api-client", "api-client")
    assert not {"email", "sid", "session_state", "name"} & set(stated)
    assert refused.status_code == 403
    assert caller.is_service
    assert caller.id == stated["sub"]


async def test_clients_may_prove_themselves_in_the_form(instance: Instance) -> None:
    client_id, secret = instance.basic
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}

    right = await instance.http.post(TOKEN, data=form)
    wrong = await instance.http.post(TOKEN, data=form | {"client_secret": "no"})

    assert right.status_code == 200
    assert (wrong.status_code, wrong.json()["error"]) == (401, "unauthorized_client")


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        ({}, 400, "invalid_request"),
        ({"grant_type": "magic"}, 400, "unsupported_grant_type"),
        ({"grant_type": "password"}, 400, "invalid_request"),
        ({"grant_type": "password", "username": "nobody", "password": "x"}, 401, "invalid_grant"),
        ({"grant_type": "password", "username": "a", "password": "b", "scope": "moon"}, 400, "invalid_scope"),
        ({"grant_type": "refresh_token"}, 400, "invalid_request"),
        ({"grant_type": "refresh_token", "refresh_token": "junk"}, 400, "invalid_grant"),
        ({"grant_type": "refresh_token", "refresh_token": "a.b"}, 400, "invalid_grant"),
        ({"grant_type": DEVICE, "device_code": "junk"}, 400, "unauthorized_client"),
        ({"grant_type": "password\x00"}, 400, "invalid_request"),
    ],
)
async def test_a_bad_request_is_refused_in_the_words_of_oauth(
    instance: Instance, form: dict[str, str], status: int, error: str
) -> None:
    answer = await instance.token(**form)

    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert answer.json()["error_description"]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("body", "header"),
    [
        (b"\xff\xfe", None),
        (b"grant_type=password&grant_type=password", None),
        (b"a=" + b"x" * 70_000, None),
        (b"grant_type=password", "Basic !!!"),
        (b"grant_type=password", "Basic AAAA"),
        (b"&".join(b"f%d=1" % i for i in range(200)), None),
    ],
)
async def test_a_broken_body_or_header_is_refused(instance: Instance, body: bytes, header: str | None) -> None:
    headers = {"Authorization": header} if header else {}

    answer = await instance.http.post(TOKEN, content=body, headers=headers)

    assert answer.status_code in (400, 401, 413)
    assert set(answer.json()) == {"error", "error_description"}


async def test_unknown_paths_and_methods_under_auth_have_its_shape(instance: Instance) -> None:
    lost = await instance.http.get(f"{REALM}/nothing")
    method = await instance.http.get(TOKEN)

    assert (lost.status_code, set(lost.json())) == (404, {"error", "error_description"})
    assert (method.status_code, set(method.json())) == (405, {"error", "error_description"})


async def test_discovery_and_keys_verify_a_token(instance: Instance) -> None:
    token = (await instance.login())["access_token"]

    found = (await instance.http.get(f"{REALM}/.well-known/openid-configuration")).json()
    given = (await instance.http.get(found["jwks_uri"])).json()["keys"]

    key = next(one for one in given if one["kid"] == jwt.get_unverified_header(token)["kid"])
    stated = jwt.decode(
        token, jwk.construct(key), algorithms=["RS256"], audience="account", options={"verify_exp": False}
    )
    assert stated["iss"] == found["issuer"]
    assert not {"d", "p", "q"} & set(key)


async def test_a_token_that_was_changed_or_signed_otherwise_is_refused(instance: Instance) -> None:
    token = (await instance.login())["access_token"]
    header, stated, signature = jwt.get_unverified_header(token), claims(token), token.rpartition(".")[2]
    jwks = (await instance.http.get(f"{REALM}/protocol/openid-connect/certs")).json()["keys"]
    confused = jwt.encode(stated, json.dumps(jwks[0]), algorithm="HS256", headers={"kid": header["kid"]})

    assert await instance.works(token)
    for bad in (
        "abcdefg",
        token[:-8] + "AAAAAAAA",
        forged({"alg": "none", "typ": "JWT"}, stated),
        forged({"alg": "none", "kid": header["kid"]}, stated),
        forged(header, stated | {"sub": "somebody-else"}, signature),
        forged(header | {"kid": "unknown"}, stated, signature),
        forged(header | {"kid": 7}, stated, signature),
        confused,
        "x" * 20_000,
    ):
        assert not await instance.works(bad)


async def test_an_access_token_ends(instance: Instance) -> None:
    token = (await instance.login())["access_token"]
    assert await instance.works(token)

    instance.clock.move(seconds=3601)

    assert not await instance.works(token)


async def test_the_issuer_follows_the_request_and_every_issuer_of_ours_counts(instance: Instance) -> None:
    form = {"grant_type": "client_credentials"}

    plain = await instance.http.post("http://10.0.0.7:8080" + TOKEN, data=form, auth=instance.basic)
    proxied = await instance.http.post(
        TOKEN,
        data=form,
        auth=instance.basic,
        headers={"X-Forwarded-Proto": "https", "X-Forwarded-Host": "ml.example.org"},
    )
    broken = await instance.http.post(TOKEN, data=form, auth=instance.basic, headers={"Host": "a b"})

    issuers = [claims(answer.json()["access_token"])["iss"] for answer in (plain, proxied)]
    assert issuers == [
        "http://10.0.0.7:8080/auth/realms/master",
        "https://ml.example.org/auth/realms/master",
    ]
    assert broken.status_code == 400


async def test_a_new_key_is_published_before_it_signs_and_the_old_one_verifies_on(
    instance: Instance, session: AsyncSession
) -> None:
    context = instance.context
    instance.clock.move(days=91)
    old = await instance.login(scope="offline_access")

    await tidy(context)
    keys.signing_keys_of(context).forget()
    published = (await instance.http.get(f"{REALM}/protocol/openid-connect/certs")).json()["keys"]
    still_old = jwt.get_unverified_header((await instance.login())["access_token"])["kid"]
    instance.clock.move(minutes=2)
    keys.signing_keys_of(context).forget()
    new = jwt.get_unverified_header((await instance.login())["access_token"])["kid"]

    assert len(published) == 2
    assert still_old == jwt.get_unverified_header(old["access_token"])["kid"] != new
    assert await instance.works(old["access_token"])

    instance.clock.move(days=3)
    await tidy(context)
    assert [row.kid for row in await session.scalars(select(SigningKey))] == [new]


async def test_secrets_do_not_lie_readable_in_the_database(instance: Instance, session: AsyncSession) -> None:
    answer = await instance.login()
    secret = answer["refresh_token"].partition(".")[2]

    tables = ("identity_user", "identity_client", "identity_session", "identity_signing_key")
    dump = str([(await session.execute(text(f"SELECT * FROM {table}"))).all() for table in tables])

    for word in (instance.creds["password"], instance.creds["confidentialPassword"], secret, "BEGIN PRIVATE"):
        assert word not in dump


async def test_logging_out_ends_the_session_and_its_tokens(instance: Instance) -> None:
    answer = await instance.login()
    assert await instance.works(answer["access_token"])

    out = await instance.http.post(
        f"{REALM}/protocol/openid-connect/logout",
        data={"refresh_token": answer["refresh_token"]},
        auth=instance.basic,
    )
    refreshed = await instance.token(grant_type="refresh_token", refresh_token=answer["refresh_token"])

    assert out.status_code == 204
    assert not await instance.works(answer["access_token"])
    assert refreshed.json()["error_description"] == "Session not active"


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
async def test_revoking_either_token_ends_the_session(instance: Instance, kind: str) -> None:
    answer = await instance.login()

    gone = await instance.http.post(
        f"{REALM}/protocol/openid-connect/revoke", data={"token": answer[kind]}, auth=instance.basic
    )
    unknown = await instance.http.post(
        f"{REALM}/protocol/openid-connect/revoke", data={"token": "junk"}, auth=instance.basic
    )

    assert (gone.status_code, unknown.status_code) == (200, 200)
    assert not await instance.works(answer["access_token"])


async def test_userinfo_says_who_it_is(instance: Instance) -> None:
    token = (await instance.login())["access_token"]
    path = f"{REALM}/protocol/openid-connect/userinfo"

    known = await instance.http.get(path, headers={"Authorization": f"Bearer {token}"})
    nobody = await instance.http.get(path)

    assert known.json()["sub"] == claims(token)["sub"]
    assert nobody.status_code == 401
    assert nobody.headers["www-authenticate"].startswith("Bearer")


async def test_a_task_gets_a_token_of_its_owner_until_it_is_revoked(instance: Instance, session: AsyncSession) -> None:
    context = instance.context
    user_id = await instance.invite("ann@example.test")

    async with context.sessions.begin() as opened:
        made = await offline_token(context, opened, user_id, base_url="http://potoroo.test/")
    document = made.document
    instance.clock.move(days=30)
    form = {"client_id": "sdk-client", "grant_type": "refresh_token", "refresh_token": document["refresh_token"]}
    refreshed = [await instance.http.post(TOKEN, data=form) for _ in range(3)]

    assert set(document) == {
        "access_token",
        "expiry",
        "refresh_token",
        "refresh_token_expiry",
        "user_id",
        "user_email",
    }
    assert (document["user_id"], document["user_email"]) == (user_id, "ann@example.test")
    assert [answer.status_code for answer in refreshed] == [200] * 3
    stated = claims(refreshed[0].json()["access_token"])
    assert (stated["sub"], stated["email"], stated["azp"]) == (user_id, "ann@example.test", "sdk-client")
    async with context.sessions.begin() as opened:
        await revoke_session(context, opened, made.session_id)
    assert (await instance.http.post(TOKEN, data=form)).status_code == 400
    assert "refresh" not in repr(made)


async def test_tidying_deletes_what_is_over_and_nothing_else(instance: Instance, session: AsyncSession) -> None:
    old, kept = await instance.login(), await instance.login(scope="offline_access")
    instance.clock.move(days=3)
    fresh = await instance.login()

    await tidy(instance.context)

    left = {row.id for row in await session.scalars(select(LoginSession))}
    assert left == {kept["session_state"], fresh["session_state"]}
    assert old["session_state"] not in left


async def test_engines_learn_who_and_what_counts(instance: Instance) -> None:
    ann = await instance.invite("ann@example.test")
    signed_in = await instance.login("ann@example.test")
    admin = claims((await instance.login())["access_token"])["sub"]
    await instance.http.post(
        "/v1/api/users/deactivate", json={"email": "ann@example.test"}, headers=await instance.bearer()
    )

    facts = await access_facts(instance.context)

    assert facts.issuers == []
    assert facts.admins == [admin]
    assert facts.disabled == [ann]
    assert facts.not_before == {ann: int(instance.clock.now().timestamp())}
    assert signed_in["session_state"] in facts.revoked_sessions
    assert [key["alg"] for key in facts.keys] == ["RS256"]


async def test_what_the_database_said_last_counts_while_it_is_away(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    authenticator = instance.context.parts["identity"]
    known, unknown = await instance.login(), await instance.login()
    await authenticator.authenticate(known["access_token"])
    monkeypatch.setattr("app.identity.authenticate.TRUST_S", 0.0)

    def away(*_: Any) -> Any:
        raise OperationalError("SELECT 1", {}, Exception("connection refused"))

    monkeypatch.setattr(instance.context, "sessions", away)

    assert (await authenticator.authenticate(known["access_token"])).username == instance.creds["username"]
    with pytest.raises(OperationalError):
        await authenticator.authenticate(unknown["access_token"])


async def test_another_process_hears_of_a_change(instance: Instance, session: AsyncSession) -> None:
    authenticator = instance.context.parts["identity"]
    token = (await instance.login())["access_token"]
    await authenticator.authenticate(token)

    user = await session.scalar(select(User))
    assert user is not None
    user.enabled = False
    await session.commit()
    unheard = await instance.works(token)
    instance.context.events.wake(keys.TOPIC)

    assert unheard
    assert not await instance.works(token)
