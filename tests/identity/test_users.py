"""Users through the MLOps API and through Keycloak's admin API."""

from __future__ import annotations

import smtplib
import uuid
from email.message import EmailMessage
from typing import Any

import pytest
from pydantic import SecretStr

from tests.identity.conftest import PASSWORD, Instance

ADMIN_API = "/auth/admin/realms/master/users"


async def test_query_lists_everybody_by_id_with_the_fields_of_the_contract(instance: Instance) -> None:
    ann = await instance.invite("ann@example.test")

    answer = await instance.http.post("/v1/api/users/query", json={}, headers=await instance.bearer())

    users = answer.json()["users"]
    assert set(users) == {ann, next(i for i in users if i != ann)}
    row = users[ann]
    assert row["id"] == ann
    assert (row["username"], row["email"]) == ("ann@example.test", "ann@example.test")
    assert (row["enabled"], row["emailVerified"], row["notBefore"]) == (True, True, 0)
    assert (row["requiredActions"], row["disableableCredentialTypes"], row["realmRoles"]) == ([], [], [])
    assert set(row["access"]) == {"view", "mapRoles", "manage", "manageGroupMembership", "impersonate"}
    assert row["createdTimestamp"] > 1_600_000_000_000
    assert not {"firstName", "lastName"} & set(row)


async def test_query_by_ids_gives_those_and_null_for_strangers(instance: Instance) -> None:
    ann, nobody = await instance.invite("ann@example.test"), str(uuid.uuid4())

    answer = await instance.http.post(
        "/v1/api/users/query", json={"user_ids": [ann, nobody]}, headers=await instance.bearer("ann@example.test")
    )

    users = answer.json()["users"]
    assert list(users) == [ann, nobody]
    assert users[nobody] is None
    assert users[ann]["federatedIdentities"] == []
    assert "realmRoles" not in users[ann]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"workspace_id": 1, "user_ids": null}'])
async def test_query_takes_no_body_unknown_members_and_no_content_type(instance: Instance, content: bytes) -> None:
    answer = await instance.http.post("/v1/api/users/query", content=content, headers=await instance.bearer())

    assert answer.status_code == 200
    assert len(answer.json()["users"]) == 1


async def test_everybody_may_invite_and_the_guest_signs_in(instance: Instance) -> None:
    await instance.invite("ann@example.test")

    made = await instance.http.post(
        "/v1/api/users/invite",
        json={"email": "Bob@Example.test", "password": PASSWORD},
        headers=await instance.bearer("ann@example.test"),
    )

    assert made.status_code == 200
    assert made.json() == {"id": made.json()["id"], "password": PASSWORD}
    assert (await instance.login("bob@example.test"))["access_token"]
    assert (await instance.login("BOB@example.test"))["access_token"]


async def test_a_guest_without_a_password_gets_a_temporary_one_that_must_be_changed(instance: Instance) -> None:
    made = await instance.http.post(
        "/v1/api/users/invite", json={"email": "new@example.test"}, headers=await instance.bearer()
    )

    users = (await instance.http.post("/v1/api/users/query", json={}, headers=await instance.bearer())).json()["users"]
    answer = await instance.token(grant_type="password", username="new@example.test", password=made.json()["password"])
    assert users[made.json()["id"]]["requiredActions"] == ["UPDATE_PASSWORD"]
    assert answer.status_code == 400
    assert answer.json() == {"error": "invalid_grant", "error_description": "Account is not fully set up"}


async def test_inviting_an_address_twice_is_a_conflict(instance: Instance) -> None:
    await instance.invite("ann@example.test")

    answer = await instance.http.post(
        "/v1/api/users/invite", json={"email": "ANN@example.test"}, headers=await instance.bearer()
    )

    assert answer.status_code == 409
    assert "ann@example.test" in answer.json()["msg"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"email": "nope"},
        {"email": None},
        {"email": "a@b"},
        {"email": "a b@example.test"},
        {"email": "a@example.test\r\nBcc: all@example.test"},
        {"email": "a\u0000@example.test"},
        {"email": "a@example.test", "password": "short"},
        {"email": "a@example.test", "password": "x" * 300},
        {"email": "a@example.test", "password": "tab\tinside\u0000it"},
        {"email": "a@example.test", "roles": "admin"},
        [],
    ],
)
async def test_a_bad_invitation_is_refused(instance: Instance, body: Any) -> None:
    answer = await instance.http.post("/v1/api/users/invite", json=body, headers=await instance.bearer())

    assert answer.status_code == 400
    assert answer.json()["code"] == 400
    assert len(answer.json()["msg"]) > 10


async def test_a_lone_surrogate_is_refused(instance: Instance) -> None:
    body = b'{"email": "a\\ud800@example.test", "password": "\\ud800\\ud800\\ud800\\ud800\\ud800\\ud800\\ud800\\ud800"}'

    answer = await instance.http.post("/v1/api/users/invite", content=body, headers=await instance.bearer())

    assert answer.status_code == 400


async def test_only_an_administrator_makes_administrators(instance: Instance) -> None:
    await instance.invite("ann@example.test")
    body = {"email": "eve@example.test", "password": PASSWORD, "roles": ["admin"]}

    refused = await instance.http.post(
        "/v1/api/users/invite", json=body, headers=await instance.bearer("ann@example.test")
    )
    made = await instance.http.post("/v1/api/users/invite", json=body, headers=await instance.bearer())

    assert (refused.status_code, made.status_code) == (403, 200)
    users = (await instance.http.post("/v1/api/users/query", json={}, headers=await instance.bearer())).json()["users"]
    assert users[made.json()["id"]]["realmRoles"] == ["admin"]


async def test_inviting_may_be_left_to_administrators(instance: Instance) -> None:
    await instance.invite("ann@example.test")
    instance.context.settings.invitations = "admins"

    answer = await instance.http.post(
        "/v1/api/users/invite",
        json={"email": "bob@example.test"},
        headers=await instance.bearer("ann@example.test"),
    )

    assert answer.status_code == 403


async def test_a_deactivated_users_login_refresh_and_token_stop_at_once_and_work_again_later(
    instance: Instance,
) -> None:
    await instance.invite("ann@example.test")
    signed_in = await instance.login("ann@example.test")
    assert await instance.works(signed_in["access_token"])
    body, admin = {"email": "ann@example.test"}, await instance.bearer()

    off = await instance.http.post("/v1/api/users/deactivate", json=body, headers=admin)
    works = await instance.works(signed_in["access_token"])
    login = await instance.token(grant_type="password", username="ann@example.test", password=PASSWORD)
    refresh = await instance.token(grant_type="refresh_token", refresh_token=signed_in["refresh_token"])
    on = await instance.http.post("/v1/api/users/activate", json=body, headers=admin)

    assert (off.status_code, off.json(), on.json()) == (200, {}, {})
    assert not works
    assert (login.status_code, login.json()["error_description"]) == (400, "Account disabled")
    assert refresh.status_code == 400
    assert not await instance.works(signed_in["access_token"])
    assert await instance.works((await instance.login("ann@example.test"))["access_token"])


@pytest.mark.parametrize("path", ["activate", "deactivate"])
async def test_activating_takes_an_administrator_and_a_known_user(instance: Instance, path: str) -> None:
    await instance.invite("ann@example.test")
    await instance.invite("bob@example.test")
    admin, ann = await instance.bearer(), await instance.bearer("ann@example.test")
    if path == "activate":
        await instance.http.post("/v1/api/users/deactivate", json={"email": "bob@example.test"}, headers=admin)

    ghost = await instance.http.post(f"/v1/api/users/{path}", json={"email": "ghost@example.test"}, headers=admin)
    nul = await instance.http.post(f"/v1/api/users/{path}", json={"email": "a\u0000"}, headers=admin)
    lowly = await instance.http.post(f"/v1/api/users/{path}", json={"email": "bob@example.test"}, headers=ann)

    assert (ghost.status_code, nul.status_code, lowly.status_code) == (404, 400, 403)
    assert "ghost@example.test" in ghost.json()["msg"]


async def test_nobody_locks_themselves_or_the_last_administrator_out(instance: Instance) -> None:
    admin = await instance.bearer()
    name = instance.creds["username"]
    me = next(iter((await instance.http.post("/v1/api/users/query", json={}, headers=admin)).json()["users"]))
    body = {"id": me, "firstName": "A", "lastName": "B", "email": name, "enabled": True, "isAdmin": False}

    off = await instance.http.post("/v1/api/users/deactivate", json={"email": name}, headers=admin)
    lowered = await instance.http.post("/v1/api/user", json=body, headers=admin)

    assert (off.status_code, lowered.status_code) == (409, 409)


async def test_a_user_is_changed_and_sees_the_new_role_at_once(instance: Instance) -> None:
    ann = await instance.invite("ann@example.test")
    admin, mine = await instance.bearer(), await instance.bearer("ann@example.test")
    body = {
        "id": ann,
        "firstName": "Ann",
        "lastName": "Lee",
        "email": "ann.lee@example.test",
        "enabled": True,
        "isAdmin": True,
    }

    refused = await instance.http.post("/v1/api/user", json=body, headers=mine)
    done = await instance.http.post("/v1/api/user", json=body, headers=admin)
    ghost = await instance.http.post("/v1/api/user", json=body | {"id": str(uuid.uuid4())}, headers=admin)
    allowed = await instance.http.post("/v1/api/user", json=body | {"firstName": "Anne"}, headers=mine)

    assert (refused.status_code, done.status_code, ghost.status_code, allowed.status_code) == (403, 200, 404, 200)
    row = (await instance.http.get(f"{ADMIN_API}/{ann}", headers=admin)).json()
    assert (row["username"], row["email"]) == ("ann.lee@example.test", "ann.lee@example.test")
    assert (row["firstName"], row["lastName"]) == ("Anne", "Lee")


async def test_an_email_in_use_is_a_conflict(instance: Instance) -> None:
    ann = await instance.invite("ann@example.test")
    await instance.invite("bob@example.test")

    answer = await instance.http.put(
        f"{ADMIN_API}/{ann}", json={"email": "bob@example.test"}, headers=await instance.bearer()
    )

    assert answer.status_code == 409
    assert "bob@example.test" in answer.json()["errorMessage"]


async def test_search_by_email_puts_the_exact_match_first(instance: Instance) -> None:
    for name in ("joanne@example.test", "anne@example.test", "ann@example.test"):
        await instance.invite(name)
    headers = await instance.bearer("ann@example.test") | {"Content-Type": "application/json"}

    found = await instance.http.get(f"{ADMIN_API}?email=ANNE%40example.test", headers=headers)
    exact = await instance.http.get(f"{ADMIN_API}?email=anne%40example.test&exact=true", headers=headers)
    none = await instance.http.get(f"{ADMIN_API}?email=ghost%40example.test", headers=headers)
    percent = await instance.http.get(f"{ADMIN_API}?email=%25", headers=headers)

    assert [row["username"] for row in found.json()] == ["anne@example.test", "joanne@example.test"]
    assert [row["username"] for row in exact.json()] == ["anne@example.test"]
    assert none.json() == percent.json() == []


async def test_a_plus_in_an_address_is_found(instance: Instance) -> None:
    await instance.invite("ann+lab@example.test")

    found = await instance.http.get(f"{ADMIN_API}?email=ann%2Blab%40example.test", headers=await instance.bearer())

    assert [row["email"] for row in found.json()] == ["ann+lab@example.test"]


async def test_an_unknown_id_is_404_in_keycloaks_shape(instance: Instance) -> None:
    admin = await instance.bearer()

    answers = [
        await instance.http.get(f"{ADMIN_API}/{uuid.uuid4()}", headers=admin),
        await instance.http.get(f"{ADMIN_API}/x%00y", headers=admin),
        await instance.http.put(f"{ADMIN_API}/{uuid.uuid4()}", json={}, headers=admin),
    ]

    assert [(a.status_code, a.json()) for a in answers] == [(404, {"error": "User not found"})] * 3
    assert (await instance.http.get(ADMIN_API)).status_code == 401


async def test_a_representation_is_sent_back_with_enabled_flipped(instance: Instance) -> None:
    ann = await instance.invite("ann@example.test")
    admin = await instance.bearer()
    whole = (await instance.http.get(f"{ADMIN_API}/{ann}", headers=admin)).json()

    put = await instance.http.put(f"{ADMIN_API}/{ann}", json=whole | {"enabled": False}, headers=admin)

    assert (put.status_code, put.content) == (204, b"")
    assert (await instance.http.get(f"{ADMIN_API}/{ann}", headers=admin)).json()["enabled"] is False


async def test_an_ordinary_user_changes_their_own_name_alone(instance: Instance) -> None:
    ann, bob = await instance.invite("ann@example.test"), await instance.invite("bob@example.test")
    mine = await instance.bearer("ann@example.test")

    own = await instance.http.put(f"{ADMIN_API}/{ann}", json={"firstName": "Ann"}, headers=mine)
    email = await instance.http.put(f"{ADMIN_API}/{ann}", json={"email": "x@example.test"}, headers=mine)
    other = await instance.http.put(f"{ADMIN_API}/{bob}", json={"enabled": False}, headers=mine)
    nothing = await instance.http.put(f"{ADMIN_API}/{bob}", json={"enabled": True}, headers=mine)

    assert (own.status_code, email.status_code, other.status_code, nothing.status_code) == (204, 403, 403, 204)
    assert set(other.json()) == {"error"}


async def test_config_needs_no_token_and_features_do(instance: Instance) -> None:
    config = await instance.http.get("/v1/api/config")
    nobody = await instance.http.post("/v1/api/features/list", json={})
    features = await instance.http.post("/v1/api/features/list", headers=await instance.bearer())

    assert config.json() == {"default_arch": "x86"}
    assert nobody.status_code == 401
    assert features.json() == {"features": {"plateau": "true"}, "name": "Potoroo", "is_auth_enabled": True}


class Postman:
    """An SMTP server that keeps what it is given, or is down."""

    sent: list[EmailMessage]
    is_up = True

    def __init__(self, host: str, port: int, timeout: float) -> None:
        if not Postman.is_up:
            raise ConnectionRefusedError(111, "refused")

    def __enter__(self) -> Postman:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ehlo(self) -> None:
        pass

    def has_extn(self, name: str) -> bool:
        return False

    def send_message(self, message: EmailMessage) -> None:
        Postman.sent.append(message)


@pytest.mark.parametrize("is_up", [True, False])
async def test_a_mail_goes_out_when_a_server_is_set_and_its_failure_harms_nothing(
    instance: Instance, monkeypatch: pytest.MonkeyPatch, is_up: bool
) -> None:
    Postman.sent, Postman.is_up = [], is_up
    monkeypatch.setattr(smtplib, "SMTP", Postman)
    instance.context.settings.smtp_url = SecretStr("smtp://mail.example.test:2525")

    made = await instance.http.post(
        "/v1/api/users/invite", json={"email": "new@example.test"}, headers=await instance.bearer()
    )

    assert made.status_code == 200
    assert len(Postman.sent) == int(is_up)
    for message in Postman.sent:
        assert message["To"] == "new@example.test"
        assert made.json()["password"] in message.get_content()
        assert "http://potoroo.test/auth/realms/master/account" in message.get_content()
