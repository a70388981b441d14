"""What the connections of one process share: buffer, clock, limits, known heads."""

from __future__ import annotations

import asyncio
import socket
import time
from email.utils import formatdate
from typing import Protocol

from engine.contract.deployment import Limits
from engine.server.heads import Head
from engine.server.http import Connection

SHARED_BUFFER_BYTES = 256 * 1024
KNOWN_HEADS = 4096
KNOWN_HEAD_BYTES = 8192
SWEEP_S = 0.25
ONE_TIME_HEADERS = (b"traceparent", b"x-request-id", b"idempotency-key", b"x-b3-traceid")
"""Headers that differ in every request; remembering their heads would push out those that repeat."""


class Application(Protocol):
    """What a connection asks of the application behind it."""

    def handle(self, connection: Connection, head: Head, body: bytes | bytearray) -> None:
        """Answer a request, now or later, by `respond` or `send` with the connection's present serial."""

    def refuse_early(self, connection: Connection, head: Head) -> bool:
        """Reply to a request that will be refused whatever its body is; False: read the body."""

    def is_ours(self, head: Head) -> bool:
        """Say whether a request on a connection that was handed over is for this process."""

    def give_back(self, connection: Connection) -> None:
        """Return a connection, with what is in its inbox, to whoever handed it over."""

    def expire(self, connection: Connection, head: Head) -> None:
        """Reply to a request whose deadline passed."""

    def count_refusal(self, status: int) -> None:
        """Take note of a request that was refused before the application saw it."""


class Listener:
    """Accept connections and look after them."""

    def __init__(self, app: Application, limits: Limits, *, max_connections: int = 60_000) -> None:
        self.app = app
        self.limits = limits
        self.buffer = bytearray(SHARED_BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.heads: dict[bytes, Head] = {}
        self.connections: set[Connection] = set()
        self.draining = False
        self.loop = asyncio.get_running_loop()
        self.now = time.monotonic()
        """A clock that is good to a quarter of a second and costs nothing."""
        self.date_line = b""
        self._max_connections = max_connections
        self._budget = 4 * limits.body_bytes
        self._servers: list[asyncio.AbstractServer] = []
        self._empty = asyncio.Event()
        self._empty.set()
        self._sweep()

    async def listen(self, sock: socket.socket, backlog: int = 4096) -> None:
        """Serve a bound socket."""
        server = await self.loop.create_server(lambda: Connection(self), sock=sock, backlog=backlog)
        self._servers.append(server)

    async def adopt(self, sock: socket.socket, received: bytes, origin: object) -> None:
        """Serve a connection that somebody else accepted and read `received` from."""

        def make() -> Connection:
            connection = Connection(self, origin)
            connection.inbox += received  # before anything that the transport may read at once
            return connection

        _, connection = await self.loop.connect_accepted_socket(make, sock)
        connection.feed(b"")

    def add(self, connection: Connection) -> None:
        """Look after a new connection; one too many is told so and closed."""
        self.connections.add(connection)
        self._empty.clear()
        if len(self.connections) > self._max_connections:
            connection.refuse(503, "too many connections")
        elif self.draining and connection.origin is None:
            connection.close()

    def remove(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def is_repeatable(self, head: Head) -> bool:
        """Say whether the same bytes always mean the same, complete, ordinary request."""
        return (
            head.keep_alive
            and head.version == "1.1"
            and not head.chunked
            and not head.expects_continue
            and head.size <= KNOWN_HEAD_BYTES
            and head.content_length <= self.limits.body_bytes
            and not any(name in head.headers for name in ONE_TIME_HEADERS)
        )

    def remember(self, head: Head) -> None:
        """Recognise a head when it comes again."""
        if self.is_repeatable(head):
            if len(self.heads) >= KNOWN_HEADS:
                self.heads.clear()
            self.heads[head.raw] = head

    def reserve(self, size_bytes: int) -> bool:
        """Ask for memory for a large body."""
        if size_bytes > self._budget:
            return False
        self._budget -= size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        """Give memory back."""
        self._budget += size_bytes

    def _sweep(self) -> None:
        self.now = now = time.monotonic()
        self.date_line = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        for connection in [each for each in self.connections if each.deadline < now]:
            connection.expire()
        self._timer = self.loop.call_later(SWEEP_S, self._sweep)

    async def drain(self, timeout_s: float) -> None:
        """Stop listening, let the requests under way finish, close everything."""
        self.draining = True
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.end_if_idle()
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            for connection in list(self.connections):
                connection.abort()
        self._timer.cancel()
