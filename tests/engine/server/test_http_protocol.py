from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.contract.deployment import Limits
from tests.engine.server.echo import Running, serve

POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
LIMITS = Limits(body_bytes=4 << 20, header_timeout_s=0.5, body_timeout_s=0.5, keep_alive_s=1.5, deadline_s=0.8)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serve(Limits(body_bytes=4 << 20)) as running:
        yield running


@pytest.fixture(scope="module")
def impatient() -> Iterator[Running]:
    with serve(LIMITS) as running:
        yield running


def read_all(sock: socket.socket) -> bytes:
    received = b""
    while data := sock.recv(1 << 16):
        received += data
    return received


def statuses(raw: bytes) -> list[int]:
    """Read responses with h11 until the bytes end."""
    if not raw:
        return []
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(raw)
    client.receive_data(b"")
    found = []
    while True:
        event = client.next_event()
        if isinstance(event, h11.Response):
            found.append(event.status_code)
        elif isinstance(event, h11.EndOfMessage):
            if client.their_state is not h11.DONE:
                return found
            if not client.trailing_data[0]:
                return found
            client.start_next_cycle()
            client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
            client.send(h11.EndOfMessage())
        elif isinstance(event, h11.ConnectionClosed) or event is h11.NEED_DATA:
            return found


def exchange(server: Running, raw: bytes) -> bytes:
    with server.connect() as sock:
        sock.sendall(raw)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def ask(
    client: h11.Connection, sock: socket.socket, request: h11.Request, body: bytes = b""
) -> tuple[h11.Response, bytes]:
    sock.sendall(client.send(request) or b"")
    if body:
        sock.sendall(client.send(h11.Data(data=body)) or b"")
    sock.sendall(client.send(h11.EndOfMessage()) or b"")
    response, data = None, b""
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(sock.recv(1 << 16))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            data += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert response is not None
            return response, data


def test_a_connection_is_kept_for_many_requests_of_all_framings(server: Running) -> None:
    client = h11.Connection(h11.CLIENT)
    with server.connect() as sock:
        for size in (0, 1, 10, 300, 70_000, 3_000_000, 5):
            for framing in (("content-length", str(size)), ("transfer-encoding", "chunked")):
                request = h11.Request(method="POST", target=f"/p?n={size}", headers=[("host", "x"), framing])

                response, data = ask(client, sock, request, b"\x01" * size)

                assert response.status_code == 200
                assert json.loads(data)["body"] == size
                assert json.loads(data)["query"] == f"n={size}"
                client.start_next_cycle()


def test_a_repeated_head_with_another_body_is_read_anew(server: Running) -> None:
    head = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
    with server.connect() as sock:
        for body, total in ((b"ab", 195), (b"ba", 195), (b"aa", 194)):
            sock.sendall(head + body)
            assert json.loads(sock.recv(4096).rpartition(b"\r\n")[2])["sum"] == total
        sock.sendall(head + b"a")
        sock.sendall(b"c")
        assert json.loads(sock.recv(4096).rpartition(b"\r\n")[2])["sum"] == 196
        sock.sendall((head + b"ab") * 3 + head[:20])
        sock.sendall(head[20:] + b"zz")
        sock.shutdown(socket.SHUT_WR)
        assert statuses(read_all(sock)) == [200] * 4


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    raw = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(200))

    received = exchange(server, raw)

    assert received.count(b"HTTP/1.1 200 OK") == 200
    positions = [received.index(b'"/%d"' % n) for n in range(200)]
    assert positions == sorted(positions)


def test_a_later_request_waits_for_a_slow_one(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\nGET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        while not server.app.held:
            time.sleep(0.01)
        connection, serial = server.app.held.pop()
        server.call(lambda: connection.respond(serial, 200, b"text/plain", b"first"))
        received = read_all(sock)

    assert received.index(b"first") < received.index(b'"/next"')


@pytest.mark.parametrize("step", [1, 2, 3, 7, 50])
def test_bytes_may_arrive_in_any_pieces(server: Running, step: int) -> None:
    raw = (
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
        b"POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n"
        b"GET /c HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    with server.connect() as sock:
        for at in range(0, len(raw), step):
            sock.sendall(raw[at : at + step])
        sock.shutdown(socket.SHUT_WR)

        assert statuses(read_all(sock)) == [200, 200, 200]


REFUSED = {
    "two lengths": (POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    "length list": (POST + b"Content-Length: 3, 3\r\n\r\nabc", 400),
    "signed length": (POST + b"Content-Length: +3\r\n\r\nabc", 400),
    "hex length": (POST + b"Content-Length: 0x3\r\n\r\nabc", 400),
    "huge length": (POST + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
    "length and coding": (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "coding and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
    "unknown coding": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "stacked coding": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "coding twice": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked then identity": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "odd coding": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "coding with tab": (POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "coding in 1.0": (b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "space before colon": (POST + b"Content-Length : 3\r\n\r\nabc", 400),
    "folded line": (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400),
    "bare line feed": (b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    "bare line feeds only": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "bare carriage return": (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400),
    "null": (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    "two tokens": (b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n", 400),
    "unknown method": (b"FOO / HTTP/1.1\r\nHost: x\r\n\r\n", 501),
    "old version": (b"GET / HTTP/0.9\r\nHost: x\r\n\r\n", 505),
    "new version": (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", 501),
    "bad chunk size": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "signed chunk size": (POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
    "long chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n", 400),
    "bare chunk line": (POST + b"Transfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n", 400),
    "bad trailer": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA b\r\n\r\n", 400),
    "endless chunk line": (POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 5000, 400),
    "tiny chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"1;" + b"a" * 4000 + b"\r\nx\r\n") * 20, 400),
    "endless head": (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70_000, 431),
    "many headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 300 + b"\r\n", 431),
    "large body": (POST + b"Content-Length: 5000000\r\n\r\n", 413),
    "large chunked body": (POST + b"Transfer-Encoding: chunked\r\n\r\nFFFFFF\r\n", 413),
    "unknown expectation": (POST + b"Content-Length: 3\r\nExpect: cake\r\n\r\n", 417),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_clear_request_is_refused_and_the_connection_closed(server: Running, name: str) -> None:
    raw, status = REFUSED[name]
    before = len(server.app.seen)

    received = exchange(server, raw + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")

    assert statuses(received) == [status]
    assert b"connection: close" in received
    assert len(server.app.seen) == before


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://other.example/path?q HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nA:  padded\t \r\nB:\r\n\r\n",
    ],
)
def test_unusual_but_lawful_requests_are_answered(server: Running, raw: bytes) -> None:
    assert statuses(exchange(server, raw)) == [200]


def test_http_1_0_closes_unless_asked_to_keep(server: Running) -> None:
    closed = exchange(server, b"GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n")
    kept = exchange(server, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2)

    assert closed.count(b"200 OK") == 1
    assert kept.count(b"connection: keep-alive") == 2 or kept.count(b"200 OK") == 2


def test_head_has_the_length_but_not_the_body(server: Running) -> None:
    received = exchange(server, b"HEAD /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-length: " in head
    assert body == b""


def test_expect_continue_gets_its_go_ahead_before_the_body(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hello")
        assert b'"body": 5' in sock.recv(4096)


def test_a_refused_upload_is_told_so_before_its_body(server: Running) -> None:
    with server.connect() as sock:
        sock.sendall(b"POST /secret HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 401")
    with server.connect() as sock:
        sock.sendall(b"POST /secret HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" * 2)
        sock.shutdown(socket.SHUT_WR)
        assert statuses(read_all(sock)) == [401, 401]


def test_a_client_that_does_not_read_stops_being_read(server: Running) -> None:
    before = len(server.app.seen)
    with server.connect() as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        time.sleep(0.3)
        assert 0 < len(server.app.seen) - before < 10
        sock.shutdown(socket.SHUT_WR)
        total = 0
        while data := sock.recv(1 << 20):
            total += len(data)
        assert total > 50 * (4 << 20)


def test_slow_heads_bodies_and_silent_clients_are_closed(impatient: Running) -> None:
    with (
        impatient.connect() as head,
        impatient.connect() as body,
        impatient.connect() as idle,
        impatient.connect() as held,
    ):
        head.sendall(b"GET / HTTP/1.1\r\nHos")
        body.sendall(POST + b"Content-Length: 9\r\n\r\nabc")
        held.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

        assert statuses(read_all(head)) == [408]
        assert statuses(read_all(body)) == [408]
        assert statuses(read_all(held)) == [504]
        assert read_all(idle) == b""


def test_a_client_that_sends_a_byte_now_and_then_is_closed(impatient: Running) -> None:
    with impatient.connect() as sock:
        started = time.monotonic()
        try:
            for byte in b"GET / HTTP/1.1\r\nHost: x\r\n" * 10:
                sock.sendall(bytes([byte]))
                time.sleep(0.05)
        except OSError:
            pass
        assert time.monotonic() - started < 5


def test_many_idle_connections_harm_nobody(server: Running) -> None:
    socks = [server.connect() for _ in range(300)]

    assert statuses(exchange(server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")) == [200]

    for sock in socks:
        sock.close()


def test_draining_finishes_what_is_under_way() -> None:
    with serve() as running:
        held, idle = running.connect(), running.connect()
        held.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        while not running.app.held:
            time.sleep(0.01)
        running.call(running._stopped.set)
        assert read_all(idle) == b""
        connection, serial = running.app.held.pop()
        running.call(lambda: connection.respond(serial, 200, b"text/plain", b"done"))
        received = read_all(held)
        held.close()
        idle.close()

    assert received.endswith(b"done")
    assert b"connection: close" in received


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_understands_the_server(server: Running, tmp_path: object) -> None:
    url = f"http://127.0.0.1:{server.port}/curl"
    sent = subprocess.run(
        ["curl", "-sS", "-X", "POST", "--data-binary", "@-", "-H", "Expect: 100-continue", url, url],
        input=b"y" * 100_000, capture_output=True, check=True, timeout=20,
    )  # fmt: skip
    chunked = subprocess.run(
        ["curl", "-sS", "-T", "-", "-X", "POST", url], input=b"y" * 100_000, capture_output=True, check=True, timeout=20
    )
    head = subprocess.run(["curl", "-sSI", url], capture_output=True, check=True, timeout=20)

    assert b'"body": 100000' in sent.stdout
    assert b'"body": 100000' in chunked.stdout
    assert head.stdout.startswith(b"HTTP/1.1 200 OK")


TOKENS = st.sampled_from(
    [b"GET ", b"POST ", b"HEAD ", b"/", b"/p?x=%2", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"\r", b"\r\n\r\n",
     b"Host: x\r\n", b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"A: b\r\n",
     b"Connection: close\r\n", b"0\r\n\r\n", b"3\r\nabc\r\n", b"abc", b"Expect: 100-continue\r\n", b"\x00", b"\xff",
     b" ", b":", b"A" * 100]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(st.one_of(TOKENS, st.binary(max_size=8)), max_size=25), cut=st.integers(0, 60))
def test_no_bytes_whatsoever_break_the_server(server: Running, pieces: list[bytes], cut: int) -> None:
    raw = b"".join(pieces)
    with server.connect() as sock:
        try:
            sock.sendall(raw[:cut])
            sock.sendall(raw[cut:])
            sock.shutdown(socket.SHUT_WR)
            received = read_all(sock)
        except ConnectionError:
            received = b""

    assert not server.errors
    assert all(status in range(100, 506) and status != 500 for status in statuses(received))
