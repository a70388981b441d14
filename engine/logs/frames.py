"""The bytes of a segment: 64-byte headers, each followed by one encapsulated Arrow IPC message.

A segment is a sequence of frames. A schema frame holds an IPC schema message and gives it a number within the file; a
batch frame holds an IPC record-batch message of the schema it names. Payloads are padded to 64 bytes, so a batch read
from a memory map needs no copy. The last frame of every write carries `COMMIT`: what follows the last committed frame
was cut off by a crash or a full disk and is as good as not there. A reader therefore sees whole writes only, without
any lock.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from zlib import crc32

import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest

if TYPE_CHECKING:
    import pyarrow as pa

Buffer: TypeAlias = "bytes | bytearray | memoryview | pa.Buffer"

HEADER_BYTES = 64
ALIGNMENT = 64
SCHEMA = 1
BATCH = 2
COMMIT = 1
MANY = 4
"""The payload is several record-batch messages one after another, each whole."""
CHECKED = 2
"""The header holds the payload's checksum (older files: not that of large payloads, which got theirs when sealed)."""
HASHED = 8
"""The checksum is the low half of XXH3-64; without this flag, in older files, it is CRC-32."""

_MAGIC = b"PLF1"
_FIELDS = struct.Struct("<4sBBHIIQQqqQI")
_CRC = struct.Struct("<I")
_WINDOW_BYTES = 1 << 18

IndexArray: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.void]]"
INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # of the payload in the file; number of the row group in a Parquet segment
        ("length", "<u8"),
        ("position", "<u8"),  # of the first row
        ("rows", "<u4"),
        ("schema", "<u2"),
        ("flags", "<u2"),
        ("min_time", "<i8"),
        ("max_time", "<i8"),
        ("checksum", "<u4"),
        ("reserved", "<u4"),
    ]
)
"""One entry per batch frame, in the order of positions; the sidecar file of a sealed segment is an array of these."""


class Frame(NamedTuple):
    """A header, unpacked; `offset` is that of the payload."""

    kind: int
    flags: int
    schema: int
    checksum: int
    rows: int
    length: int
    position: int
    min_time: int
    max_time: int
    sequence: int
    offset: int

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.offset + self.length + padding(self.length)


def padding(length: int) -> int:
    """Return how many bytes follow a payload of `length` up to the next frame."""
    return -length % ALIGNMENT


def checksum(payload: Iterable[Buffer], flags: int) -> int:
    """Return the checksum of a payload that may lie in several parts, as frames with these flags have it."""
    if flags & HASHED:
        if isinstance(payload, list | tuple) and len(payload) == 1:
            return xxh3_64_intdigest(payload[0]) & 0xFFFFFFFF
        digest = xxh3_64()
        for part in payload:
            digest.update(part)
        return digest.intdigest() & 0xFFFFFFFF
    value = 0
    for part in payload:
        value = crc32(part, value)
    return value


def pack_header(frame: Frame) -> bytes:
    """Return the 64 bytes before a payload."""
    head = _FIELDS.pack(_MAGIC, *frame[:-1], 0)
    return head + _CRC.pack(crc32(head))


def unpack_header(header: bytes, offset: int) -> Frame | None:
    """Return the frame whose header lies at `offset`, or None if those bytes are no header."""
    if len(header) < HEADER_BYTES or header[:4] != _MAGIC:
        return None
    if _CRC.unpack_from(header, HEADER_BYTES - 4)[0] != crc32(header[: HEADER_BYTES - 4]):
        return None
    fields = _FIELDS.unpack_from(header)
    return Frame._make((*fields[1:-1], offset + HEADER_BYTES))


def committed(read: Callable[[int, int], bytes], start: int, size: int) -> tuple[list[Frame], int]:
    """Return the committed frames between the offsets `start` and `size`, and where the last of them ends.

    `read(offset, length)` gives bytes of the file. Only headers are read, in windows that grow with small frames.
    """
    frames: list[Frame] = []
    pending: list[Frame] = []
    end = offset = start
    window, window_at, reach = b"", start, _WINDOW_BYTES
    while offset + HEADER_BYTES <= size:
        if offset > window_at + len(window) - HEADER_BYTES:
            window, window_at = read(offset, reach), offset
        at = offset - window_at
        frame = unpack_header(window[at : at + HEADER_BYTES], offset)
        if frame is None or frame.end > size:
            break
        pending.append(frame)
        if frame.flags & COMMIT:
            frames += pending
            pending.clear()
            end = frame.end
        reach = _WINDOW_BYTES if frame.length < _WINDOW_BYTES // 8 else HEADER_BYTES
        offset = frame.end
    return frames, end


def index_of(found: list[Frame]) -> IndexArray:
    """Return the index entries of the batch frames among `found`."""
    rows = [
        (f.offset, f.length, f.position, f.rows, f.schema, f.flags, f.min_time, f.max_time, f.checksum, 0)
        for f in found
        if f.kind == BATCH
    ]
    return np.array(rows, dtype=INDEX_DTYPE)
