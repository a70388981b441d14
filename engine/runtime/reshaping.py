"""Steps that change columns and rows between models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from engine.contract import columns as cols
from engine.contract.failures import BadInput, InferenceFailure

_TYPES: dict[str, pa.DataType] = {
    "f32": pa.float32(),
    "f64": pa.float64(),
    "i8": pa.int8(),
    "u8": pa.uint8(),
    "i16": pa.int16(),
    "u16": pa.uint16(),
    "i32": pa.int32(),
    "u32": pa.uint32(),
    "i64": pa.int64(),
    "u64": pa.uint64(),
}


def average(outputs: Sequence[tuple[str, pa.RecordBatch]]) -> pa.RecordBatch:
    """Return the element-wise mean of the outputs, under the first model's names; whole numbers become doubles.

    Raises `InferenceFailure` when the outputs are not of one shape, or not numbers.
    """
    first_name, first = outputs[0]
    fields, arrays = [], []
    for index, field in enumerate(first.schema):
        parts = []
        for name, batch in outputs:
            if batch.num_columns != first.num_columns:
                raise _unlike(first_name, name)
            parts.append(_parts(batch.column(index), name))
        offsets = parts[0][1]
        for (name, _), (_, others) in zip(outputs, parts, strict=True):
            if not np.array_equal(offsets, others):
                raise _unlike(first_name, name)
        values = [numbers for numbers, _ in parts]
        kind = np.result_type(*values)
        mean = np.mean(np.stack(values), axis=0, dtype="f8").astype(kind if kind.kind == "f" else "f8")
        array = cols.numeric_array(mean)
        if cols.is_list(field.type):
            item = pa.field("inner", array.type, nullable=False)
            array = cols.list_array(array, offsets, item)
        fields.append(pa.field(field.name, array.type, nullable=False, metadata=field.metadata))
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _parts(array: pa.Array, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    offsets: np.ndarray[Any, Any] = np.arange(len(array) + 1)
    if cols.is_list(array.type):
        array, offsets = cols.list_parts(array)
    if not cols.is_number(array.type):
        raise InferenceFailure(
            f"The outputs of model {name!r} are {array.type}, of which there is no average.", status=400
        )
    return cols.numbers(array), offsets


def _unlike(first: str, other: str) -> InferenceFailure:
    return InferenceFailure(
        f"The outputs of {first!r} and {other!r} differ in shape; they cannot be averaged.", status=400
    )


def select_columns(batch: pa.RecordBatch, wanted: Sequence[int]) -> pa.RecordBatch:
    """Keep columns by position; with a single column of lists, keep elements of its lists by position.

    Raises `BadInput` naming a position that is not there.
    """
    if _is_empty(batch):
        return batch
    if batch.num_columns == 1 and cols.is_list(batch.schema.field(0).type):
        field, array = batch.schema.field(0), batch.column(0)
        values, offsets = cols.list_parts(array)
        short = np.flatnonzero(np.diff(offsets) <= max(wanted))
        if len(short):
            raise BadInput(f"the pipeline selects element {max(wanted)}", field=field.name, row=int(short[0]))
        take = (offsets[:-1, np.newaxis] + np.array(wanted)).reshape(-1)
        chosen = values.take(cols.numeric_array(np.ascontiguousarray(take, "i8")))
        lists = cols.equal_lists(chosen, len(array), pa.field("item", chosen.type))
        return pa.RecordBatch.from_arrays([lists], schema=pa.schema([pa.field(field.name, lists.type)]))
    for index in wanted:
        if index >= batch.num_columns:
            raise BadInput(f"the pipeline selects column {index}; there are {batch.num_columns} (from 0)")
    return batch.select(list(wanted))


def columns_to_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Make of each row a row per column, or per element of a single column of lists.

    Raises `BadInput` when the columns are of different types, or the lists of different lengths.
    """
    if _is_empty(batch):
        return batch
    rows = batch.num_rows
    if batch.num_columns == 1 and cols.is_list(batch.schema.field(0).type):
        field = batch.schema.field(0)
        values, offsets = cols.list_parts(batch.column(0))
        lengths = np.diff(offsets)
        if rows and (lengths != lengths[0]).any():
            row = int(np.flatnonzero(lengths != lengths[0])[0])
            raise BadInput(f"expected {lengths[0]} elements as in the first row", field=field.name, row=row)
        lists = cols.equal_lists(values, len(values), pa.field("item", values.type))
        return pa.RecordBatch.from_arrays([lists], schema=pa.schema([pa.field(field.name, lists.type)]))
    types = {field.type for field in batch.schema}
    if len(types) != 1:
        raise BadInput(
            f"the pipeline makes rows of the columns; they must be of one type, not {', '.join(map(str, types))}"
        )
    count = batch.num_columns
    joined = pa.concat_arrays(batch.columns)
    order = np.arange(count * rows).reshape(count, rows).T.reshape(-1)
    array = joined.take(cols.numeric_array(np.ascontiguousarray(order, "i8")))
    return pa.RecordBatch.from_arrays([array], schema=pa.schema([pa.field(batch.schema.field(0).name, array.type)]))


def _is_empty(batch: pa.RecordBatch) -> bool:
    """Say whether this is a request of no rows in JSON, which names no columns."""
    return not batch.num_rows and not batch.num_columns


def fold_rows(batch: pa.RecordBatch, rows: int) -> pa.RecordBatch:
    """Put the rows that came of one row together again: its values are the concatenation of theirs."""
    fan = batch.num_rows // rows if rows else 1
    fields, arrays = [], []
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if cols.is_list(field.type):
            values, offsets = cols.list_parts(column)
            starts = offsets[::fan]
        else:
            values, starts = column, np.arange(rows + 1) * fan
        array = cols.list_array(values, starts, pa.field("inner", values.type, nullable=False))
        fields.append(pa.field(field.name, array.type, nullable=False))
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def cast_numbers(batch: pa.RecordBatch, data_type: str) -> pa.RecordBatch:
    """Convert every column of numbers to one type; raises `BadInput` naming a value that does not fit."""
    wanted = _TYPES[data_type]
    fields, arrays = [], []
    for field, column in zip(batch.schema, batch.columns, strict=True):
        try:
            array = _cast(column, wanted)
        except pa.ArrowInvalid as exc:
            raise BadInput(f"cannot be converted to {data_type}: {exc}", field=field.name) from exc
        fields.append(pa.field(field.name, array.type, field.nullable, field.metadata))
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _cast(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    kind = array.type
    if cols.is_list(kind):
        return array.cast(_list_type(kind, wanted))
    return array.cast(wanted) if cols.is_number(kind) or pa.types.is_boolean(kind) else array


def _list_type(kind: pa.DataType, wanted: pa.DataType) -> pa.DataType:
    inner = kind.value_field
    leaf = inner.type
    below = _list_type(leaf, wanted) if cols.is_list(leaf) else wanted if cols.is_number(leaf) else leaf
    item = inner.with_type(below)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(item, kind.list_size)
    return pa.large_list(item) if pa.types.is_large_list(kind) else pa.list_(item)
