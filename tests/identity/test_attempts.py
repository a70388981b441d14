"""Guessing passwords is slow."""

from __future__ import annotations

import httpx
import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.identity import attempts
from app.identity.tables import LoginAttempt
from app.identity.upkeep import tidy
from tests.identity.conftest import PASSWORD, Instance


async def guess(instance: Instance, username: str, password: str = "wrong", address: str = "") -> httpx.Response:
    form = {"grant_type": "password", "username": username, "password": password, "client_id": "sdk-client"}
    headers = {"X-Forwarded-For": address} if address else {}
    return await instance.http.post("/auth/realms/master/protocol/openid-connect/token", data=form, headers=headers)


async def test_after_some_failures_a_user_has_to_wait_longer_and_longer(instance: Instance) -> None:
    await instance.invite("ann@example.test")

    first = [(await guess(instance, "ann@example.test")).status_code for _ in range(attempts.PAIR_LIMIT)]
    blocked = await guess(instance, "ann@example.test", PASSWORD)
    instance.clock.move(seconds=1)
    second = await guess(instance, "ann@example.test")
    longer = await guess(instance, "ann@example.test", PASSWORD)

    assert first == [401] * attempts.PAIR_LIMIT
    assert (blocked.status_code, blocked.headers["retry-after"]) == (429, "1")
    assert blocked.json()["error"] == "too_many_attempts"
    assert second.status_code == 401
    assert (longer.status_code, longer.headers["retry-after"]) == (429, "2")

    instance.clock.move(seconds=2)
    assert (await guess(instance, "ann@example.test", PASSWORD)).status_code == 200
    assert (await guess(instance, "ann@example.test")).status_code == 401


async def test_the_wait_has_a_limit(instance: Instance) -> None:
    for _ in range(20):
        answer = await guess(instance, "ann@example.test")
        instance.clock.move(seconds=int(answer.headers.get("retry-after", 0)) + 61)

    for _ in range(2):
        answer = await guess(instance, "ann@example.test")

    assert answer.headers["retry-after"] == "60"


async def test_guesses_from_elsewhere_do_not_lock_the_user_out(instance: Instance) -> None:
    await instance.invite("ann@example.test")
    for _ in range(10):
        await guess(instance, "ann@example.test", address="203.0.113.9")

    stranger = await guess(instance, "ann@example.test", PASSWORD, address="203.0.113.9")
    home = await guess(instance, "ann@example.test", PASSWORD, address="198.51.100.1")

    assert (stranger.status_code, home.status_code) == (429, 200)


async def test_one_address_cannot_try_many_names(instance: Instance) -> None:
    outcomes = [
        (await guess(instance, f"user{n}@example.test", address="203.0.113.9")).status_code
        for n in range(attempts.ADDRESS_LIMIT + 1)
    ]

    assert outcomes == [401] * attempts.ADDRESS_LIMIT + [429]


async def test_many_right_logins_are_never_slowed(instance: Instance) -> None:
    outcomes = [await instance.login() for _ in range(attempts.ADDRESS_LIMIT + 5)]

    assert len(outcomes) == attempts.ADDRESS_LIMIT + 5


async def test_counters_are_forgotten_and_swept(instance: Instance, session: AsyncSession) -> None:
    for _ in range(attempts.PAIR_LIMIT):
        await guess(instance, "ann@example.test")
    instance.clock.move(minutes=16)

    again = await guess(instance, "ann@example.test")
    row = await session.scalar(select(LoginAttempt).where(LoginAttempt.key.startswith("pair:")))
    instance.clock.move(minutes=16)
    await tidy(instance.context)

    assert again.status_code == 401
    assert row is not None
    assert row.failures == 1
    assert await session.scalar(select(func.count()).select_from(LoginAttempt)) == 0


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("junk", "", True),
    ],
)
def test_an_attacker_is_known_by_what_one_can_hold(first: str, second: str, same: bool) -> None:
    assert (attempts.keys_of("ann", first) == attempts.keys_of("ann", second)) is same


def test_a_counter_keeps_no_name_and_has_a_bounded_key() -> None:
    keys = attempts.keys_of("ann" * 10_000, "192.0.2.1")

    assert all("ann" not in key and len(key) < 120 for key in keys)
