"""What an engine answers: inference, and what it says of itself."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.contract import codecs
from engine.contract.datasets import parse_selection
from engine.contract.deployment import EngineStatus
from engine.contract.failures import BadInput, failure_body
from engine.logs.errors import LogError
from engine.runtime import formats
from engine.runtime.engine import Engine
from engine.runtime.formats import Format
from engine.runtime.onnx import OnnxModel
from engine.server.access import Access, AccessPoll
from engine.server.commit import Logs, newest
from engine.server.desk import Desk, Route, Ticket
from engine.server.heads import Head
from engine.server.http import JSON, Connection
from engine.server.lanes import Lane
from engine.server.listener import Listener
from engine.server.metrics import Metrics, labels, merge, render
from engine.server.sharing import watch, watch_steps

log = logging.getLogger(__name__)

EXTERNAL = "/v1/api/pipelines/infer/"
NEWEST_ROWS = 100
TRACE_HEADERS = (b"traceparent", b"tracestate", b"x-request-id")
RECORDS_TYPE = b"application/json; format=pandas-records"
METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request whose head says already what the answer is."""

    status: int
    message: str
    source: Any = "engine"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A request for something other than an inference."""

    render: Callable[[Connection, Head, bytes], None]


Note = Route | Refusal | Page


class EngineApp:
    """Answer the requests of one process."""

    def __init__(self, engine: Engine, logs: Logs, metrics: Metrics, access: Access | None, threads: int) -> None:
        self.access = access
        self.logs = logs
        self.metrics = metrics
        self.poll: AccessPoll | None = None
        self.started_at = time.time()
        self.phase = "Starting"
        self.reason: str | None = None
        self.port = 0
        self.siblings: Callable[[], list[dict[tuple[str, str], float]]] = list
        """Numbers of the other processes of this replica."""
        self._generation = 0
        self._threads = threads
        self._logs_pages = 0
        self._engine = engine

    def start(self, listener: Listener) -> None:
        """Begin to answer on `listener`."""
        self.listener = listener
        document = self._engine.document
        self.desk = Desk(listener.loop, self.logs, self.metrics, document.limits.queue_depth, self._threads)
        self.serve(self._engine)

    def serve(self, engine: Engine) -> None:
        """Answer with this engine from now on; requests under way are finished by the one before."""
        lanes = self.prepare(engine)
        self.adopt(engine, lanes)

    def prepare(self, engine: Engine) -> dict[str, Lane]:
        """Make the lanes of an engine ready; may be called in a thread."""
        lanes = {name: Lane(self.desk, engine, name) for name in engine.pipelines}
        for model in engine.models.values():
            if isinstance(model, OnnxModel):
                watch(model, self.metrics, engine.document.deploy_id)
        for pipeline in engine.pipelines.values():
            watch_steps(pipeline, self.metrics, engine.document.deploy_id)
        return lanes

    def adopt(self, engine: Engine, lanes: dict[str, Lane]) -> None:
        """Answer with an engine whose lanes are ready."""
        self._engine = engine
        self._lanes = lanes
        document = engine.document
        self._external = f"{EXTERNAL}{document.deploy_id}-{document.deployment_id}"
        self.listener.limits = document.limits
        self._generation += 1

    @property
    def engine(self) -> Engine:
        """The engine that answers now."""
        return self._engine

    @property
    def generation(self) -> int:
        """Changes whenever what was decided about a head may no longer hold."""
        return self._generation if self.access is None else self._generation + self.access.generation

    # What connections ask.

    def handle(self, connection: Connection, head: Head, body: bytes | bytearray) -> None:
        """Answer a request."""
        note = head.note
        access = self.access
        generation = self._generation if access is None else self._generation + access.generation
        if head.note_generation != generation or head.note_expires <= self.listener.now:
            note = self._decide(head, generation)
        if type(note) is Route:
            note.lane.submit(Ticket(connection, note, body))
            if len(self.listener.connections) == 1:
                self.desk.end_turn()  # nobody else can have a request for this turn
        elif type(note) is Page:
            note.render(connection, head, bytes(body))
        else:
            self._refuse(connection, head, note)

    def refuse_early(self, connection: Connection, head: Head) -> bool:
        """Reply to what will be refused whatever its body is."""
        generation = self.generation
        note = head.note
        if head.note_generation != generation or head.note_expires <= self.listener.now:
            note = self._decide(head, generation)
        if not isinstance(note, Refusal):
            return False
        self._refuse(connection, head, note, close=True)
        return True

    def is_ours(self, head: Head) -> bool:
        """Say whether a request that came through the gateway is for this deployment."""
        path = head.path
        return path.startswith(self._external) and path[len(self._external) : len(self._external) + 1] in ("", "/")

    def give_back(self, connection: Connection) -> None:
        """Return a connection to the gateway it came from."""
        connection.origin.give_back(connection)

    def expire(self, connection: Connection, head: Head) -> None:
        """Answer 504."""
        self.metrics.add("potoroo_engine_refusals_total", labels(reason="deadline"))
        message = f"No answer within {self.listener.limits.deadline_s:g} s."
        self._refuse(connection, head, Refusal(504, message))

    def count_refusal(self, status: int) -> None:
        """Take note of a request that was refused before it got here."""
        self.metrics.add("potoroo_engine_refusals_total", labels(reason=f"http_{status}"))

    def _refuse(self, connection: Connection, head: Head, refusal: Refusal, *, close: bool = False) -> None:
        if refusal.reason:
            self.metrics.add("potoroo_engine_refusals_total", labels(reason=refusal.reason))
        agent = head.get(b"user-agent").decode("latin-1")
        body = failure_body(refusal.message, refusal.status, agent, refusal.source)
        headers = (*refusal.headers, *_trace(head))
        connection.respond(connection.serial, refusal.status, JSON, body, headers, close=close)

    # Routing. The decision is kept with the head, which repeated requests share.

    def _decide(self, head: Head, generation: int) -> Note:
        expires = _FOREVER
        note = self._route(head)
        if self.access is not None and not (isinstance(note, Page) and head.path in _OPEN):
            now = time.time()
            verdict = self.access.check(head.get(b"authorization"), now)
            expires = self.listener.now + (verdict.expires - now)
            if not verdict.allowed:
                challenge = ((b"www-authenticate", b"Bearer"),) if verdict.status == 401 else ()
                retry = ((b"retry-after", b"1"),) if verdict.status == 503 else ()
                note = Refusal(verdict.status, verdict.reason, "platform", challenge + retry, "access")
        head.note = note
        head.note_generation = generation
        head.note_expires = expires
        return note

    def _route(self, head: Head) -> Note:
        path = head.path
        if path.startswith("/pipelines/"):
            return self._inference(head, path[len("/pipelines/") :])
        if path == "/infer":
            names = list(self._lanes)
            if len(names) != 1:
                return Refusal(404, f"This engine serves {', '.join(names) or 'no pipeline'}: say which by its path.")
            return self._inference(head, names[0])
        if path.startswith(EXTERNAL):
            if not self.is_ours(head):
                return Refusal(404, "Deployment not found", "platform")
            name = path[len(self._external) :].strip("/")
            return self._inference(head, name or self._only_pipeline())
        pages = {
            "/pipelines": ("GET", self._list_pipelines),
            "/models": ("GET", self._list_models),
            "/logs": ("POST", self._newest_logs),
            "/livez": ("GET", self._live),
            "/readyz": ("GET", self._ready),
            "/metrics": ("GET", self._metrics),
            "/status": ("GET", self._status),
        }
        if path == "*" and head.method == "OPTIONS":
            return Page(_options("GET, HEAD, POST, OPTIONS"))
        if path not in pages:
            return Refusal(404, f"There is nothing at {path[:200]}.")
        method, page = pages[path]
        return _checked(head, method, Page(page))

    def _only_pipeline(self) -> str:
        document = self._engine.document
        return document.deploy_id if document.deploy_id in self._lanes else next(iter(self._lanes), "")

    def _inference(self, head: Head, name: str) -> Note:
        name, _, rest = name.partition("/")
        lane = self._lanes.get(name)
        if lane is None:
            return Refusal(404, f"Pipeline {name[:200]!r} is not deployed here.")
        if rest:
            if rest.startswith("openai/"):
                return Refusal(409, f"Pipeline {name!r} has no OpenAI-compatible endpoint.")
            return Refusal(404, f"There is nothing at {head.path[:200]}.")
        route = Route(lane, name, _trace(head))
        route.content_type = _text(head, b"content-type")
        route.accept = _text(head, b"accept")
        route.user_agent = _text(head, b"user-agent")
        route.query = head.query.decode("latin-1")
        _see_what_is_fast(route)
        return _checked(head, "POST", route)

    # Pages.

    def _list_pipelines(self, connection: Connection, _: Head, __: bytes) -> None:
        pipelines, _models = self._engine.status()
        shown = [{"id": each.id, "version": each.version, "status": each.status} for each in pipelines]
        self._json(connection, {"pipelines": shown})

    def _list_models(self, connection: Connection, _: Head, __: bytes) -> None:
        _pipelines, models = self._engine.status()
        names = ("sha", "name", "version", "status", "model_version_id")
        self._json(connection, {"models": [{name: getattr(each, name) for name in names} for each in models]})

    def _live(self, connection: Connection, _: Head, __: bytes) -> None:
        self._json(connection, {"status": "alive"})

    def _ready(self, connection: Connection, _: Head, __: bytes) -> None:
        is_ready = self.phase == "Running"
        self._json(connection, {"status": self.phase}, 200 if is_ready else 503)

    def _status(self, connection: Connection, _: Head, __: bytes) -> None:
        body = msgspec.json.encode(self.status())
        connection.respond(connection.serial, 200, JSON, body)

    def status(self) -> EngineStatus:
        """Say how this process stands."""
        pipelines, models = self._engine.status()
        document = self._engine.document
        return EngineStatus(
            replica=document.replica,
            revision=document.revision,
            phase=self.phase,  # type: ignore[arg-type]  # one of the four
            reason=self.reason,
            pid=os.getpid(),
            host=document.host,
            port=self.port,
            started_at=self.started_at,
            pipelines=pipelines,
            models=models,
        )

    def numbers(self) -> dict[tuple[str, str], float]:
        """Return the metrics of this process."""
        self.metrics.set("potoroo_engine_queue_depth", "", self.desk.depth)
        self.metrics.set("potoroo_engine_connections", "", len(self.listener.connections))
        self.logs.measure()
        if self.poll is not None:
            self.metrics.set("potoroo_engine_access_age_seconds", "", time.time() - self.poll.refreshed_at)
        return self.metrics.snapshot()

    def _metrics(self, connection: Connection, _: Head, __: bytes) -> None:
        body = render(merge([self.numbers(), *self.siblings()]))
        connection.respond(connection.serial, 200, METRICS_TYPE, body)

    def _newest_logs(self, connection: Connection, head: Head, body: bytes) -> None:
        try:
            wanted = json.loads(body or b"{}")
            limit = int(wanted.get("limit", NEWEST_ROWS)) if isinstance(wanted, dict) else NEWEST_ROWS
        except (ValueError, TypeError) as exc:
            self._refuse(connection, head, Refusal(400, f"The body is not valid JSON: {exc}"))
            return
        topics = [lane.topic for lane in self._lanes.values()]
        future = self.desk.pool.submit(self._read_logs, topics, min(max(limit, 1), 10_000))
        serial = connection.serial

        def arrived() -> None:
            try:
                records = future.result()
            except (LogError, OSError) as exc:
                log.warning("logs.unreadable error=%r", exc)
                connection.respond(serial, 500, JSON, failure_body("The log cannot be read.", 500, None))
            else:
                connection.respond(serial, 200, RECORDS_TYPE, records)

        future.add_done_callback(lambda _: self.desk.call_soon(arrived))

    def _read_logs(self, topics: list[str], limit: int) -> bytes:
        root = self.logs.root
        rows: list[dict[str, Any]] = []
        if root is not None:
            for topic in topics:
                rows += codecs.to_rows(newest(root, topic, self.logs.partition, limit))
        rows.sort(key=lambda row: -row["time"])
        return msgspec.json.encode(rows[:limit])

    @staticmethod
    def _json(connection: Connection, value: Any, status: int = 200) -> None:
        connection.respond(connection.serial, status, JSON, msgspec.json.encode(value))


_OPEN = frozenset({"/livez", "/readyz", "/metrics", "/status", "*"})
"""Paths that probes and collectors ask for without a token."""


def _checked(head: Head, method: str, note: Route | Page) -> Note:
    """Let the right methods through, and answer the others."""
    allowed = f"{method}, HEAD, OPTIONS" if method == "GET" else f"{method}, OPTIONS"
    if head.method == method or (head.method == "HEAD" and method == "GET"):
        return note
    if head.method == "OPTIONS":
        return Page(_options(allowed))
    return Refusal(405, f"Use {method} here.", headers=((b"allow", allowed.encode()),))


def _options(allowed: str) -> Callable[[Connection, Head, bytes], None]:
    def answer(connection: Connection, _: Head, __: bytes) -> None:
        connection.respond(connection.serial, 204, JSON, b"", ((b"allow", allowed.encode()),))

    return answer


def _text(head: Head, name: bytes) -> str | None:
    value = head.headers.get(name)
    return None if value is None else value.decode("latin-1")


def _trace(head: Head) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((name, head.headers[name]) for name in TRACE_HEADERS if name in head.headers)


def _see_what_is_fast(route: Route) -> None:
    """Say which fast path a request may take, if any."""
    try:
        route.selection = parse_selection(route.query)
    except (BadInput, ValueError):
        return  # the plain path says what is wrong
    kind, _, parameters = (route.content_type or "").partition(";")
    kind = kind.strip().lower()
    if kind == formats.ARROW_TYPE:
        route.fast_arrow = formats.reply_format(route.accept, Format.ARROW) is Format.ARROW
    elif kind == formats.JSON_TYPE and parameters.replace(" ", "").lower() in ("", "format=pandas-records"):
        route.fast_json = formats.reply_format(route.accept, Format.RECORDS) is Format.RECORDS


def write_atomically(path: Path, raw: bytes) -> None:
    """Put a whole new file in the place of the old one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    temporary.write_bytes(raw)
    os.replace(temporary, path)
