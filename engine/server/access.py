"""Who may infer: tokens are checked here, from memory.

The control plane publishes an `AccessDocument` per deployment; this process fetches it every few seconds, keeps a copy
beside its status file, and goes on with the last one while the control plane is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from engine.contract.deployment import AccessDocument, AccessSettings
from engine.server.tokens import BadToken, ExpiredToken, read_keys, verified_claims

log = logging.getLogger(__name__)

KNOWN_TOKENS = 20_000
FETCH_TIMEOUT_S = 5.0
LONGEST_TOKEN_BYTES = 16 * 1024
REFUSED_FOR_S = 30.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a token is worth, until when (epoch seconds)."""

    status: int
    reason: str
    expires: float
    user: str = ""

    @property
    def allowed(self) -> bool:
        """Whether the caller may infer."""
        return self.status == 200


MISSING = Verdict(401, "Jwt is missing", float("inf"))
UNKNOWN = Verdict(503, "Who may use this deployment is not known yet", 0.0)
INVISIBLE = "Deployment not found"


class Access:
    """The present access document, and what it makes of tokens."""

    def __init__(self, document: AccessDocument | None = None) -> None:
        self.generation = 0
        """Changes whenever verdicts given before may no longer hold."""
        self._document: AccessDocument | None = None
        self._raw = b""
        self._verdicts: dict[bytes, Verdict] = {}
        if document is not None:
            self._use(document)

    def update(self, raw: bytes) -> bool:
        """Take a document as it came; False if nothing changed. Raises `ValueError`, and then keeps the former."""
        if raw == self._raw:
            return False
        document = msgspec.json.decode(raw, type=AccessDocument)
        self._use(document)
        self._raw = raw
        return True

    def _use(self, document: AccessDocument) -> None:
        self._keys = read_keys(document.keys)
        self._document = document
        self._users = frozenset(document.users)
        self._revoked = frozenset(document.revoked_sessions)
        self._verdicts = {}
        self.generation += 1

    def check(self, authorization: bytes, now: float | None = None) -> Verdict:
        """Judge the value of an `Authorization` header."""
        now = time.time() if now is None else now
        scheme, _, token = authorization.partition(b" ")
        token = token.strip()
        if not token or scheme.lower() != b"bearer":
            return MISSING
        if self._document is None:
            return UNKNOWN
        digest = hashlib.sha256(token).digest()
        verdict = self._verdicts.get(digest)
        if verdict is None or verdict.expires <= now:
            verdict = self._judge(token, now)
            if len(self._verdicts) >= KNOWN_TOKENS:
                self._verdicts.clear()
            self._verdicts[digest] = verdict
        return verdict

    def _judge(self, token: bytes, now: float) -> Verdict:
        document = self._document
        assert document is not None  # noqa: S101 - check() looked
        if len(token) > LONGEST_TOKEN_BYTES:
            return Verdict(401, "Jwt is too large", now + REFUSED_FOR_S)
        try:
            claims = verified_claims(token, self._keys)
        except ExpiredToken:
            return Verdict(401, "Jwt is expired", float("inf"))
        except BadToken:
            return Verdict(401, "Jwt verification fails", now + REFUSED_FOR_S)
        expires, issued = claims["exp"], claims["iat"]
        if expires <= now:
            return Verdict(401, "Jwt is expired", float("inf"))
        user = str(claims.get("sub", ""))
        if document.issuers and claims.get("iss") not in document.issuers:
            return Verdict(401, "Jwt issuer is not configured", expires)
        if claims.get("sid") in self._revoked or issued < document.not_before.get(user, 0):
            return Verdict(401, "Jwt is revoked", expires)
        if user in self._users or (document.any_service and _is_service(claims)):
            return Verdict(200, "", expires, user)
        return Verdict(404, INVISIBLE, expires, user)


def _is_service(claims: dict[str, Any]) -> bool:
    return bool(claims.get("clientId")) or str(claims.get("preferred_username", "")).startswith("service-account-")


class AccessPoll:
    """Keep an `Access` up to date."""

    def __init__(self, access: Access, settings: AccessSettings, copy: Path | None) -> None:
        self._access = access
        self._settings = settings
        self._copy = copy
        self._etag = ""
        self._failing = False
        self.refreshed_at = 0.0

    def restore(self) -> None:
        """Begin with the document a former process kept."""
        if self._copy is None:
            return
        try:
            self._access.update(self._copy.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as exc:
            log.warning("access.copy_unreadable path=%s error=%r", self._copy, exc)

    async def run(self) -> None:
        """Fetch the document every few seconds, for ever."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._settings.refresh_s)

    async def refresh(self) -> None:
        """Fetch the document once; when that fails the former one stays."""
        try:
            raw = await asyncio.to_thread(self._fetch)
            if raw is not None and self._access.update(raw):
                await asyncio.to_thread(self._keep, raw)
        except (OSError, ValueError, HTTPException) as exc:
            if not self._failing:
                log.warning("access.unreachable url=%s error=%r", self._settings.url, exc)
            self._failing = True
            self._etag = ""
        else:
            self.refreshed_at = time.time()
            if self._failing:
                log.info("access.reachable url=%s", self._settings.url)
            self._failing = False

    def _fetch(self) -> bytes | None:
        token = Path(self._settings.token_file).read_text().strip()
        url = urlsplit(self._settings.url)
        if url.scheme not in ("http", "https"):
            raise ValueError("the access URL must be http or https")
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json", "Connection": "close"}
        if self._etag:
            headers["If-None-Match"] = self._etag
        kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
        with contextlib.closing(kind(url.netloc, timeout=FETCH_TIMEOUT_S)) as connection:
            query = f"?{url.query}" if url.query else ""
            connection.request("GET", f"{url.path or '/'}{query}", headers=headers)
            reply = connection.getresponse()
            raw = reply.read()
        if reply.status == 304:
            return None
        if reply.status != 200:  # a redirect is not followed: it would carry the engine's token elsewhere
            raise ValueError(f"answered {reply.status}")
        self._etag = reply.headers.get("ETag", "")
        return raw

    def _keep(self, raw: bytes) -> None:
        if self._copy is None:
            return
        temporary = self._copy.with_name(self._copy.name + ".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
        os.replace(temporary, self._copy)
