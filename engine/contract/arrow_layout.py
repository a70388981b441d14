"""How large an Arrow IPC file becomes when it is read, found without reading it.

A small compressed file can unpack to more than a machine has, so sizes are added up from the file's own tables
(flatbuffers) before pyarrow gets to see it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_MAGIC_BYTES = 6
_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2
_BLOCK = struct.Struct("<qi4xq")
_BUFFER = struct.Struct("<qq")
_INT64 = struct.Struct("<q")


class BadLayout(Exception):
    """Bytes that are not an Arrow file."""


@dataclass(frozen=True)
class Extent:
    """What a file holds."""

    rows: int
    unpacked_bytes: int


def measure(body: bytes | bytearray | memoryview) -> Extent:
    """Return rows and unpacked size of an Arrow IPC file; raises `BadLayout`."""
    file = memoryview(body).cast("B")
    try:
        rows = unpacked = 0
        for is_data, block in _blocks(file):
            length, size = _measure_batch(file, *block)
            unpacked += size
            rows += length if is_data else 0
    except (struct.error, IndexError, ValueError) as exc:
        raise BadLayout("its tables do not hold together") from exc
    return Extent(rows, unpacked)


def _blocks(file: memoryview) -> Iterator[tuple[bool, tuple[int, int]]]:
    end = len(file) - _MAGIC_BYTES
    (size,) = struct.unpack_from("<i", file, end - 4)
    if not 0 < size <= end - 4:
        raise BadLayout("its footer is cut off")
    footer = _Table.root(file[end - 4 - size : end - 4])
    for field, is_data in ((2, False), (3, True)):
        for start in footer.vector(field, _BLOCK.size):
            offset, metadata_length, _ = _BLOCK.unpack_from(footer.data, start)
            yield is_data, (offset, metadata_length)


def _measure_batch(file: memoryview, offset: int, metadata_length: int) -> tuple[int, int]:
    """Return the rows of one batch and its size when unpacked."""
    if offset < 0 or metadata_length < 8 or offset + metadata_length > len(file):
        raise BadLayout("a batch lies outside of it")
    prefix = 8 if bytes(file[offset : offset + 4]) == b"\xff\xff\xff\xff" else 4
    message = _Table.root(file[offset + prefix : offset + metadata_length])
    kind = message.number(1, "<B")
    batch = message.table(2)
    if kind == _DICTIONARY_BATCH:
        batch = batch.table(1)
    elif kind != _RECORD_BATCH:
        raise BadLayout("it has a message that is no batch")
    is_compressed = batch.position(3) is not None
    unpacked = 0
    for start in batch.vector(2, _BUFFER.size):
        place, length = _BUFFER.unpack_from(batch.data, start)
        if place < 0 or length < 0 or offset + metadata_length + place + length > len(file):
            raise BadLayout("a buffer lies outside of it")
        if is_compressed and length >= 8:
            (size,) = _INT64.unpack_from(file, offset + metadata_length + place)
            length = size if size >= 0 else length - 8
        unpacked += length
    return max(batch.number(0, "<q"), 0), unpacked


class _Table:
    """A flatbuffers table; fields are found by their number."""

    def __init__(self, data: memoryview, start: int) -> None:
        self.data, self.start = data, start
        (back,) = struct.unpack_from("<i", data, start)
        self.fields = start - back
        if self.fields < 0:
            raise BadLayout("its tables do not hold together")
        (self.fields_size,) = struct.unpack_from("<H", data, self.fields)

    @classmethod
    def root(cls, data: memoryview) -> _Table:
        (start,) = struct.unpack_from("<I", data, 0)
        return cls(data, start)

    def position(self, field: int) -> int | None:
        slot = 4 + 2 * field
        if slot + 2 > self.fields_size:
            return None
        (offset,) = struct.unpack_from("<H", self.data, self.fields + slot)
        return self.start + offset if offset else None

    def number(self, field: int, form: str) -> int:
        place = self.position(field)
        return 0 if place is None else int(struct.unpack_from(form, self.data, place)[0])

    def table(self, field: int) -> _Table:
        place = self.position(field)
        if place is None:
            raise BadLayout("a table is missing")
        (offset,) = struct.unpack_from("<I", self.data, place)
        return _Table(self.data, place + offset)

    def vector(self, field: int, size: int) -> range:
        """Return where the entries of a vector of structs begin."""
        place = self.position(field)
        if place is None:
            return range(0)
        (offset,) = struct.unpack_from("<I", self.data, place)
        (count,) = struct.unpack_from("<I", self.data, place + offset)
        first = place + offset + 4
        if first + count * size > len(self.data):
            raise BadLayout("a list in its tables is cut off")
        return range(first, first + count * size, size)
