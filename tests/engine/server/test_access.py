from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jose import jwk, jwt
from jose.exceptions import JOSEError

from engine.contract.deployment import AccessDocument, AccessSettings
from engine.server.access import Access, AccessPoll

ISSUER = "http://potoroo.test/auth/realms/master"


class Signer:
    def __init__(self, kid: str = "k1") -> None:
        self.kid = kid
        key = rsa.generate_private_key(65537, 2048)
        self.pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        numbers = key.public_key().public_numbers()
        self.jwk = {"kty": "RSA", "kid": kid, "alg": "RS256", "use": "sig"} | {
            name: base64.urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()
            for name, value in (("n", numbers.n), ("e", numbers.e))
        }

    def token(self, **claims: Any) -> bytes:
        now = int(time.time())
        payload = {"iss": ISSUER, "sub": "ann", "exp": now + 60, "iat": now, "sid": "s1"} | claims
        payload = {name: value for name, value in payload.items() if value is not None}
        return b"Bearer " + jwt.encode(payload, self.pem, "RS256", headers={"kid": self.kid}).encode()


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer()


def access(signer: Signer, **fields: Any) -> Access:
    return Access(AccessDocument(**({"issuers": [ISSUER], "keys": [signer.jwk], "users": ["ann"]} | fields)))


def test_a_member_may_infer_until_the_token_expires(signer: Signer) -> None:
    gate, token = access(signer), signer.token()

    assert gate.check(token).allowed
    assert gate.check(token).user == "ann"
    assert gate.check(token, time.time() + 61).reason in ("Jwt is expired", "Jwt verification fails")
    assert not gate.check(token, time.time() + 61).allowed


@pytest.mark.parametrize("header", [b"", b"Bearer", b"Bearer  ", b"Basic abc", b"abc"])
def test_no_token_is_a_401(signer: Signer, header: bytes) -> None:
    verdict = access(signer).check(header)

    assert (verdict.status, verdict.reason) == (401, "Jwt is missing")


def test_what_a_caller_may_not_see_does_not_exist(signer: Signer) -> None:
    verdict = access(signer).check(signer.token(sub="eve"))

    assert (verdict.status, verdict.reason) == (404, "Deployment not found")


@pytest.mark.parametrize("claims", [{"clientId": "etl"}, {"preferred_username": "service-account-etl"}])
def test_service_tokens_pass_where_they_are_welcome(signer: Signer, claims: dict[str, str]) -> None:
    token = signer.token(sub="robot", **claims)

    assert access(signer).check(token).allowed
    assert access(signer, any_service=False).check(token).status == 404


def test_forged_foreign_expired_and_revoked_tokens_are_401(signer: Signer) -> None:
    now = int(time.time())
    none = b".".join(base64.urlsafe_b64encode(p).rstrip(b"=") for p in (b'{"alg":"none"}', b'{"sub":"ann"}', b""))
    symmetric = jwt.encode({"sub": "ann", "exp": now + 60, "iss": ISSUER}, "secret", "HS256").encode()
    gate = access(signer, revoked_sessions=["gone"], not_before={"ann": now - 10})

    for header in (
        Signer().token(), b"Bearer " + none, b"Bearer " + symmetric, b"Bearer a.b.c",
        b"Bearer \xff\xfe", b"Bearer " + b"x" * 20_000, signer.token(exp=now - 1), signer.token(exp=None),
        signer.token(iss="http://elsewhere"), signer.token(sid="gone"),
        signer.token(iat=now - 20), signer.token()[:-4] + b"AAAA",
    ):  # fmt: skip
        assert gate.check(header).status == 401, header
    assert gate.check(signer.token()).allowed


@pytest.mark.parametrize(
    "claims",
    [
        {}, {"aud": "elsewhere"}, {"jti": "1"}, {"iat": None}, {"exp": "99999999999"}, {"exp": 99999999999.5},
        {"nbf": 1}, {"nbf": "1"}, {"sub": 7}, {"jti": 7}, {"at_hash": "x"}, {"nbf": 99999999999}, {"nbf": "soon"},
        {"nbf": []}, {"exp": "soon"}, {"exp": "9e12"}, {"exp": []}, {"exp": {}}, {"iat": "then"}, {"iat": "1.5"},
        {"iat": []}, {"exp": float("nan")}, {"exp": float("inf")}, {"iat": float("inf")},
    ],
)  # fmt: skip
def test_what_is_signed_is_judged_as_jose_would(signer: Signer, claims: dict[str, Any]) -> None:
    header = signer.token(**claims)
    try:
        jwt.decode(
            header[7:].decode(), jwk.construct(signer.jwk, "RS256"), options={"verify_aud": False, "require_exp": True}
        )
    except (JOSEError, TypeError, ValueError, OverflowError):
        status = 401
    else:
        status = 200

    assert access(signer).check(header).status == status


@pytest.mark.parametrize(
    "header", [b"[]", b"7", b"{", b"[" * 9000, b'{"alg":"RS256","kid":[1]}', b'{"alg":"RS512"}', b'{"alg":["RS256"]}']
)
def test_a_strange_head_proves_nothing(signer: Signer, header: bytes) -> None:
    good = signer.token().removeprefix(b"Bearer ").split(b".")
    strange = base64.urlsafe_b64encode(header).rstrip(b"=")

    for token in (b".".join([strange, *good[1:]]), b".".join([strange, b"", b""]), b".".join([*good, strange])):
        assert access(signer).check(b"Bearer " + token).status == 401


def test_a_key_without_an_id_may_have_signed_any_token(signer: Signer) -> None:
    nameless = {name: value for name, value in signer.jwk.items() if name != "kid"}

    assert access(signer, keys=[nameless]).check(signer.token()).allowed
    assert access(signer, keys=[Signer("k2").jwk]).check(signer.token()).status == 401
    assert access(signer, keys=[Signer().jwk | {"use": "enc"}, signer.jwk]).check(signer.token()).allowed


@pytest.mark.parametrize("numbers", [{"n": "AQAB"}, {"e": "AQAB"}, {"n": "Ä", "e": "AQAB"}, {"n": "A", "e": "AQAB"}])
def test_a_document_with_a_broken_key_changes_nothing(signer: Signer, numbers: dict[str, str]) -> None:
    gate = access(signer)
    raw = json.dumps({"issuers": [ISSUER], "keys": [{"kty": "RSA"} | numbers], "users": []}).encode()

    for _ in range(2):
        with pytest.raises(ValueError):
            gate.update(raw)
    assert gate.check(signer.token()).allowed


def test_a_new_document_takes_effect_on_tokens_seen_before(signer: Signer) -> None:
    gate, token = access(signer), signer.token()
    assert gate.check(token).allowed
    before = gate.generation

    gate.update(
        json.dumps({"issuers": [], "keys": [signer.jwk], "users": ["ann"], "revoked_sessions": ["s1"]}).encode()
    )

    assert gate.generation > before
    assert gate.check(token).status == 401


def test_keys_may_rotate(signer: Signer) -> None:
    other = Signer("k2")
    gate = access(signer, keys=[signer.jwk, other.jwk])

    assert gate.check(signer.token()).allowed
    assert gate.check(other.token()).allowed


class Publisher:
    """A control plane that publishes an access document, or not."""

    def __init__(self) -> None:
        self.raw: bytes | None = None
        self.head = b""
        """What to write instead of a reply, before the connection is closed."""
        self.etag = ""
        self.tokens: list[str | None] = []
        self.known: list[str | None] = []
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.tokens.append(self.headers["Authorization"])
                publisher.known.append(self.headers["If-None-Match"])
                if publisher.head:
                    self.wfile.write(publisher.head)
                    self.close_connection = True
                    return
                if publisher.known[-1]:
                    self.send_response(304)
                    self.end_headers()
                    return
                self.send_response(200 if publisher.raw is not None else 503)
                self.send_header("Content-Length", str(len(publisher.raw or b"")))
                if publisher.etag:
                    self.send_header("ETag", publisher.etag)
                self.end_headers()
                self.wfile.write(publisher.raw or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/access"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher()
    yield publisher
    publisher.close()


async def until(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not claim():  # noqa: ASYNC110 - a thread changes it
            await asyncio.sleep(0.01)


async def test_the_last_good_document_outlives_the_control_plane_and_a_restart(
    signer: Signer, publisher: Publisher, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("engine-secret\n")
    settings = AccessSettings(url=publisher.url, token_file=str(tmp_path / "token"), refresh_s=0.01)
    gate = Access()
    poll = AccessPoll(gate, settings, tmp_path / "access.json")
    assert gate.check(signer.token()).status == 503

    publisher.raw = json.dumps({"issuers": [ISSUER], "keys": [signer.jwk], "users": ["ann"]}).encode()
    running = asyncio.create_task(poll.run())
    await until(lambda: gate.check(signer.token()).allowed)
    publisher.raw = None
    await poll.refresh()
    assert gate.check(signer.token()).allowed
    publisher.raw = json.dumps({"issuers": [ISSUER], "keys": [signer.jwk], "users": []}).encode()
    await until(lambda: not gate.check(signer.token()).allowed)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    restarted = Access()
    publisher.raw = None
    again = AccessPoll(restarted, settings, tmp_path / "access.json")
    again.restore()
    await again.refresh()

    assert restarted.check(signer.token()).status == 404
    assert set(publisher.tokens) == {"Bearer engine-secret"}
    assert (tmp_path / "access.json").stat().st_mode & 0o777 == 0o600


async def test_polling_goes_on_after_replies_that_make_no_sense(
    signer: Signer, publisher: Publisher, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("engine-secret")
    gate = Access()
    poll = AccessPoll(gate, AccessSettings(url=publisher.url, token_file=str(tmp_path / "token")), None)
    good = json.dumps({"issuers": [ISSUER], "keys": [signer.jwk], "users": ["ann"]}).encode()

    for head in (
        b"HTTP/1.1 302 Found\r\nLocation: /access\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{",
        b"\0\n",
    ):
        publisher.raw, publisher.head = good, head
        await poll.refresh()
        assert gate.check(signer.token()).status == 503
    publisher.head = b""
    await poll.refresh()

    assert gate.check(signer.token()).allowed


async def test_a_document_that_broke_off_is_asked_for_again(
    signer: Signer, publisher: Publisher, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("engine-secret")
    gate = Access()
    poll = AccessPoll(gate, AccessSettings(url=publisher.url, token_file=str(tmp_path / "token")), None)
    publisher.raw = json.dumps({"issuers": [ISSUER], "keys": [signer.jwk], "users": ["ann"]}).encode()

    publisher.etag = '"1"'
    for size in (b"9999", b"1"):
        publisher.head = b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: %b\r\n\r\n{' % size
        await poll.refresh()
    publisher.head = b""
    await poll.refresh()
    await poll.refresh()

    assert gate.check(signer.token()).allowed
    assert publisher.known == [None, None, None, '"1"']
