"""Conversions of polars 0.18 expressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.contract import columns as cols
from engine.runtime.expression_types import Unknown, array_of, cast, masked


def cast_to(value: Any, kind: pa.DataType, *, is_strict: bool) -> Any:
    """Convert as `Expr.cast` does: what does not fit becomes null, or an error in a strict cast."""
    if value.type == kind or pa.types.is_null(value.type):
        return cast(value, kind)
    if pa.types.is_boolean(kind):
        if not cols.is_number(value.type):
            raise TypeError(f"a cast of {value.type} to {kind}")
        return pc.not_equal(value, pa.scalar(0, value.type))
    if cols.is_string(kind):
        return pc.cast(value, kind)
    if cols.is_string(value.type):
        result = _parsed(value, kind)
    elif pa.types.is_floating(value.type) and pa.types.is_integer(kind):
        result = _truncated(value, kind)
    elif pa.types.is_integer(value.type) and pa.types.is_integer(kind):
        result = _narrowed(value, kind)
    else:
        result = cast(value, kind)
    if is_strict and null_count(result) > null_count(value):
        raise Unknown(f"casts a value to {kind} that does not fit")
    return result


def null_count(value: Any) -> int:
    """Count the nulls of an array or scalar."""
    return int(not value.is_valid) if isinstance(value, pa.Scalar) else int(value.null_count)


def _truncated(value: Any, kind: pa.DataType) -> Any:
    values, known = masked(value)
    limits = np.iinfo(cols.NUMPY_TYPES[kind])
    whole = np.trunc(values.astype("f8"))
    known = known & (whole >= float(limits.min)) & (whole < float(limits.max) + 1)
    result = np.where(known, whole, 0).astype(cols.NUMPY_TYPES[kind])
    return array_of(result, known, is_scalar=isinstance(value, pa.Scalar))


def _narrowed(value: Any, kind: pa.DataType) -> Any:
    values, known = masked(value)
    limits = np.iinfo(cols.NUMPY_TYPES[kind])
    own = np.iinfo(values.dtype)
    known = known & (values >= max(limits.min, own.min)) & (values <= min(limits.max, own.max))
    result = np.where(known, values, 0).astype(cols.NUMPY_TYPES[kind])
    return array_of(result, known, is_scalar=isinstance(value, pa.Scalar))


def _parsed(value: Any, kind: pa.DataType) -> Any:
    texts = [value.as_py()] if isinstance(value, pa.Scalar) else value.to_pylist()
    read: Callable[[str], Any] = float if pa.types.is_floating(kind) else int
    numbers: list[Any] = []
    for text in texts:
        try:
            numbers.append(None if text is None else read(text))
        except ValueError:
            numbers.append(None)
    array = pa.array(numbers, kind)
    return array[0] if isinstance(value, pa.Scalar) else array
