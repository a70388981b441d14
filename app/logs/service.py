"""Questions to the log, records for it, and its upkeep; blocking work happens in threads."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import structlog
from prometheus_client import Gauge

from app.errors import AppError, InsufficientStorage, Invalid, TooManyRequests
from app.kit.context import Context
from app.logs import older, replies
from app.logs.topics import parse as parse_topic
from app.models import service as models
from app.settings import Settings
from engine.contract.datasets import EVERYTHING, Selection, select_table
from engine.contract.failures import BadInput
from engine.logs import maintain as upkeep
from engine.logs import ordered, reader
from engine.logs.errors import InvalidQuery, InvalidRecord, LogError, LogFull, PartitionBusy
from engine.logs.query import Order, TimeRange
from engine.logs.store import Span, TopicDescription
from engine.logs.transfer import fit
from engine.logs.writer import PartitionWriter

log = structlog.get_logger()

T = TypeVar("T")

_WRITER_WAIT_S = 2.0


@dataclass(frozen=True)
class Wanted:
    """A question to `/v1/logs/topic/…/records`."""

    page_size: int = 1000
    order: Order = Order.ASC
    time_range: TimeRange | None = None
    partitions: Sequence[str] = ()
    selection: Selection = EVERYTHING


@dataclass(frozen=True)
class Body:
    """An encoded page with the headers that go with it."""

    content: bytes | memoryview
    content_type: str
    headers: dict[str, str]


def store_of(settings: Settings) -> reader.LogStore:
    """Return the log store of this instance."""
    return reader.open_store(settings.logs_root)


async def _read(work: Callable[[], T]) -> T:
    """Run a read in a thread; raises `Invalid` for what the store cannot make sense of."""
    try:
        return await asyncio.to_thread(work)
    except InvalidQuery as exc:
        raise Invalid(str(exc)) from exc
    except BadInput as exc:
        raise Invalid(exc.message) from exc


async def topics(settings: Settings) -> list[str]:
    """Return the names of all topics."""
    return await _read(store_of(settings).topics)


async def describe(settings: Settings, topic: str) -> TopicDescription:
    """Return what a topic holds."""
    return await _read(lambda: store_of(settings).describe(topic))


async def pipeline_logs(
    settings: Settings,
    topic: str,
    *,
    order: Order | None,
    cursor: str | None,
    page_size: int,
    time_range: TimeRange | None,
    arrow: bool,
) -> Body:
    """Return a page of a pipeline's logs in the order of time; raises `Invalid` for a cursor of another question."""

    def work() -> Body:
        page = ordered.read_ordered(
            store_of(settings), topic, order=order, cursor=cursor, page_size=page_size, time_range=time_range
        )
        if arrow:
            content, content_type = replies.encode(page.table, arrow=True)
        else:
            content, content_type = replies.join_records(page.parts), replies.RECORDS
        headers = {"x-iteration-status": str(page.status)}
        if page.cursor is not None:
            headers["x-iteration-cursor"] = page.cursor
        return Body(content, content_type, headers)

    return await _read(work)


async def topic_records(
    settings: Settings, topic: str, wanted: Wanted, positions: Mapping[str, int], *, arrow: bool
) -> Body:
    """Return a page over the partitions of a topic."""

    def work() -> Body:
        page = _topic_page(settings, topic, wanted, positions)
        status = json.dumps({"status": str(page.status), "next": page.next}, separators=(",", ":"))
        return _page(page.table, wanted.selection, {"status": status}, arrow=arrow)

    return await _read(work)


async def topic_records_as_texts(context: Context, topic: str, wanted: Wanted, positions: Mapping[str, int]) -> Body:
    """Return a page over the partitions of a topic as older clients read it; of no topic, an empty one."""
    page = reader.Page(pa.table({}), reader.Status.ALL, {})
    if topic:
        page = await _read(lambda: _topic_page(context.settings, topic, wanted, positions))
    workspace_id, pipeline = parse_topic(topic) or (0, "")
    async with context.sessions() as session:
        versions = await models.version_ids(session, workspace_id, older.last_models(page.table).values())
    content = await asyncio.to_thread(older.encode, page, pipeline, versions)
    return Body(content, older.CONTENT_TYPE, {})


def _topic_page(settings: Settings, topic: str, wanted: Wanted, positions: Mapping[str, int]) -> reader.Page:
    return reader.read_page(
        store_of(settings),
        topic,
        order=wanted.order,
        page_size=wanted.page_size,
        positions=positions,
        time_range=wanted.time_range,
        partition_filter=wanted.partitions,
    )


async def partition_records(
    settings: Settings, topic: str, partition: str, start: int, wanted: Wanted, *, arrow: bool
) -> Body:
    """Return a page of one partition, from the position `start` on."""

    def work() -> Body:
        page = reader.read_page(
            store_of(settings),
            topic,
            page_size=wanted.page_size,
            positions={partition: start},
            time_range=wanted.time_range,
            partition_filter=lambda name: name == partition,
        )
        span = {"start": page.first.get(partition, start), "end": page.next.get(partition, start)}
        metadata = {"status": json.dumps(str(page.status)), "span": json.dumps(span, separators=(",", ":"))}
        return _page(page.table, wanted.selection, metadata, arrow=arrow)

    return await _read(work)


def _page(table: pa.Table, selection: Selection, metadata: dict[str, str], *, arrow: bool) -> Body:
    if table.num_rows == 0:
        content, content_type = replies.encode(table, arrow=arrow)
        return Body(content, content_type, {})
    content, content_type = replies.encode(select_table(table, selection), arrow=arrow, metadata=metadata)
    return Body(content, content_type, {} if arrow else {"x-iteration-status": metadata["status"]})


async def append(settings: Settings, topic: str, partition: str, body: bytes, sequence: int | None) -> Span:
    """Keep the records of an Arrow file and return their positions; rows whose number is known already are left out.

    Raises `Invalid` for records a log cannot hold, `TooManyRequests` while another writer holds the partition, and
    `InsufficientStorage` when the disk is full; then none of the records are kept.
    """

    def work() -> Span:
        batches = [fit(batch) for batch in _batches(body)]
        with PartitionWriter(settings.logs_root, topic, partition, wait_s=_WRITER_WAIT_S) as writer:
            start = writer.end
            for batch in batches:
                writer.append(batch, sequence=sequence)
                sequence_after(batch)
            writer.flush()
            return Span(start, writer.end)

    def sequence_after(batch: pa.RecordBatch) -> None:
        nonlocal sequence
        sequence = None if sequence is None else sequence + batch.num_rows

    try:
        return await asyncio.to_thread(work)
    except (InvalidRecord, InvalidQuery) as exc:
        raise Invalid(str(exc)) from exc
    except PartitionBusy as exc:
        raise TooManyRequests(f"{exc} Try again, or append to a partition of another name.") from exc
    except LogFull as exc:
        raise InsufficientStorage(str(exc)) from exc


def _batches(body: bytes) -> list[pa.RecordBatch]:
    try:
        with pa.ipc.open_file(pa.py_buffer(body)) as file:
            batches = [file.get_batch(i) for i in range(file.num_record_batches)]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as exc:
        raise Invalid(f"The body is no Arrow IPC file: {exc}") from exc
    batches = [batch for batch in batches if batch.num_rows]
    if not batches:
        raise Invalid("The Arrow file holds no records.")
    for batch in batches:
        try:
            batch.validate(full=True)
        except pa.ArrowInvalid as exc:
            raise Invalid(f"The Arrow file is damaged: {exc}") from exc
    for batch in batches:
        if batch.schema.names[:1] != ["time"]:
            raise Invalid('The first column must be "time", int64 milliseconds since the epoch.')
    return batches


async def check_health(settings: Settings) -> None:
    """Raise `AppError` (status 500, as clients know it) if the store's folder cannot be read or written."""

    def work() -> None:
        root = Path(settings.logs_root)
        root.mkdir(parents=True, exist_ok=True)
        probe = root / ".probe"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)

    try:
        await asyncio.to_thread(work)
    except OSError as exc:
        raise AppError(f"The log store's folder cannot be used: {exc.strerror}") from exc


def _sizes(settings: Settings) -> dict[str, int]:
    store = store_of(settings)
    sizes = {}
    for topic in store.topics():
        with contextlib.suppress(LogError):  # damage is reported by upkeep
            sizes[topic] = store.describe(topic).size_bytes
    return sizes


def policy_of(settings: Settings) -> upkeep.Policy:
    """Return what upkeep does, by the settings."""
    day_s = 86_400.0
    return upkeep.Policy(
        keep_s=settings.log_keep_days * day_s or None,
        keep_bytes=settings.log_keep_bytes or None,
        cold_after_s=settings.log_cold_after_hours * 3600.0,
        archive_uri=settings.log_archive_url,
        archive_after_s=settings.log_archive_after_days * day_s,
    )


TOPIC_BYTES = Gauge("topic_bytes", "Size of a topic of the inference log.", ["topic"])


async def maintain(context: Context) -> upkeep.Report:
    """Do what is due in the log store: seal, merge, cool, archive, delete. To be called every minute or so."""
    settings = context.settings
    now = context.clock.now().timestamp()
    report = await asyncio.to_thread(upkeep.maintain, settings.logs_root, policy_of(settings), now=now)
    sizes = await asyncio.to_thread(_sizes, settings)
    for topic, size in sizes.items():
        TOPIC_BYTES.labels(topic).set(size)
    for problem in report.problems:
        log.warning("logs.upkeep_problem", problem=problem)
    if report.deleted_rows:
        log.info("logs.deleted", rows=report.deleted_rows, segments=report.deleted_segments)
    return report
