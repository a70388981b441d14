"""Pandas-records JSON of one list field, straight into a matrix.

One record: the bytes around its numbers are the same each time, so the numbers of many requests can be put together
as one array of arrays, which simdjson reads at once. That this is exact: no piece may hold an opening bracket, and
simdjson accepts nothing but numbers in a list, so a piece is numbers and commas and nothing else; pieces of different
requests cannot run into each other.

Many records: what stands between the numbers of two rows must be the same bytes everywhere and take every bracket of
the body with it. It is replaced by a mark, a number that nobody uses, and simdjson reads one long array. There are as
many marks among its numbers as rows only if none is a client's; if each is where a row should end, all rows have the
right width.

Every list must have exactly the width that the model wants. Whatever fails one of these tests is left to the plain
path, which says what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import simdjson

from engine.contract import kernels

_START = re.compile(rb'[ \t\r\n]*\[[ \t\r\n]*\{[ \t\r\n]*("[^"\\\x00-\x1f]*")[ \t\r\n]*:[ \t\r\n]*\[')
_END = re.compile(rb"\][ \t\r\n]*\}[ \t\r\n]*\][ \t\r\n]*\Z")
_BETWEEN = rb"\][ \t\r\n]*\}[ \t\r\n]*,[ \t\r\n]*\{[ \t\r\n]*%b[ \t\r\n]*:[ \t\r\n]*(?=\[)"
_TAIL_BYTES = 64
_BRACKET = ord("[")
_MARK = -9.25e307
_MARK_TEXT = b",-9.25e307,"
_FAR = 2**31 - 1
_EXACT_SQUARE = 2.0**106
"""Whole numbers up to 2^53 are what their text says; of a row with larger ones the text must not be shown."""

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

    def fits(self, body: bytes | bytearray) -> bool:
        """Say whether a body begins and ends as this form does."""
        return body.startswith(self.start) and body.endswith(self.end)


NO_FORM = Form(b"\0", b"", b"\0")
"""What no body fits."""


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
    """Return what stands between the brackets of a single record of a body that fits; None if there are more."""
    start, end = form.start_size, len(body) + form.inner_end
    return bytes(body[start:end]) if body.find(b"[", start, end) < 0 else None


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
        flat = np.frombuffer(lists.as_buffer(of_type="d"), np.float64)
    except (ValueError, TypeError, RuntimeError):
        return None
    finally:
        del lists  # the parser refuses to read again while its last document is held
    return flat.reshape(rows, width) if flat.dot(flat) < _EXACT_SQUARE else None


def many(
    body: bytes | bytearray, form: Form, width: int, *, with_text: bool
) -> tuple[Matrix, pa.BinaryArray | None] | None:
    """Read several records of a body that fits, each `width` numbers, and if wanted the text of each row's numbers.

    Returns None when the body is not spelt as `form` says, or is anything else.
    """
    brackets = np.flatnonzero(np.frombuffer(body, np.uint8) == _BRACKET)
    rows = len(brackets) - 1
    if not form.between or rows < 2 or brackets[1] != form.start_size - 1:
        return None
    between = form.between + b"["
    # The last row gets the end of the others, so that all are alike.
    text = b"".join((memoryview(body)[: form.inner_end], between))
    starts = np.empty(rows + 1, np.int32)
    np.add(brackets[1:], 1, out=starts[:-1], casting="unsafe")
    starts[-1] = len(text)
    ended = pa.Array.from_buffers(pa.binary(), rows, [None, pa.py_buffer(starts), pa.py_buffer(text)])
    if not kernels.all(kernels.ends_with(ended, between)).as_py():
        return None
    marked = kernels.binary_replace_slice(ended, start=-len(between), stop=_FAR, replacement=_MARK_TEXT).buffers()[2]
    matrix = _marked_rows(b"".join((b"[", memoryview(marked)[:-1], b"]")), rows, width)
    if matrix is None:
        return None
    return matrix, kernels.binary_slice(ended, 0, -len(between)) if with_text else None


def _marked_rows(text: bytes, rows: int, width: int) -> Matrix | None:
    """Read one array of `rows` times `width` numbers and a mark; None when the marks are not where they should be."""
    numbers: Any = None
    try:
        numbers = _parser.parse(text)
        flat = np.frombuffer(numbers.as_buffer(of_type="d"), np.float64)
    except (ValueError, TypeError, RuntimeError):
        return None
    finally:
        del numbers  # the parser refuses to read again while its last document is held
    if len(flat) != rows * (width + 1):
        return None
    table = flat.reshape(rows, width + 1)
    if np.count_nonzero(flat == _MARK) != rows or (table[:, width] != _MARK).any():
        return None
    matrix = np.ascontiguousarray(table[:, :width])
    return matrix if np.vdot(matrix, matrix) < _EXACT_SQUARE else None
