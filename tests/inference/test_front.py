"""The front door: who gets which connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from app.inference.front import CannotListen, FrontServer, bind
from app.inference.heads import OTHER, deployment_asked
from app.inference.held import is_waiting
from app.inference.routing import Route, RoutingTable, Target, routes_of
from app.kit.context import Context
from engine.contract import handoff

HEAD = b"POST /v1/api/pipelines/infer/fraud-7/fraud HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (HEAD, "fraud-7"),
        (b"POST /v1/api/pipelines/infer/fraud-7?a=b HTTP/1.1", "fraud-7"),
        (b"POST /v1/api/pipelines/infer/fraud-7 HTTP/1.1", "fraud-7"),
        (b"POST /v1/api/pipelines/infer/fra", None),
        (b"POST /v1/api/pipel", None),
        (b"", None),
        (b"POST /v1/api/pipelines/create HTTP/1.1", OTHER),
        (b"GET / HTTP/1.1", OTHER),
        (b"POST /v1/api/pipelines/infer/" + b"x" * 400, OTHER),
        (b"\x16\x03\x01", OTHER),
    ],
)
def test_the_first_bytes_tell_what_is_asked(received: bytes, expected: str | None) -> None:
    assert deployment_asked(received) == expected


class Engine:
    """The engine's end of a hand-over: takes connections, answers each request with its own name."""

    def __init__(self, path: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = handoff.listen(path)
        self._links: list[socket.socket] = []
        self.taken: list[tuple[socket.socket, bytes]] = []
        self.front: Any = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        link, _ = self._listener.accept()
        link.setblocking(False)
        self._links.append(link)
        self._loop.add_reader(link, self._take, link)

    def _take(self, link: socket.socket) -> None:
        passed = handoff.receive_connection(link)
        if passed is None:
            self._loop.remove_reader(link)
            return
        self.taken.append(passed)

    async def connection(self) -> tuple[socket.socket, bytes]:
        """Return the next connection that was handed over."""
        async with asyncio.timeout(5):
            while not self.taken:  # noqa: ASYNC110 - the other side is a callback of the selector
                await asyncio.sleep(0.005)
        return self.taken.pop(0)

    def pause(self) -> None:
        """Take no more connections, as an engine does that is busy for a moment."""
        for link in self._links:
            self._loop.remove_reader(link)

    def resume(self) -> None:
        """Take connections again."""
        for link in self._links:
            self._loop.add_reader(link, self._take, link)

    def give_back(self, sock: socket.socket, unread: bytes) -> None:
        """Return a connection."""
        handoff.send_connection(self._links[0], sock.fileno(), unread)
        sock.close()

    def die(self) -> None:
        """End as a killed process does: everything it held is closed."""
        if self._listener.fileno() < 0:
            return
        for link in self._links:
            self._loop.remove_reader(link)
            link.close()
        self._links.clear()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for sock, _ in self.taken:
            sock.close()


@pytest.fixture
async def door(context: Context, tmp_path: Any) -> AsyncIterator[tuple[int, Engine, Target]]:
    """A front in front of an API that says `api`, and of one engine; its port, the engine and its target."""
    import uvicorn

    app = FastAPI()

    @app.post("/{path:path}")
    async def api(request: Request) -> str:
        return f"api {len(await request.body())}"

    path = str(tmp_path / "e.sock")
    target = Target("engine-1", "127.0.0.1", 1, sockets=(path,))
    table: RoutingTable = routes_of(context)
    table._routes = {7: Route(7, "fraud", "fraud", [target])}
    listeners = bind("127.0.0.1", 0)
    config = uvicorn.Config(app, lifespan="off", log_config=None, server_header=False)
    config.load()
    server = FrontServer(config, context, listeners)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    engine = Engine(path)
    engine.front = server.servers[0]
    yield listeners[0].getsockname()[1], engine, target
    engine.die()
    for each in server.servers:
        each.close()
        await each.wait_closed()
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    await asyncio.sleep(0)


async def opened(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def answer(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return head.split(b"\r\n")[0] + b" " + await reader.readexactly(length)


Door = tuple[int, Engine, Target]


async def test_an_inference_goes_to_the_engine_whole_however_it_arrives(door: Door) -> None:
    port, engine, _ = door
    reader, writer = await opened(port)
    for at in range(0, len(HEAD), 20):
        writer.write(HEAD[at : at + 20])
        await asyncio.sleep(0.002)
    writer.write(b"[]")

    sock, received = await engine.connection()
    await asyncio.sleep(0.02)
    received += sock.recv(1000)
    sock.send(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nengine")

    assert received == HEAD + b"[]"
    assert await answer(reader) == b"HTTP/1.1 200 OK engine"
    sock.close()
    writer.close()


async def test_everything_else_goes_to_the_api(door: Door) -> None:
    port, engine, _ = door
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        answers = [await client.post("/v1/api/x", content=b"12345") for _ in range(2)]

    assert [a.json() for a in answers] == ["api 5", "api 5"]
    assert engine.taken == []


async def test_a_connection_moves_between_api_and_engine_as_it_is_used(door: Door) -> None:
    port, engine, _ = door
    reader, writer = await opened(port)
    other = b"POST /v1/api/x HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n"

    writer.write(other + b"abc")
    assert await answer(reader) == b'HTTP/1.1 200 OK "api 3"'
    writer.write(HEAD + b"[]")
    sock, received = await engine.connection()
    assert received == HEAD + b"[]"
    sock.send(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nengine")
    assert await answer(reader) == b"HTTP/1.1 200 OK engine"
    engine.give_back(sock, other)
    writer.write(b"abc")

    assert await answer(reader) == b'HTTP/1.1 200 OK "api 3"'
    writer.close()


async def test_the_api_answers_when_no_engine_takes_the_connection(door: Door) -> None:
    port, engine, target = door
    engine.die()

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        first = await client.post("/v1/api/pipelines/infer/fraud-7/fraud", content=b"12")

    assert first.json() == "api 2"
    assert target.down_until > 0


async def many_for(engine: Engine, port: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open more connections at once than fit into the way to a paused engine."""
    _, writer = await opened(port)
    writer.write(HEAD + b"[]")
    (await engine.connection())[0].close()
    writer.close()
    engine.pause()
    clients = [await opened(port) for _ in range(600)]
    for _, each in clients:
        each.write(HEAD + b"[]")
    await asyncio.sleep(0.1)
    return clients


async def test_a_storm_of_connections_waits_for_a_busy_engine(door: Door) -> None:
    port, engine, target = door
    clients = await many_for(engine, port)

    engine.resume()
    taken = [await engine.connection() for _ in clients]

    assert target.down_until == 0
    assert {received for _, received in taken} == {HEAD + b"[]"}
    for sock, _ in taken:
        sock.close()
    for _, writer in clients:
        writer.close()


async def test_who_waits_for_a_busy_engine_that_dies_is_served_by_the_api(door: Door) -> None:
    port, engine, _ = door
    clients = await many_for(engine, port)

    engine.die()
    statuses = [await answer(reader) for reader, _ in clients]

    served = statuses.count(b'HTTP/1.1 200 OK "api 2"')
    assert served > 0
    assert all(status.startswith((b"HTTP/1.1 200", b"HTTP/1.1 502")) for status in statuses)
    for _, writer in clients:
        writer.close()


async def test_an_engine_that_stays_busy_is_not_waited_for_for_ever(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.inference.front.FULL_S", 0.2)
    port, engine, _ = door
    clients = await many_for(engine, port)

    assert await answer(clients[-1][0]) == b'HTTP/1.1 200 OK "api 2"'

    for _, writer in clients:
        writer.close()


async def test_whoever_waits_on_an_engine_that_dies_is_told_502(door: Door) -> None:
    port, engine, _ = door
    reader, writer = await opened(port)
    writer.write(HEAD + b"[]")
    sock, _ = await engine.connection()
    sock.close()

    engine.die()

    assert (await answer(reader)).startswith(b"HTTP/1.1 502 Bad Gateway")
    assert await reader.read() == b""
    writer.close()


async def test_whoever_waits_on_an_engine_that_was_undeployed_is_told_404(door: Door, context: Context) -> None:
    port, engine, _ = door
    reader, writer = await opened(port)
    writer.write(HEAD + b"[]")
    sock, _ = await engine.connection()
    sock.close()
    routes_of(context)._routes = {}

    engine.die()

    assert (await answer(reader)).startswith(b"HTTP/1.1 404 Not Found")
    writer.close()


async def test_who_does_not_wait_on_an_engine_that_dies_notices_nothing(door: Door) -> None:
    port, engine, _ = door
    reader, writer = await opened(port)
    writer.write(HEAD + b"[]")
    sock, _ = await engine.connection()
    await asyncio.sleep(0.03)
    sock.send(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nengine")
    assert await answer(reader) == b"HTTP/1.1 200 OK engine"
    assert not is_waiting(sock)
    sock.close()

    engine.die()
    await asyncio.sleep(0.02)
    writer.write(HEAD + b"[]")

    assert await answer(reader) == b'HTTP/1.1 200 OK "api 2"'
    writer.close()


async def test_a_client_that_leaves_is_not_held_on_to(door: Door) -> None:
    port, engine, _ = door
    _, writer = await opened(port)
    writer.write(HEAD + b"[]")
    sock, _ = await engine.connection()
    assert engine.front.handed_over == 1
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.05)

    rest = sock.recv(1000)
    sock.close()

    assert rest == b""
    assert engine.front.handed_over == 0


def test_a_port_that_is_taken_says_so() -> None:
    (first,) = bind("127.0.0.1", 0)
    first.listen()

    with pytest.raises(CannotListen, match="is taken"):
        bind("127.0.0.1", first.getsockname()[1])
    with pytest.raises(CannotListen, match="no address"):
        bind("no.such.host.invalid", 0)
    first.close()
