"""Numbers as JSON text, many at once, in exactly the form of the plain path."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from engine.contract import columns as cols

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


def row_texts(values: np.ndarray[Any, Any]) -> list[bytes] | None:
    """Return per row of a matrix its numbers, separated by commas; None when one of them has no text."""
    rows, width = values.shape
    texts = number_texts(values.reshape(-1))
    if texts is None or width == 1:
        return texts
    join = b",".join
    return [join(texts[at : at + width]) for at in range(0, rows * width, width)]
