"""Arrow columns as JSON text, row by row, without a Python object per row where that can be had.

A column of numbers is written by one call of the encoder and cut at its commas; texts of structs are put together from
those of their fields. The result is what the encoder would make of `columns.to_python`, byte for byte.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pyarrow as pa

from engine.contract import columns as cols

_encode = msgspec.json.Encoder().encode
_NULL = b"null"


def row_texts(names: list[str], columns: list[pa.Array], rows: int) -> list[bytes]:
    """Return each row as the text of a JSON object."""
    if not names:
        return [b"{}"] * rows
    form = b"{" + b",".join(_encode(name).replace(b"%", b"%%") + b":%b" for name in names) + b"}"
    return [form % row for row in zip(*map(texts, columns), strict=True)]


def texts(array: pa.Array) -> list[bytes]:
    """Return the JSON text of each value of an array."""
    kind = array.type
    if not len(array):
        return []
    if cols.is_list(kind):
        found = _lists(array)
    elif pa.types.is_struct(kind):
        children = [array.field(index) for index in range(kind.num_fields)]
        found = row_texts([field.name for field in kind], children, len(array))
    elif cols.is_number(kind) or pa.types.is_boolean(kind):
        found = _encode(_known(array))[1:-1].split(b",")
    elif cols.is_string(kind):
        found = list(map(_encode, array.to_pylist()))
    else:
        found = list(map(_encode, cols.to_python(array)))
    valid = cols.validity(array)
    if valid is not None:
        found = [text if known else _NULL for text, known in zip(found, valid.tolist(), strict=True)]
    return found


def _known(array: pa.Array) -> list[Any]:
    """Return the values, whatever lies beneath nulls included."""
    if array.null_count:
        array = pa.Array.from_buffers(array.type, len(array), [None, array.buffers()[1]], offset=array.offset)
    return cols.to_python(array)


def _lists(array: pa.Array) -> list[bytes]:
    elements, offsets = cols.list_parts(array)
    bounds = offsets.tolist()
    kind = elements.type
    if (cols.is_number(kind) or pa.types.is_boolean(kind)) and not elements.null_count:
        values = cols.to_python(elements)
        whole = _encode([values[start:stop] for start, stop in pairwise(bounds)])
        return [b"[%b]" % row for row in whole[2:-2].split(b"],[")]
    inner = texts(elements)
    return [b"[%b]" % b",".join(inner[start:stop]) for start, stop in pairwise(bounds)]
