"""Numbers as JSON text, many at once, in exactly the form of the plain path."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa

from engine.contract import columns as cols
from engine.contract import kernels

Texts: TypeAlias = "list[bytes] | pa.BinaryArray"
"""A text per row: of few rows as bytes, of many as an array."""

_encode = msgspec.json.Encoder().encode
FEW = 24
"""Up to this many float32 values numpy's scalar formatting is faster than Arrow's casts."""


def number_texts(values: np.ndarray[Any, Any]) -> list[bytes] | None:
    """Return the text of each number of a flat array; None when one of them has none (NaN, infinities)."""
    if len(values) == 1:
        one = values[0]
        text = _encode(float(str(one)) if values.dtype.char in "ef" else one.item())
        return None if text == b"null" else [text]
    if values.dtype.char in "ef":
        if len(values) <= FEW or values.dtype.char == "e":
            plain = [float(str(value)) for value in values]
        else:
            plain = cols.numbers(cols.shortest_doubles(cols.numeric_array(values))).tolist()
    else:
        plain = values.tolist()
    joined = _encode(plain)
    if b"n" in joined:
        return None
    return joined[1:-1].split(b",") if plain else []


MOST_NUMBERS = 2**26
"""The texts of more might not fit into one Arrow array."""
_SMALLEST, _LARGEST = 1e-5, 1e10
"""Between these, Arrow and the plain path agree on writing no exponent; beyond, each has its own limits."""


def number_array(values: np.ndarray[Any, Any]) -> pa.BinaryArray | None:
    """Return the texts of `number_texts` as an array, for many numbers."""
    if values.dtype.char not in "fd":
        few = number_texts(values)
        return None if few is None else pa.array(few, pa.binary())
    if not np.isfinite(values).all():
        return None
    # Arrow finds the same digits, but writes whole numbers without their ".0".
    sizes = np.abs(values)
    others = (sizes < _SMALLEST) | (sizes >= _LARGEST) | (values == np.trunc(values))
    found = kernels.cast(cols.numeric_array(values), pa.string()).view(pa.binary())
    if others.any():
        found = kernels.replace_with_mask(found, cols.numeric_array(others), pa.array(number_texts(values[others])))
    return found


def row_array(values: np.ndarray[Any, Any]) -> pa.BinaryArray | None:
    """Return the texts of `row_texts` as an array, for many rows; None also for more than `MOST_NUMBERS`."""
    rows, width = values.shape
    texts = number_array(values.reshape(-1)) if values.size <= MOST_NUMBERS else None
    if texts is None or width == 1:
        return texts
    starts = pa.py_buffer(np.arange(rows + 1, dtype=np.int32) * width)
    lists = pa.Array.from_buffers(pa.list_(pa.binary()), rows, [None, starts], children=[texts])
    return kernels.binary_join(lists, b",")


def row_texts(values: np.ndarray[Any, Any]) -> list[bytes] | None:
    """Return per row of a matrix its numbers, separated by commas; None when one of them has no text."""
    rows, width = values.shape
    texts = number_texts(values.reshape(-1))
    if texts is None or width == 1:
        return texts
    join = b",".join
    return [join(texts[at : at + width]) for at in range(0, rows * width, width)]
