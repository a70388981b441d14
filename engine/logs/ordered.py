"""Pages in the order of time over all partitions, with a cursor.

The first page fixes what the pages will cover: rows that come later belong to the next question. Rows are in the
order of (time, partition, position), so each one comes once however the partitions' times overlap. Batches are
visited by the newest (or oldest) time they could hold, and only until nothing left could belong on the page. A page
ends where the columns change.
"""

from __future__ import annotations

import base64
import binascii
import heapq
import itertools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from zlib import crc32

import msgspec
import numpy as np
import pyarrow as pa

from engine.logs.errors import InvalidCursor
from engine.logs.query import (
    DEFAULT_BYTES,
    MAX_PAGE_ROWS,
    IntArray,
    Order,
    Status,
    TimeRange,
    as_table,
    index_array,
    times_of,
)
from engine.logs.segments import ParquetSegment, SegmentView
from engine.logs.store import LogStore, PartitionView, check_page_size, open_store, retrying
from engine.logs.unify import fit_to, shape_of, unify

Key: TypeAlias = tuple[int, int, int]
"""Time, rank of the partition's name, position."""
Mask: TypeAlias = np.ndarray[tuple[int], np.dtype[np.bool_]]


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Where a walk through a topic stands."""

    topic: int
    order: Order
    time_range: tuple[int, int] | None
    ends: dict[str, int]
    """What the walk covers: partitions and the positions where they ended when it began."""
    last: tuple[int, int, int]


@dataclass(frozen=True)
class OrderedPage:
    """Rows in the order of time, why the page ended, and the cursor of the next one (None after the last)."""

    parts: list[pa.Table]
    """The rows one after another, each part exactly as it was recorded; all of them have the same columns."""
    status: Status
    cursor: str | None

    @property
    def table(self) -> pa.Table:
        """The rows in one table; where their widths differ, numbers are widened. Without rows it has no columns."""
        if not self.parts:
            return pa.table({})
        schema = unify([part.schema for part in self.parts])
        return pa.concat_tables([fit_to(part, schema) for part in self.parts])


@dataclass(frozen=True, slots=True)
class _Rows:
    """Candidate rows of one stored batch."""

    rank: int
    segment: SegmentView
    number: int
    first: int
    batch: pa.RecordBatch | None
    """None when only the times were decoded so far."""
    rows: IntArray
    times: IntArray


def read_ordered(
    root: Path | str | LogStore,
    topic: str,
    *,
    order: Order | None = None,
    page_size: int = 1000,
    cursor: str | None = None,
    time_range: TimeRange | None = None,
    byte_limit: int = DEFAULT_BYTES,
) -> OrderedPage:
    """Return a page of a topic in the order of time, newest first unless asked otherwise.

    A cursor brings its order and time range along. Raises `InvalidCursor` for one that was not given out for this
    topic, or that contradicts what is asked now, and `InvalidQuery` for a page size below 1.
    """
    store = root if isinstance(root, LogStore) else open_store(root)
    page_size = min(check_page_size(page_size), MAX_PAGE_ROWS)
    known = decode_cursor(cursor) if cursor else None
    if known is not None:
        _check(known, topic, order, time_range)

    def read() -> OrderedPage:
        if known is not None:
            views = [store.view(topic, name) for name in known.ends]
            return _Walk(known, views).page(page_size, byte_limit)
        views = store.views(topic)
        ends = {view.name: view.end for view in views}
        span = None if time_range is None else (time_range.start, time_range.end)
        start = Cursor(_topic_mark(topic), order or Order.DESC, span, ends, (0, -1, -1))
        return _Walk(start, views).page(page_size, byte_limit)

    return retrying(read)


def encode_cursor(cursor: Cursor) -> str:
    """Return the cursor as text for callers."""
    content = msgspec.msgpack.encode(cursor)
    return base64.urlsafe_b64encode(crc32(content).to_bytes(4, "big") + content).decode("ascii")


def decode_cursor(text: str) -> Cursor:
    """Return the cursor in a text; raises `InvalidCursor` if there is none."""
    try:
        raw = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
        content = raw[4:]
        if len(raw) < 5 or crc32(content).to_bytes(4, "big") != raw[:4]:
            raise InvalidCursor("The cursor was not given out by this server.")
        return msgspec.msgpack.decode(content, type=Cursor)
    except (UnicodeEncodeError, binascii.Error, msgspec.DecodeError) as exc:
        raise InvalidCursor("The cursor was not given out by this server.") from exc


def _topic_mark(topic: str) -> int:
    return crc32(topic.encode())


def _check(cursor: Cursor, topic: str, order: Order | None, time_range: TimeRange | None) -> None:
    if cursor.topic != _topic_mark(topic):
        raise InvalidCursor("The cursor belongs to the logs of another pipeline.")
    if order not in {None, cursor.order}:
        raise InvalidCursor(f"The cursor goes on in {cursor.order.name.title()} order; leave the order out or keep it.")
    if time_range is not None and (time_range.start, time_range.end) != cursor.time_range:
        raise InvalidCursor("The cursor belongs to another time range; leave start_time and end_time out or keep them.")


class _Walk:
    """One page of a walk."""

    def __init__(self, cursor: Cursor, views: list[PartitionView]) -> None:
        self.cursor = cursor
        self.views = sorted(views, key=lambda view: view.name)
        self.is_first = cursor.last[1] < 0
        self.sign = -1 if cursor.order is Order.DESC else 1
        low, high = cursor.time_range or (-(1 << 63), (1 << 63) - 1)
        self.range = TimeRange(low, high)

    def page(self, page_size: int, byte_limit: int) -> OrderedPage:
        """Collect candidates until no batch that is left could hold an earlier row of the page."""
        found: list[_Rows] = []
        count = 0
        for bound, rows in self._batches():
            if count >= page_size:
                found = self._best(found, page_size)
                count = sum(len(part.rows) for part in found)
                if count >= page_size and self._settled(found, bound) >= page_size:
                    break
            part = self._candidates(*rows)
            if part is not None:
                found.append(part)
                count += len(part.rows)
        return self._finish(self._best(found, page_size), page_size, byte_limit)

    def _batches(self) -> Iterator[tuple[Key, tuple[int, PartitionView, SegmentView, int]]]:
        """Yield the batches that may hold rows, each with the first key (in walking order) that it could hold."""
        heap: list[tuple[Key, int, SegmentView, Iterator[tuple[Key, int]] | None, int]] = []
        serial = itertools.count()
        for rank, view in enumerate(self.views):
            end = self.cursor.ends[view.name]
            for segment in view.segments:
                if segment.start < end and self._may_hold(segment.min_time, segment.max_time):
                    bound = self._bound(segment.min_time, segment.max_time, rank, segment.start, segment.end)
                    heapq.heappush(heap, (bound, next(serial), segment, None, -1))
        while heap:
            bound, _, segment, rest, number = heapq.heappop(heap)
            rank = self.sign * bound[1]
            if rest is None:
                rest = self._in_order(segment, rank)
            else:
                yield bound, (rank, self.views[rank], segment, number)
            following = next(rest, None)
            if following is not None:
                heapq.heappush(heap, (following[0], next(serial), segment, rest, following[1]))

    def _in_order(self, segment: SegmentView, rank: int) -> Iterator[tuple[Key, int]]:
        """Yield the batches of a segment that may hold rows, by the first key that each could hold."""
        low, high = segment.index["min_time"], segment.index["max_time"]
        hits = (high >= self.range.start) & (low <= self.range.end)
        if not self.is_first:
            hits &= low <= self.cursor.last[0] if self.sign < 0 else high >= self.cursor.last[0]
        numbers = np.flatnonzero(hits)[:: self.sign]
        edges = self.sign * (high if self.sign < 0 else low)[numbers]
        if len(edges) > 1 and (np.diff(edges) < 0).any():
            numbers = numbers[np.argsort(edges, kind="stable")]
        for at in numbers.tolist():
            start = int(segment.index["position"][at])
            end = start + int(segment.index["rows"][at])
            yield self._bound(int(low[at]), int(high[at]), rank, start, end), at

    def _bound(self, low: int, high: int, rank: int, start: int, end: int) -> Key:
        return (-high, -rank, -(end - 1)) if self.sign < 0 else (low, rank, start)

    def _may_hold(self, low: int, high: int) -> bool:
        if high < self.range.start or low > self.range.end:
            return False
        if self.is_first:
            return True
        return low <= self.cursor.last[0] if self.sign < 0 else high >= self.cursor.last[0]

    def _candidates(self, rank: int, view: PartitionView, segment: SegmentView, number: int) -> _Rows | None:
        """Return the rows of a batch that the walk covers and has not passed yet."""
        batch = segment.batch(number, [("time",)] if isinstance(segment, ParquetSegment) else None)
        times = times_of(batch)
        first = int(segment.index["position"][number])
        positions = np.arange(first, first + len(times), dtype=np.int64)
        wanted = (positions >= view.start) & (positions < self.cursor.ends[view.name])
        wanted &= (times >= self.range.start) & (times <= self.range.end)
        if not self.is_first:
            wanted &= self._beyond(times, rank, positions, self.cursor.last)
        rows = np.flatnonzero(wanted)
        if not len(rows):
            return None
        whole = None if isinstance(segment, ParquetSegment) else batch
        return _Rows(rank, segment, number, first, whole, rows, times[rows])

    def _beyond(self, times: IntArray, rank: int, positions: IntArray, key: tuple[int, int, int]) -> Mask:
        """Tell which rows come after `key` in walking order."""
        time, other, position = key
        descending = self.sign < 0
        tied: Mask = np.full(len(times), rank < other if descending else rank > other)
        if rank == other:
            tied = positions < position if descending else positions > position
        beyond: Mask = (times < time if descending else times > time) | ((times == time) & tied)
        return beyond

    def _sorted(self, found: list[_Rows]) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray]:
        """Return owner, row, time, rank and position of all candidates in walking order."""
        owners = np.concatenate([np.full(len(part.rows), n, dtype=np.int64) for n, part in enumerate(found)])
        rows = np.concatenate([part.rows for part in found])
        times = np.concatenate([part.times for part in found])
        ranks = np.array([part.rank for part in found], dtype=np.int64)[owners]
        positions = np.array([part.first for part in found], dtype=np.int64)[owners] + rows
        order = np.lexsort((self.sign * positions, self.sign * ranks, self.sign * times))
        return owners[order], rows[order], times[order], ranks[order], positions[order]

    def _best(self, found: list[_Rows], page_size: int) -> list[_Rows]:
        """Keep the first `page_size` candidates, so that memory is bounded by the page."""
        if sum(len(part.rows) for part in found) <= page_size:
            return found
        owners, rows, times, _, _ = self._sorted(found)
        owners, rows, times = owners[:page_size], rows[:page_size], times[:page_size]
        kept = []
        for n in np.unique(owners).tolist():
            part, mine = found[n], owners == n
            kept.append(_Rows(part.rank, part.segment, part.number, part.first, part.batch, rows[mine], times[mine]))
        return kept

    def _settled(self, found: list[_Rows], bound: Key) -> int:
        """Count the candidates that come before whatever is left."""
        key = (self.sign * bound[0], self.sign * bound[1], self.sign * bound[2])
        total = 0
        for part in found:
            positions = part.first + part.rows
            total += len(part.rows) - int(
                np.count_nonzero(self._beyond(part.times, part.rank, positions, key) | _same(part, positions, key))
            )
        return total

    def _finish(self, found: list[_Rows], page_size: int, byte_limit: int) -> OrderedPage:
        if not found:
            return OrderedPage([], Status.ALL, None)
        owners, rows, times, ranks, positions = self._sorted(found)
        count = min(len(owners), page_size)
        status = Status.RECORD_LIMITED if len(owners) >= page_size else Status.ALL
        shapes = [_shape_of(part) for part in found]
        fits = np.array([shape == shapes[owners[0]] for shape in shapes])[owners[:count]]
        if not fits.all():
            count, status = int(np.argmin(fits)), Status.SCHEMA_CHANGE
        batches = {n: _whole(found[n]) for n in np.unique(owners[:count]).tolist()}
        sizes = np.zeros(len(found), dtype=np.int64)
        for n, batch in batches.items():
            sizes[n] = max(batch.nbytes // batch.num_rows, 1)
        within = int(np.searchsorted(np.cumsum(sizes[owners[:count]]), byte_limit, side="left")) + 1
        if within < count:
            count, status = within, Status.BYTE_LIMITED
        parts = _parts(found, batches, owners[:count], rows[:count])
        if status is Status.ALL:
            return OrderedPage(parts, status, None)
        last = (int(times[count - 1]), int(ranks[count - 1]), int(positions[count - 1]))
        ends = {view.name: self.cursor.ends[view.name] for view in self.views}
        following = msgspec.structs.replace(self.cursor, last=last, ends=ends)
        return OrderedPage(parts, status, encode_cursor(following))


def _schema_key(part: _Rows) -> str:
    return part.segment.schemas[int(part.segment.index["schema"][part.number])]


def _shape_of(part: _Rows) -> Hashable:
    key = _schema_key(part)
    if key not in _shapes:
        if len(_shapes) >= 1_000:
            _shapes.clear()
        _shapes[key] = shape_of(part.segment.schema(int(part.segment.index["schema"][part.number])))
    return _shapes[key]


_shapes: dict[str, Hashable] = {}


def _parts(found: list[_Rows], batches: dict[int, pa.RecordBatch], owners: IntArray, rows: IntArray) -> list[pa.Table]:
    """Put the chosen rows together, those of one schema that follow each other in one part."""
    keys = [_schema_key(part) for part in found]
    names = sorted({keys[n] for n in batches})
    kinds = np.array([names.index(key) if key in names else -1 for key in keys])[owners]
    tables = [
        _gather({n: batch for n, batch in batches.items() if keys[n] == name}, owners[kinds == at], rows[kinds == at])
        for at, name in enumerate(names)
    ]
    if len(tables) == 1:
        return tables
    edges = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    used = [0] * len(tables)
    parts = []
    for start, end in itertools.pairwise(edges):
        kind = int(kinds[start])
        parts.append(tables[kind].slice(used[kind], end - start))
        used[kind] += end - start
    return parts


def _same(part: _Rows, positions: IntArray, key: Key) -> Mask:
    same: Mask = (part.times == key[0]) & (positions == key[2]) & (part.rank == key[1])
    return same


def _whole(part: _Rows) -> pa.RecordBatch:
    return part.segment.batch(part.number) if part.batch is None else part.batch


def _gather(batches: dict[int, pa.RecordBatch], owners: IntArray, rows: IntArray) -> pa.Table:
    """Put rows of several batches together in the given order, copying no more of a batch than the rows span."""
    indices = np.empty(len(owners), dtype=np.int64)
    slices: list[pa.RecordBatch] = []
    base = 0
    for owner, batch in batches.items():
        mine = owners == owner
        chosen = rows[mine]
        if not len(chosen):
            continue
        low, high = int(chosen.min()), int(chosen.max()) + 1
        slices.append(batch.slice(low, high - low))
        indices[mine] = base + chosen - low
        base += high - low
    joined = slices[0] if len(slices) == 1 else pa.concat_batches(slices)
    if len(indices) == joined.num_rows and (np.diff(indices) == 1).all():
        return as_table([joined])
    return as_table([joined.take(index_array(indices))])
