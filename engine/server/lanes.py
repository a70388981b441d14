"""Each pipeline's requests on their way through the engine.

Requests that arrive in one turn of the event loop are looked at together at its end: those of a pipeline whose rows
may share a run share one. So batches grow with the load, and a lone request waits for nobody. Models that take longer
than a turn of the loop may run in threads, or in turns of their own; while one runs, the next batch gathers. Only where
a model's configuration asks for it do requests wait for others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from engine.contract.failures import InferenceFailure
from engine.runtime import formats
from engine.runtime.engine import Engine, InferReply, InferRequest
from engine.server.commit import FAILURES, RecordsLost
from engine.server.desk import Desk, Ticket
from engine.server.fast.path import FastPath, Unfit, Work, constants, now_ms
from engine.server.fast.texts import row_array, row_texts
from engine.server.metrics import ROW_BOUNDS, Counter, labels
from engine.server.sharing import Batching, Cost, fast_model, rows_are_alone, wanted_batching

log = logging.getLogger(__name__)

Tensor = np.ndarray[Any, Any]

INLINE_NS = 2_000_000
"""A run expected to take no longer stays on the event loop."""
ON_LOOP_NS = 5_000_000
"""Up to this, one that would have the only thread to itself has a turn of the loop to itself: that costs less."""
INLINE_BODY_BYTES = 256 * 1024
LARGE_BODY_BYTES = 256 * 1024
"""Larger bodies are worked on while they are in the processor's caches; several of them would push each other out."""
BATCH_ROWS = 256
JSON_RECORDS = b"application/json; format=pandas-records"
ARROW_FILE = b"application/vnd.apache.arrow.file"


@dataclass(slots=True)
class Run:
    """Rows that ran together."""

    work: Work
    matrix: Tensor
    outputs: list[Tensor]
    started_ns: int
    finished_ns: int


class Lane:
    """One pipeline: its requests, and what answers them."""

    def __init__(self, desk: Desk, engine: Engine, name: str) -> None:
        self.desk = desk
        self.engine = engine
        self.name = name
        self.pipeline = engine.pipelines[name]
        self.topic = self.pipeline.document.topic
        self.cost = Cost()
        self.waiting: list[Ticket] = []
        self._queued: deque[Ticket] = deque()
        self._queued_rows = 0
        self._ripening: asyncio.TimerHandle | None = None
        self._running = 0
        self._batching: Batching | None = None
        self.fast: FastPath | None = None
        self.shares = False
        log_document = engine.document.log
        found = fast_model(self.pipeline)
        if found is not None:
            self.fast = FastPath(found, log_document.record_bytes_limit if log_document else 2**40)
            self.shares = rows_are_alone(found, self.cost)
            self._batching = wanted_batching(found) if self.shares else None
        metrics, self.labels = desk.metrics, labels(pipeline_name=name, deploy_id=engine.document.deploy_id)
        self.latency = metrics.histogram("latency_histogram_ns", self.labels)
        self.run_time = metrics.histogram("potoroo_engine_run_ns", self.labels)
        self.batch_rows = metrics.histogram("potoroo_engine_batch_rows", self.labels, ROW_BOUNDS)
        self.batched = metrics.histogram("potoroo_engine_batched_requests", self.labels, ROW_BOUNDS)
        self.request_bytes = metrics.counter("potoroo_engine_request_bytes_total", self.labels)
        self.reply_bytes = metrics.counter("potoroo_engine_reply_bytes_total", self.labels)
        self._rows = metrics.counter("tensor_throughput_batch_count", self.labels)
        self._fast_requests = metrics.counter("potoroo_engine_fast_requests_total", self.labels)
        self._requests: dict[int, Counter] = {}
        self._rehearse()

    def _rehearse(self) -> None:
        """Answer a request of zeroes before the first real one, so that nothing is imported or learned on its time."""
        if self.fast is None:
            return
        field = self.fast.usual_field
        body = msgspec.json.encode([{field: [0.0] * self.fast.width}])
        if len(body) > INLINE_BODY_BYTES:
            return
        request = InferRequest(pipeline=self.name, content_type=formats.RECORDS_TYPE, body=body)
        if self.engine.infer(request).status == 200:
            self._learn(self.fast, formats.RECORDS_TYPE, body, is_arrow=False)

    def submit(self, ticket: Ticket) -> None:
        """Take a request; it is worked on at the end of this turn of the event loop, a large one at once."""
        if not self.waiting:
            self.desk.wake(self)
        self.waiting.append(ticket)
        if len(ticket.body) > LARGE_BODY_BYTES:
            self.desk.end_turn()

    # The end of a turn.

    def turn(self, tickets: list[Ticket]) -> None:
        """Work on what arrived."""
        fast = self.fast
        singles: list[Ticket] = []
        for ticket in tickets:
            route = ticket.route
            if fast is not None:
                if route.fast_json:
                    if fast.knows_json and (piece := fast.read_one(ticket.body)) is not None:
                        ticket.piece = piece
                        singles.append(ticket)
                        continue
                    if len(ticket.body) <= INLINE_BODY_BYTES * 16 and self._try_many(fast, ticket):
                        continue
                elif route.fast_arrow and (work := fast.read_arrow(ticket.body)) is not None:
                    self._run_or_queue(fast, ticket, work)
                    continue
            self._plain(ticket)
        if singles and fast is not None:
            self._run_singles(fast, singles)

    def _try_many(self, fast: FastPath, ticket: Ticket) -> bool:
        route = ticket.route
        template = fast.row_template_of_json(route.selection)
        if template is None:
            return False
        work = fast.read_many(ticket.body, with_text="in" in template.slots)
        if work is None:
            return False
        self._run_or_queue(fast, ticket, work)
        return True

    def _run_or_queue(self, fast: FastPath, ticket: Ticket, work: Work) -> None:
        ticket.work = work
        if self._batching is not None:
            if self._batching.limit is not None and work.rows > self._batching.limit:
                self._plain(ticket)  # which runs it in parts
            else:
                self._queue(ticket)
        elif self.cost.of(work.rows) <= INLINE_NS:
            self._run_inline(fast, [ticket], work)
        else:
            self._queue(ticket)

    def _run_singles(self, fast: FastPath, singles: list[Ticket]) -> None:
        if self._batching is not None or self.cost.of(1) > INLINE_NS:
            for ticket in singles:
                self._queue(ticket)
            return
        size = self.cost.batch_limit(INLINE_NS, BATCH_ROWS) if self.shares else 1
        for at in range(0, len(singles), size):
            group = singles[at : at + size]
            work = fast.json_work([ticket.piece for ticket in group if ticket.piece is not None])
            if work is not None:
                self._run_inline(fast, group, work)
            elif len(group) == 1:
                self._plain(group[0])
            else:  # one of them is malformed: each for itself
                for ticket in group:
                    alone = fast.json_work([ticket.piece or b""])
                    if alone is None:
                        self._plain(ticket)
                    else:
                        self._run_inline(fast, [ticket], alone)

    def _run_inline(self, fast: FastPath, group: list[Ticket], work: Work) -> None:
        matrix = work.matrix
        assert matrix is not None  # noqa: S101 - work that is to run has been read
        started = time.perf_counter_ns()
        try:
            outputs = fast.run_one(matrix) if work.rows == 1 else fast.run(matrix)
        except Unfit:
            for ticket in group:
                self._plain(ticket)
            return
        self._finish(fast, group, Run(work, matrix, outputs, started, time.perf_counter_ns()))

    # Runs that take longer than a turn, and those that wait for more rows.

    def _queue(self, ticket: Ticket) -> None:
        if self.desk.is_full:
            self.desk.refuse(ticket)
            return
        self.desk.depth += 1
        self._queued.append(ticket)
        self._queued_rows += ticket.rows
        self._start_runs()

    def _is_ripe(self) -> bool:
        """Say whether what is queued may run now; if it is to wait for more, see to it that this has an end."""
        batching = self._batching
        if batching is None or self._queued_rows >= batching.target:
            return True
        left_s = batching.delay_s - (time.perf_counter_ns() - self._queued[0].received_ns) / 1e9
        if left_s <= 0:
            return True
        if self._ripening is None:
            self._ripening = self.desk.call_later(left_s, self._ripened)
        return False

    def _ripened(self) -> None:
        self._ripening = None
        self._start_runs()

    def _rows_to_a_run(self) -> int:
        if not self.shares:
            return 1
        if self._batching is not None:
            return self._batching.limit or max(BATCH_ROWS, self._batching.target)
        return self.cost.batch_limit_if_it_pays(BATCH_ROWS)

    def _start_runs(self) -> None:
        fast = self.fast
        while fast is not None and self._running < self.desk.threads and (group := self._next_group()):
            self._running += 1
            if self.desk.threads == 1 and self._cost_of(group) <= ON_LOOP_NS:
                self.desk.next_turn(self._run_on_loop, fast, group)
                continue
            future = self.desk.pool.submit(self._run_group, fast, group)
            future.add_done_callback(
                lambda done, group=group: self.desk.call_soon(self._ended_in_thread, group, done)  # type: ignore[misc]
            )

    def _next_group(self) -> list[Ticket]:
        """Take from the queue what is to run together now."""
        group: list[Ticket] = []
        rows = 0
        limit = self._rows_to_a_run() if self._queued and self._is_ripe() else 0
        while limit and self._queued:
            ticket = self._queued[0]
            if group and (rows + ticket.rows > limit or not _alike(group[0], ticket)):
                break
            self._queued.popleft()
            self._queued_rows -= ticket.rows
            if ticket.is_awaited:
                group.append(ticket)
                rows += ticket.rows
            else:
                self.desk.depth -= 1
        return group

    def _cost_of(self, group: list[Ticket]) -> float:
        return self.cost.of(sum(ticket.rows for ticket in group))

    def _run_on_loop(self, fast: FastPath, group: list[Ticket]) -> None:
        """Run a group, and as many more as a turn has time for."""
        end_ns = time.perf_counter_ns() + ON_LOOP_NS
        while group:
            done: Future[Run | None] = Future()
            try:
                done.set_result(self._run_group(fast, group))
            except Exception as exc:
                # As in a thread: a bug must not cost the requests of others.
                done.set_exception(exc)
            self._ended(group, done)
            has_time = self._queued and time.perf_counter_ns() + self.cost.of(self._queued[0].rows) <= end_ns
            group = self._next_group() if has_time else []
            self._running += bool(group)
        self._start_runs()

    def _run_group(self, fast: FastPath, group: list[Ticket]) -> Run | None:
        """Run a group; None leaves it to the plain path."""
        work = group[0].work
        if work is None:
            work = fast.json_work([ticket.piece or b"" for ticket in group])
            if work is None:
                return None
        elif len(group) > 1:
            works = [ticket.work for ticket in group if ticket.work is not None]
            matrices = [each.matrix for each in works if each.matrix is not None]
            pieces = pa.concat_arrays([each.pieces for each in works]) if work.pieces is not None else None
            work = Work(np.concatenate(matrices), sum(each.rows for each in works), work.kind, pieces)
        assert work.matrix is not None  # noqa: S101 - json_work reads it
        started = time.perf_counter_ns()
        try:
            outputs = fast.run(work.matrix)
        except Unfit:
            return None
        return Run(work, work.matrix, outputs, started, time.perf_counter_ns())

    def _ended_in_thread(self, group: list[Ticket], done: Future[Any]) -> None:
        self._ended(group, done)
        self._start_runs()

    def _ended(self, group: list[Ticket], done: Future[Any]) -> None:
        self._running -= 1
        self.desk.depth -= len(group)
        ran = done.result() if done.exception() is None else None
        if done.exception() is not None:
            log.error("lane.run_failed pipeline=%s", self.name, exc_info=done.exception())
        if ran is None or self.fast is None:
            for ticket in group:
                self._plain(ticket)
        else:
            self._finish(self.fast, group, ran)

    # Replies of the fast path.

    def _finish(self, fast: FastPath, group: list[Ticket], run: Run) -> None:
        """Write the records and the replies of one run; `group` has one row each, or is a single request."""
        desk, work = self.desk, run.work
        took_ns = run.finished_ns - run.started_ns
        time_ms = now_ms()
        elapsed = (max(run.started_ns - group[0].received_ns, 0), took_ns)
        try:
            bodies = self._bodies(fast, group, run, time_ms, elapsed)
            if desk.logs.enabled:
                schema, parts = fast.log_message(work, run.matrix, run.outputs, time_ms, elapsed)
                desk.logs.append_encoded(self.topic, schema, parts, work.rows, time_ms)
        except Unfit:
            for ticket in group:
                self._plain(ticket)
            return
        except RecordsLost as exc:
            for ticket in group:
                desk.refuse(ticket, f"The inference log is full: {exc}")
            return
        content_type = ARROW_FILE if group[0].route.fast_arrow else JSON_RECORDS
        for ticket, body in zip(group, bodies, strict=True):
            desk.reply((ticket, 200, content_type, body, ticket.route.headers))
        desk.after_replies(self._count, fast, work.rows, len(group), took_ns)

    def _count(self, fast: FastPath, rows: int, requests: int, took_ns: int) -> None:
        self.cost.saw(rows, took_ns)
        fast.model.on_run(rows, took_ns)
        self._rows.value += rows
        self._fast_requests.value += requests
        self.run_time.observe(took_ns)
        self.batch_rows.observe(rows)
        self.batched.observe(requests)

    def _bodies(
        self, fast: FastPath, group: list[Ticket], run: Run, time_ms: int, elapsed: tuple[int, int]
    ) -> list[Any]:
        work, outputs = run.work, run.outputs
        if group[0].route.fast_arrow:
            bodies: list[Any] = []
            row = 0
            for ticket in group:
                own = ticket.work
                assert own is not None  # noqa: S101 - Arrow requests are read before they run
                part = outputs if own.rows == work.rows else [output[row : row + own.rows] for output in outputs]
                bodies.append(fast.arrow_reply(own, ticket.route.selection, part, time_ms, elapsed))
                row += own.rows
            return bodies
        selection = group[0].route.selection
        if work.rows == 1:
            template = fast.row_template(work.kind, selection)
            if template is None:
                raise Unfit
            return [template.render_one(time_ms, elapsed, fast.json_columns(template, work.pieces, outputs, row_texts))]
        constant = constants(time_ms, elapsed)
        if len(group) == 1 or all(ticket.route.selection is selection for ticket in group):
            template = fast.row_template(work.kind, selection)
            if template is None:
                raise Unfit
            if len(group) == 1:
                return [template.render(constant, fast.json_columns(template, work.pieces, outputs, row_array))]
            if work.rows == len(group):
                return template.render_each(constant, fast.json_columns(template, work.pieces, outputs, row_texts))
        bodies = []
        row = 0
        for ticket in group:
            rows = ticket.work.rows if ticket.work is not None else 1
            template = fast.row_template(work.kind, ticket.route.selection)
            if template is None:
                raise Unfit
            pieces = work.pieces[row : row + rows] if work.pieces is not None else None
            part = [output[row : row + rows] for output in outputs]
            if rows == 1:
                columns = fast.json_columns(template, pieces, part, row_texts)
                bodies.append(template.render_one(time_ms, elapsed, columns))
            else:
                bodies.append(template.render(constant, fast.json_columns(template, pieces, part, row_array)))
            row += rows
        return bodies

    # The plain path.

    def _plain(self, ticket: Ticket) -> None:
        route = ticket.route
        request = InferRequest(
            pipeline=route.pipeline,
            content_type=route.content_type,
            body=ticket.body,
            accept=route.accept,
            query=route.query,
            user_agent=route.user_agent,
            received_ns=ticket.received_ns,
        )
        if len(ticket.body) <= INLINE_BODY_BYTES and self.cost.is_small(INLINE_NS):
            self._plain_done(ticket, self.engine.infer(request))
            return
        desk = self.desk
        if desk.is_full:
            desk.refuse(ticket)
            return
        desk.depth += 1
        future = desk.pool.submit(self._plain_in_thread, ticket, request)
        future.add_done_callback(lambda done: desk.call_soon(self._plain_arrived, ticket, done))

    def _plain_in_thread(self, ticket: Ticket, request: InferRequest) -> InferReply | None:
        return self.engine.infer(request) if ticket.is_awaited else None

    def _plain_arrived(self, ticket: Ticket, done: Future[InferReply | None]) -> None:
        self.desk.depth -= 1
        reply = done.result()  # `infer` never raises; if it does, the loop's handler must hear of it
        if reply is not None:
            self._plain_done(ticket, reply)

    def _plain_done(self, ticket: Ticket, reply: InferReply) -> None:
        desk = self.desk
        try:
            if reply.record is not None:
                desk.logs.append(reply.topic, reply.record)
            if reply.failure is not None and reply.topic:
                desk.logs.append(reply.topic + FAILURES, reply.failure)
        except RecordsLost as exc:
            desk.refuse(ticket, f"The inference log is full: {exc}")
            return
        headers = ticket.route.headers + tuple((name.encode(), value.encode()) for name, value in reply.headers)
        desk.reply((ticket, reply.status, reply.content_type.encode(), reply.body, headers))
        if reply.status == 200:
            self.cost.saw(max(reply.rows, 1), reply.execution_ns)
            self._rows.value += reply.rows
            self.run_time.observe(reply.execution_ns)
            self.batch_rows.observe(reply.rows)
            self.batched.observe(1)
            if self.fast is not None and (ticket.route.fast_json or ticket.route.fast_arrow):
                self._learn(self.fast, ticket.route.content_type, ticket.body, is_arrow=ticket.route.fast_arrow)

    def _learn(self, fast: FastPath, content_type: str | None, body: bytes | bytearray, *, is_arrow: bool) -> None:
        """Take templates from a request that the plain path answered, by running its first row once more."""
        if len(body) > INLINE_BODY_BYTES * 16 or not fast.wants(body, is_arrow):
            return
        engine, pipeline = self.engine, self.pipeline
        try:
            decoded = formats.decode(content_type, body, pipeline)
            if not decoded.batch.num_rows or not fast.can_learn(body, decoded.batch, is_arrow):
                return
            first = decoded.batch.slice(0, 1)
            answer = pipeline.run(first)
            full = engine.record(pipeline, first, answer, engine.metadata(pipeline, answer, (0, 0)), now_ms())
            kept = engine.log_record(full, answer) if self.desk.logs.enabled else None
        except InferenceFailure:
            return
        if is_arrow:
            fast.learn_arrow(body, decoded.batch, full, kept)
        else:
            fast.learn_json(decoded.batch, full, kept)

    def requests(self, status: int) -> Counter:
        """Return the counter of requests answered with a status."""
        found = self._requests.get(status)
        if found is None:
            deploy_id = self.engine.document.deploy_id
            label_set = labels(pipeline_name=self.name, deploy_id=deploy_id, code=str(status))
            found = self._requests[status] = self.desk.metrics.counter("potoroo_engine_requests_total", label_set)
        return found


def _alike(first: Ticket, other: Ticket) -> bool:
    """Say whether two requests may share a run."""
    a, b = first.work, other.work
    if a is None or b is None:
        return a is b
    return (
        a.kind is b.kind
        and first.route.fast_arrow is other.route.fast_arrow
        and (a.pieces is None) is (b.pieces is None)
        and (first.route.fast_arrow or first.route.selection == other.route.selection)
    )
