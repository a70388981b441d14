"""A server for tests of the HTTP layer: it answers with what it understood of the request."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvloop

from engine.contract.deployment import Limits
from engine.server.heads import Head
from engine.server.http import JSON, Connection
from engine.server.listener import Listener


class EchoApp:
    """Echoes; `/hold` answers when told to, `/big` answers with 4 MiB, `/secret` is refused before its body."""

    def __init__(self) -> None:
        self.listener: Listener
        self.held: list[tuple[Connection, int]] = []
        self.seen: list[bytes] = []
        self.refusals: list[int] = []

    def handle(self, connection: Connection, head: Head, body: bytes | bytearray) -> None:
        self.seen.append(bytes(body))
        if head.path == "/hold":
            self.held.append((connection, connection.serial))
            return
        if head.path == "/big":
            connection.respond(connection.serial, 200, b"application/octet-stream", b"x" * (4 << 20))
            return
        if head.path == "/secret":
            connection.respond(connection.serial, 401, JSON, b"{}")
            return
        seen = {"method": head.method, "path": head.path, "query": head.query.decode("latin-1"), "body": len(body)}
        seen["sum"] = sum(body) if len(body) < 10_000 else 0
        connection.respond(connection.serial, 200, JSON, json.dumps(seen).encode())

    def refuse_early(self, connection: Connection, head: Head) -> bool:
        if head.path != "/secret":
            return False
        connection.respond(connection.serial, 401, JSON, b"{}", close=True)
        return True

    def is_ours(self, head: Head) -> bool:
        return not head.path.startswith("/other")

    def give_back(self, connection: Connection) -> None:
        connection.origin.give_back(connection)

    def expire(self, connection: Connection, head: Head) -> None:
        connection.respond(connection.serial, 504, JSON, b"{}")

    def count_refusal(self, status: int) -> None:
        self.refusals.append(status)


class Running:
    """A listener in a thread of its own."""

    def __init__(self, app: EchoApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.errors: list[object] = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.listener = self.app.listener = Listener(self.app, self.limits)
        self._stopped = asyncio.Event()
        sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = sock.getsockname()[1]
        await self.listener.listen(sock)
        self._ready.set()
        await self._stopped.wait()
        await self.listener.drain(1.0)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(10)

    def call(self, function: object, *args: object) -> None:
        self.loop.call_soon_threadsafe(function, *args)  # type: ignore[arg-type]

    def stop(self) -> None:
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it may have stopped by itself
                self.loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        assert not self.errors, self.errors

    def connect(self, timeout_s: float = 5.0) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


@contextmanager
def serve(limits: Limits | None = None) -> Iterator[Running]:
    running = Running(EchoApp(), limits or Limits())
    running.start()
    try:
        yield running
    finally:
        running.stop()
