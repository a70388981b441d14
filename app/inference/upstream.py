"""A small HTTP/1.1 client for engines: bodies pass through as they come, connections are kept and used again."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterable

import httptools

CONNECT_S = 2.0
ANSWER_S = 120.0
"""Longest silence of an engine; it has deadlines of its own, which are shorter."""
KEPT_PER_ENGINE = 64
_CHUNK = 256 * 1024


class Unreachable(Exception):
    """No connection to the engine could be made."""


class Broken(Exception):
    """The engine ended the connection before it answered; nothing of an answer was received."""


class Answer:
    """The answer of an engine: its head, and its body as it comes."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body; the connection goes back to the pool at its end, and is closed if that is not reached."""
        link = self._link
        try:
            while True:
                while link.parts:
                    yield link.parts.popleft()
                if link.is_complete:
                    break
                await link.receive()
        finally:
            link.release()


class Link:
    """One connection to an engine, working on one request at a time."""

    def __init__(self, pool: Pool, key: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._pool = pool
        self._key = key
        self._reader = reader
        self._writer = writer
        self.is_fresh = True
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.parts: deque[bytes] = deque()
        self.headers: list[tuple[bytes, bytes]] = []
        self.has_head = False
        self.is_complete = False
        self.stays_open = False

    @property
    def is_usable(self) -> bool:
        """Whether the engine has not closed it meanwhile."""
        return not self._reader.at_eof() and not self._writer.is_closing()

    # What the parser finds.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Take note that the head is complete, unless it only says to go on."""
        self.has_head = self._parser.get_status_code() >= 200
        if not self.has_head:
            self.headers = []

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        self.parts.append(part)

    def on_message_complete(self) -> None:
        """Take note of the end."""
        self.is_complete = self.has_head
        self.stays_open = self._parser.should_keep_alive()

    # The exchange.

    async def send(self, head: bytes, body: bytes | AsyncIterator[bytes]) -> None:
        """Send a request whose head says how long its body is (or that it comes in chunks)."""
        if isinstance(body, bytes):
            self._writer.write(head + body)
            await self._writer.drain()
            return
        self._writer.write(head)
        chunked = b"\r\ntransfer-encoding: chunked\r\n" in head
        async for part in body:
            if not part:
                continue
            self._writer.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            await self._writer.drain()
        if chunked:
            self._writer.write(b"0\r\n\r\n")
            await self._writer.drain()

    async def answer(self) -> Answer:
        """Wait for the head of the answer; raises `Broken` when the connection ends before it."""
        while not self.has_head:
            await self.receive()
        answer = Answer(self)
        answer.status = self._parser.get_status_code()
        answer.headers = self.headers
        return answer

    async def receive(self) -> None:
        """Read on; raises `Broken` at the end of the connection, `TimeoutError` after a long silence."""
        try:
            async with asyncio.timeout(ANSWER_S):
                part = await self._reader.read(_CHUNK)
        except ConnectionError as exc:
            raise Broken(str(exc)) from exc
        if not part:
            raise Broken("the engine closed the connection")
        try:
            self._parser.feed_data(part)
        except httptools.HttpParserError as exc:
            raise Broken(f"the engine sent what is no HTTP: {exc}") from exc

    def release(self) -> None:
        """Give the connection back for another request if this one came to its end, close it otherwise."""
        if self.is_complete and self.stays_open and self.is_usable:
            self._reset()
            self.is_fresh = False
            self._pool.keep(self._key, self)
        else:
            self.close()

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()

    async def closed(self) -> None:
        """Wait until the connection is closed."""
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


class Pool:
    """Connections to engines that wait for the next request."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], deque[Link]] = defaultdict(deque)

    async def link(self, host: str, port: int, *, fresh: bool = False) -> Link:
        """Return a connection, one that was used before unless it must be `fresh`; raises `Unreachable`."""
        key = (host, port)
        while not fresh and self._idle[key]:
            link = self._idle[key].pop()
            if link.is_usable:
                return link
            link.close()
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(host, port, limit=_CHUNK)
        except (OSError, TimeoutError) as exc:
            raise Unreachable(str(exc)) from exc
        return Link(self, key, reader, writer)

    def keep(self, key: tuple[str, int], link: Link) -> None:
        """Take a connection back."""
        if len(self._idle[key]) < KEPT_PER_ENGINE:
            self._idle[key].append(link)
        else:
            link.close()

    def forget(self, alive: Iterable[tuple[str, int]]) -> None:
        """Close the connections to engines that are no more."""
        kept = set(alive)
        for key in [key for key in self._idle if key not in kept]:
            for link in self._idle.pop(key):
                with contextlib.suppress(RuntimeError):
                    link.close()

    async def aclose(self) -> None:
        """Close what is kept, and wait until it is closed."""
        links = [link for kept in self._idle.values() for link in kept]
        self._idle.clear()
        for link in links:
            link.close()
        for link in links:
            await link.closed()
