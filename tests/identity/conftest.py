"""A real provider on the test's transaction: its own keys, clients and users; time that only moves when told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from cryptography.hazmat.primitives.asymmetric import rsa
from fastapi import FastAPI

from app.identity import keys, parts, passwords
from app.identity.bootstrap import bootstrap
from app.kit.context import Context
from app.main import create_app

REALM = "/auth/realms/master"
TOKEN = f"{REALM}/protocol/openid-connect/token"
PASSWORD = "Snugglebunnies1!"


class StoppedClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.moment

    def move(self, **by: float) -> None:
        self.moment += timedelta(**by)


@dataclass
class Instance:
    """An instance with its administrator's credentials and clients that act as programs and people."""

    context: Context
    http: httpx.AsyncClient
    clock: StoppedClock
    creds: dict[str, str]
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def basic(self) -> tuple[str, str]:
        return self.creds["confidentialClient"], self.creds["confidentialPassword"]

    async def token(self, **form: str) -> httpx.Response:
        """Ask the token endpoint as the confidential client."""
        return await self.http.post(TOKEN, data=form, auth=self.basic)

    async def login(self, username: str = "", password: str = "", **form: str) -> dict[str, Any]:
        """Sign in; the administrator unless somebody is named."""
        name = username or self.creds["username"]
        secret = password or (self.creds["password"] if not username else PASSWORD)
        answer = await self.token(grant_type="password", username=name, password=secret, **form)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def bearer(self, username: str = "") -> dict[str, str]:
        """Return the header that signs requests of somebody."""
        return {"Authorization": f"Bearer {(await self.login(username))['access_token']}"}

    async def invite(self, email: str, **more: Any) -> str:
        """Invite somebody with the usual password; returns their id."""
        body = {"email": email, "password": PASSWORD} | more
        answer = await self.http.post("/v1/api/users/invite", json=body, headers=await self.bearer())
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def works(self, token: str) -> bool:
        """Tell whether a token opens a door of the API."""
        answer = await self.http.post("/v1/api/users/query", json={}, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code in (200, 401), answer.text
        return answer.status_code == 200

    def browser(self, base: str = "http://potoroo.test") -> httpx.AsyncClient:
        """Return a browser: it keeps cookies and follows redirects."""
        return httpx.AsyncClient(transport=self.http._transport, base_url=base, follow_redirects=True)


_QUICK_HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
_RSA_KEY = rsa.generate_private_key(65537, 2048)
_apps: list[FastAPI] = []


@pytest.fixture(autouse=True)
def _quick_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_HASHER", _QUICK_HASHER)
    monkeypatch.setattr(keys.rsa, "generate_private_key", lambda *_: _RSA_KEY)


def app_on(context: Context) -> FastAPI:
    """Return the application on `context`: made once, since its routes take longer to build than a test to run."""
    if not _apps:
        _apps.append(create_app(context, roles=()))
    _apps[0].state.context = context
    return _apps[0]


@pytest.fixture
async def instance(context: Context) -> AsyncIterator[Instance]:
    """A fresh instance after its first start."""
    context.clock = StoppedClock()
    await bootstrap(context)
    await parts.open_parts(context)
    creds = json.loads((context.settings.home / "creds.json").read_text())
    transport = httpx.ASGITransport(app_on(context), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://potoroo.test") as http:
        yield Instance(context, http, context.clock, creds)
