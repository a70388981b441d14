"""Keeps a second hold on connections that were handed to engines, so that a client whose engine dies gets an answer.

The kernel closes what a dead process held. As long as we hold the connection too, it stays open, and whoever waits on
it can be told 502, or be served by another engine, instead of being cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
from collections.abc import Callable

SWEEP_S = 5.0
JIFFY_MS = 10
"""How exactly the kernel tells when something last went over a connection, at worst."""
_TCP_INFO_BYTES = 104
_STATE_CLOSING = frozenset({4, 5, 6, 7, 8, 9, 11})
"""Every state but ESTABLISHED and those before it: one side has said good-bye."""

_Ends = tuple[object, object]
"""Addresses of a connection's two ends."""


class Held:
    """Connections that engines serve, by the engine's socket path."""

    def __init__(self, rescue: Callable[[str, socket.socket, bool], None]) -> None:
        self._rescue = rescue
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._by_fd: dict[int, tuple[str, socket.socket, _Ends]] = {}
        self._by_peer: dict[_Ends, int] = {}
        self._loop.add_reader(self._epoll.fileno(), self._on_hang_ups)
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)

    def __len__(self) -> int:
        return len(self._by_fd)

    def keep(self, path: str, sock: socket.socket) -> None:
        """Hold a connection that the engine at `path` serves from now on, until the client leaves."""
        try:
            ends = sock.getpeername(), sock.getsockname()
            self._epoll.register(sock.fileno(), select.EPOLLRDHUP | select.EPOLLONESHOT)
        except OSError:  # the client left already
            sock.close()
            return
        self._by_fd[sock.fileno()] = path, sock, ends
        self._by_peer[ends] = sock.fileno()

    def forget_twin(self, sock: socket.socket) -> None:
        """Let go of our hold on a connection that came back from its engine as `sock`."""
        with contextlib.suppress(OSError):
            descriptor = self._by_peer.get((sock.getpeername(), sock.getsockname()))
            if descriptor is not None:
                self._drop(descriptor)

    def engine_lost(self, path: str) -> None:
        """Look after the clients of an engine that is gone."""
        for descriptor in [fd for fd, (held_by, _, _) in self._by_fd.items() if held_by == path]:
            sock = self._drop(descriptor, close=False)
            self._rescue(path, sock, is_waiting(sock))

    def close(self) -> None:
        """Let go of everything; the engines go on serving."""
        self._timer.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        for descriptor in list(self._by_fd):
            self._drop(descriptor)
        self._epoll.close()

    def _drop(self, descriptor: int, *, close: bool = True) -> socket.socket:
        _, sock, ends = self._by_fd.pop(descriptor)
        if self._by_peer.get(ends) == descriptor:
            del self._by_peer[ends]
        with contextlib.suppress(OSError):
            self._epoll.unregister(descriptor)
        if close:
            sock.close()
        return sock

    def _on_hang_ups(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            if descriptor in self._by_fd:
                self._drop(descriptor)

    def _sweep(self) -> None:
        """Let go of connections that their engine has closed while the client keeps its end open."""
        for descriptor in list(self._by_fd):
            info = _tcp_info(self._by_fd[descriptor][1])
            if info is None or info[0] in _STATE_CLOSING:
                self._drop(descriptor)
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)


def is_waiting(sock: socket.socket) -> bool:
    """Say whether the client may wait for an answer: as far as can be told, it sent something after the last reply."""
    info = _tcp_info(sock)
    if info is None:
        return False
    _, sent_ms_ago, received_ms_ago = info
    return received_ms_ago <= sent_ms_ago + JIFFY_MS


def _tcp_info(sock: socket.socket) -> tuple[int, int, int] | None:
    """Return the connection's state, and how many milliseconds ago data were last sent and received."""
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    # struct tcp_info: 8 bytes, then rto, ato, snd_mss, rcv_mss, unacked, sacked, lost, retrans, fackets,
    # last_data_sent, last_ack_sent, last_data_recv, …
    sent, _, received = struct.unpack_from("=3I", raw, 8 + 9 * 4)
    return raw[0], sent, received
