"""Pages of a topic by position, and streams of a time range.

Rows are named by partition and position, and a page says for each partition where the next one goes on. Positions
never change, so pages neither skip nor repeat a row, whatever is appended, compacted or deleted meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from engine.logs.errors import InvalidQuery
from engine.logs.projection import Path_, parse_path
from engine.logs.segments import MappedSegment, ParquetSegment, SegmentView
from engine.logs.store import LogStore, PartitionView, batch_at, check_page_size, open_store, retrying

IntArray = np.ndarray[tuple[int], np.dtype[np.int64]]

DEFAULT_BYTES = 10_000_000
MAX_PAGE_ROWS = 10_000
_HELD_ROWS = 65_536
"""A scan keeps about as many rows of a mapped file in its process's memory."""
_TOGETHER = 64
_TOGETHER_BYTES = 4 << 20
"""Row groups of a cold segment are read together as long as they are no larger and no more than that."""


class Order(StrEnum):
    """Oldest or newest rows first."""

    ASC = "asc"
    DESC = "desc"


class Status(StrEnum):
    """Why a page ended."""

    ALL = "All"
    SCHEMA_CHANGE = "SchemaChange"
    RECORD_LIMITED = "RecordLimited"
    BYTE_LIMITED = "ByteLimited"


class TimeRange(NamedTuple):
    """Milliseconds since the epoch, both ends included."""

    start: int
    end: int


@dataclass(frozen=True)
class Page:
    """Rows of one schema, and where to go on."""

    table: pa.Table
    """Has no columns at all when there are no rows."""
    status: Status
    next: dict[str, int]
    first: dict[str, int] = field(default_factory=dict)
    """Positions of the first rows of the partitions that rows come from (ascending order only)."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one stored batch that a query wants."""

    segment: SegmentView
    number: int
    """Of the batch."""
    batch: pa.RecordBatch
    first: int
    """Position of the batch's first row."""
    rows: IntArray | None
    """Which rows of the batch, ascending; None for all."""

    @property
    def schema_key(self) -> str:
        """Key of the schema."""
        return self.segment.schemas[int(self.segment.index["schema"][self.number])]

    @property
    def count(self) -> int:
        """How many rows are wanted."""
        return int(self.batch.num_rows) if self.rows is None else len(self.rows)

    def position(self, row: int) -> int:
        """Return the position of the wanted row with this number."""
        return self.first + (row if self.rows is None else int(self.rows[row]))

    def wanted(self, count: int | None = None) -> pa.RecordBatch:
        """Return the wanted rows, or the first `count` of them."""
        count = self.count if count is None else count
        if self.rows is None:
            return self.batch if count == self.batch.num_rows else self.batch.slice(0, count)
        rows = self.rows[:count]
        if len(rows) and int(rows[-1]) - int(rows[0]) + 1 == len(rows):
            return self.batch.slice(int(rows[0]), len(rows))
        return self.batch.take(index_array(rows))


def index_array(values: IntArray) -> pa.Array:
    """Return an Arrow array over an int64 array without the detour through pandas."""
    values = np.ascontiguousarray(values, dtype=np.int64)
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def times_of(batch: pa.RecordBatch) -> IntArray:
    """Return the times of a batch without copying them."""
    times: IntArray = batch.column(0).to_numpy(zero_copy_only=False)
    return times


def read_page(
    root: Path | str | LogStore,
    topic: str,
    *,
    order: Order = Order.ASC,
    page_size: int = 1000,
    positions: Mapping[str, int] | None = None,
    time_range: TimeRange | None = None,
    partition_filter: Sequence[str] | Callable[[str], bool] | None = None,
    byte_limit: int = DEFAULT_BYTES,
) -> Page:
    """Return the next page of a topic.

    Ascending, partitions are read one after another, from `positions` or their start, those that are not named too.
    Descending, the newest rows of all partitions come first; if `positions` names any, only those partitions are
    read, below their positions. Raises `InvalidQuery` for a page size below 1, a bad filter, or a time range in
    descending order.
    """
    store = root if isinstance(root, LogStore) else open_store(root)
    check_page_size(page_size)
    chosen = partition_choice(partition_filter)
    if order is Order.DESC and time_range is not None:
        raise InvalidQuery("invalid query: a time range is read in ascending order.")
    positions = dict(positions or {})

    def read() -> Page:
        names = [name for name in store.partitions(topic) if chosen(name)]
        if order is Order.DESC:
            from engine.logs.newest import read_newest

            if positions:
                names = [name for name in names if name in positions]
            views = [store.view(topic, name) for name in names]
            return read_newest(views, positions, min(page_size, MAX_PAGE_ROWS), byte_limit)
        views = [store.view(topic, name) for name in names]
        return _read_ascending(views, positions, time_range, min(page_size, MAX_PAGE_ROWS), byte_limit)

    return retrying(read)


def partition_choice(patterns: Sequence[str] | Callable[[str], bool] | None) -> Callable[[str], bool]:
    """Return the test for a list of partition names and `regex:…` patterns; without any, every partition passes."""
    if not patterns:
        return lambda _name: True
    if callable(patterns):
        return patterns
    names = {pattern for pattern in patterns if not pattern.startswith("regex:")}
    try:
        compiled = [re.compile(pattern.removeprefix("regex:")) for pattern in patterns if pattern.startswith("regex:")]
    except re.error as exc:
        raise InvalidQuery(f"invalid query: partition_filter: {exc}") from exc
    return lambda name: name in names or any(pattern.search(name) for pattern in compiled)


class PageBuilder:
    """Rows collected for a page, within its limits and of one schema."""

    def __init__(self, page_size: int, byte_limit: int) -> None:
        self.batches: list[pa.RecordBatch] = []
        self.schema_key: str | None = None
        self.room = page_size
        self.bytes_left = byte_limit
        self.status = Status.ALL
        self.first: dict[str, int] = {}

    @property
    def is_full(self) -> bool:
        """Whether no further row fits."""
        return self.room == 0 or self.bytes_left <= 0

    def add(self, chunk: Chunk) -> int:
        """Take as many of the chunk's rows as fit, and return how many that were; at least one if the page is empty."""
        self.schema_key = chunk.schema_key
        batch = chunk.wanted(min(chunk.count, self.room))
        size = batch.nbytes
        if size > self.bytes_left:
            rows = max(1, self.bytes_left * batch.num_rows // size)
            if rows < batch.num_rows:
                batch = batch.slice(0, rows)
                size = batch.nbytes
                self.bytes_left = min(self.bytes_left, size)
        self.batches.append(batch)
        self.room -= batch.num_rows
        self.bytes_left -= size
        if self.room == 0:
            self.status = Status.RECORD_LIMITED
        elif self.bytes_left <= 0:
            self.status = Status.BYTE_LIMITED
        return int(batch.num_rows)

    def page(self, positions: dict[str, int]) -> Page:
        """Return what was collected."""
        return Page(as_table(self.batches), self.status, positions, self.first)


def as_table(batches: list[pa.RecordBatch]) -> pa.Table:
    """Return batches of one schema as a table; many small ones are joined."""
    if not batches:
        return pa.table({})
    rows = sum(batch.num_rows for batch in batches)
    if len(batches) > 1 and rows < 256 * len(batches):
        batches = [pa.concat_batches(batches)]
    return pa.Table.from_batches(batches)


def _read_ascending(
    views: list[PartitionView],
    positions: dict[str, int],
    time_range: TimeRange | None,
    page_size: int,
    byte_limit: int,
) -> Page:
    following = {view.name: max(positions.get(view.name, view.start), view.start) for view in views}
    page = PageBuilder(page_size, byte_limit)
    skipped = False
    for view in sorted(views, key=lambda view: (following[view.name], view.name)):
        if page.is_full:
            break
        following[view.name], blocked = _fill(page, view, following[view.name], time_range)
        skipped = skipped or blocked
    if skipped and page.status is Status.ALL:
        page.status = Status.SCHEMA_CHANGE
    return page.page(following)


def _fill(page: PageBuilder, view: PartitionView, start: int, time_range: TimeRange | None) -> tuple[int, bool]:
    """Add a partition's rows; return the position to go on from, and whether another schema stands there."""
    for chunk in chunks(view, start, view.end, time_range, room=page.room):
        if page.schema_key not in {None, chunk.schema_key}:
            return chunk.position(0), True
        page.first.setdefault(view.name, chunk.position(0))
        taken = page.add(chunk)
        if taken < chunk.count:
            return chunk.position(taken - 1) + 1, False
        if page.is_full:
            return chunk.position(taken - 1) + 1, False
    return max(start, view.end), False


def chunks(
    view: PartitionView,
    start: int,
    end: int,
    time_range: TimeRange | None = None,
    columns: Sequence[Path_] | None = None,
    *,
    room: int | None = None,
) -> Iterator[Chunk]:
    """Yield the stored batches with rows from `start` to below `end` in the time range, in the order of positions.

    Batches that cannot hold such rows are not touched, nor such as are not needed for `room` rows. With `columns`, the
    first one must be `time`.
    """
    for segment in view.segments[view.segment_at(start) :]:
        if segment.start >= end:
            return
        if time_range is not None and not _overlaps(segment, time_range):
            continue
        index = segment.index
        first = batch_at(segment, start)
        last = batch_at(segment, end - 1) + 1
        numbers: Sequence[int] = range(first, last)
        if time_range is not None:
            part = index[first:last]
            hits = np.flatnonzero((part["max_time"] >= time_range.start) & (part["min_time"] <= time_range.end))
            numbers = (hits + first).tolist()
        done = 0
        while done < len(numbers):
            if isinstance(segment, ParquetSegment):
                read = _read_some(segment, numbers[done : done + _TOGETHER], start, room, columns)
            else:
                read = [segment.batch(numbers[done], columns)]
            for number, whole in zip(numbers[done : done + len(read)], read, strict=True):
                at = int(index["position"][number])
                low, high = max(start - at, 0), min(end - at, whole.num_rows)
                batch = whole.slice(low, high - low) if low > 0 or high < whole.num_rows else whole
                if not batch.num_rows:
                    continue
                rows = None if time_range is None else rows_within(batch, time_range)
                if rows is None or len(rows):
                    chunk = Chunk(segment, number, batch, at + low, rows)
                    yield chunk
                    room = None if room is None else room - chunk.count
            done += len(read)


def _read_some(
    segment: ParquetSegment, numbers: Sequence[int], start: int, room: int | None, columns: Sequence[Path_] | None
) -> list[pa.RecordBatch]:
    """Read the first of these batches, and as many of those after it as `room` rows from `start` may need."""
    entries = segment.index[list(numbers)]
    count = max(int(np.searchsorted(np.cumsum(segment.sizes(entries)), _TOGETHER_BYTES, side="right")), 1)
    if room is not None:
        rows = np.minimum(entries["rows"], entries["position"] + entries["rows"] - start)
        count = min(count, int(np.searchsorted(np.cumsum(rows), room)) + 1)
    return segment.batches(numbers[:count], columns)


def _overlaps(segment: SegmentView, time_range: TimeRange) -> bool:
    return segment.max_time >= time_range.start and segment.min_time <= time_range.end


def rows_within(batch: pa.RecordBatch, time_range: TimeRange) -> IntArray | None:
    """Return the rows of a batch that lie in the range; None for all of them."""
    times = times_of(batch)
    inside = (times >= time_range.start) & (times <= time_range.end)
    return None if inside.all() else np.flatnonzero(inside)


def scan(
    root: Path | str | LogStore,
    topic: str,
    time_range: TimeRange | None = None,
    *,
    columns: Sequence[str | Sequence[str]] | None = None,
    partition_filter: Sequence[str] | None = None,
    max_batch_rows: int = 65_536,
) -> Iterator[pa.RecordBatch]:
    """Yield a time range of a topic, partition after partition, in batches of at most `max_batch_rows`.

    `columns` names what is wanted by path (`out.dense_1`, or a tuple where names have dots): the batches then have
    `time` and those columns, flat, each named by its path; a batch whose schema lacks a path comes without that
    column. Memory is bounded by a few batches as stored, and what is not wanted is not decoded. The rows are those that
    were there when a partition was reached.
    """
    store = root if isinstance(root, LogStore) else open_store(root)
    paths = None if columns is None else [("time",), *(p for p in map(parse_path, columns) if p != ("time",))]
    chosen = partition_choice(partition_filter)
    for name in store.partitions(topic):
        if not chosen(name):
            continue
        position, end = 0, store.view(topic, name).end
        while position < end:
            try:
                held = 0
                for chunk in chunks(store.view(topic, name), position, end, time_range, paths):
                    rows = chunk.wanted()
                    for first in range(0, rows.num_rows, max_batch_rows):
                        yield rows.slice(first, max_batch_rows)
                    position = chunk.first + chunk.batch.num_rows
                    held += chunk.batch.num_rows
                    if isinstance(chunk.segment, MappedSegment) and held >= _HELD_ROWS:
                        chunk.segment.let_go()
                        held = 0
            except FileNotFoundError:  # rewritten under another name, or no longer kept: go on from where we are
                continue
            break
