"""Failed logins: counted and slowed per user, per address, and per user from one address.

An attempt is counted before the password is looked at, so that many at once do not get more guesses than one after the
other; a right password takes its count back. A stranger's guesses hardly slow the user themselves: from one address
few failures are enough, from all together it takes many.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Interval, case, cast, delete, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import insert

from app.errors import TooManyRequests
from app.identity.tables import LoginAttempt
from app.kit.context import Context

PAIR_LIMIT, ADDRESS_LIMIT, USER_LIMIT = 10, 50, 200
"""Failures without a pause, with room for right logins under way; from then on the pauses double."""
LONGEST_S = 60.0
FORGOTTEN = timedelta(minutes=15)
"""After so long without a failure the count starts again."""
_FREE = datetime(2000, 1, 1, tzinfo=UTC)
"""Not to wait: long past, and not "now", which another request's clock may have read a moment before."""
# A crash of the database may lose the last counts: no login waits for the disk because of them.
_HASTY = text("SET LOCAL synchronous_commit TO off")


def keys_of(username: str, address: str) -> dict[str, int]:
    """Return the counters of one attempt with their limits, in an order in which locks do not cross."""
    network = _network(address)
    name = hashlib.sha256(username.encode()).hexdigest()[:32]  # bounded, whatever was sent as a name
    return {f"address:{network}": ADDRESS_LIMIT, f"pair:{name}:{network}": PAIR_LIMIT, f"user:{name}": USER_LIMIT}


async def count(context: Context, keys: dict[str, int]) -> None:
    """Count one attempt; raises `TooManyRequests` while one of `keys` has to wait."""
    now = context.clock.now()
    refused: list[str] = []
    async with context.sessions.begin() as session:
        await session.execute(_HASTY)
        for key, limit in keys.items():
            failures = case((LoginAttempt.seen_at < now - FORGOTTEN, 1), else_=LoginAttempt.failures + 1)
            pause_s = func.least(LONGEST_S, func.power(2.0, func.least(failures - limit, 10)))
            until = literal(now) + cast(func.make_interval(0, 0, 0, 0, 0, 0, pause_s), Interval)
            statement = insert(LoginAttempt).values(key=key, failures=1, free_at=_FREE, seen_at=now)
            counted = await session.scalar(
                statement.on_conflict_do_update(
                    index_elements=["key"],
                    set_={
                        "failures": failures,
                        "free_at": case((failures < limit, _FREE), else_=until),
                        "seen_at": now,
                    },
                    where=LoginAttempt.free_at <= now,
                ).returning(LoginAttempt.failures)
            )
            if counted is None:
                refused.append(key)
        if refused:
            free_at = await session.scalar(select(func.max(LoginAttempt.free_at)).where(LoginAttempt.key.in_(refused)))
            wait_s = max(1, math.ceil((free_at - now).total_seconds())) if free_at else 1
            error = TooManyRequests(f"Too many failed logins; try again in {wait_s} seconds.")
            error.headers = {"Retry-After": str(wait_s)}
            raise error  # and count nothing


async def forgive(context: Context, keys: dict[str, int]) -> None:
    """Take back the count of an attempt that was right; the user's own address starts anew."""
    async with context.sessions.begin() as session:
        await session.execute(_HASTY)
        for key in keys:
            if key.startswith("pair:"):
                await session.execute(delete(LoginAttempt).where(LoginAttempt.key == key))
            else:
                await session.execute(
                    update(LoginAttempt)
                    .where(LoginAttempt.key == key)
                    .values(failures=func.greatest(LoginAttempt.failures - 1, 0), free_at=_FREE)
                )


async def sweep(context: Context, session: Any) -> None:
    """Delete the counters that start anew anyway."""
    await session.execute(delete(LoginAttempt).where(LoginAttempt.seen_at < context.clock.now() - FORGOTTEN))


def _network(address: str) -> str:
    """Return what one attacker can be taken to hold: an IPv4 address, or a /64 of IPv6."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
