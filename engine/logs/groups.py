"""Turning collected records into the bytes of one write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from engine.logs import frames
from engine.logs.frames import ALIGNMENT, BATCH, CHECKED, COMMIT, HASHED, HEADER_BYTES, MANY, SCHEMA, Buffer, Frame
from engine.logs.recovery import OpenSegment

_MAX_PARTS = 512
_JOIN_BYTES = 16 << 10
"""Payloads up to this size are put together before they are written: the kernel takes few large pieces faster."""
_PADS = [bytes(size) for size in range(ALIGNMENT)]
_LONE = CHECKED | HASHED | COMMIT
_MERGE_ROWS = 4_096
_MERGE_BYTES = 1 << 20


@dataclass(slots=True)
class Item:
    """Records waiting for the next write: a batch, or else the parts of an encoded message."""

    schema: bytes
    position: int
    rows: int
    min_time: int
    max_time: int
    sequence: int
    batch: pa.RecordBatch | None
    parts: list[Buffer]
    size: int = 0
    """Bytes of the parts."""
    messages: int = 0

    def takes(self, schema: bytes, rows: int) -> bool:
        """Tell whether a further encoded message can join this one's frame."""
        return (
            self.batch is None
            and self.schema is schema
            and self.rows + rows <= _MERGE_ROWS
            and self.size < _MERGE_BYTES
        )


@dataclass(slots=True)
class Group:
    """One write: its bytes, and what they add to the segment."""

    parts: list[Buffer]
    frames: list[Frame]
    schemas: list[bytes]
    end: int
    """Size of the file after the write."""


def assemble(segment: OpenSegment, items: list[Item]) -> Group:
    """Lay the frames of one write out behind what `segment` holds; the last one commits them all."""
    group = Group([], [], [], segment.size)
    joined = _joined(items)
    last = len(joined) - 1
    for n, item in enumerate(joined):
        number = segment.number_of(item.schema)
        if number is None:
            number = _number_in(group, item, len(segment.schemas))
        if item.batch is not None:
            payload: Sequence[Buffer] = (item.batch.serialize(),)
            length = len(payload[0])
        else:
            payload, length = _payload(item), item.size
        flags = CHECKED | HASHED
        if n == last:
            flags |= COMMIT
        if item.messages > 1:
            flags |= MANY
        frame = Frame(
            BATCH, flags, number, frames.checksum(payload, flags), item.rows, length, item.position,
            item.min_time, item.max_time, item.sequence, group.end + HEADER_BYTES,
        )  # fmt: skip
        _add(group, frame, payload)
    return group


def lone(segment: OpenSegment, item: Item) -> Group | None:
    """Do what `assemble` does for the commonest write: encoded records, one frame, of a schema that the file knows."""
    number = segment.number_of(item.schema)
    if number is None or item.batch is not None:
        return None
    payload = _payload(item)
    length, at = item.size, segment.size + HEADER_BYTES
    flags = _LONE if item.messages == 1 else _LONE | MANY
    frame = Frame(
        BATCH, flags, number, frames.checksum(payload, flags), item.rows, length, item.position,
        item.min_time, item.max_time, item.sequence, at,
    )  # fmt: skip
    pad = -length % ALIGNMENT
    return Group([frames.pack_header(frame), *payload, _PADS[pad]], [frame], [], at + length + pad)


def _payload(item: Item) -> Sequence[Buffer]:
    """Return the parts of encoded records as they are to be written."""
    parts = item.parts
    if len(parts) > 1 and (item.size <= _JOIN_BYTES or len(parts) > _MAX_PARTS):
        return (b"".join(parts),)
    return parts


def _number_in(group: Group, item: Item, first: int) -> int:
    """Return the number of a schema that the file does not hold yet; a frame in this write brings it in."""
    if item.schema in group.schemas:
        return first + group.schemas.index(item.schema)
    number = first + len(group.schemas)
    group.schemas.append(item.schema)
    payload = (item.schema,)
    at, flags = group.end + HEADER_BYTES, CHECKED | HASHED
    checksum = frames.checksum(payload, flags)
    head = Frame(SCHEMA, flags, number, checksum, 0, len(item.schema), item.position, 0, 0, 0, at)
    _add(group, head, payload)
    return number


def _add(group: Group, frame: Frame, payload: Sequence[Buffer]) -> None:
    parts = group.parts
    parts.append(frames.pack_header(frame))
    parts += payload
    end = frame.offset + frame.length
    if pad := -end % ALIGNMENT:
        parts.append(_PADS[pad])
    group.frames.append(frame)
    group.end = end + pad


def _joined(items: list[Item]) -> list[Item]:
    """Join small batches of one schema that follow each other: 64 rows in one cost little more than a single row."""
    if len(items) == 1:
        return items
    out: list[Item] = []
    run: list[Item] = []
    rows = 0
    for item in items:
        fits = (
            bool(run)
            and item.batch is not None
            and run[0].schema == item.schema
            and rows + item.rows <= _MERGE_ROWS
            and item.sequence == (run[-1].sequence + run[-1].rows if run[-1].sequence else 0)
        )
        if not fits:
            out += _one(run)
            run, rows = [], 0
        if item.batch is None:
            out.append(item)
        else:
            run.append(item)
            rows += item.rows
    return out + _one(run)


def _one(run: list[Item]) -> list[Item]:
    if len(run) < 2:
        return run
    batch = pa.concat_batches([item.batch for item in run])
    low, high = min(item.min_time for item in run), max(item.max_time for item in run)
    return [Item(run[0].schema, run[0].position, batch.num_rows, low, high, run[0].sequence, batch, [])]


def write_all(fd: int, parts: list[Buffer], offset: int) -> None:
    """Write `parts` at `offset`: one system call, unless there are very many or the kernel takes less at once."""
    size = 0
    for part in parts:
        size += len(part)
    written = os.pwritev(fd, parts[:_MAX_PARTS], offset)
    if written == size:
        return
    views = [memoryview(part) for part in parts]
    while True:
        offset += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if not views:
            return
        if written:
            views[0] = views[0][written:]
        written = os.pwritev(fd, views[:_MAX_PARTS], offset)
