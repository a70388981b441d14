"""Read request heads and write response heads.

httptools (llhttp) splits a head into its lines and refuses what is no HTTP; the rules about *framing* — where a message
ends, which is what request smuggling is about — are kept here, in the open.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools

METHODS_WITH_NO_BODY_REPLY = frozenset({"HEAD"})
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200

REASONS = {
    200: "OK", 204: "No Content", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 406: "Not Acceptable", 408: "Request Timeout", 409: "Conflict", 411: "Length Required",
    413: "Content Too Large", 415: "Unsupported Media Type", 417: "Expectation Failed", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented",
    502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip

_ONCE = (b"host", b"content-length", b"transfer-encoding", b"authorization", b"content-type", b"expect")
_ABSOLUTE = re.compile(rb"^https?://[^/?#]*", re.IGNORECASE)
_BARE_LINE_END = re.compile(rb"\r(?!\n)|(?<!\r)\n")


class BadRequest(Exception):
    """The bytes on the connection are no request this server reads; the connection is closed after the reply."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Head:
    """The head of one request, and what the application made of it.

    Heads are shared: a client that sends the same bytes again gets the same object, so nothing here may depend on the
    connection. `note` and `note_generation` belong to the application, which keeps its routing decision there.
    """

    __slots__ = (
        "chunked", "content_length", "expects_continue", "has_body", "headers", "keep_alive", "method", "note",
        "note_expires", "note_generation", "path", "query", "raw", "size", "version",
    )  # fmt: skip

    def __init__(self, raw: bytes, method: str, target: bytes, version: str, headers: dict[bytes, bytes]) -> None:
        path, _, query = target.partition(b"?")
        self.raw = raw
        self.size = len(raw)
        self.method = method
        self.version = version
        self.path = unquote_to_bytes(path).decode("utf-8", "replace") if b"%" in path else path.decode("latin-1")
        self.query = query.partition(b"#")[0]
        self.headers = headers
        self.chunked = False
        self.content_length = 0
        self.has_body = False
        self.expects_continue = False
        self.keep_alive = version == "1.1"
        self.note: Any = None
        self.note_generation = -1
        self.note_expires = 0.0

    def get(self, name: bytes, default: bytes = b"") -> bytes:
        """Return a header by its lower-case name."""
        return self.headers.get(name, default)


class _Lines:
    """Receives the callbacks of httptools."""

    __slots__ = ("complete", "headers", "target")

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.target = b""
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


def has_bare_line_end(raw: bytes | bytearray) -> bool:
    """Say whether a carriage return or line feed stands alone (a trailing one may still get its partner)."""
    found = _BARE_LINE_END.search(raw)
    return found is not None and not (raw[found.start()] == 13 and found.end() == len(raw))


def parse_head(raw: bytes) -> Head:
    """Read one complete head, up to and with its empty line; raises `BadRequest`."""
    if has_bare_line_end(raw):
        raise BadRequest(400, "a line of the request head does not end in CR LF")
    lines = _Lines()
    parser = httptools.HttpRequestParser(lines)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # an offer to switch protocols may be ignored; CONNECT is answered as any other unknown method
    except httptools.HttpParserInvalidMethodError as exc:
        raise BadRequest(501, "unknown method") from exc
    except httptools.HttpParserError as exc:
        text = str(exc)
        if "invalid `Transfer-Encoding`" in text:
            raise BadRequest(501, "only the transfer coding chunked is understood") from exc
        raise BadRequest(400, f"malformed request: {text}") from exc
    if not lines.complete:
        raise BadRequest(400, "malformed request head")
    if len(lines.headers) > MAX_HEADERS:
        raise BadRequest(431, f"more than {MAX_HEADERS} header fields")
    version = parser.get_http_version()
    if version not in ("1.1", "1.0"):
        raise BadRequest(505, f"HTTP/{version} is not spoken here")
    headers: dict[bytes, bytes] = {}
    for name, value in lines.headers:
        key, text_value = name.lower(), value.strip(b" \t")
        if key not in headers:
            headers[key] = text_value
        elif key in _ONCE:
            raise BadRequest(400, f"header {key.decode()} is given twice")
        else:
            headers[key] += b", " + text_value
    head = Head(raw, parser.get_method().decode("latin-1"), _origin_form(lines.target), version, headers)
    _frame(head)
    return head


def _origin_form(target: bytes) -> bytes:
    if not target.startswith(b"/"):
        target = _ABSOLUTE.sub(b"", target) if _ABSOLUTE.match(target) else target
        if not target or target.startswith(b"?"):
            target = b"/" + target
    return target


def _frame(head: Head) -> None:
    headers = head.headers
    if b"host" not in headers and head.version == "1.1":
        raise BadRequest(400, "header host is missing")
    coding = headers.get(b"transfer-encoding")
    length = headers.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise BadRequest(400, "content-length and transfer-encoding in one request")
        if head.version != "1.1":
            raise BadRequest(400, "transfer-encoding in an HTTP/1.0 request")
        if coding.lower() != b"chunked":
            raise BadRequest(501, "only the transfer coding chunked is understood")
        head.chunked = head.has_body = True
    elif length is not None:
        if not length.isdigit() or len(length) > 18:
            raise BadRequest(400, "content-length is no number")
        head.content_length = int(length)
        head.has_body = head.content_length > 0
    connection = {token.strip() for token in headers.get(b"connection", b"").lower().split(b",")}
    if b"close" in connection:
        head.keep_alive = False
    elif head.version == "1.0":
        head.keep_alive = b"keep-alive" in connection
    expect = headers.get(b"expect")
    if expect is not None and head.version == "1.1":
        if expect.lower() != b"100-continue":
            raise BadRequest(417, "unknown expectation")
        head.expects_continue = head.has_body


def status_line(status: int) -> bytes:
    """Return the first line of a response."""
    return f"HTTP/1.1 {status} {REASONS[status]}\r\n".encode()
