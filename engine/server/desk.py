"""Requests between being read and being answered, and the desk where all lanes of a process meet."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from engine.contract.datasets import Selection
from engine.contract.failures import failure_body
from engine.server.commit import FAILURES, Logs
from engine.server.fast.path import Work, ignore_overflow
from engine.server.fast.template import Buffer
from engine.server.http import Connection, State
from engine.server.metrics import Metrics, labels
from engine.server.polling import BusyPoll

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from engine.server.lanes import Lane


JOIN_BYTES = 16 * 1024
"""Up to this size, putting head and body together is cheaper than handing the kernel two pieces."""


class Route:
    """What the head of an inference request asks for; shared by all requests with that head."""

    __slots__ = (
        "accept", "content_type", "extra", "fast_arrow", "fast_json", "headers", "lane", "pipeline", "query",
        "selection", "user_agent",
    )  # fmt: skip

    def __init__(self, lane: Lane, pipeline: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.lane = lane
        self.pipeline = pipeline
        self.content_type: str | None = None
        self.accept: str | None = None
        self.query = ""
        self.user_agent: str | None = None
        self.headers = headers
        """Sent back with the reply: the caller's trace context."""
        self.extra = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        self.selection = Selection()
        self.fast_json = False
        self.fast_arrow = False


class Ticket:
    """A request that has been read and not answered."""

    __slots__ = ("body", "connection", "piece", "received_ns", "route", "serial", "work")

    def __init__(self, connection: Connection, route: Route, body: bytes | bytearray) -> None:
        self.connection = connection
        self.serial = connection.serial
        self.route = route
        self.body = body
        self.received_ns = time.perf_counter_ns()
        self.piece: bytes | None = None
        self.work: Work | None = None

    @property
    def rows(self) -> int:
        """How many rows it asks about, once it has been read; a single JSON record stays text until it runs."""
        return 1 if self.work is None else self.work.rows

    @property
    def is_awaited(self) -> bool:
        """Whether somebody still waits for the reply."""
        return self.connection.serial == self.serial and self.connection.state is State.BUSY


Reply = tuple[Ticket, int, bytes, "bytes | list[Buffer]", "tuple[tuple[bytes, bytes], ...]"]
"""Ticket, status, content type, body, further headers."""


class Desk:
    """Where all lanes of a process meet: the turn, the commit, the queue."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, logs: Logs, metrics: Metrics, queue_depth: int, threads: int
    ) -> None:
        self.logs = logs
        self.metrics = metrics
        self.depth = 0
        """Requests that wait for a thread, or are in one."""
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads, "infer", ignore_overflow)
        self._loop = loop
        self._queue_depth = queue_depth
        self._lanes: list[Lane] = []
        self._replies: list[Reply] = []
        self._later: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._scheduled = False
        self._in_turn = False
        self._busy_poll = BusyPoll(loop, lambda: self.depth > 0)

    @property
    def is_full(self) -> bool:
        """Whether no further request may wait."""
        return self.depth >= self._queue_depth

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        """Call back on the event loop, from any thread."""
        self._loop.call_soon_threadsafe(callback, *args)

    def next_turn(self, callback: Callable[..., None], *args: Any) -> None:
        """Call back on the event loop, from the event loop, once it has looked after everybody else."""
        self._loop.call_soon(callback, *args)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call back on the event loop, from the event loop, after a delay."""
        return self._loop.call_later(delay_s, callback)

    def wake(self, lane: Lane) -> None:
        """Give a lane its turn."""
        self._lanes.append(lane)
        self._schedule()

    def reply(self, reply: Reply) -> None:
        """Answer, once the records of this turn are with the operating system."""
        self._replies.append(reply)
        self._schedule()

    def after_replies(self, callback: Callable[..., None], *args: Any) -> None:
        """Call back once the replies of this turn have left: for what nobody waits for."""
        self._later.append((callback, args))

    def refuse(
        self, ticket: Ticket, reason: str = "The resources required to run this request are not available"
    ) -> None:
        """Answer 503 at once."""
        ticket.route.lane.desk.metrics.add("potoroo_engine_refusals_total", labels(reason="queue"))
        body = failure_body(reason, 503, ticket.route.user_agent)
        ticket.connection.respond(
            ticket.serial, 503, b"application/json", body, (*ticket.route.headers, (b"retry-after", b"1"))
        )

    def end_turn(self) -> None:
        """Work on what has arrived so far, now; within a turn, after it."""
        if not self._in_turn:
            self._turn()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = self._in_turn = True  # what comes up meanwhile has a turn of its own
        try:
            self._work_and_reply()
        finally:
            self._scheduled = self._in_turn = False
            if self._lanes or self._replies:
                self._schedule()

    def _work_and_reply(self) -> None:
        began_ns = time.perf_counter_ns()
        lanes, self._lanes = self._lanes, []
        broken: list[Ticket] = []
        for lane in lanes:
            tickets, lane.waiting = lane.waiting, []
            try:
                lane.turn(tickets)
            except Exception:
                # One lane's bug must cost neither the other lanes' requests nor the server.
                log.exception("lane.bug pipeline=%s", lane.name)
                broken += tickets
        refused = self.logs.flush()
        replies, self._replies = self._replies, []
        if replies:
            self._send(replies, refused)
            self._busy_poll.answered(began_ns, time.perf_counter_ns())
        later, self._later = self._later, []
        for callback, args in later:
            callback(*args)
        for ticket in broken:
            body = failure_body("The engine failed on this request; its log says more.", 500, ticket.route.user_agent)
            ticket.connection.respond(ticket.serial, 500, b"application/json", body, ticket.route.headers)

    def _send(self, replies: Iterable[Reply], refused: set[str]) -> None:
        now = time.perf_counter_ns()
        for ticket, status, content_type, body, headers in replies:
            route = ticket.route
            lane = route.lane
            if refused and (lane.topic in refused or lane.topic + FAILURES in refused):
                self.refuse(ticket, "The inference log took no records")
                continue
            connection = ticket.connection
            parts = body if isinstance(body, list) else None
            size = sum(map(len, parts)) if parts is not None else len(body)
            if status == 200 and not connection.closes and connection.head.version == "1.1":
                head = b"HTTP/1.1 200 OK\r\n%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n" % (
                    connection.listener.date_line, content_type, size, route.extra,
                )  # fmt: skip
                if parts is not None:
                    connection.send_parts(ticket.serial, [head, *parts])
                elif size > JOIN_BYTES:
                    connection.send_parts(ticket.serial, [head, body])
                else:
                    connection.send(ticket.serial, head + body)  # type: ignore[operator]
            else:
                whole = b"".join(parts) if parts is not None else body
                connection.respond(ticket.serial, status, content_type, whole, headers)  # type: ignore[arg-type]
            lane.latency.observe(now - ticket.received_ns)
            lane.requests(status).value += 1
            lane.request_bytes.value += len(ticket.body)
            lane.reply_bytes.value += size

    def close(self) -> None:
        """Let the threads end."""
        self.pool.shutdown(wait=True, cancel_futures=True)
