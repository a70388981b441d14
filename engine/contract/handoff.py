"""Passing accepted connections between a gateway and an engine on one machine.

The gateway accepts a TCP connection, reads the head of the first request, and when its path belongs to an engine
of this machine gives the connection away: one packet on a Unix SEQPACKET socket carries the descriptor (SCM_RIGHTS)
and the bytes that were read already. From then on the engine answers directly, checking tokens itself. When a request
for another path comes over the same connection the engine gives it back in the same way, with all bytes that nobody
has answered yet, beginning with that request's head.

A gateway does::

    gateway = GatewaySide(path, take_back)                # in a running event loop; `path` is `handoff_socket`
    if gateway.hand_over(sock.fileno(), received):        # False: nobody listens, or the way there `is_full`
        sock.close()                                      # the engine has its own descriptor now
    elif gateway.is_full:
        gateway.when_room(again)                          # the engine is busy for a moment; otherwise proxy

    def take_back(sock: socket.socket, received: bytes) -> None:
        ...                                               # serve `sock` as if `received` had just been read from it

What has been passed and not yet taken when a process dies is closed by the kernel; the client sees a reset connection.
An engine of several workers listens at `socket_paths(path, workers)`, one path for each.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable

MAGIC = b"PTR1"
INLINE_BYTES = 32 * 1024
"""What was read is sent in the packet up to this size, and in a memory file beyond it."""
_HEADER = struct.Struct("<4sBxxxI")
_IN_PACKET, _IN_MEMORY_FILE = 0, 1
_NO_ROOM = (errno.ETOOMANYREFS, errno.ENOBUFS)
"""Too much is on its way between processes of this user, or the kernel lacks memory: no fault of the engine."""
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class HandoffError(OSError):
    """A packet was malformed, or the other side has gone."""


def socket_paths(path: str, workers: int) -> list[str]:
    """Return where the workers of one engine listen."""
    return [path if number == 0 else f"{path}.{number}" for number in range(workers)]


def listen(path: str) -> socket.socket:
    """Listen for gateways at `path`, which only this user may connect to; what lay there before is removed."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        mask = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
        sock.listen(16)
    except OSError:
        sock.close()
        raise
    return sock


def connect(path: str) -> socket.socket:
    """Connect to the engine that listens at `path`; raises `OSError` when there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def send_connection(sock: socket.socket, descriptor: int, received: bytes) -> None:
    """Pass a connection on. The caller's own descriptor stays open: close it after this returned.

    Raises `BlockingIOError` when the other side is not keeping up, another `OSError` when it has gone; then nothing was
    passed.
    """
    descriptors = array.array("i", [descriptor])
    memory_file = -1
    try:
        if len(received) <= INLINE_BYTES:
            parts = [_HEADER.pack(MAGIC, _IN_PACKET, len(received)), received]
        else:
            memory_file = os.memfd_create("potoroo-handoff", os.MFD_CLOEXEC)
            view = memoryview(received)
            while view:
                view = view[os.write(memory_file, view) :]
            descriptors.append(memory_file)
            parts = [_HEADER.pack(MAGIC, _IN_MEMORY_FILE, len(received))]
        sock.sendmsg(parts, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)], _FLAGS)
    finally:
        if memory_file >= 0:
            os.close(memory_file)


def receive_connection(sock: socket.socket) -> tuple[socket.socket, bytes] | None:
    """Take a connection that was passed; None when the other side closed.

    Raises `BlockingIOError` when nothing is there, `HandoffError` for a packet that makes no sense.
    """
    packet, descriptors, flags, _ = socket.recv_fds(sock, _HEADER.size + INLINE_BYTES, 4, socket.MSG_DONTWAIT)
    try:
        if not packet and not descriptors:
            return None
        if len(packet) < _HEADER.size or not descriptors or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise HandoffError("a packet without a connection was passed")
        magic, where, size = _HEADER.unpack_from(packet)
        received = packet[_HEADER.size :]
        if where == _IN_MEMORY_FILE and len(descriptors) == 2:
            received = _read_whole(descriptors[1], size)
        if magic != MAGIC or len(received) != size:
            raise HandoffError("a connection was passed in a form this release does not know")
        connection = socket.socket(fileno=os.dup(descriptors[0]))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    connection.setblocking(False)
    return connection, received


def _read_whole(descriptor: int, size: int) -> bytes:
    parts = []
    at = 0
    while at < size and (part := os.pread(descriptor, size - at, at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


class GatewaySide:
    """A gateway's end: give connections to the engine at `path`, and take back those it has no answer for.

    An engine that drains gives back idle connections before it goes. When it goes, `lost` is called: whoever kept a
    descriptor of a connection it handed over may look after the client.
    """

    def __init__(
        self,
        path: str,
        take_back: Callable[[socket.socket, bytes], None],
        lost: Callable[[], None] | None = None,
    ) -> None:
        self.path = path
        self._take_back = take_back
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._on_room: Callable[[], None] | None = None
        self.is_full = False
        """Whether the last connection was not passed for want of room; the engine itself was there."""

    @property
    def is_connected(self) -> bool:
        """Whether the engine was there at the last look."""
        return self._sock is not None

    def hand_over(self, descriptor: int, received: bytes) -> bool:
        """Pass a connection to the engine; False when it cannot be reached now, and the connection is still yours."""
        self.is_full = False
        for _ in range(2):
            try:
                if self._sock is None:
                    self._sock = connect(self.path)
                    self._loop.add_reader(self._sock, self._on_readable)
                send_connection(self._sock, descriptor, received)
            except BlockingIOError:
                self.is_full = True
                return False
            except OSError as exc:
                if exc.errno in _NO_ROOM:
                    self.is_full = True
                    return False
                self._on_lost()  # a restarted engine listens anew: try once more
            else:
                return True
        return False

    def when_room(self, call: Callable[[], None]) -> None:
        """Call once when there is room for another connection; not at all when the engine goes before."""
        if self._sock is not None:
            self._on_room = call
            self._loop.add_writer(self._sock, self._on_writable)

    def _on_writable(self) -> None:
        call, self._on_room = self._on_room, None
        if self._sock is not None:
            self._loop.remove_writer(self._sock)
        if call is not None:
            call()

    def close(self) -> None:
        """Leave the engine; connections it has stay with it."""
        self._on_room = None
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()
            self._sock = None

    def _on_readable(self) -> None:
        while self._sock is not None:
            try:
                passed = receive_connection(self._sock)
            except BlockingIOError:
                return
            except OSError:
                passed = None
            if passed is None:
                self._on_lost()
                return
            self._take_back(*passed)

    def _on_lost(self) -> None:
        was_connected = self._sock is not None
        self.close()
        if was_connected and self._lost is not None:
            self._lost()
