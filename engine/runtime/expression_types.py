"""The types of polars 0.18 expressions, and where two of them meet."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.contract import columns as cols

TYPES: dict[str, pa.DataType] = {
    "Null": pa.null(),
    "Boolean": pa.bool_(),
    "Utf8": pa.string(),
    "Int8": pa.int8(),
    "Int16": pa.int16(),
    "Int32": pa.int32(),
    "Int64": pa.int64(),
    "UInt8": pa.uint8(),
    "UInt16": pa.uint16(),
    "UInt32": pa.uint32(),
    "UInt64": pa.uint64(),
    "Float32": pa.float32(),
    "Float64": pa.float64(),
}
_SIGNED = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}


class Unknown(Exception):
    """Something that an expression asks for and that cannot be had; the text goes on after the validation's name."""


class Evaluated(msgspec.Struct, frozen=True):
    """A value of an expression, and whether it was written there as it is."""

    value: Any
    """`pa.Array`, or `pa.Scalar` for every row."""
    is_literal: bool = False


def supertype(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    """Return the type in which values of two types meet; raises `TypeError` when there is none."""
    if left == right:
        return left
    for one, two in ((left, right), (right, left)):
        if pa.types.is_null(one):
            return two
        if pa.types.is_boolean(one) and cols.is_number(two):
            return two
    if cols.is_string(left) and cols.is_string(right):
        return pa.large_string()
    if not (cols.is_number(left) and cols.is_number(right)):
        raise TypeError(f"{left} and {right} cannot be compared or combined")
    if pa.types.is_floating(left) or pa.types.is_floating(right):
        return _with_float(left, right)
    if pa.types.is_signed_integer(left) == pa.types.is_signed_integer(right):
        return left if left.bit_width > right.bit_width else right
    signed, unsigned = (left, right) if pa.types.is_signed_integer(left) else (right, left)
    bits = max(signed.bit_width, 2 * unsigned.bit_width)
    return _SIGNED.get(bits, pa.float64()) if unsigned.bit_width < 64 else pa.float64()


def _with_float(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    narrow = [kind for kind in (left, right) if kind.bit_width <= 16 or kind == pa.float32()]
    return pa.float32() if len(narrow) == 2 else pa.float64()


def literal_type(left: Evaluated, right: Evaluated) -> pa.DataType:
    """Return the type in which two operands meet: a literal number takes its partner's type when it fits."""
    if left.is_literal != right.is_literal:
        literal, partner = (left, right) if left.is_literal else (right, left)
        kind, value = partner.value.type, literal.value.as_py()
        if cols.is_number(kind) and cols.is_number(literal.value.type) and value is not None:
            if pa.types.is_floating(kind):
                return kind
            if isinstance(value, int) and _fits(value, kind):
                return kind
    return supertype(left.value.type, right.value.type)


def _fits(value: int, kind: pa.DataType) -> bool:
    limits = np.iinfo(cols.NUMPY_TYPES[kind])
    return bool(limits.min <= value <= limits.max)


def cast(value: Any, kind: pa.DataType) -> Any:
    """Return the array or scalar in another type, as far as it fits; floats lose precision, nothing else."""
    if value.type == kind:
        return value
    if pa.types.is_boolean(value.type) and cols.is_number(kind):
        return pc.cast(pc.cast(value, pa.uint8()), kind)
    return pc.cast(value, kind, safe=False)


def fill(value: Any, rows: int) -> pa.Array:
    """Return an array of `rows` for a value that may stand for every row."""
    return pa.repeat(value, rows) if isinstance(value, pa.Scalar) else value


def masked(value: Any) -> tuple[Any, Any]:
    """Return the numbers of an operand, and which of them are known (not null)."""
    if isinstance(value, pa.Scalar):
        dtype = cols.NUMPY_TYPES[value.type]
        return np.array([value.as_py() if value.is_valid else 0], dtype), np.array([value.is_valid])
    valid = cols.validity(value)
    return cols.numbers(value), np.ones(len(value), np.bool_) if valid is None else valid


def array_of(values: Any, known: Any, *, is_scalar: bool = False) -> Any:
    """Return numbers as an array (or a scalar), null where they are not known."""
    array = cols.numeric_array(np.ascontiguousarray(values))
    if not known.all():
        nothing = pa.scalar(None, array.type)
        array = pc.if_else(cols.numeric_array(np.ascontiguousarray(known)), array, nothing)
    return array[0] if is_scalar else array
