"""The pages, as somebody without JavaScript uses them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.identity.conftest import PASSWORD, REALM, TOKEN, Instance

GRANT = "urn:ietf:params:oauth:grant-type:device_code"


class Page(HTMLParser):
    """What a page offers: its first form's fields, its heading, and what it loads."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__()
        self.answer = answer
        self.fields: dict[str, str] = {}
        self.labels: set[str] = set()
        self.inputs: set[str] = set()
        self.loads: list[str] = []
        self.lang = ""
        self.feed(answer.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "html":
            self.lang = given.get("lang", "")
        if tag == "label":
            self.labels.add(given["for"])
        if tag == "input":
            self.fields.setdefault(given["name"], given.get("value", ""))
            if given.get("type") != "hidden":
                self.inputs.add(given["id"])
        self.loads += [given[name] for name in ("src", "href") if name in given]

    @property
    def heading(self) -> str:
        found = re.search(r"<h1>(.*?)</h1>", self.answer.text)
        return found.group(1) if found else ""


async def start(instance: Instance) -> dict[str, str]:
    answer = await instance.http.post(f"{REALM}/protocol/openid-connect/auth/device", data={"client_id": "sdk-client"})
    assert answer.status_code == 200
    return dict(answer.json())


async def poll(instance: Instance, device: dict[str, str]) -> httpx.Response:
    form = {"grant_type": GRANT, "client_id": "sdk-client", "device_code": device["device_code"]}
    return await instance.http.post(TOKEN, data=form)


async def sign_in(browser: httpx.AsyncClient, page: Page, username: str, password: str) -> Page:
    form = {"csrf": page.fields["csrf"], "next": page.fields["next"], "username": username, "password": password}
    return Page(await browser.post(f"{REALM}/login", data=form))


async def decide(browser: httpx.AsyncClient, page: Page, decision: str) -> Page:
    form = {"csrf": page.fields["csrf"], "user_code": page.fields["user_code"], "decision": decision}
    return Page(await browser.post(f"{REALM}/device", data=form))


async def test_a_program_is_let_in_by_its_user(instance: Instance) -> None:
    await instance.invite("ann@example.test")
    device = await start(instance)
    waiting = await poll(instance, device)

    async with instance.browser() as browser:
        login = Page(await browser.get(device["verification_uri_complete"]))
        confirm = await sign_in(browser, login, "ann@example.test", PASSWORD)
        done = await decide(browser, confirm, "allow")
    answer = await poll(instance, device)

    assert (waiting.status_code, waiting.json()["error"]) == (400, "authorization_pending")
    assert (login.heading, confirm.heading, done.heading) == ("Sign in", "Let this program in?", "You are signed in")
    assert device["user_code"] in confirm.answer.text
    assert answer.status_code == 200
    assert answer.json()["refresh_expires_in"] > 0
    assert await instance.works(answer.json()["access_token"])
    assert (await poll(instance, device)).json()["error"] == "invalid_grant"


async def test_a_refused_program_is_told_so(instance: Instance) -> None:
    device = await start(instance)

    async with instance.browser() as browser:
        login = Page(await browser.get(device["verification_uri_complete"]))
        confirm = await sign_in(browser, login, instance.creds["username"], instance.creds["password"])
        done = await decide(browser, confirm, "deny")

    assert done.heading == "Refused"
    assert (await poll(instance, device)).json()["error"] == "access_denied"


async def test_polling_too_fast_slows_down_and_an_old_code_expires(instance: Instance) -> None:
    device = await start(instance)

    outcomes = [(await poll(instance, device)).json()["error"] for _ in range(2)]
    instance.clock.move(seconds=5)
    outcomes.append((await poll(instance, device)).json()["error"])
    instance.clock.move(seconds=600)
    outcomes.append((await poll(instance, device)).json()["error"])

    assert outcomes == ["authorization_pending", "slow_down", "authorization_pending", "expired_token"]


async def test_a_code_is_typed_in_any_spelling_and_a_wrong_one_is_asked_for_again(instance: Instance) -> None:
    device = await start(instance)
    async with instance.browser() as browser:
        login = Page(await browser.get(device["verification_uri"]))
        ask = await sign_in(browser, login, instance.creds["username"], instance.creds["password"])
        wrong = Page(await browser.get(f"{REALM}/device", params={"user_code": "BBBB-BBBB"}))
        typed = device["user_code"].lower().replace("-", " ")
        right = Page(await browser.get(f"{REALM}/device", params={"user_code": typed}))

    assert ask.heading == "Sign a program in"
    assert (wrong.answer.status_code, wrong.heading) == (404, "Sign a program in")
    assert 'role="alert"' in wrong.answer.text
    assert right.heading == "Let this program in?"


async def test_a_wrong_password_is_said_on_the_page_and_the_name_stays(instance: Instance) -> None:
    async with instance.browser() as browser:
        login = Page(await browser.get(f"{REALM}/login"))
        again = await sign_in(browser, login, '"><script>x</script>', "wrong")

    assert again.answer.status_code == 401
    assert "Name or password is wrong." in again.answer.text
    assert "<script>" not in again.answer.text
    assert again.fields["username"] == '"><script>x</script>'


async def test_a_temporary_password_is_changed_at_the_first_login(instance: Instance) -> None:
    made = await instance.http.post(
        "/v1/api/users/invite", json={"email": "new@example.test"}, headers=await instance.bearer()
    )
    async with instance.browser() as browser:
        login = Page(await browser.get(f"{REALM}/account"))
        change = await sign_in(browser, login, "new@example.test", made.json()["password"])
        early = Page(await browser.get(f"{REALM}/account"))
        form = {"csrf": change.fields["csrf"], "next": change.fields["next"]}
        path = str(change.answer.url)
        tries = [
            Page(await browser.post(path, data=form | {"password": new, "again": again}))
            for new, again in (
                ("short", "short"),
                ("long enough 1", "long enough 2"),
                (made.json()["password"], made.json()["password"]),
                ("long enough 1", "long enough 1"),
            )
        ]

    assert change.heading == "Choose a password"
    assert early.heading == "Sign in"
    assert [page.answer.status_code for page in tries] == [400, 400, 400, 200]
    assert tries[-1].heading == "Your account"
    answer = await instance.token(grant_type="password", username="new@example.test", password="long enough 1")
    assert answer.status_code == 200


async def test_changing_ones_password_ends_the_other_sessions_and_signing_out_this_one(instance: Instance) -> None:
    await instance.invite("ann@example.test")
    elsewhere = await instance.login("ann@example.test")
    async with instance.browser() as browser:
        account = await sign_in(browser, Page(await browser.get(f"{REALM}/account")), "ann@example.test", PASSWORD)
        form = {"csrf": account.fields["csrf"], "password": "another one", "again": "another one"}
        wrong = Page(await browser.post(f"{REALM}/account/password", data=form | {"current": "nope"}))
        right = Page(await browser.post(f"{REALM}/account/password", data=form | {"current": PASSWORD}))
        out = Page(await browser.post(f"{REALM}/account/logout", data={"csrf": account.fields["csrf"]}))
        after = Page(await browser.get(f"{REALM}/account"))

    assert (wrong.answer.status_code, right.answer.status_code) == (400, 200)
    assert "The password was changed" in right.answer.text
    assert not await instance.works(elsewhere["access_token"])
    assert (out.heading, after.heading) == ("Signed out", "Sign in")


@pytest.mark.parametrize("path", ["login", "device", "account/password", "account/logout"])
async def test_a_form_from_elsewhere_is_refused(instance: Instance, path: str) -> None:
    async with instance.browser() as browser:
        page = Page(await browser.get(f"{REALM}/login"))
        page = await sign_in(browser, page, instance.creds["username"], instance.creds["password"])
        token = page.fields["csrf"]
        wrong = await browser.post(f"{REALM}/{path}", data={"csrf": "guessed"})
        foreign = await browser.post(
            f"{REALM}/{path}", data={"csrf": token}, headers={"Origin": "https://evil.example.org"}
        )
    async with instance.browser() as stranger:
        no_cookie = await stranger.post(f"{REALM}/{path}", data={"csrf": token})

    assert [a.status_code for a in (wrong, foreign, no_cookie)] == [403, 403, 403]
    assert Page(wrong).heading == "This did not work"


@pytest.mark.parametrize(
    "target",
    ["https://evil.example.org/", "//evil.example.org", "/\\evil.example.org", "javascript:alert(1)", "/a\r\nX: y"],
)
async def test_nobody_is_sent_to_another_site(instance: Instance, target: str) -> None:
    async with instance.browser() as browser:
        page = Page(await browser.get(f"{REALM}/login", params={"next": target}))
        form = {"csrf": page.fields["csrf"], "next": target, "username": instance.creds["username"]}
        answer = await browser.post(
            f"{REALM}/login", data=form | {"password": instance.creds["password"]}, follow_redirects=False
        )

    assert page.fields["next"] == answer.headers["location"] == f"{REALM}/account"


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_cookies_are_out_of_reach_of_scripts_and_other_sites(instance: Instance, scheme: str) -> None:
    async with instance.browser(f"{scheme}://potoroo.test") as browser:
        page = Page(await browser.get(f"{REALM}/login"))
        form = {"csrf": page.fields["csrf"], "next": "", "username": instance.creds["username"]}
        answer = await browser.post(
            f"{REALM}/login", data=form | {"password": instance.creds["password"]}, follow_redirects=False
        )

    cookies = [c.lower() for c in (*page.answer.headers.get_list("set-cookie"), *answer.headers.get_list("set-cookie"))]
    assert len(cookies) == 2
    for cookie in cookies:
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert ("secure" in cookie, cookie.startswith("__host-")) == (scheme == "https", scheme == "https")


async def test_pages_are_labelled_framed_nowhere_and_load_nothing_from_outside(instance: Instance) -> None:
    async with instance.browser() as browser:
        login = Page(await browser.get(f"{REALM}/login"))
        account = await sign_in(browser, login, instance.creds["username"], instance.creds["password"])
        ask = Page(await browser.get(f"{REALM}/device"))
        style = await browser.get(f"{REALM}/style.css")

    assert style.headers["content-type"].startswith("text/css")
    assert "@import" not in style.text
    assert "url(" not in style.text
    for page in (login, account, ask):
        assert page.lang == "en"
        assert page.inputs <= page.labels
        assert page.inputs
        assert all(urlsplit(one).netloc == "" for one in page.loads)
        assert "<script" not in page.answer.text
        assert "default-src 'none'" in page.answer.headers["content-security-policy"]
        assert page.answer.headers["x-frame-options"] == "DENY"
        assert page.answer.headers["cache-control"] == "no-store"


async def test_a_deactivated_user_is_signed_out_of_the_browser_too(instance: Instance) -> None:
    await instance.invite("ann@example.test")
    async with instance.browser() as browser:
        await sign_in(browser, Page(await browser.get(f"{REALM}/account")), "ann@example.test", PASSWORD)
        await instance.http.post(
            "/v1/api/users/deactivate", json={"email": "ann@example.test"}, headers=await instance.bearer()
        )
        after = Page(await browser.get(f"{REALM}/account"))
        again = await sign_in(browser, after, "ann@example.test", PASSWORD)

    assert after.heading == "Sign in"
    assert "deactivated" in again.answer.text
    assert parse_qs(urlsplit(str(after.answer.url)).query)["next"] == [f"{REALM}/account"]
