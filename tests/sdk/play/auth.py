"""Signing in."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

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


class Form(HTMLParser):
    """The first form of a page, as a browser without JavaScript sees it."""

    def __init__(self, page: requests.Response) -> None:
        super().__init__()
        self.target, self.method = page.url, "get"
        self.fields: dict[str, str] = {}
        self.buttons: dict[str, tuple[str, str]] = {}
        self._button: tuple[str, str] | None = None
        self.feed(page.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.target, self.method = urljoin(self.target, given.get("action", "")), given.get("method", "get").lower()
        elif tag == "input" and "name" in given:
            self.fields[given["name"]] = given.get("value", "")
        elif tag == "button":
            self._button = given.get("name", ""), given.get("value", "")

    def handle_data(self, data: str) -> None:
        if self._button is not None and data.strip():
            self.buttons[data.strip()] = self._button

    def handle_endtag(self, tag: str) -> None:
        if tag == "button":
            self._button = None

    def press(self, browser: requests.Session, button: str, **typed: str) -> requests.Response:
        """Fill the form in and press one of its buttons."""
        name, value = self.buttons[button]
        values = self.fields | typed | ({name: value} if name else {})
        sent = {"data": values} if self.method == "post" else {"params": values}
        page = browser.request(self.method, self.target, timeout=20, **sent)  # type: ignore[arg-type]
        page.raise_for_status()
        return page


class Person(threading.Thread):
    """Somebody who opens the address that the SDK prints and answers with one of the page's buttons."""

    def __init__(self, stage: Stage, printed: io.StringIO, button: str) -> None:
        super().__init__(daemon=True)
        self.given = json.loads(stage.credentials.read_text())
        self.printed, self.button = printed, button
        self.last = ""
        self.problem: BaseException | None = None

    def run(self) -> None:
        """Sign in at the page, and decide."""
        try:
            with requests.Session() as browser:
                page = browser.get(self._address(), timeout=20)
                page = Form(page).press(
                    browser, "Sign in", username=self.given["username"], password=self.given["password"]
                )
                self.last = Form(page).press(browser, self.button).text
        except BaseException as exc:
            self.problem = exc

    def _address(self) -> str:
        for _ in range(200):
            found = re.search(r"https?://\S+", self.printed.getvalue())
            if found:
                return found.group()
            time.sleep(0.1)
        raise AssertionError(f"no address was printed: {self.printed.getvalue()!r}")


@contextlib.contextmanager
def _browser(stage: Stage, button: str) -> Iterator[Person]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        person = Person(stage, printed, button)
        person.start()
        yield person
    person.join(30)
    if person.problem is not None:
        raise person.problem


@scenario()
def sso_by_a_device_code_through_the_page(stage: Stage) -> None:
    stage.enter("auth-sso")
    with _browser(stage, "Let it in") as person:
        wl = wallaroo.Client(auth_type="sso", **stage.endpoints)

        assert wl.list_workspaces()
        assert "Login successful!" in person.printed.getvalue()
    assert "You are signed in" in person.last
    kept = _kept_token()
    assert kept["user_email"] == json.loads(stage.credentials.read_text())["email"]

    again = wallaroo.Client(auth_type="sso", **stage.endpoints)  # nobody is asked a second time
    assert again.list_workspaces()


@scenario()
def sso_that_is_refused_at_the_page(stage: Stage) -> None:
    stage.enter("auth-sso-no")
    with _browser(stage, "Refuse") as person, Raises("TokenFetchError", text="access_denied"):
        wallaroo.Client(auth_type="sso", **stage.endpoints).list_workspaces()
    assert "The program was not let in" in person.last


def _token_file() -> Path:
    return Path(os.environ["HOME"]) / ".cache" / "wallaroo_sdk" / "auth" / "keycloak.json"


def _kept_token() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(_token_file().read_text())
    return kept


@scenario()
def an_old_token_is_refreshed(stage: Stage) -> None:
    stage.client(home="auth-refresh")
    old = _kept_token()
    _token_file().write_text(json.dumps(old | {"expiry": 0.0}))
    os.environ["WALLAROO_PASSWORD"] = "not asked for"

    assert wallaroo.Client(auth_type="user_password", **stage.endpoints).list_workspaces()
    assert _kept_token()["access_token"] != old["access_token"]
    assert _kept_token()["expiry"] > time.time()


@scenario()
def a_refresh_that_is_rejected_leads_to_a_new_login(stage: Stage) -> None:
    stage.client(home="auth-rejected")
    old = _kept_token()
    _token_file().write_text(json.dumps(old | {"expiry": 0.0, "refresh_token": "revoked-since"}))

    assert wallaroo.Client(auth_type="user_password", **stage.endpoints).list_workspaces()
    assert _kept_token()["refresh_token"] != "revoked-since"


@scenario()
def a_task_s_offline_token_serves_auth_type_orch(stage: Stage) -> None:
    stage.enter("auth-orch")
    given = json.loads(stage.credentials.read_text())
    form = {"client_id": "sdk-client", "grant_type": "password", "scope": "offline_access"}
    form |= {k: given[k] for k in ("username", "password")}
    reply = requests.post(f"{stage.url}/auth/realms/master/protocol/openid-connect/token", data=form, timeout=10).json()
    laid_out = {
        "access_token": reply["access_token"],
        "expiry": 0.0,
        "refresh_token": reply["refresh_token"],
        "refresh_token_expiry": time.time() + 3600,
        "user_id": "",
        "user_email": "",
    }
    _token_file().parent.mkdir(parents=True)
    _token_file().write_text(json.dumps(laid_out))
    os.environ["WALLAROO_TASK_ID"] = "00000000-0000-4000-8000-000000000000"
    try:
        # A task's environment decides, whatever its code asks for.
        wl = wallaroo.Client(auth_type="user_password", **stage.endpoints)

        assert wl.auth.user_email() == given["email"]
        assert wl.list_workspaces()
        assert _kept_token() == laid_out
    finally:
        del os.environ["WALLAROO_TASK_ID"]
    assert wallaroo.Client(auth_type="orch", **stage.endpoints).list_workspaces()


@scenario()
def the_environment_names_the_way_to_sign_in(stage: Stage) -> None:
    stage.enter("auth-type")
    given = json.loads(stage.credentials.read_text())
    os.environ["WALLAROO_USER"], os.environ["WALLAROO_PASSWORD"] = given["username"], given["password"]
    os.environ["WALLAROO_SDK_AUTH_TYPE"] = "user_password"
    try:
        assert wallaroo.Client(**stage.endpoints).list_workspaces()
    finally:
        del os.environ["WALLAROO_SDK_AUTH_TYPE"]


@scenario()
def the_client_gives_its_token_to_other_programs(stage: Stage) -> None:
    header = stage.client(home="auth-header").auth.auth_header()

    reply = requests.post(f"{stage.url}/v1/api/workspaces/list", json={}, headers=header, timeout=10)

    assert reply.status_code == 200
    assert reply.json()["workspaces"]
