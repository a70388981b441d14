"""Columns by path, and tables brought back to the exact schema they were written with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import pyarrow as pa

Path_: TypeAlias = tuple[str, ...]


def parse_path(path: str | Sequence[str]) -> Path_:
    """Return a path as a tuple; text is split at its dots."""
    return tuple(path.split(".")) if isinstance(path, str) else tuple(path)


def project(batch: pa.RecordBatch, paths: Sequence[Path_]) -> pa.RecordBatch:
    """Return the columns at `paths`, named by the path with dots, in this order; a path that is not there is left
    out.
    """
    arrays, names = [], []
    for path in paths:
        array = _descend(batch, path)
        if array is not None:
            arrays.append(array)
            names.append(".".join(path))
    if not arrays:
        return pa.RecordBatch.from_struct_array(pa.StructArray.from_buffers(pa.struct([]), batch.num_rows, [None]))
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _descend(batch: pa.RecordBatch, path: Path_) -> pa.Array | None:
    at = batch.schema.get_field_index(path[0])
    if at < 0:
        return None
    array = batch.column(at)
    rest = path[1:]
    while rest:
        kind = array.type
        if not pa.types.is_struct(kind):
            return None
        # names of fields may contain dots, as in `out.dense.1`: the longest that fits wins
        for length in range(len(rest), 0, -1):
            child = kind.get_field_index(".".join(rest[:length]))
            if child >= 0:
                break
        else:
            return None
        array = array.flatten()[child] if array.null_count else array.field(child)
        rest = rest[length:]
    return array


def rebuild(table: pa.Table, schema: pa.Schema) -> pa.RecordBatch:
    """Return `table` as one batch of exactly `schema`: names of list items, nullability and metadata as they were
    written.
    """
    arrays = []
    for field in schema:
        column = table.column(field.name)
        array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
        arrays.append(array if array.type.equals(field.type, check_metadata=True) else array.cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def narrowed(schema: pa.Schema, found: pa.Schema) -> pa.Schema:
    """Return the part of `schema` that was read: its fields, and the fields of its structs, whose names `found` has."""
    return pa.schema([_narrow(field, found.field(field.name)) for field in schema if field.name in found.names])


def _narrow(field: pa.Field, found: pa.Field) -> pa.Field:
    if not pa.types.is_struct(field.type):
        return field
    children = [_narrow(child, found.type.field(child.name)) for child in field.type if _has(found.type, child.name)]
    return field.with_type(pa.struct(children))


def _has(kind: pa.DataType, name: str) -> bool:
    return bool(kind.get_field_index(name) >= 0)
