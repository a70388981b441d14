"""The newest rows of all partitions, newest first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from engine.logs.query import IntArray, Page, Status, as_table, index_array, times_of
from engine.logs.segments import ParquetSegment
from engine.logs.store import PartitionView, batch_at


@dataclass
class _Gathered:
    """The end of a partition: batches of one schema, newest first."""

    view: PartitionView
    end: int
    batches: list[pa.RecordBatch]
    is_blocked: bool
    """Whether a row of another schema lies below the gathered ones."""
    is_cut: bool
    """Whether more rows of the schema lie below."""


def read_newest(views: list[PartitionView], positions: dict[str, int], page_size: int, byte_limit: int) -> Page:
    """Return the newest rows below `positions`, in one order over all partitions; each keeps its own order within."""
    following = {view.name: min(positions.get(view.name, view.end), view.end) for view in views}
    heads = [head for view in views if (head := _head(view, following[view.name])) is not None]
    if not heads:
        return Page(pa.table({}), Status.ALL, following)
    _, _, schema_key = max(heads)
    gathered = [_gather(view, following[view.name], schema_key, page_size, byte_limit) for view in views]
    owners, keys, sizes = _merge_keys(gathered)
    order = np.argsort(-keys, kind="stable")[:page_size]
    within = int(np.searchsorted(np.cumsum(sizes[order]), byte_limit, side="left")) + 1
    status = Status.ALL
    if within < len(order):
        order, status = order[:within], Status.BYTE_LIMITED
    elif len(order) >= page_size:
        status = Status.RECORD_LIMITED
    elif any(part.is_cut for part in gathered):
        status = Status.BYTE_LIMITED
    elif any(part.is_blocked for part in gathered):
        status = Status.SCHEMA_CHANGE
    taken = np.bincount(owners[order], minlength=len(gathered))
    for part, count in zip(gathered, taken.tolist(), strict=True):
        following[part.view.name] = part.end - count
    return Page(_rows(gathered, taken.tolist(), owners, order), status, following)


def _head(view: PartitionView, end: int) -> tuple[int, str, str] | None:
    """Return time, partition and schema of the newest row below `end`."""
    number = view.segment_at(end - 1) if end > view.start else len(view.segments)
    if number == len(view.segments):
        return None
    segment = view.segments[number]
    batch = batch_at(segment, end - 1)
    row = end - 1 - int(segment.index["position"][batch])
    columns = [("time",)] if isinstance(segment, ParquetSegment) else None
    time = int(times_of(segment.batch(batch, columns))[row])
    return time, view.name, segment.schemas[int(segment.index["schema"][batch])]


def _gather(view: PartitionView, end: int, schema_key: str, page_size: int, byte_limit: int) -> _Gathered:
    """Collect batches backwards from `end`: as many rows as a page could take."""
    part = _Gathered(view, end, [], is_blocked=False, is_cut=False)
    room, bytes_left = page_size, byte_limit
    low = view.start
    for number in range(min(view.segment_at(end - 1), len(view.segments) - 1), -1, -1):
        segment = view.segments[number]
        if segment.end <= low:
            break
        for at in range(batch_at(segment, end - 1), -1, -1):
            first = int(segment.index["position"][at])
            rows = min(end - first, int(segment.index["rows"][at]))
            if rows <= 0:
                continue
            if segment.schemas[int(segment.index["schema"][at])] != schema_key:
                part.is_blocked = True
                return part
            if room <= 0 or bytes_left <= 0:
                part.is_cut = True
                return part
            batch = segment.batch(at)
            keep = min(rows, room)
            batch = batch.slice(rows - keep, keep)
            part.batches.append(batch)
            bytes_left -= batch.nbytes
            room -= keep
            if keep < rows:
                part.is_cut = True
                return part
    return part


def _merge_keys(gathered: list[_Gathered]) -> tuple[IntArray, IntArray, IntArray]:
    """Return, for all gathered rows newest first: their partition, the time to merge them by, and about how large
    they are.
    """
    owners, keys, sizes = [], [], []
    for owner, part in enumerate(gathered):
        if not part.batches:
            continue
        times = np.concatenate([times_of(batch)[::-1] for batch in part.batches])
        # a partition's times may go up and down a little; it keeps its own order
        keys.append(np.minimum.accumulate(times))
        owners.append(np.full(len(times), owner, dtype=np.int64))
        counts = [batch.num_rows for batch in part.batches]
        means = [max(batch.nbytes // batch.num_rows, 1) for batch in part.batches]
        sizes.append(np.repeat(np.array(means, dtype=np.int64), counts))
    return np.concatenate(owners), np.concatenate(keys), np.concatenate(sizes)


def _rows(gathered: list[_Gathered], taken: list[int], owners: IntArray, order: IntArray) -> pa.Table:
    """Put the chosen rows together: slice what is needed, join it, and bring it into order in one step."""
    batches: list[pa.RecordBatch] = []
    places: list[IntArray] = []
    base = 0
    for part, count in zip(gathered, taken, strict=True):
        rows, left = [], count
        for batch in part.batches:
            keep = min(left, batch.num_rows)
            if keep == 0:
                break
            batches.append(batch.slice(batch.num_rows - keep, keep))
            rows.append(np.arange(base + keep - 1, base - 1, -1, dtype=np.int64))
            base += keep
            left -= keep
        places.append(np.concatenate(rows) if rows else np.empty(0, dtype=np.int64))
    chosen = owners[order]
    indices = np.empty(len(order), dtype=np.int64)
    for owner, place in enumerate(places):
        indices[chosen == owner] = place
    joined = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
    return as_table([joined.take(index_array(indices))])
