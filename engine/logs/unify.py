"""Schemas that differ in form only: the same columns, with numbers, lists or texts of another width.

The same pipeline records `double` for a JSON request and `float` for an Arrow one. For people these are rows of one
table.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import pyarrow as pa


def shape_of(schema: pa.Schema) -> Hashable:
    """Return what a schema looks like apart from widths, nullability and metadata; equal shapes can share a table."""
    return tuple((field.name, _shape(field.type)) for field in schema)


def _shape(kind: pa.DataType) -> Hashable:
    if pa.types.is_struct(kind):
        return tuple((kind.field(i).name, _shape(kind.field(i).type)) for i in range(kind.num_fields))
    if _is_list(kind):
        return ("list", _shape(kind.value_type))
    if pa.types.is_floating(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    return str(kind)


def unify(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the narrowest schema that holds rows of all `schemas`, which have one shape."""
    first = schemas[0]
    if all(schema.equals(first, check_metadata=True) for schema in schemas[1:]):
        return first
    fields = [_field([schema.field(i) for schema in schemas]) for i in range(len(first))]
    metadata = first.metadata if all(schema.metadata == first.metadata for schema in schemas) else None
    return pa.schema(fields, metadata=metadata)


def _field(fields: Sequence[pa.Field]) -> pa.Field:
    first = fields[0]
    metadata = first.metadata if all(field.metadata == first.metadata for field in fields) else None
    nullable = any(field.nullable for field in fields)
    return pa.field(first.name, _kind([field.type for field in fields]), nullable, metadata)


def _kind(kinds: Sequence[pa.DataType]) -> pa.DataType:
    first = kinds[0]
    if all(kind.equals(first, check_metadata=True) for kind in kinds[1:]):
        return first
    if pa.types.is_struct(first):
        return pa.struct([_field([kind.field(i) for kind in kinds]) for i in range(first.num_fields)])
    if _is_list(first):
        item = _field([kind.value_field.with_name(first.value_field.name) for kind in kinds])
        return pa.large_list(item) if any(pa.types.is_large_list(kind) for kind in kinds) else pa.list_(item)
    if pa.types.is_floating(first):
        return max(kinds, key=lambda kind: kind.bit_width)
    return pa.large_string() if any(pa.types.is_large_string(kind) for kind in kinds) else first


def fit_to(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with the types of `schema`, which `unify` made of its own and others."""
    if table.schema.equals(schema, check_metadata=True):
        return table
    columns = [column.cast(field.type) for column, field in zip(table.columns, schema, strict=True)]
    return pa.Table.from_arrays(columns, schema=schema)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
