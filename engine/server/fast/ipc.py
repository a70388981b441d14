"""Where the buffers of an Arrow IPC message lie: the little of flatbuffers that this takes.

Everything here trusts its input: it reads messages that pyarrow has written or has already read without complaint.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")
_U16 = struct.Struct("<H")
_I64 = struct.Struct("<q")
_PAIR = struct.Struct("<qq")
_BLOCK = struct.Struct("<qixxxxq")

RECORD_BATCH = 3
MAGIC = b"ARROW1"
CONTINUATION = b"\xff\xff\xff\xff"
_ALIGNMENT = 8
_NOT_COMPRESSED = _I64.pack(-1)
"""Stands before a buffer of a compressed message that is not compressed itself."""


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """One record-batch message: its rows, and where its nodes and buffers are, counted from the start of the bytes."""

    rows: int
    nodes: tuple[tuple[int, int], ...]
    """(length, null count) per array, depth first."""
    buffers: tuple[tuple[int, int], ...]
    """(position, size in bytes) per buffer, depth first; absent ones have size 0."""
    body_start: int
    end: int
    compressed: bool
    buffers_at: int
    """Where the vector of (offset in the body, size) of the buffers lies."""
    body_size_at: int
    """Where the size of the body lies; 0 when it has its default."""


class _Table:
    """A flatbuffers table."""

    __slots__ = ("_at", "_raw", "_size", "_vtable")

    def __init__(self, raw: bytes | memoryview, at: int) -> None:
        self._raw = raw
        self._at = at
        self._vtable = at - _I32.unpack_from(raw, at)[0]
        self._size = _U16.unpack_from(raw, self._vtable)[0]

    def field(self, number: int) -> int:
        """Return where a field's value lies; 0 when it has its default."""
        entry = 4 + 2 * number
        if entry >= self._size:
            return 0
        offset = _U16.unpack_from(self._raw, self._vtable + entry)[0]
        return self._at + offset if offset else 0

    def target(self, number: int) -> int:
        """Follow the offset in a field; 0 when it is absent."""
        at = self.field(number)
        return at + int(_U32.unpack_from(self._raw, at)[0]) if at else 0

    def int64(self, number: int) -> int:
        """Return a 64-bit field."""
        at = self.field(number)
        return int(_I64.unpack_from(self._raw, at)[0]) if at else 0

    def byte(self, number: int) -> int:
        """Return an 8-bit field."""
        at = self.field(number)
        return self._raw[at] if at else 0

    def pairs(self, number: int) -> list[tuple[int, int]]:
        """Return a vector of structs of two 64-bit numbers."""
        at = self.target(number)
        if not at:
            return []
        count = _U32.unpack_from(self._raw, at)[0]
        return [_PAIR.unpack_from(self._raw, at + 4 + 16 * n) for n in range(count)]


def batch_layout(raw: bytes | memoryview, start: int = 0) -> BatchLayout:
    """Read the layout of the encapsulated record-batch message that begins at `start`."""
    if bytes(raw[start : start + 4]) != CONTINUATION:
        raise ValueError("not an encapsulated message")
    metadata_size = _I32.unpack_from(raw, start + 4)[0]
    root = start + 8
    message = _Table(raw, root + _U32.unpack_from(raw, root)[0])
    if message.byte(1) != RECORD_BATCH:
        raise ValueError("not a record batch")
    batch = _Table(raw, message.target(2))
    body = root + metadata_size
    return BatchLayout(
        rows=batch.int64(0),
        nodes=tuple(batch.pairs(1)),
        buffers=tuple((body + offset, size) for offset, size in batch.pairs(2)),
        body_start=body,
        end=body + message.int64(3),
        compressed=bool(batch.field(3)),
        buffers_at=batch.target(2) + 4,
        body_size_at=message.field(3),
    )


def file_batches(raw: bytes | memoryview) -> list[BatchLayout]:
    """Read the layouts of all record batches of an IPC file."""
    footer_size = _I32.unpack_from(raw, len(raw) - 10)[0]
    root = len(raw) - 10 - footer_size
    footer = _Table(raw, root + _U32.unpack_from(raw, root)[0])
    at = footer.target(3)
    count = _U32.unpack_from(raw, at)[0] if at else 0
    return [batch_layout(raw, _BLOCK.unpack_from(raw, at + 4 + _BLOCK.size * n)[0]) for n in range(count)]


def repack(raw: bytes, kept: Callable[[int], bytes | int]) -> tuple[bytes, list[int]]:
    """Lay the body of a compressed message out anew.

    `kept` says per buffer number what becomes of it: bytes take its place as they are; a number makes room for so many
    bytes that are *not* compressed. Returns the message and where the content of each buffer begins, counted from the
    start of the message; that of a room is where its bytes go.
    """
    layout = batch_layout(raw)
    message = bytearray(raw[: layout.body_start])
    body = bytearray()
    places = []
    for number in range(len(layout.buffers)):
        content = kept(number)
        offset = len(body)
        places.append(layout.body_start + offset)
        if isinstance(content, int):
            places[-1] += len(_NOT_COMPRESSED)
            content = _NOT_COMPRESSED + bytes(content)
        body += content
        body += bytes(-len(body) % _ALIGNMENT)
        _PAIR.pack_into(message, layout.buffers_at + _PAIR.size * number, offset, len(content))
    _I64.pack_into(message, layout.body_size_at, len(body))
    return bytes(message + body), places


def leaf_buffers(records: pa.RecordBatch) -> list[int]:
    """Return the memory address of every buffer of a batch in the order of its IPC message; 0 for absent ones."""
    addresses: list[int] = []
    for column in records.columns:
        _walk(column, addresses)
    return addresses


def _walk(array: pa.Array, addresses: list[int]) -> None:
    kind = array.type
    own = array.buffers()[: kind.num_buffers]
    for buffer in own:
        addresses.append(buffer.address if buffer is not None else 0)
    for child in children(array):
        _walk(child, addresses)


def children(array: pa.Array) -> list[pa.Array]:
    """Return the arrays beneath a struct or list array."""
    kind = array.type
    if pa.types.is_struct(kind):
        return [array.field(index) for index in range(kind.num_fields)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [array.values]
    return []
