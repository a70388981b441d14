"""Pandas-records JSON of one list field, straight into a matrix.

One record: the bytes around its numbers are the same each time, so the numbers of many requests can be put together
as one array of arrays, which simdjson reads at once. That this is exact: no piece may hold an opening bracket, and
simdjson accepts nothing but numbers in a list, so a piece is numbers and commas and nothing else; pieces of different
requests cannot run into each other.

Many records: simdjson reads the body as it is, and each list is copied out of its tape.

Every list must have exactly the width that the model wants. Whatever fails one of these tests is left to the plain
path, which says what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import simdjson

_START = re.compile(rb'[ \t\r\n]*\[[ \t\r\n]*\{[ \t\r\n]*("[^"\\\x00-\x1f]*")[ \t\r\n]*:[ \t\r\n]*\[')
_END = re.compile(rb"\][ \t\r\n]*\}[ \t\r\n]*\][ \t\r\n]*\Z")
_BETWEEN = rb"\][ \t\r\n]*\}[ \t\r\n]*,[ \t\r\n]*\{[ \t\r\n]*%b[ \t\r\n]*:[ \t\r\n]*(?=\[)"
_TAIL_BYTES = 64
_BRACKET = ord("[")

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


class Form:
    """How one client spells the records of one field: the bytes before a row's numbers, between rows, and after."""

    __slots__ = ("between", "end", "inner_end", "start", "start_size")

    def __init__(self, start: bytes, between: bytes, end: bytes) -> None:
        self.start = start
        self.between = between
        """From the closing bracket of a row up to (without) the opening bracket of the next; empty for one record."""
        self.end = end
        self.start_size = len(start)
        self.inner_end = -len(end)


def find_form(body: bytes | bytearray, field: str) -> Form | None:
    """Work out how a body is spelt; None when it is no list of records of just `field`, or spelt unusually."""
    start = _START.match(body)
    end = _END.search(body, max(0, len(body) - _TAIL_BYTES))
    if start is None or end is None:
        return None
    key = start[1]
    if key[1:-1] != field.encode():  # the pattern lets no escapes through
        return None
    first_end = body.find(b"]", start.end())
    between = re.compile(_BETWEEN % re.escape(key)).match(body, first_end)
    return Form(bytes(start[0]), bytes(between[0]) if between else b"", bytes(end[0]))


def single(body: bytes | bytearray, form: Form) -> bytes | None:
    """Return what stands between the brackets of a single record; None when the body is not spelt in this form."""
    if body.startswith(form.start) and body.endswith(form.end):
        start, end = form.start_size, len(body) + form.inner_end
        if body.find(b"[", start, end) < 0:
            return bytes(body[start:end])
    return None


_parser = simdjson.Parser()


def join(pieces: Sequence[bytes], width: int) -> Matrix | None:
    """Read the numbers of pieces that `single` gave, a row each; None when one is not exactly `width` numbers."""
    rows = len(pieces)
    lists: Any = None
    try:
        if rows == 1:
            lists = _parser.parse(b"[%b]" % pieces[0])
            if len(lists) != width:
                return None
        else:
            lists = _parser.parse(b"[[" + b"],[".join(pieces) + b"]]")
            if len(lists) != rows or any(len(each) != width for each in lists):
                return None
        return np.frombuffer(lists.as_buffer(of_type="d"), np.float64).reshape(rows, width)
    except (ValueError, TypeError, RuntimeError):
        return None
    finally:
        del lists  # the parser refuses to read again while its last document is held


def many(body: bytes | bytearray, field: str, width: int) -> Matrix | None:
    """Read a list of records of just `field`, each `width` numbers; None when it is anything else."""
    document: Any = None
    records: list[Any] = []
    lists: list[Any] = []
    parts: list[Any] = []
    try:
        document = _parser.parse(body)
        if type(document) is not simdjson.Array:
            return None
        records = list(document)
        if np.count_nonzero(np.frombuffer(body, np.uint8) == _BRACKET) != len(records) + 1:
            return None
        if set(map(len, records)) != {1}:
            return None
        lists = [record[field] for record in records]
        if set(map(len, lists)) != {width}:
            return None
        parts = [each.as_buffer(of_type="d") for each in lists]
        return np.frombuffer(b"".join(parts), np.float64).reshape(len(parts), width)
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError):
        return None
    finally:
        del document, records, lists, parts  # the parser refuses to read again while its last document is held


def row_pieces(body: bytes | bytearray, form: Form, rows: int) -> list[bytes] | None:
    """Return what stands between the brackets of each row of a body that `many` has read; None when spelt unevenly."""
    if not form.between:
        return None
    inner = bytes(memoryview(body)[form.start_size : form.inner_end])
    pieces = inner.split(form.between + b"[")
    return pieces if len(pieces) == rows else None
