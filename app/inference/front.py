"""The process's front door: inference connections go straight to a local engine, all others to the API.

A new connection's first bytes say what it asks for. When that is an inference on an engine of this machine the whole
connection is handed to the engine's process, which answers without us in between and gives the connection back when
something else is asked on it. Everything else is served by uvicorn's protocol in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.deployments.runtimes import PORT_PART
from app.inference.heads import OTHER, deployment_asked
from app.inference.held import Held
from app.inference.routing import RoutingTable, Target, routes_of
from app.kit.context import Context
from engine.contract.failures import failure_body
from engine.contract.handoff import GatewaySide

log = structlog.get_logger()

BACKLOG = 4096
FIRST_BYTES_S = 10.0
"""What a new connection gets to say what it wants."""
IDLE_S = 75.0
FULL_S = 5.0
"""How long connections wait for an engine that takes none at the moment before they are served without it."""
_READ_BYTES = 64 * 1024
_ACCEPTS_AT_ONCE = 64
_BROKE_OFF = (
    b"502 Bad Gateway",
    failure_body("The engine ended before it answered; send the request again.", 502, None),
)
_UNDEPLOYED = b"404 Not Found", failure_body("Deployment not found", 404, None, "platform")
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class CannotListen(Exception):
    """The address cannot be listened on; the message is for the person at the terminal."""


_Passenger = tuple[socket.socket, bytes, str]
"""A connection, what was read of it, and the deployment it asks for."""


@dataclass(slots=True)
class _Waiting:
    """Connections for an engine that has no room for them at the moment."""

    timer: asyncio.TimerHandle
    connections: deque[_Passenger] = field(default_factory=deque)


class Front:
    """Accepts connections and decides who serves them."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        table: RoutingTable,
        serve: Callable[[Front, bytes], asyncio.BaseProtocol],
    ) -> None:
        self._listeners = listeners
        self._table = table
        self._serve = serve
        """Makes the protocol that serves what is no inference, beginning with the bytes that were read already."""
        self._loop = asyncio.get_running_loop()
        self._gateways: dict[str, GatewaySide] = {}
        self._held = Held(self._rescue)
        self._served: dict[str, str] = {}
        """The deployment that an engine answers for, by its socket path."""
        self._undecided: dict[socket.socket, tuple[bytearray, asyncio.TimerHandle]] = {}
        self._waiting: dict[str, _Waiting] = {}
        """By the engine's socket path: whom it has no room for at the moment."""
        self._tasks: set[asyncio.Task[None]] = set()
        table.on_change(self._forget_gone)
        for listener in listeners:
            listener.listen(BACKLOG)
            self._loop.add_reader(listener, self._accept, listener)

    @property
    def handed_over(self) -> int:
        """Return how many connections engines serve for us now."""
        return len(self._held)

    # Coming in.

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, _address = listener.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno in _NO_ROOM:
                    log.warning("front.no_room", error=exc.strerror)
                    self._loop.remove_reader(listener)
                    self._loop.call_later(0.5, self._resume, listener)
                    return
                continue  # the client gave up while waiting
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.receive(sock, b"")

    def _resume(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener, self._accept, listener)

    def receive(self, sock: socket.socket, received: bytes, patience_s: float = FIRST_BYTES_S) -> None:
        """Find out what a connection asks for, of which `received` was read already, and pass it on."""
        wanted = deployment_asked(received) if received else None
        if wanted is not None:
            self._pass_on(sock, received, wanted)
            return
        timer = self._loop.call_later(patience_s, self._give_up, sock)
        self._undecided[sock] = bytearray(received), timer
        self._loop.add_reader(sock, self._on_readable, sock)

    def _on_readable(self, sock: socket.socket) -> None:
        received, _ = self._undecided[sock]
        try:
            part = sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            part = b""
        if not part:
            self._give_up(sock)
            return
        received += part
        wanted = deployment_asked(received)
        if wanted is not None:
            self._decided(sock)
            self._pass_on(sock, bytes(received), wanted)

    def _decided(self, sock: socket.socket) -> None:
        _, timer = self._undecided.pop(sock)
        timer.cancel()
        self._loop.remove_reader(sock)

    def _give_up(self, sock: socket.socket) -> None:
        self._decided(sock)
        sock.close()

    # Going out.

    def _pass_on(self, sock: socket.socket, received: bytes, wanted: str) -> None:
        if wanted is not OTHER:
            if self.hand_over(sock, received, wanted):
                return
            if (path := self._full_way(wanted)) is not None:
                self._wait_for_room(path, sock, received, wanted)
                return
        self._serve_here(sock, received)

    def _serve_here(self, sock: socket.socket, received: bytes) -> None:
        task = self._loop.create_task(self._adopt(sock, received))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def hand_over(self, sock: socket.socket, received: bytes, deployment: str) -> bool:
        """Give a connection to an engine of the deployment; False if none takes it, and it is still ours."""
        route = self._table.find(deployment)
        tried: set[Target] = set()
        while route is not None and (target := route.choose(self._loop.time(), tried)) is not None:
            if target.down_until > self._loop.time():
                return False
            tried.add(target)
            if not target.sockets:
                continue
            path = target.sockets[target.turns % len(target.sockets)]
            target.turns += 1
            if self._gateway(path).hand_over(sock.fileno(), received):
                self._served[path] = deployment
                self._held.keep(path, sock)
                return True
            if not self._gateway(path).is_full:
                self._table.mark_down(target)
        return False

    # An engine that is busy for a moment takes no connections; they wait for it in the order in which they came.

    def _full_way(self, deployment: str) -> str | None:
        """Return the socket path of a live engine of the deployment that only lacks room."""
        route = self._table.find(deployment)
        for target in route.targets if route is not None else ():
            for path in target.sockets:
                gateway = self._gateways.get(path)
                if gateway is not None and gateway.is_full and gateway.is_connected:
                    return path
        return None

    def _wait_for_room(self, path: str, sock: socket.socket, received: bytes, wanted: str) -> None:
        waiting = self._waiting.get(path)
        if waiting is None:
            timer = self._loop.call_later(FULL_S, self._waited_enough, path)
            waiting = self._waiting[path] = _Waiting(timer)
            self._gateway(path).when_room(lambda: self._on_room(path))
        waiting.connections.append((sock, received, wanted))

    def _on_room(self, path: str) -> None:
        waiting, gateway = self._waiting.get(path), self._gateway(path)
        has_moved = False
        while waiting is not None and waiting.connections:
            sock, received, wanted = waiting.connections.popleft()
            if gateway.hand_over(sock.fileno(), received):
                self._held.keep(path, sock)
                has_moved = True
            elif gateway.is_full and self._waiting.get(path) is waiting:
                waiting.connections.appendleft((sock, received, wanted))
                gateway.when_room(lambda: self._on_room(path))
                if has_moved:
                    waiting.timer.cancel()
                    waiting.timer = self._loop.call_later(FULL_S, self._waited_enough, path)
                return
            else:  # the engine went, and those behind have been looked after already
                self._pass_on(sock, received, wanted)
        if waiting is not None and self._waiting.get(path) is waiting:
            self._end_waiting(path)

    def _waited_enough(self, path: str) -> None:
        for sock, received, _ in self._end_waiting(path):
            self._serve_here(sock, received)

    def _end_waiting(self, path: str) -> list[_Passenger]:
        waiting = self._waiting.pop(path, None)
        if waiting is None:
            return []
        waiting.timer.cancel()
        left = list(waiting.connections)
        waiting.connections.clear()
        return left

    async def _adopt(self, sock: socket.socket, received: bytes) -> None:
        """Serve a connection in this process."""
        try:
            await self._loop.connect_accepted_socket(lambda: self._serve(self, received), sock)
        except OSError:
            sock.close()

    def _gateway(self, path: str) -> GatewaySide:
        gateway = self._gateways.get(path)
        if gateway is None:

            def lost() -> None:
                self._held.engine_lost(path)
                for sock, received, wanted in self._end_waiting(path):
                    self._pass_on(sock, received, wanted)

            gateway = self._gateways[path] = GatewaySide(path, self._take_back, lost)
        return gateway

    def _take_back(self, sock: socket.socket, received: bytes) -> None:
        self._held.forget_twin(sock)
        self.receive(sock, received, IDLE_S)

    def _rescue(self, path: str, sock: socket.socket, is_waiting: bool) -> None:
        """Look after a client of the engine at `path`, which is gone."""
        try:
            unread = sock.recv(512, socket.MSG_PEEK)
            is_next_request = deployment_asked(unread) not in (OTHER, None)
            if not unread:
                sock.close()
                return
        except (BlockingIOError, InterruptedError):
            is_next_request = not is_waiting
        except OSError:
            sock.close()
            return
        if is_next_request:  # nobody has read of it yet: it is served as if it came only now
            self.receive(sock, b"", IDLE_S)
            return
        status, body = _BROKE_OFF if self._table.find(self._served.get(path, "")) else _UNDEPLOYED
        with contextlib.suppress(OSError):
            sock.send(
                b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n%b" % (status, len(body), body)
            )
            sock.shutdown(socket.SHUT_WR)
        timer = self._loop.call_later(FIRST_BYTES_S, self._give_up, sock)
        self._undecided[sock] = bytearray(), timer  # closing while bytes are unread would reset what we just sent
        self._loop.add_reader(sock, self._drain, sock)

    def _drain(self, sock: socket.socket) -> None:
        try:
            ended = not sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            ended = True
        if ended:
            self._give_up(sock)

    def _forget_gone(self) -> None:
        alive = {path for target in self._table.targets() for path in target.sockets}
        for path in [path for path, gateway in self._gateways.items() if path not in alive]:
            if not self._gateways[path].is_connected:
                del self._gateways[path]
                self._served.pop(path, None)

    # What uvicorn asks of a server.

    def close(self) -> None:
        """Accept no more connections, and let go of those that are with engines or have said nothing yet."""
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        for sock in list(self._undecided):
            self._give_up(sock)
        for path in list(self._waiting):
            for sock, _, _ in self._end_waiting(path):
                sock.close()
        self._held.close()
        for gateway in self._gateways.values():
            gateway.close()

    async def wait_closed(self) -> None:
        """Return when connections that were on their way to their protocol have arrived there."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


class ApiProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which lets a connection go to an engine when an inference is asked on it."""

    def __init__(self, front: Front, received: bytes, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._front = front
        self._received = received
        """What was read of the connection before it came here."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with what was read already, before anything else arrives."""
        super().connection_made(transport)  # type: ignore[arg-type]  # it is a transport of a socket
        received, self._received = self._received, b""
        if received:
            super().data_received(received)

    def data_received(self, data: bytes) -> None:
        """Take bytes; between two requests, they may be for somebody else."""
        if self._is_between_requests():
            wanted = deployment_asked(data)
            if wanted and self._leave(self._front, data, wanted):
                return
        super().data_received(data)

    def _is_between_requests(self) -> bool:
        cycle = self.cycle
        return cycle is not None and cycle.response_complete and not cycle.more_body and not self.pipeline

    def _leave(self, front: Front, data: bytes, wanted: str) -> bool:
        descriptor = os.dup(self.transport.get_extra_info("socket").fileno())
        sock = socket.socket(fileno=descriptor)
        if not front.hand_over(sock, data, wanted):
            sock.close()
            return False
        self._unset_keepalive_if_required()
        self.transport.abort()
        return True


class FrontServer(uvicorn.Server):
    """uvicorn's server behind our front door."""

    def __init__(self, config: uvicorn.Config, context: Context, listeners: Sequence[socket.socket]) -> None:
        super().__init__(config)
        self._context = context
        self._own = listeners

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then open the door."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(3)

        def protocol(front: Front, received: bytes) -> ApiProtocol:
            return ApiProtocol(
                front, received, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )

        front: Any = Front(self._own, routes_of(self._context), protocol)
        self.servers = [front]
        self.started = True
        log.info("server.listens", addresses=[_shown(sock) for sock in self._own])


def bind(host: str, port: int) -> list[socket.socket]:
    """Return sockets bound to every address of `host`, all on one port; raises `CannotListen`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise CannotListen(f"{host!r} is no address of this machine: {exc.strerror}.") from exc
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
            bound.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port or (bound[0].getsockname()[1] if len(bound) > 1 else 0), *address[2:]))
    except OSError as exc:
        for sock in bound:
            sock.close()
        if exc.errno == errno.EADDRINUSE:
            raise CannotListen(f"Port {port} of {host} is taken; choose another with POTOROO_PORT.") from exc
        raise CannotListen(f"Cannot listen on {host}:{port}: {exc.strerror}.") from exc
    return bound


async def serve(app: FastAPI, context: Context, listeners: Sequence[socket.socket] | None = None) -> None:
    """Serve `app` until a signal asks to stop; requests under way are finished first.

    Raises `CannotListen` when the address of the settings cannot be listened on.
    """
    settings = context.settings
    listeners = listeners if listeners is not None else bind(settings.host, settings.port)
    context.parts[PORT_PART] = listeners[0].getsockname()[1]
    _raise_descriptor_limit()
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=int(IDLE_S),
        timeout_graceful_shutdown=int(settings.shutdown_s),
        server_header=False,
        proxy_headers=False,
    )
    await FrontServer(config, context, listeners).serve()


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _shown(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
