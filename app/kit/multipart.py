"""Forms that are read as they arrive: `multipart/form-data` in constant memory, its parts in any order."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import unquote

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from app.errors import Invalid, TooLarge

_PARAMETER = re.compile(r""";\s*([^\s=;"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)""", re.DOTALL)
_HEADER_BYTES = 16 * 1024


def boundary_of(content_type: str | None) -> bytes | None:
    """Return the boundary that a `Content-Type` header names, or None when it is not that of a form."""
    kind, _, _ = (content_type or "").partition(";")
    if kind.strip().lower() != "multipart/form-data":
        return None
    boundary = _parameters(content_type or "").get("boundary", "")
    if not boundary:
        raise Invalid("The Content-Type multipart/form-data names no boundary; let your HTTP library set that header.")
    return boundary.encode("latin-1", "replace")


@dataclass(frozen=True, slots=True)
class PartHead:
    """What a part says of itself; `filename` has no directories, and is None for a part that is no file."""

    name: str
    filename: str | None
    content_type: str


class Form:
    """The parts of one form, in the order they come: take the `next` one, then its `data`, before the one after it."""

    def __init__(self, chunks: AsyncIterator[bytes], boundary: bytes) -> None:
        """Read a form that comes in `chunks`, whose bytes may be cut anywhere."""
        self._chunks = chunks
        self._events: deque[PartHead | bytes | None] = deque()
        self._headers: dict[str, str] = {}
        self._field, self._value = bytearray(), bytearray()
        self._ended = False
        self._inside = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._headers.clear,
                    "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": lambda data, start, end: self._events.append(data[start:end]),
                    "on_part_end": lambda: self._events.append(None),
                    "on_end": self._on_end,
                },
                max_header_size=_HEADER_BYTES,
            )
        except FormParserError as exc:
            raise Invalid("The form's boundary is longer than forms may have.") from exc

    async def next(self) -> PartHead | None:
        """Return the head of the next part, or None after the last; what was not read of the one before is passed over.

        Raises `Invalid` when the form is broken or breaks off.
        """
        if self._inside:
            async for _ in self.data():
                pass
        while not self._events:
            if not await self._feed():
                return None
        head = self._events.popleft()
        assert isinstance(head, PartHead)  # noqa: S101 - the parser begins each part with its head
        self._inside = True
        return head

    async def data(self) -> AsyncIterator[bytes]:
        """Yield the bytes of the part whose head was taken last; raises `Invalid` when the form breaks off."""
        while self._inside:
            while not self._events:
                if not await self._feed():
                    raise Invalid("The form breaks off in the middle of a part; nothing of it was kept.")
            event = self._events.popleft()
            if event is None:
                self._inside = False
            else:
                assert isinstance(event, bytes)  # noqa: S101 - no part begins before the last one's end
                yield event

    async def text(self, limit_bytes: int) -> str:
        """Return the current part as text; raises `TooLarge` beyond the limit, `Invalid` for what is not UTF-8."""
        held = bytearray()
        async for chunk in self.data():
            held += chunk
            if len(held) > max(limit_bytes, 0):
                raise TooLarge("The fields of the form are larger than they may be; only the part `file` may be large.")
        try:
            return held.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise Invalid("A field of the form is not text in UTF-8.") from exc

    async def _feed(self) -> bool:
        """Give the parser one more chunk; returns False at the proper end of the form."""
        chunk = await anext(self._chunks, None)
        if chunk is None:
            if not self._ended:
                raise Invalid("The form breaks off before its closing boundary; nothing of it was kept.")
            return False
        if chunk and not self._ended:
            try:
                self._parser.write(chunk)
            except FormParserError as exc:
                raise Invalid(f"The body is no well-formed multipart/form-data: {exc}.") from exc
        return True

    def _on_header_end(self) -> None:
        self._headers[self._field.decode("latin-1").strip().lower()] = _text(bytes(self._value)).strip()
        self._field.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        disposition = self._headers.get("content-disposition", "")
        parameters = _parameters(disposition)
        if "name" not in parameters:
            raise Invalid("A part of the form has no name: its Content-Disposition must be `form-data; name=…`.")
        filename = parameters.get("filename*", parameters.get("filename"))
        if filename is not None:
            filename = base_name(filename)
        self._events.append(PartHead(parameters["name"], filename, self._headers.get("content-type", "")))

    def _on_end(self) -> None:
        self._ended = True


def base_name(path: str) -> str:
    """Return the last component of a path of either kind of system, without control characters."""
    name = re.split(r"[/\\]", path)[-1]
    return "".join(c for c in name if c.isprintable())[:255]


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _parameters(header: str) -> dict[str, str]:
    """Return the parameters of a header; those with an asterisk (RFC 5987) decoded."""
    found: dict[str, str] = {}
    for key, raw in _PARAMETER.findall(header):
        value = raw.strip()
        if value.startswith('"') and value.endswith('"') and len(value) >= 2:
            value = re.sub(r'\\(["\\])', r"\1", value[1:-1])
        if key.endswith("*"):
            charset, _, encoded = value.partition("'")
            _, _, encoded = encoded.partition("'")
            try:
                value = unquote(encoded, encoding=charset or "utf-8", errors="replace")
            except LookupError:
                continue
        found.setdefault(key.lower(), value)
    return found
