"""A repeated value as a compressed buffer of an Arrow IPC message, in which only the value is to be filled in.

A compressor would write the value once, say that it repeats, and write the end out, because a block of LZ4 must end
with plain bytes. Writing that down by hand gives a buffer of the same few bytes for every value. The format is that of
the LZ4 frame and block specifications (github.com/lz4/lz4, `doc/`).
"""

from __future__ import annotations

import struct

from xxhash import xxh32_intdigest

TAIL_BYTES = 16
"""So many bytes at the end are written out: a multiple of the sizes of values, and as many as a block must end with."""
LARGEST_BYTES = 4 << 20

_MAGIC = struct.pack("<I", 0x184D2204)
_DESCRIPTOR = b"\x60\x70"
"""Version 1, independent blocks of up to 4 MiB, no checksums."""
_START = _MAGIC + _DESCRIPTOR + bytes([xxh32_intdigest(_DESCRIPTOR) >> 8 & 0xFF])
_END_MARK = bytes(4)
_SHORTEST_MATCH = 4


def buffer(size: int, times: int) -> tuple[bytes, int, int]:
    """Return a buffer of a value of `size` bytes, `times` times, and where the value and the tail go in it.

    At the second place go the last `TAIL_BYTES` bytes. Raises `ValueError` for what fits no block.
    """
    match = size * (times - 1) - TAIL_BYTES
    if match < TAIL_BYTES or size * times > LARGEST_BYTES or TAIL_BYTES % size:
        raise ValueError("too few or too many to be repeated")
    token, more = _lengths(size, match - _SHORTEST_MATCH)
    block = token + more[0]
    value_at = len(block)
    block += bytes(size) + struct.pack("<H", size) + more[1]
    token, more = _lengths(TAIL_BYTES, 0)
    block += token + more[0]
    tail_at = len(block)
    block += bytes(TAIL_BYTES)
    start = struct.pack("<q", size * times) + _START + struct.pack("<I", len(block))
    return start + block + _END_MARK, len(start) + value_at, len(start) + tail_at


def _lengths(literals: int, match: int) -> tuple[bytes, tuple[bytes, bytes]]:
    """Return the token of a sequence, and the bytes that continue its two lengths."""
    return bytes([min(literals, 15) << 4 | min(match, 15)]), (_continued(literals), _continued(match))


def _continued(length: int) -> bytes:
    if length < 15:
        return b""
    full, rest = divmod(length - 15, 255)
    return b"\xff" * full + bytes([rest])
