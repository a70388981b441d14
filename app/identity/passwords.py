"""Passwords: hashed by Argon2id, made up for invitations, checked against the least that is asked of them."""

from __future__ import annotations

import asyncio
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from app.errors import Invalid

MIN_LENGTH, MAX_LENGTH = 8, 256

_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # without what looks alike in print
_NOBODY = _HASHER.hash(secrets.token_hex())


def check(password: str) -> str:
    """Return `password` if it may be used; raises `Invalid` otherwise."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise Invalid(f"The password must have between {MIN_LENGTH} and {MAX_LENGTH} characters.")
    return password


def make_up() -> str:
    """Return a random password that can be read out: about 99 bits."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(5)) for _ in range(4))


async def hashed(password: str) -> str:
    """Return the hash to store."""
    return await asyncio.to_thread(_HASHER.hash, password)


async def matches(stored: str | None, password: str) -> bool:
    """Tell whether `password` is the one; takes as long for somebody who has none."""
    if len(password) > MAX_LENGTH:
        return False
    right = await asyncio.to_thread(_verify, stored or _NOBODY, password)
    return right and stored is not None


def is_outdated(stored: str) -> bool:
    """Tell whether the hash was made with other costs than today's."""
    return _HASHER.check_needs_rehash(stored)


def _verify(stored: str, password: str) -> bool:
    try:
        return _HASHER.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False
