"""The log of one source as columns in time, read once, forward, a stretch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from app.assays.columns import MissingColumn, matching, take, wanted
from app.assays.plan import Path, Source
from engine.assays import NotNumbers
from engine.assays.statistics import Numbers
from engine.logs import reader

Scan = Callable[[str, int, int, Sequence[tuple[str, ...]]], Iterator[tuple[str, pa.RecordBatch]]]
"""`(topic, from, to, columns)` gives partitions and batches with the records of that half-open range (ms)."""

_COMFORTABLE = 250_000
"""Rows read at a time, about; windows wider than that are read whole."""
_GROUP_ROWS, _GROUP_BYTES = 8_192, 8 << 20
"""Batches of a few rows are put together up to about this size: what each costs is then paid once."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a path has no numbers for the records of a stretch of time."""

    first: int
    last: int
    reason: str
    is_missing: bool


@dataclass(slots=True)
class Rows:
    """Records in order of time: one array of numbers a path, NaN where a record has none."""

    times: NDArray[np.int64]
    values: dict[str, Numbers]
    troubles: dict[str, list[Trouble]] = field(default_factory=dict)
    has_others: bool = False
    """Whether there are records around that time that the source does not ask for: another model, another place."""

    def between(self, start: int, end: int) -> Rows:
        """Return the records of `[start, end)`."""
        i, j = np.searchsorted(self.times, [start, end])
        return Rows(
            self.times[i:j],
            {key: values[i:j] for key, values in self.values.items()},
            {key: [t for t in found if t.first < end and t.last >= start] for key, found in self.troubles.items()},
            self.has_others,
        )

    def trouble(self, key: str, *, is_missing: bool) -> str | None:
        """Return the first reason of its kind why the path has no numbers."""
        return next((t.reason for t in self.troubles.get(key, ()) if t.is_missing is is_missing), None)


def to_ms(moment: datetime) -> int:
    """Return the first whole millisecond since the epoch that is not before `moment`."""
    return -((_EPOCH - moment) // timedelta(milliseconds=1))


def of_ms(ms: int) -> datetime:
    """Return the moment `ms` milliseconds after the epoch."""
    return _EPOCH + timedelta(milliseconds=ms)


def scan_of(root: str) -> Scan:
    """Return the reader of the log store at `root`."""
    store = reader.open_store(root)

    def scan(
        topic: str, start: int, end: int, columns: Sequence[tuple[str, ...]]
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        if end <= start:
            return
        within = reader.TimeRange(start, end - 1)
        for partition in store.partitions(topic):
            group: list[pa.RecordBatch] = []
            rows = size = 0
            for batch in reader.scan(store, topic, within, columns=columns, partition_filter=[partition]):
                if group and (group[0].schema != batch.schema or rows >= _GROUP_ROWS or size >= _GROUP_BYTES):
                    yield partition, _one_batch(group)
                    group, rows, size = [], 0, 0
                group.append(batch)
                rows, size = rows + batch.num_rows, size + batch.nbytes
            if group:
                yield partition, _one_batch(group)

    return scan


def _one_batch(group: list[pa.RecordBatch]) -> pa.RecordBatch:
    return group[0] if len(group) == 1 else pa.concat_batches(group)


def load(scan: Scan, source: Source, paths: tuple[Path, ...], start: int, end: int) -> Rows:
    """Read the records of `[start, end)`, in milliseconds."""
    times: list[NDArray[np.int64]] = []
    parts: dict[str, list[Numbers]] = {path.key: [] for path in paths}
    rows = Rows(np.empty(0, dtype=np.int64), {}, {path.key: [] for path in paths})
    for partition, batch in scan(source.topic, start, end, wanted(paths, source)):
        moments: NDArray[np.int64] = batch.column(0).to_numpy()
        asked = matching(batch, partition, source)
        if asked is not None:
            rows.has_others = True
            moments = moments[asked]
        if not len(moments):
            continue
        times.append(moments)
        for path in paths:
            try:
                numbers = take(batch, path)
                numbers = numbers if asked is None else numbers[asked]
            except (MissingColumn, NotNumbers) as exc:
                missing = isinstance(exc, MissingColumn)
                rows.troubles[path.key].append(Trouble(int(moments.min()), int(moments.max()), str(exc), missing))
                numbers = np.full(len(moments), np.nan, dtype=np.float32)
            parts[path.key].append(numbers)
    if not times:
        rows.values = {path.key: np.empty(0, dtype=np.float32) for path in paths}
        return rows
    rows.times = np.concatenate(times)
    for key, arrays in parts.items():
        rows.values[key] = np.concatenate(arrays)
        arrays.clear()
    if len(rows.times) > 1 and not (rows.times[1:] >= rows.times[:-1]).all():
        order = np.argsort(rows.times, kind="stable")
        rows.times = rows.times[order]
        rows.values = {key: _in_order(values, order) for key, values in rows.values.items()}
    return rows


def _in_order(values: Numbers, order: NDArray[np.intp]) -> Numbers:
    ordered: Numbers = values[order]
    return ordered


class Timeline:
    """A window that moves forward over the log; each record is read once, however much windows overlap."""

    def __init__(self, scan: Scan, source: Source, paths: tuple[Path, ...], until: datetime) -> None:
        self._scan, self._source, self._paths = scan, source, paths
        self._until = to_ms(until)
        self._rows: Rows | None = None
        self._read_to = 0
        self._span = 0

    def between(self, start: datetime, end: datetime) -> Rows:
        """Return the records of `[start, end)`; `start` must not go back from call to call."""
        first, last = to_ms(start), to_ms(end)
        self._read(first, last)
        assert self._rows is not None  # noqa: S101 - `_read` leaves rows behind
        return self._rows.between(first, last)

    def next_time(self, after: datetime) -> datetime | None:
        """Return when the first record at or after `after` was made, None if there is none before the end."""
        first = to_ms(after)
        while True:
            self._read(first, first + 1)
            assert self._rows is not None  # noqa: S101
            i = int(np.searchsorted(self._rows.times, first))
            if i < len(self._rows.times):
                return of_ms(int(self._rows.times[i]))
            if self._read_to >= self._until:
                return None
            first = self._read_to

    def _read(self, first: int, last: int) -> None:
        rows = self._rows
        if rows is None or first >= self._read_to:
            rows, self._read_to = None, first
        if last <= self._read_to and rows is not None:
            return
        self._span = self._span or (last - first)
        begin = self._read_to
        self._read_to = max(last, min(begin + self._span, self._until))
        fresh = load(self._scan, self._source, self._paths, begin, self._read_to)
        self._span = max(1000, self._span // 2) if len(fresh.times) > _COMFORTABLE else self._span * 2
        self._rows = fresh if rows is None else _joined(rows.between(first, begin), fresh)


def _joined(old: Rows, new: Rows) -> Rows:
    return Rows(
        np.concatenate([old.times, new.times]),
        {key: np.concatenate([old.values[key], values]) for key, values in new.values.items()},
        {key: [*old.troubles.get(key, ()), *found] for key, found in new.troubles.items()},
        old.has_others or new.has_others,
    )
