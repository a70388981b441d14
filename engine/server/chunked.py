"""Undo the chunked transfer coding, strictly."""

from __future__ import annotations

import re

from engine.server.heads import BadRequest

_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?\Z")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00-\x08\x0a-\x1f\x7f]*\Z")
MAX_LINE_BYTES = 4096
MAX_TRAILER_BYTES = 16 * 1024
MAX_FRAMING_BYTES = 64 * 1024
"""Bytes of framing allowed on top of as many as there are bytes of body."""


class ChunkedBody:
    """Collect a chunked body from bytes as they arrive."""

    __slots__ = ("_framing", "_left", "_limit", "_parts", "_state", "_trailer", "size")

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._parts: list[bytes] = []
        self._left = 0
        self._state = "size"
        self._framing = 0
        self._trailer = 0
        self.size = 0

    def feed(self, inbox: bytearray) -> bool:
        """Take what belongs to the body out of `inbox`; True when the body is whole. Raises `BadRequest`."""
        at = 0
        try:
            while True:
                if self._state == "data":
                    taken = bytes(memoryview(inbox)[at : at + self._left])
                    if not taken:
                        return False
                    self._parts.append(taken)
                    at += len(taken)
                    self._left -= len(taken)
                    if self._left:
                        return False
                    self._state = "data-end"
                if self._state == "data-end":
                    end = inbox[at : at + 2]
                    if not b"\r\n".startswith(end):
                        raise BadRequest(400, "a chunk is longer than its size says")
                    if len(end) < 2:
                        return False
                    at += 2
                    self._state = "size"
                line_end = inbox.find(b"\n", at, at + MAX_LINE_BYTES)
                if line_end < 0:
                    if len(inbox) - at >= MAX_LINE_BYTES:
                        raise BadRequest(400, "a chunk header is too long")
                    return False
                if line_end == at or inbox[line_end - 1] != 13:
                    raise BadRequest(400, "a chunk header does not end in CR LF")
                line = bytes(inbox[at : line_end - 1])
                at = line_end + 1
                if self._state == "size":
                    self._begin_chunk(line)
                elif not line:
                    return True
                else:
                    self._check_trailer(line)
        finally:
            del inbox[:at]

    def body(self) -> bytes:
        """Return the whole body."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE_LINE.match(line)
        if match is None:
            raise BadRequest(400, "malformed chunk size")
        self._left = int(match[1], 16)
        self.size += self._left
        self._framing += len(line) + 4
        if self.size > self._limit:
            raise BadRequest(413, f"the body is larger than {self._limit} bytes")
        if self._framing > MAX_FRAMING_BYTES + self.size:
            raise BadRequest(400, "more chunk framing than body")
        self._state = "data" if self._left else "trailer"

    def _check_trailer(self, line: bytes) -> None:
        self._trailer += len(line)
        if self._trailer > MAX_TRAILER_BYTES or not _TRAILER.match(line):
            raise BadRequest(400, "malformed trailer")
