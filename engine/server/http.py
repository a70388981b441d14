"""One HTTP/1.1 connection, as a buffered asyncio protocol.

A connection works on one request at a time: further pipelined bytes wait in its inbox, and when that is full the socket
is no longer read, so a client can never make the server hold more than it asked for. Heads that were seen before are
recognised by their bytes and not parsed again. All connections of a process receive into one shared buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, cast

from engine.server.chunked import ChunkedBody
from engine.server.heads import MAX_HEAD_BYTES, BadRequest, Head, has_bare_line_end, parse_head, status_line

if TYPE_CHECKING:
    from engine.server.listener import Listener

INBOX_LIMIT = 64 * 1024
FIRST_ALLOCATION = 1024 * 1024
DISCARD_LIMIT = 64 * 1024
"""A refused request whose body is no larger than this is read to its end, so that the connection can be kept."""
LINGER_S = 2.0
SLOWEST_BYTES_PER_S = 16 * 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON = b"application/json"


class State(IntEnum):
    """What a connection is waiting for."""

    IDLE = 0
    """The (rest of the) head of a request."""
    BODY = 1
    BUSY = 2
    """The application."""
    WRITING = 3
    """The client, to take the reply."""
    LINGER = 4
    """The client, to close."""
    GONE = 5


class Connection(asyncio.BufferedProtocol):
    """Read requests from one socket and write replies to it, in order."""

    __slots__ = (
        "_body", "_body_view", "_chunks", "_got", "_known", "_need", "_pumping", "_reading_paused", "_reserved",
        "_saw_eof", "_since", "_write_backlog", "_write_blocked", "deadline", "head", "inbox", "listener", "origin",
        "serial", "state", "transport",
    )  # fmt: skip

    def __init__(self, listener: Listener, origin: Any = None) -> None:
        self.listener = listener
        self.origin = origin
        """Who handed the connection over and takes it back; None for one accepted here."""
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set before any other callback
        self.state = State.IDLE
        self.serial = 0
        """Number of the request in work; a reply to an earlier one is dropped."""
        self.head: Head = None  # type: ignore[assignment]  # set before the application sees the connection
        self.inbox = bytearray()
        self.deadline = listener.now + listener.limits.keep_alive_s
        self._known: Head | None = None
        self._body: bytearray | None = None
        self._body_view: memoryview | None = None
        self._chunks: ChunkedBody | None = None
        self._got = 0
        self._need = 0
        self._reserved = 0
        self._since = 0.0
        self._pumping = False
        self._saw_eof = False
        self._reading_paused = False
        self._write_blocked = False
        self._write_backlog = 0

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the listener's connections."""
        self.transport = cast("asyncio.Transport", transport)
        self.listener.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything; a reply still being worked out will find nobody."""
        self.state = State.GONE
        self.serial += 1
        self._drop_body()
        self.inbox = bytearray()
        self.listener.remove(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where the next bytes go: the rest of a body to its place, everything else to the shared buffer."""
        if self._body_view is not None:
            return self._body_view[self._got :]
        return self.listener.view

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes that arrived."""
        if self._body_view is not None:
            self._got += nbytes
            self._continue_body()
            return
        listener = self.listener
        known = self._known
        if known is not None and self.state is State.IDLE and not self.inbox:
            size = known.size
            if nbytes >= size and listener.buffer.startswith(known.raw):
                if nbytes == size + known.content_length:
                    self.head = known
                    self.state = State.BUSY
                    self.serial += 1
                    self.deadline = listener.now + listener.limits.deadline_s
                    listener.app.handle(self, known, bytes(listener.view[size:nbytes]))
                    return
                if nbytes < size + known.content_length <= size + listener.limits.body_bytes:
                    self.head = known
                    self.serial += 1
                    self._receive(known, listener.view[size:nbytes])
                    return
                self.inbox += listener.view[size:nbytes]
                self._pump(known)
                return
        if self.state is State.LINGER:
            return
        self.inbox += listener.view[:nbytes]
        if self.state is State.IDLE or self._chunks is not None:
            self._pump()
        elif len(self.inbox) > INBOX_LIMIT and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """Let a half-closed client have the reply it is waiting for."""
        self._saw_eof = True
        if self.state in (State.BUSY, State.WRITING):
            return True
        self.state = State.GONE if self.state is State.LINGER else self.state
        return False

    def pause_writing(self) -> None:
        """Stop taking requests: the client does not read."""
        self._write_blocked = True

    def resume_writing(self) -> None:
        """Go on with the next request."""
        self._write_blocked = False
        if self.state is State.WRITING:
            self._become_idle()

    # Requests.

    def feed(self, received: bytes) -> None:
        """Take bytes that somebody else read from this socket before handing it over."""
        self.inbox += received
        self._pump()

    def _pump(self, head: Head | None = None) -> None:
        """Work through the inbox until it needs more bytes or a request is with the application."""
        if self._pumping:
            return
        self._pumping = True
        try:
            if head is not None:
                self._begin(head)
            while self.inbox:
                if self._chunks is not None:
                    if not self._continue_chunks(self._chunks):
                        break
                elif self.state is State.IDLE and (head := self._take_head()) is not None:
                    self._begin(head)
                else:
                    break
        except BadRequest as exc:
            self.refuse(exc.status, exc.reason)
        finally:
            self._pumping = False
        if self._saw_eof and self.state < State.BUSY:
            self.close()  # the rest of this request will never come
        else:
            self._watch_inbox()

    def _watch_inbox(self) -> None:
        if self._reading_paused and len(self.inbox) <= INBOX_LIMIT and self.state < State.GONE:
            self._reading_paused = False
            self.transport.resume_reading()

    def _take_head(self) -> Head | None:
        inbox = self.inbox
        while inbox.startswith(b"\r\n"):
            del inbox[:2]
        end = inbox.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        if end < 0:
            if len(inbox) >= MAX_HEAD_BYTES:
                raise BadRequest(431, f"the request head is larger than {MAX_HEAD_BYTES} bytes")
            if has_bare_line_end(inbox):
                raise BadRequest(400, "a line of the request head does not end in CR LF")
            if inbox:
                self.deadline = min(self.deadline, self.listener.now + self.listener.limits.header_timeout_s)
            return None
        raw = bytes(memoryview(inbox)[: end + 4])
        head = self.listener.heads.get(raw)
        if head is None:
            head = parse_head(raw)
            self.listener.remember(head)
        del inbox[: end + 4]
        return head

    def _begin(self, head: Head) -> None:
        """Start on a request whose head is known; its body, as far as it is here, is in the inbox."""
        listener = self.listener
        if self.origin is not None and not listener.app.is_ours(head):
            self.inbox[:0] = head.raw
            listener.app.give_back(self)
            return
        self.head = head
        self.serial += 1
        self._known = head if listener.is_repeatable(head) else None
        if not head.has_body:
            self._hand_over(b"")
            return
        length = head.content_length
        limit = listener.limits.body_bytes
        if length > limit:
            raise BadRequest(413, f"the body is larger than {limit} bytes")
        if not head.chunked and len(self.inbox) < length:
            first, self.inbox = self.inbox, bytearray()
            self._receive(head, first)
            return
        if (head.chunked or head.expects_continue or length > DISCARD_LIMIT) and self._is_refused(head):
            return
        self._since = listener.now
        if head.chunked:
            self._extend_deadline(0)
            if head.expects_continue and not self.inbox:
                self.transport.write(CONTINUE)
            self._chunks = ChunkedBody(limit)
            self.state = State.BODY
            return
        body = bytes(memoryview(self.inbox)[:length])
        del self.inbox[:length]
        self._hand_over(body)

    def _is_refused(self, head: Head) -> bool:
        """Let the application refuse a request before its body is here."""
        self.state = State.BUSY
        if self.listener.app.refuse_early(self, head):
            return True
        self.state = State.IDLE
        return False

    def _receive(self, head: Head, first: bytearray | memoryview) -> None:
        """Receive a body of known length, of which `first` is here."""
        listener = self.listener
        length, got = head.content_length, len(first)
        if (head.expects_continue or length > DISCARD_LIMIT) and self._is_refused(head):
            return
        self._since = listener.now
        self._extend_deadline(0)
        if head.expects_continue and not got:
            self.transport.write(CONTINUE)
        if length > FIRST_ALLOCATION:
            if not listener.reserve(length):
                self.refuse(503, "too many large requests at once")
                return
            self._reserved = length
        self._got = got
        self._need = length
        self._body = bytearray(min(length, max(FIRST_ALLOCATION, 2 * got)))
        self._body[:got] = first
        self._body_view = memoryview(self._body)
        self.state = State.BODY

    def _continue_body(self) -> None:
        body = self._body
        assert body is not None  # noqa: S101 - get_buffer gave out its view
        if self._got == self._need:
            self._body = self._body_view = None
            self._release()
            self._hand_over(body)
            return
        self._extend_deadline(self._got)
        if self._got == len(body):
            larger = bytearray(min(self._need, 2 * len(body)))
            larger[: self._got] = body
            self._body = larger
            self._body_view = memoryview(larger)

    def _continue_chunks(self, chunks: ChunkedBody) -> bool:
        if not chunks.feed(self.inbox):
            self._extend_deadline(chunks.size)
            return False
        self._chunks = None
        self._hand_over(chunks.body())
        return True

    def _extend_deadline(self, received_bytes: int) -> None:
        limits = self.listener.limits
        self.deadline = self._since + limits.body_timeout_s + received_bytes / SLOWEST_BYTES_PER_S

    def _hand_over(self, body: bytes | bytearray) -> None:
        self.state = State.BUSY
        self.deadline = self.listener.now + self.listener.limits.deadline_s
        self.listener.app.handle(self, self.head, body)

    def _drop_body(self) -> None:
        self._body = self._body_view = self._chunks = None
        self._release()

    def _release(self) -> None:
        if self._reserved:
            self.listener.release(self._reserved)
            self._reserved = 0

    # Replies.

    @property
    def closes(self) -> bool:
        """Whether the connection ends with the reply to the request in work."""
        return self.listener.draining or not self.head.keep_alive or (self._saw_eof and not self.inbox)

    def respond(
        self,
        serial: int,
        status: int,
        content_type: bytes,
        body: bytes,
        headers: Iterable[tuple[bytes, bytes]] = (),
        *,
        close: bool = False,
    ) -> None:
        """Reply to request number `serial`, unless it is no longer waited for."""
        if serial != self.serial or self.state is not State.BUSY:
            return
        close = close or self.closes
        lines = [status_line(status), self.listener.date_line]
        if status != 204:
            lines.append(b"content-type: %b\r\ncontent-length: %d\r\n" % (content_type, len(body)))
        lines.extend(b"%b: %b\r\n" % pair for pair in headers)
        if close:
            lines.append(b"connection: close\r\n")
        elif self.head.version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        if self.head.method != "HEAD" and status != 204:
            lines.append(body)
        self.send(serial, b"".join(lines), close=close)

    def send(self, serial: int, reply: bytes, *, close: bool = False) -> None:
        """Write a whole reply; `close` must be what its head says."""
        if serial != self.serial or self.state is not State.BUSY:
            return
        self.transport.write(reply)
        self._sent(close=close)

    def send_parts(self, serial: int, parts: list[Any]) -> None:
        """Write a whole reply that lies in several buffers, which must not change any more."""
        if serial != self.serial or self.state is not State.BUSY:
            return
        self.transport.writelines(parts)
        self._sent(close=False)

    def _sent(self, *, close: bool) -> None:
        if close:
            self._linger()
        elif self._write_blocked:
            self.state = State.WRITING
            self._write_backlog = self.transport.get_write_buffer_size()
            self.deadline = self.listener.now + self.listener.limits.body_timeout_s
        else:
            self._become_idle()

    def _become_idle(self) -> None:
        self.state = State.IDLE
        limits = self.listener.limits
        self.deadline = self.listener.now + limits.keep_alive_s
        if self.inbox:
            if not self._pumping:
                self._pump()
        elif self._saw_eof:
            self.close()

    def refuse(self, status: int, reason: str) -> None:
        """Answer bytes that make no request, and close."""
        if self.state in (State.LINGER, State.GONE):
            return
        self._drop_body()
        self.listener.app.count_refusal(status)
        body = b'{"code":%d,"status":"error","error":%b,"source":"engine"}' % (status, _quote(reason))
        retry = b"retry-after: 1\r\n" if status == 503 else b""
        reply = b"%b%bcontent-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n%b" % (
            status_line(status), self.listener.date_line, len(body), retry, body,
        )  # fmt: skip
        self.serial += 1
        self.transport.write(reply)
        self._linger()

    def _linger(self) -> None:
        """Close, but not before the client had a chance to read what was written (a reset would destroy it)."""
        self.state = State.LINGER
        self.deadline = self.listener.now + LINGER_S
        self.inbox = bytearray()
        self._drop_body()
        if self._saw_eof or self.transport.is_closing():
            self.close()
            return
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()
        self.transport.write_eof()

    def close(self) -> None:
        """Close without another word."""
        self.state = State.GONE
        self._sever()
        self.transport.close()

    def abort(self) -> None:
        """Close, whatever is under way."""
        self._sever()
        self.transport.abort()

    def _sever(self) -> None:
        """End the connection itself, not just our hold on it: the gateway that handed it over has one too."""
        if self.origin is not None:
            with contextlib.suppress(OSError):
                descriptor = os.dup(self.transport.get_extra_info("socket").fileno())
                with socket.socket(fileno=descriptor) as sock:
                    sock.shutdown(socket.SHUT_RDWR)

    def end_if_idle(self) -> None:
        """Let go of it if no request is under way: the server drains. One that was handed over is given back."""
        if self.state is State.IDLE and not self.inbox:
            if self.origin is not None:
                self.listener.app.give_back(self)
            else:
                self.close()

    def expire(self) -> None:
        """Act on a deadline that passed."""
        if self.state is State.IDLE:
            if self.inbox:
                self.refuse(408, "the request head took too long")
            else:
                self.close()
        elif self.state is State.BODY:
            self.refuse(408, "the request body took too long")
        elif self.state is State.BUSY:
            self.listener.app.expire(self, self.head)
        elif self.state is State.WRITING:
            backlog = self.transport.get_write_buffer_size()
            if backlog < self._write_backlog:
                self._write_backlog = backlog
                self.deadline = self.listener.now + self.listener.limits.body_timeout_s
            else:
                self.abort()
        else:
            self.abort()

    def detach(self) -> tuple[int, bytes]:
        """Leave the socket to somebody else: a duplicate of its descriptor and the bytes nobody has looked at."""
        descriptor = os.dup(self.transport.get_extra_info("socket").fileno())
        unread = bytes(self.inbox)
        self.inbox = bytearray()
        self.state = State.GONE
        self.transport.abort()
        return descriptor, unread


def _quote(text: str) -> bytes:
    return b'"' + text.replace("\\", "\\\\").replace('"', '\\"').encode("ascii", "backslashreplace") + b'"'
