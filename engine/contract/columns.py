"""Arrow arrays made from and read as numpy and Python values, by way of their buffers.

`pa.array` of a numpy array or a list imports pandas where that is installed (about a second) and is slow; everything
here goes through buffers instead.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence, Sized
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from engine.contract import kernels as pc

NUMPY_TYPES: dict[pa.DataType, np.dtype[Any]] = {
    pa.int8(): np.dtype("i1"),
    pa.int16(): np.dtype("i2"),
    pa.int32(): np.dtype("i4"),
    pa.int64(): np.dtype("i8"),
    pa.uint8(): np.dtype("u1"),
    pa.uint16(): np.dtype("u2"),
    pa.uint32(): np.dtype("u4"),
    pa.uint64(): np.dtype("u8"),
    pa.float16(): np.dtype("f2"),
    pa.float32(): np.dtype("f4"),
    pa.float64(): np.dtype("f8"),
}
ARROW_TYPES: dict[np.dtype[Any], pa.DataType] = {dtype: kind for kind, dtype in NUMPY_TYPES.items()}

# By the number of a type: Arrow types are hashed by their text, which takes long.
_NUMPY_BY_ID: dict[int, np.dtype[Any]] = {kind.id: dtype for kind, dtype in NUMPY_TYPES.items()}
_LIST_IDS = frozenset({pa.list_(pa.int8()).id, pa.large_list(pa.int8()).id, pa.list_(pa.int8(), 1).id})
_FIXED_SIZE_LIST_ID = pa.list_(pa.int8(), 1).id
_STRING_IDS = frozenset({pa.string().id, pa.large_string().id})
_STRUCT_ID, _BOOL_ID = pa.struct([]).id, pa.bool_().id
_FLOAT16_ID, _FLOAT32_ID = pa.float16().id, pa.float32().id

_INT32_MAX = 2**31 - 1
_FEW_ROWS = 64
"""Up to so many rows, arrays that every request needs are kept."""


def is_list(kind: pa.DataType) -> bool:
    """Say whether arrays of this type hold lists, of whatever layout."""
    return kind.id in _LIST_IDS


def is_string(kind: pa.DataType) -> bool:
    """Say whether arrays of this type hold text."""
    return kind.id in _STRING_IDS


def is_number(kind: pa.DataType) -> bool:
    """Say whether arrays of this type hold numbers that numpy knows too."""
    return kind.id in _NUMPY_BY_ID


def numeric_array(values: np.ndarray[Any, Any]) -> pa.Array:
    """Return the numbers or booleans of a one-dimensional ndarray as an Arrow array, sharing memory where possible."""
    if values.dtype == np.bool_:
        return pa.Array.from_buffers(
            pa.bool_(), len(values), [None, pa.py_buffer(np.packbits(values, bitorder="little"))]
        )
    flat = np.ascontiguousarray(values)
    return pa.Array.from_buffers(ARROW_TYPES[flat.dtype], len(flat), [None, pa.py_buffer(flat)])


def string_array(values: Sequence[str]) -> pa.Array:
    """Return texts as an Arrow array (`large_string` only when they need it)."""
    encoded = [value.encode("utf-8", "surrogatepass") for value in values]
    offsets = starts(encoded)
    kind, width = (pa.string(), "i4") if offsets[-1] <= _INT32_MAX else (pa.large_string(), "i8")
    buffers = [None, pa.py_buffer(offsets.astype(width)), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(kind, len(encoded), buffers)


def starts(parts: Sequence[Sized]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return where each part begins when they are put after one another, and where the last one ends."""
    return np.fromiter(accumulate(map(len, parts), initial=0), "i8", len(parts) + 1)


def list_array(
    values: pa.Array, offsets: np.ndarray[Any, Any], item: pa.Field, valid: pa.Buffer | None = None
) -> pa.Array:
    """Return lists cut from `values` at `offsets` (one more than there are lists)."""
    kind, width = (pa.list_(item), "i4") if offsets[-1] <= _INT32_MAX else (pa.large_list(item), "i8")
    buffers = [valid, pa.py_buffer(np.ascontiguousarray(offsets, width))]
    return pa.Array.from_buffers(kind, len(offsets) - 1, buffers, children=[values])


def equal_lists(values: pa.Array, rows: int, item: pa.Field) -> pa.Array:
    """Return `values` cut into `rows` lists of one length."""
    size = len(values) // rows if rows else 0
    return list_array(values, np.arange(rows + 1, dtype="i8") * size, item)


def struct_array(arrays: Sequence[pa.Array], fields: Sequence[pa.Field], rows: int) -> pa.Array:
    """Return a struct array; unlike pyarrow's own it may have no fields."""
    return pa.Array.from_buffers(pa.struct(list(fields)), rows, [None], children=list(arrays))


def constant_strings(value: str, rows: int) -> pa.Array:
    """Return `value` once per row."""
    return _few_constants(value, rows) if rows <= _FEW_ROWS else string_array([value] * rows)


@lru_cache(maxsize=256)
def _few_constants(value: str, rows: int) -> pa.Array:
    return string_array([value] * rows)


def validity(array: pa.Array) -> np.ndarray[Any, Any] | None:
    """Return a boolean per element (False: null), or None when there is no null."""
    if array.null_count == 0:
        return None
    return booleans(array.is_valid())


def booleans(array: pa.Array) -> np.ndarray[Any, Any]:
    """Return the bits of a boolean array; nulls read as whatever lies beneath."""
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array), np.bool_)
    bits = np.unpackbits(np.frombuffer(buffer, "u1"), bitorder="little")
    return bits[array.offset : array.offset + len(array)].view(np.bool_)


def numbers(array: pa.Array) -> np.ndarray[Any, Any]:
    """Return the numbers of a primitive array without a copy; nulls read as whatever lies beneath."""
    dtype = _NUMPY_BY_ID[array.type.id]
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array), dtype)
    return np.frombuffer(buffer, dtype, count=array.offset + len(array))[array.offset :]


def list_parts(array: pa.Array) -> tuple[pa.Array, np.ndarray[Any, Any]]:
    """Return the elements beneath a list array and the offsets at which its lists start, the first of them 0."""
    if array.type.id == _FIXED_SIZE_LIST_ID:
        size = array.type.list_size
        values = array.values.slice(array.offset * size, len(array) * size)
        return values, np.arange(len(array) + 1, dtype="i8") * size
    if not len(array):
        return array.values.slice(0, 0), np.zeros(1, "i8")
    offsets = numbers(array.offsets)
    return array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0])), offsets - offsets[0]


def to_python(array: pa.Array) -> list[Any]:
    """Return the values as JSON knows them: float32 as the shortest text that reads back, times as milliseconds."""
    kind = array.type
    if is_list(kind):
        values = _cut(array)
    elif kind.id == _STRUCT_ID:
        names = [field.name for field in kind]
        columns = [to_python(array.field(index)) for index in range(kind.num_fields)]
        values = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)] if columns else []
        values = values if columns else [{} for _ in range(len(array))]
    elif kind.id in _NUMPY_BY_ID:
        values = _numbers(array)
    elif kind.id == _BOOL_ID:
        values = booleans(array).tolist()
    elif is_string(kind):
        return list(array.to_pylist())
    else:
        return [_plain(value) for value in array.to_pylist()]
    valid = validity(array)
    if valid is not None:
        values = [value if known else None for value, known in zip(values, valid.tolist(), strict=True)]
    return values


def _cut(array: pa.Array) -> list[Any]:
    elements, offsets = list_parts(array)
    values = to_python(elements)
    bounds = offsets.tolist()
    return [values[start:stop] for start, stop in pairwise(bounds)]


def _numbers(array: pa.Array) -> list[Any]:
    values = numbers(array)
    if array.type.id == _FLOAT32_ID and len(values) > _FEW_ROWS:
        return list(numbers(shortest_doubles(array)).tolist())
    if array.type.id in (_FLOAT16_ID, _FLOAT32_ID):
        return [float(str(value)) for value in values]
    return list(values.tolist())


def shortest_doubles(array: pa.Array) -> pa.Array:
    """Return the doubles whose shortest decimal form is that of the float32 values (0.1, not 0.10000000149)."""
    bare = pa.Array.from_buffers(array.type, len(array), [None, array.buffers()[1]], offset=array.offset)
    return pc.cast(pc.cast(bare, pa.string()), pa.float64())


def _plain(value: Any) -> Any:
    """Make a JSON value of what pyarrow gives for the rarer types."""
    if isinstance(value, dt.datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=dt.UTC)
        return round(aware.timestamp() * 1000)
    if isinstance(value, dt.timedelta):
        return round(value / dt.timedelta(milliseconds=1))
    if isinstance(value, list):
        if all(isinstance(item, tuple) and len(item) == 2 for item in value) and value:
            return {str(key): _plain(item) for key, item in value}
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
