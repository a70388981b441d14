"""The engine's end of the connection hand-off (`engine.contract.handoff`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct

from engine.contract import handoff
from engine.server.http import Connection, State
from engine.server.listener import Listener

log = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("3i")
_RETRY_S = 0.005


class HandoffServer:
    """Take connections from gateways and serve them on `listener`."""

    def __init__(self, listener: Listener, path: str) -> None:
        self._listener = listener
        self._loop = listener.loop
        self._path = path
        self._links: set[Link] = set()
        self._adoptions: set[asyncio.Task[None]] = set()
        self._sock = handoff.listen(path)
        self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if user not in (0, os.geteuid()):
                log.warning("handoff.refused user=%d", user)
                sock.close()
                continue
            self._links.add(Link(self, sock))

    def adopt(self, link: Link, sock: socket.socket, received: bytes) -> None:
        """Serve a connection that came over `link`."""
        task = self._loop.create_task(self._listener.adopt(sock, received, link))
        self._adoptions.add(task)
        task.add_done_callback(self._adopted)

    def _adopted(self, task: asyncio.Task[None]) -> None:
        self._adoptions.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("handoff.lost error=%r", error)  # the client went away while being passed on

    def forget(self, link: Link) -> None:
        """Drop a gateway that left."""
        self._links.discard(link)

    def close(self) -> None:
        """Take no more connections; those served stay."""
        self._loop.remove_reader(self._sock)
        self._sock.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        for link in list(self._links):
            link.close()


class Link:
    """One gateway."""

    def __init__(self, server: HandoffServer, sock: socket.socket) -> None:
        self._server = server
        self._sock: socket.socket | None = sock
        self._loop = server._loop
        self._loop.add_reader(sock, self._receive)

    def _receive(self) -> None:
        while self._sock is not None:
            try:
                passed = handoff.receive_connection(self._sock)
            except BlockingIOError:
                return
            except OSError as exc:
                log.warning("handoff.broken error=%r", exc)
                passed = None
            if passed is None:
                self.close()
                return
            self._server.adopt(self, *passed)

    def give_back(self, connection: Connection) -> None:
        """Return a connection whose inbox begins with a request that is not ours."""
        if connection.state is State.GONE:
            return
        if connection.transport.get_write_buffer_size():  # an earlier reply is still on its way
            connection.state = State.WRITING
            self._loop.call_later(_RETRY_S, self.give_back, connection)
            return
        if self._sock is None:
            if connection.inbox:
                connection.refuse(503, "the gateway is not there")
            else:
                connection.close()
            return
        descriptor, unread = connection.detach()
        try:
            handoff.send_connection(self._sock, descriptor, unread)
        except OSError as exc:
            log.warning("handoff.return_failed error=%r", exc)  # closing it resets the client, who will try again
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Leave the gateway."""
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None
            self._server.forget(self)
