from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.contract import handoff
from engine.contract.deployment import Limits
from engine.server.handoff import HandoffServer
from engine.server.listener import Listener
from tests.engine.server.echo import EchoApp


@contextlib.asynccontextmanager
async def engine_at(path: Path) -> AsyncIterator[Listener]:
    app = EchoApp()
    listener = app.listener = Listener(app, Limits())
    server = HandoffServer(listener, str(path))
    try:
        yield listener
    finally:
        server.close()
        await listener.drain(0.2)


async def pair() -> tuple[asyncio.StreamReader, asyncio.StreamWriter, socket.socket]:
    """A client's streams and the gateway's accepted socket."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        (reader, writer), (accepted, _) = await asyncio.gather(
            asyncio.open_connection(*listening.getsockname()), loop.sock_accept(listening)
        )
    return reader, writer, accepted


@pytest.mark.parametrize("size", [0, 10, 200_000])
async def test_the_engine_answers_on_a_connection_it_was_given(tmp_path: Path, size: int) -> None:
    async with engine_at(tmp_path / "e.sock"):
        reader, writer, accepted = await pair()
        gateway = handoff.GatewaySide(str(tmp_path / "e.sock"), lambda *_: None)
        head = b"POST /mine HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (size + 5)

        assert gateway.hand_over(accepted.fileno(), head + b"x" * size)
        accepted.close()
        writer.write(b"hello")
        reply = await asyncio.wait_for(reader.readuntil(b"}"), 5)

        assert b'"body": %d' % (size + 5) in reply
        writer.close()
        gateway.close()


async def test_a_request_for_another_path_brings_the_connection_back(tmp_path: Path) -> None:
    back: asyncio.Queue[tuple[socket.socket, bytes]] = asyncio.Queue()
    async with engine_at(tmp_path / "e.sock"):
        reader, writer, accepted = await pair()
        gateway = handoff.GatewaySide(str(tmp_path / "e.sock"), lambda *passed: back.put_nowait(passed))
        mine, other = b"GET /mine HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n"

        assert gateway.hand_over(accepted.fileno(), mine + other + b"POST ")
        accepted.close()
        first = await asyncio.wait_for(reader.readuntil(b"}"), 5)
        returned, unread = await asyncio.wait_for(back.get(), 5)
        await asyncio.get_running_loop().sock_sendall(returned, b"from the gateway")

        assert b'"/mine"' in first
        assert unread == other + b"POST "
        assert await asyncio.wait_for(reader.readexactly(16), 5) == b"from the gateway"

        assert gateway.hand_over(returned.fileno(), mine), "and it may go to the engine again"
        assert b'"/mine"' in await asyncio.wait_for(reader.readuntil(b"}"), 5)
        returned.close()
        writer.close()
        gateway.close()


async def test_without_an_engine_the_connection_stays_with_the_gateway(tmp_path: Path) -> None:
    _, writer, accepted = await pair()
    gateway = handoff.GatewaySide(str(tmp_path / "nobody.sock"), lambda *_: None)

    assert not gateway.hand_over(accepted.fileno(), b"GET ")
    assert accepted.fileno() >= 0
    accepted.close()
    writer.close()


async def test_a_restarted_engine_is_found_again(tmp_path: Path) -> None:
    gateway = handoff.GatewaySide(str(tmp_path / "e.sock"), lambda *_: None)
    for _ in range(2):
        async with engine_at(tmp_path / "e.sock"):
            reader, writer, accepted = await pair()
            assert gateway.hand_over(accepted.fileno(), b"GET /mine HTTP/1.1\r\nHost: x\r\n\r\n")
            accepted.close()
            assert b'"/mine"' in await asyncio.wait_for(reader.readuntil(b"}"), 5)
            writer.close()
    gateway.close()


async def test_a_packet_that_makes_no_sense_ends_the_link_and_nothing_else(tmp_path: Path) -> None:
    async with engine_at(tmp_path / "e.sock"):
        bad = handoff.connect(str(tmp_path / "e.sock"))
        bad.send(b"nonsense")
        reader, writer, accepted = await pair()
        gateway = handoff.GatewaySide(str(tmp_path / "e.sock"), lambda *_: None)
        assert gateway.hand_over(accepted.fileno(), b"GET /mine HTTP/1.1\r\nHost: x\r\n\r\n")
        accepted.close()

        assert b'"/mine"' in await asyncio.wait_for(reader.readuntil(b"}"), 5)
        bad.close()
        writer.close()
        gateway.close()


def test_only_this_user_may_hand_connections_over(tmp_path: Path) -> None:
    with handoff.listen(str(tmp_path / "e.sock")):
        assert (tmp_path / "e.sock").stat().st_mode & 0o777 == 0o600
