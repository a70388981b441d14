"""Small rules that hold for whatever is sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from argon2 import PasswordHasher
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Invalid
from app.identity import claims, origin, pages, passwords
from app.identity.schemas import is_email
from app.identity.tables import User
from app.settings import Settings
from tests.identity.conftest import Instance


def request(peer: str | None, headers: dict[str, str], **settings: Any) -> Request:
    given_settings = Settings(**settings)
    app = SimpleNamespace(state=SimpleNamespace(context=SimpleNamespace(settings=given_settings)))
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    client = (peer, 1234) if peer else None
    return Request(
        {
            "type": "http",
            "app": app,
            "headers": raw,
            "client": client,
            "scheme": "http",
            "path": "/",
            "query_string": b"",
            "server": ("0.0.0.0", 80),
        }
    )


@given(st.text() | st.text(alphabet="/\\:.@abc?#\t\n ", max_size=12))
def test_a_target_after_login_is_always_on_this_server(target: str) -> None:
    chosen = pages._local(target)

    assert urlsplit(urljoin("https://here.example.org/", chosen)).netloc == "here.example.org"
    assert chosen.startswith("/")


@given(st.text(max_size=300))
def test_what_counts_as_an_email_can_be_stored_and_sent(text: str) -> None:
    if is_email(text):
        assert text.count("@") == 1
        assert not set(text) & set("\r\n\0 <>,")
        assert text.encode()


@pytest.mark.parametrize("good", ["jo@example.org", "jo+x@a-b.example.org", "ø@example.org", "j.o_x@example.org"])
def test_ordinary_addresses_are_taken(good: str) -> None:
    assert is_email(good)


@given(st.lists(st.sampled_from([*claims.SCOPES, "moon"]), max_size=6))
def test_a_scope_is_granted_without_doubles_or_refused(asked: list[str]) -> None:
    granted = claims.granted_scope(" ".join(asked))

    if "moon" in asked:
        assert granted is None
    else:
        assert granted is not None
        words = granted.split()
        assert len(words) == len(set(words))
        assert set(asked) | {"profile", "email"} == set(words)


def test_made_up_passwords_differ_and_may_be_used() -> None:
    made = {passwords.make_up() for _ in range(50)}

    assert len(made) == 50
    assert all(passwords.check(one) == one for one in made)


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "seen"),
    [
        ("127.0.0.1", "203.0.113.9", "127.0.0.1", "203.0.113.9"),
        ("203.0.113.1", "198.51.100.2", "127.0.0.1", "203.0.113.1"),
        ("127.0.0.1", "198.51.100.2, 203.0.113.9", "127.0.0.1", "203.0.113.9"),
        ("127.0.0.1", "198.51.100.2, 10.1.2.3", "127.0.0.1,10.0.0.0/8", "198.51.100.2"),
        ("10.9.9.9", "", "10.0.0.0/8", "10.9.9.9"),
        ("203.0.113.1", "198.51.100.2", "*", "198.51.100.2"),
        (None, "198.51.100.2", "127.0.0.1", ""),
    ],
)
def test_the_address_is_what_the_last_untrusted_hop_said(
    peer: str | None, forwarded: str, trusted: str, seen: str
) -> None:
    made = request(peer, {"X-Forwarded-For": forwarded}, trusted_proxies=trusted)

    assert origin.client_address(made) == seen


@pytest.mark.parametrize(
    ("headers", "peer", "expected"),
    [
        ({"Host": "a.example.org"}, "203.0.113.1", "http://a.example.org"),
        ({"Host": "[::1]:8080"}, "203.0.113.1", "http://[::1]:8080"),
        ({"Host": "a", "X-Forwarded-Host": "evil", "X-Forwarded-Proto": "https"}, "203.0.113.1", "http://a"),
        ({"Host": "a", "X-Forwarded-Host": "b, c", "X-Forwarded-Proto": "https"}, "127.0.0.1", "https://b"),
        ({"Host": "a", "X-Forwarded-Proto": "javascript"}, "127.0.0.1", None),
        ({"Host": "a/b"}, "203.0.113.1", None),
        ({"Host": 'a"><x'}, "203.0.113.1", None),
        ({}, "203.0.113.1", None),
    ],
)
def test_the_base_url_is_taken_from_those_who_may_say_it(
    headers: dict[str, str], peer: str, expected: str | None
) -> None:
    made = request(peer, headers)

    if expected is None:
        with pytest.raises(Invalid):
            origin.base_url(made)
    else:
        assert origin.base_url(made) == expected
        public = request(peer, headers, public_url="https://ml.example.org/")
        assert origin.base_url(public) == "https://ml.example.org"


async def test_a_password_hashed_at_former_costs_is_hashed_anew_at_the_next_login(
    instance: Instance, session: AsyncSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await session.scalar(select(User.password_hash))
    monkeypatch.setattr(passwords, "_HASHER", PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))

    await instance.login()

    after = await session.scalar(select(User.password_hash))
    assert before != after
    assert "m=16,t=2" in str(after)
    await instance.login()
    assert await session.scalar(select(User.password_hash)) == after


async def test_refusals_of_the_token_endpoint_are_documented(instance: Instance) -> None:
    document = (await instance.http.get("/v1/api/openapi.json")).json()

    token = document["paths"]["/auth/realms/master/protocol/openid-connect/token"]["post"]
    assert {"200", "400", "401", "429"} <= set(token["responses"])
    assert "OAuthErrorBody" in str(token["responses"]["401"])
    assert "security" not in token
    assert "bearer" in str(document["paths"]["/v1/api/users/query"]["post"]["security"])
