"""Arrow columns to the tensors that a model takes, and back."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from engine.contract import columns as cols
from engine.contract.codecs import LeafKind
from engine.contract.failures import BadInput
from engine.contract.records import TENSOR_TYPE, tensor_metadata

Tensor = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int | None, ...]

NULL_MESSAGE = "tensor values may not be null"


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output of a model: its name, element type and shape (None: any size), the batch first."""

    name: str
    dtype: np.dtype[Any]
    """`object` for text."""
    shape: Shape

    @property
    def kind(self) -> LeafKind:
        """What a JSON number or text for this tensor is meant to be."""
        kinds: dict[str, LeafKind] = {"f": "float", "i": "int", "u": "uint", "b": "bool"}
        return kinds.get(self.dtype.kind, "string")

    @property
    def row_shape(self) -> tuple[int, ...] | None:
        """The shape of one row, if the model fixes it."""
        row = self.shape[1:]
        return None if any(size is None for size in row) else tuple(size for size in row if size is not None)

    @property
    def elements(self) -> str:
        """The element type in words."""
        return {"O": "texts", "b": "booleans"}.get(self.dtype.kind, f"{self.dtype.name} numbers")


def row_values(array: pa.Array, field: pa.Field, spec: TensorSpec) -> tuple[Tensor, tuple[int, ...]]:
    """Return the elements of all rows, one after the other in the model's type, and the shape of one row.

    Raises `BadInput` naming the first row with a null, a length unlike the others', or a value of the wrong type.
    """
    name, rows = field.name, len(array)
    shape: list[int] = []
    leaves = array
    while cols.is_list(leaves.type):
        _refuse_nulls(leaves, name, shape)
        leaves, offsets = cols.list_parts(leaves)
        lengths = np.diff(offsets)
        if not len(lengths):
            shape.append(0)
            continue
        size = int(lengths[0])
        if (lengths != size).any():
            _refuse_ragged(lengths, name, shape, spec)
        shape.append(size)
    _refuse_nulls(leaves, name, shape)
    values = _leaf_values(leaves, name, shape, spec)
    declared = _declared_shape(field)
    if declared is not None and len(shape) == 1 and math.prod(declared) == shape[0]:
        return values, declared
    if not rows:
        return values, spec.row_shape or tuple(shape)
    return values, tuple(shape)


def _refuse_nulls(array: pa.Array, name: str, shape: list[int]) -> None:
    known = cols.validity(array)
    if known is not None:
        first = int(np.flatnonzero(~known)[0])
        raise BadInput(NULL_MESSAGE, field=name, row=first // max(math.prod(shape), 1))


def _refuse_ragged(lengths: Tensor, name: str, shape: list[int], spec: TensorSpec) -> None:
    expected = spec.row_shape
    wanted = int(lengths[0])
    if expected is not None and not shape and math.prod(expected) in lengths:
        wanted = math.prod(expected)
    first = int(np.flatnonzero(lengths != wanted)[0])
    raise BadInput(
        f"expected {wanted} {spec.elements} as in the other rows, got {int(lengths[first])}",
        field=name,
        row=first // max(math.prod(shape), 1),
    )


def _leaf_values(leaves: pa.Array, name: str, shape: list[int], spec: TensorSpec) -> Tensor:
    kind = leaves.type
    per_row = max(math.prod(shape), 1)
    if spec.dtype.kind == "O":
        if not cols.is_string(kind):
            raise BadInput(f"expected texts, got {kind}", field=name, row=0)
        return np.array(leaves.to_pylist(), dtype=object)
    if cols.is_number(kind):
        values = cols.numbers(leaves)
    elif pa.types.is_boolean(kind):
        values = cols.booleans(leaves)
    elif pa.types.is_decimal(kind):
        values = cols.numbers(leaves.cast(pa.float64()))
    else:
        raise BadInput(f"expected {spec.elements}, got {_in_words(kind)}", field=name, row=0)
    return _convert(values, spec, name, per_row)


def _in_words(kind: pa.DataType) -> str:
    return "texts" if cols.is_string(kind) else str(kind)


def _convert(values: Tensor, spec: TensorSpec, name: str, per_row: int) -> Tensor:
    """Give numbers the model's type; a whole-number type takes no fractions and nothing out of its range."""
    wanted = spec.dtype
    if values.dtype == wanted:
        return values
    if wanted.kind == "f":
        with np.errstate(over="ignore"):
            return values.astype(wanted)
    if wanted.kind == "b":
        bad = (values != 0) & (values != 1)
        message = "expected true or false"
    else:
        limits = np.iinfo(wanted)
        if values.dtype.kind == "f":
            # The upper bound is compared as the next power of two, which doubles hold exactly.
            inside = (values >= float(limits.min)) & (values < 2.0 ** (limits.bits - (wanted.kind == "i")))
            bad = ~(inside & (values == np.trunc(values)))
        elif values.dtype.kind == "b":
            bad = np.zeros(len(values), np.bool_)
        else:
            bad = _outside(values, limits)
        message = f"expected whole numbers from {limits.min} to {limits.max}"
    if bad.any():
        index = int(np.flatnonzero(bad)[0])
        raise BadInput(f"{message}, got {values[index]}", field=name, row=index // per_row)
    return values.astype(wanted)


def _outside(values: Tensor, limits: np.iinfo[Any]) -> Tensor:
    if not len(values):
        return np.zeros(0, np.bool_)
    low, high = int(values.min()), int(values.max())
    if low >= limits.min and high <= limits.max:
        return np.zeros(len(values), np.bool_)
    own = np.iinfo(values.dtype)
    return (values < max(limits.min, own.min)) | (values > min(limits.max, own.max))


def _declared_shape(field: pa.Field) -> tuple[int, ...] | None:
    """Return the row shape that a column carries in its `tensor_type` metadata."""
    text = (field.metadata or {}).get(TENSOR_TYPE)
    if text is None:
        return None
    try:
        shape = msgspec.json.decode(text, type=dict[str, Any])["shape"]
        return tuple(int(size) for size in shape)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as exc:
        message = 'the tensor_type metadata of the column is not JSON like {"shape": [3, 224, 224]}'
        raise BadInput(message, field=field.name) from exc


def fit(spec: TensorSpec, row_shape: tuple[int, ...], column: str, row: int = 0) -> tuple[bool, tuple[int, ...]]:
    """Fit the shape of one row into the model's input.

    Returns whether one row is the whole input (the model has no batch dimension), and the shape a row takes.
    Raises `BadInput` saying what shape was expected.
    """
    if spec.shape:
        target = _match(spec.shape[1:], row_shape)
        if target is not None:
            return False, target
    is_whole = not spec.shape or (spec.shape[0] or 0) > 1 or len(spec.shape) == 1
    target = _match(spec.shape, row_shape) if is_whole else None
    if target is not None:
        return True, target
    raise BadInput(f"expected {_shape_words(spec)}, got {_words(row_shape)}", field=column, row=row)


def _match(dims: Shape, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    while True:
        if len(dims) == len(shape) and all(dim in (None, size) for dim, size in zip(dims, shape, strict=True)):
            return shape
        if len(shape) > len(dims) and shape[0] == 1:
            shape = shape[1:]
            continue
        break
    unknown = [index for index, dim in enumerate(dims) if dim is None]
    known = math.prod(dim for dim in dims if dim is not None)
    total = math.prod(shape)
    if not unknown:
        return tuple(dim for dim in dims if dim is not None) if known == total else None
    if len(unknown) == 1 and known and total % known == 0:
        return tuple(total // known if dim is None else dim for dim in dims)
    return None


def _shape_words(spec: TensorSpec) -> str:
    dims = spec.shape[1:]
    if len(dims) == 1 and dims[0] is not None:
        return f"{dims[0]} {spec.elements}"
    if not dims:
        return f"one value of {spec.elements}"
    return f"{spec.elements} of shape [{', '.join('?' if dim is None else str(dim) for dim in dims)}]"


def _words(shape: tuple[int, ...]) -> str:
    if not shape:
        return "a single value"
    return str(shape[0]) if len(shape) == 1 else f"shape {list(shape)}"


def row_lists(value: Tensor, rows: int, name: str) -> tuple[pa.Field, pa.Array, tuple[int, ...]]:
    """Return an output tensor as one list per row, its field, and the shape of a row.

    Rows of more than one dimension are flattened; the shape travels in the field's metadata.
    Raises `ValueError` when the tensor does not have a row per input row.
    """
    if value.ndim and value.shape[0] == rows:
        shape = value.shape[1:] or (1,)
    elif rows == 1:
        shape = value.shape or (1,)
    else:
        raise ValueError(f"output {name!r} has shape {list(value.shape)} for {rows} input rows")
    elements = flat_array(value)
    item = pa.field("inner", elements.type, nullable=False)
    array = cols.list_array(elements, np.arange(rows + 1, dtype="i8") * math.prod(shape), item)
    return pa.field(name, array.type, nullable=False, metadata=tensor_metadata(shape)), array, tuple(shape)


def zero_numbers(size: int, spec: TensorSpec) -> pa.Array:
    """Return as many zeroes as a row of this input has."""
    return cols.numeric_array(np.zeros(size, spec.dtype))


def flat_array(value: Tensor) -> pa.Array:
    """Return the elements of a tensor as an Arrow array."""
    flat = value.reshape(-1)
    if flat.dtype.kind in "OUS":
        return cols.string_array([str(text) for text in flat.tolist()])
    return cols.numeric_array(flat)
