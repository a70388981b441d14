"""Signing in."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import requests
import wallaroo
from play.stage import Raises, Stage, scenario, since, unless


@scenario()
def user_password_from_the_environment(stage: Stage) -> None:
    wl = stage.client(home="auth-env")

    assert wl.get_current_workspace().name().endswith(" - Default Workspace")


@scenario()
def user_password_from_a_credentials_file(stage: Stage) -> None:
    stage.enter("auth-file")
    for name in ("WALLAROO_USER", "WALLAROO_PASSWORD"):
        os.environ.pop(name, None)
    os.environ["WALLAROO_SDK_CREDENTIALS"] = str(stage.credentials)
    wl = wallaroo.Client(auth_type="user_password", **stage.endpoints)
    del os.environ["WALLAROO_SDK_CREDENTIALS"]

    assert wl.list_workspaces()


@scenario()
def a_cached_token_serves_the_next_client(stage: Stage) -> None:
    stage.client(home="auth-cache")
    os.environ["WALLAROO_PASSWORD"] = "not asked for"
    again = wallaroo.Client(auth_type="user_password", **stage.endpoints)

    assert again.list_workspaces()


@scenario()
def a_wrong_password_is_refused(stage: Stage) -> None:
    with Raises("TokenFetchError", text="401"):
        stage.client(("admin@potoroo.local", "wrong"), home="auth-wrong").list_workspaces()


def _token(stage: Stage) -> str:
    given = json.loads(stage.credentials.read_text())
    form = {"client_id": "sdk-client", "grant_type": "password"} | {k: given[k] for k in ("username", "password")}
    reply = requests.post(f"{stage.url}/auth/realms/master/protocol/openid-connect/token", data=form, timeout=10)
    return str(reply.json()["access_token"])


def _with_token(stage: Stage, access_token: str) -> wallaroo.Client:
    body = access_token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    path = Path(os.environ["HOME"]) / "token.json"
    path.write_text(json.dumps({"token": access_token, "user_email": claims["email"], "user_id": claims["sub"]}))
    os.environ["WALLAROO_SDK_CREDENTIALS"] = str(path)
    try:
        return wallaroo.Client(auth_type="token", **stage.endpoints)
    finally:
        del os.environ["WALLAROO_SDK_CREDENTIALS"]


@scenario()
def a_token_from_a_file(stage: Stage) -> None:
    stage.enter("auth-token")
    wl = _with_token(stage, _token(stage))

    assert wl.list_workspaces()


@scenario()
def a_wrong_token_is_told_by_graphql(stage: Stage) -> None:
    stage.enter("auth-bad-token")
    head, body, _ = _token(stage).split(".")
    wl = _with_token(stage, f"{head}.{body}.AAAA")

    with Raises("TransportQueryError", text="invalid-jwt"):
        wl.list_tags()


@scenario(unless(since("2024.1"), "older clients fall back to calls without a token"))
def no_way_to_sign_in_is_an_error(stage: Stage) -> None:
    stage.enter("auth-none")
    with Raises("ValueError"):
        wallaroo.Client(**stage.endpoints)
