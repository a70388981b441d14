"""RS256 JSON Web Tokens: what an engine needs of them, on `cryptography` alone.

jose would do it too, but loads what it takes for every other kind of key: two MiB, and a twelfth of an engine's start.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.hashes import SHA256

ALGORITHM = "RS256"
Keys: TypeAlias = "Mapping[str | None, Sequence[RSAPublicKey]]"
"""Public keys by their id; those without one are under None."""


class BadToken(Exception):
    """A token that proves nothing."""


def read_keys(published: Iterable[Mapping[str, str]]) -> Keys:
    """Return those keys of a JWK set that may sign tokens; raises `ValueError` for one that cannot be read."""
    keys: dict[str | None, list[RSAPublicKey]] = {}
    for key in published:
        if (key.get("kty"), key.get("alg", ALGORITHM), key.get("use", "sig")) == ("RSA", ALGORITHM, "sig"):
            numbers = RSAPublicNumbers(_number(key, "e"), _number(key, "n"))
            keys.setdefault(key.get("kid"), []).append(numbers.public_key())
    return keys


def _number(key: Mapping[str, str], name: str) -> int:
    if name not in key:
        raise ValueError(f"an RSA key needs {name!r}")
    return int.from_bytes(_decoded(key[name].encode("ascii")), "big")


def verified_claims(token: bytes, keys: Keys, now: float) -> dict[str, Any]:
    """Return the claims of a token that one of the keys signed, with `exp` and `iat` as numbers.

    Raises `BadToken` also for claims of the wrong kind and before `nbf`. Whether it is expired, who issued it and for
    whom is left to the caller.
    """
    if not token.isascii() or token.count(b".") != 2:
        raise BadToken("not three segments")
    signed, _, signature = token.rpartition(b".")
    header, _, payload = signed.partition(b".")
    _verify(_decoded_segment(signature), signed, _candidates(_object(header), keys))
    claims = _object(payload)
    if not isinstance(claims.get("sub", ""), str) or not isinstance(claims.get("jti", ""), str):
        raise BadToken("sub or jti is not a text")
    if "at_hash" in claims:
        raise BadToken("a token for access has no at_hash")
    if int(_seconds(claims, "nbf", 0)) > now:
        raise BadToken("not valid yet")
    return claims | {"exp": _seconds(claims, "exp"), "iat": _seconds(claims, "iat", 0)}


def _candidates(header: dict[str, Any], keys: Keys) -> Iterable[RSAPublicKey]:
    if header.get("alg") != ALGORITHM:
        raise BadToken("unexpected algorithm")
    kid = header.get("kid")
    named = keys.get(kid if isinstance(kid, str) else None)
    if named is not None:
        return named
    # Keys without an id may have signed any token, and any key one that names none.
    return keys.get(None, ()) if "kid" in header else (key for each in keys.values() for key in each)


def _verify(signature: bytes, signed: bytes, keys: Iterable[RSAPublicKey]) -> None:
    for key in keys:
        try:
            key.verify(signature, signed, PKCS1v15(), SHA256())
        except InvalidSignature:
            continue
        return
    raise BadToken("no key signed it")


def _object(segment: bytes) -> dict[str, Any]:
    try:
        found = json.loads(_decoded_segment(segment).decode())
    except (ValueError, RecursionError) as exc:
        raise BadToken("not JSON") from exc
    if not isinstance(found, dict):
        raise BadToken("not an object")
    return found


def _seconds(claims: dict[str, Any], name: str, absent: int | None = None) -> float:
    value: Any = claims.get(name, absent)
    try:
        seconds = float(int(value) if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise BadToken(f"{name} is not a time") from exc
    if not math.isfinite(seconds):
        raise BadToken(f"{name} is not a time")
    return seconds


def _decoded_segment(segment: bytes) -> bytes:
    try:
        return _decoded(segment)
    except ValueError as exc:
        raise BadToken("not base64") from exc


def _decoded(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
