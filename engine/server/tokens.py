"""RS256 JSON Web Tokens: whether one of some keys signed them, and what they say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from jose import jwk, jwt
from jose.backends.base import Key
from jose.exceptions import ExpiredSignatureError, JOSEError

ALGORITHM = "RS256"
Keys: TypeAlias = "Mapping[str | None, Sequence[Key]]"
"""Public keys by their id; those without one are under None."""
_OPTIONS = {"verify_aud": False, "require_exp": True}


class BadToken(Exception):
    """A token that proves nothing."""


class ExpiredToken(BadToken):
    """A token that proved something once."""


def read_keys(published: Iterable[Mapping[str, str]]) -> Keys:
    """Return those keys of a JWK set that may sign tokens; raises `ValueError` for one that cannot be read."""
    keys: dict[str | None, list[Key]] = {}
    for key in published:
        if (key.get("kty"), key.get("alg", ALGORITHM), key.get("use", "sig")) == ("RSA", ALGORITHM, "sig"):
            try:
                made = jwk.construct(dict(key), ALGORITHM)
            except (JOSEError, KeyError, TypeError, ValueError) as exc:
                raise ValueError(f"the key {key.get('kid')!r} cannot be read: {exc}") from exc
            keys.setdefault(key.get("kid"), []).append(made)
    return keys


def verified_claims(token: bytes, keys: Keys) -> dict[str, Any]:
    """Return the claims of a token that one of the keys signed, with `exp` and `iat` as numbers.

    Raises `BadToken`, also for claims of the wrong kind and before `nbf`. Who issued it and for whom is left to the
    caller.
    """
    try:
        text = token.decode("ascii")
        claims = _decoded(text, _candidates(jwt.get_unverified_header(text), keys))
        return claims | {"exp": float(claims["exp"]), "iat": float(claims.get("iat", 0))}
    except ExpiredSignatureError as exc:
        raise ExpiredToken(str(exc)) from exc
    except (JOSEError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise BadToken(str(exc)) from exc


def _candidates(header: dict[str, Any], keys: Keys) -> list[Key]:
    if header.get("alg") != ALGORITHM:
        raise BadToken("unexpected algorithm")
    kid = header.get("kid")
    named = keys.get(kid if isinstance(kid, str) else None)
    if named is not None:
        return list(named)
    # Keys without an id may have signed any token, and any key one that names none.
    return list(keys.get(None, ())) if "kid" in header else [key for each in keys.values() for key in each]


def _decoded(token: str, keys: Iterable[Key]) -> dict[str, Any]:
    failure = JOSEError("no key")
    for key in keys:
        try:
            return dict(jwt.decode(token, key, algorithms=[ALGORITHM], options=_OPTIONS))
        except ExpiredSignatureError:
            raise
        except JOSEError as exc:
            failure = exc
    raise failure
