"""Model outputs as Arrow columns: tensors, sequences and maps, and the shape that a declared schema gives them."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from engine.contract import columns as cols
from engine.contract.failures import InferenceFailure
from engine.contract.records import tensor_metadata
from engine.runtime.models import LoadError, ModelOutput
from engine.runtime.tensors import Shape, Tensor, flat_array, row_lists


def output_columns(
    names: Sequence[str], shapes: Sequence[Shape | None], values: Sequence[Any], rows: int
) -> ModelOutput:
    """Return the values that a session gave as one column per output.

    `shapes` are the declared ones (None for sequences and maps). Raises `InferenceFailure` when an output does not
    have a row per input row.
    """
    fields, arrays, varying = [], [], []
    for name, shape, value in zip(names, shapes, values, strict=True):
        try:
            field, array = _output_column(name, value, rows)
        except ValueError as exc:
            raise InferenceFailure(
                f"{exc}; a model must give one row per input row (batch_config single feeds it rows one by one).",
                status=400,
            ) from exc
        fields.append(field)
        arrays.append(array)
        if shape is None or any(size is None for size in shape[1:]) or (shape and shape[0] not in (None, 1, rows)):
            varying.append(name)
    return ModelOutput(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)), frozenset(varying))


def _output_column(name: str, value: Any, rows: int) -> tuple[pa.Field, pa.Array]:
    if isinstance(value, np.ndarray):
        field, array, _ = row_lists(value, rows, name)
        return field, array
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(f"output {name!r} is a {type(value).__name__}, which cannot be shown")
    if len(value) != rows:
        raise ValueError(f"output {name!r} is a sequence of {len(value)} for {rows} input rows")
    if value and isinstance(value[0], dict):
        return _maps(name, value)
    return _sequences(name, [np.asarray(item) for item in value])


def _maps(name: str, value: list[dict[Any, Any]]) -> tuple[pa.Field, pa.Array]:
    """Return the maps of a ZipMap as a struct: a field per class, zero where a row lacks it."""
    keys = list(dict.fromkeys(key for row in value for key in row))
    children, fields = [], []
    for key in keys:
        column = [row.get(key) for row in value]
        if any(isinstance(item, str) for item in column):
            child = cols.string_array([item or "" for item in column])
        else:
            kind = "f4" if any(isinstance(item, float) for item in column) else "i8"
            child = cols.numeric_array(np.array([item or 0 for item in column], kind))
        children.append(child)
        fields.append(pa.field(str(key), child.type, nullable=False))
    array = cols.struct_array(children, fields, len(value))
    return pa.field(name, array.type, nullable=False), array


def _sequences(name: str, value: list[Tensor]) -> tuple[pa.Field, pa.Array]:
    """Return one tensor per row, each of its own length."""
    elements = (
        flat_array(np.concatenate([item.reshape(-1) for item in value])) if value else flat_array(np.zeros(0, "f4"))
    )
    offsets = np.concatenate(([0], np.cumsum([item.size for item in value], dtype="i8")))
    array = cols.list_array(elements, offsets, pa.field("inner", elements.type, nullable=False))
    shapes = {item.shape for item in value}
    metadata = tensor_metadata(shapes.pop() or (1,)) if len(shapes) == 1 else None
    return pa.field(name, array.type, nullable=False, metadata=metadata), array


def join_rows(parts: Sequence[ModelOutput]) -> ModelOutput:
    """Put the outputs of rows that ran one by one (or in chunks) under each other."""
    first = parts[0].batch
    varying = frozenset().union(*(part.varying for part in parts))
    fields, arrays = [], []
    for index, field in enumerate(first.schema):
        chunks = [part.batch.column(index) for part in parts]
        metadata = {part.batch.schema.field(index).metadata is not None for part in parts}
        same = all(part.batch.schema.field(index).equals(field, check_metadata=True) for part in parts)
        if pa.types.is_struct(field.type) and not same:
            joined = pa.concat_tables(
                [pa.Table.from_arrays(c.flatten(), names=[f.name for f in c.type]) for c in chunks],
                promote_options="default",
            ).combine_chunks()
            array = joined.to_struct_array().combine_chunks()
            fields.append(pa.field(field.name, array.type, nullable=False))
        else:
            array = pa.concat_arrays(chunks)
            fields.append(field if same and metadata else field.remove_metadata())
        arrays.append(array)
    return ModelOutput(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)), varying)


def read_schema(text: str | None, what: str) -> pa.Schema | None:
    """Read a declared schema (base64 of an Arrow IPC schema message); raises `LoadError` naming `what`."""
    if not text:
        return None
    try:
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))
    except (binascii.Error, pa.ArrowException, OSError) as exc:
        raise LoadError(f"The {what} is not a base64 Arrow schema: {exc}") from exc


def apply_schema(output: ModelOutput, schema: pa.Schema) -> ModelOutput:
    """Give outputs the names and types that the caller declared: by name, or by position where names differ.

    Raises `InferenceFailure` when a value does not fit its declared type.
    """
    batch = output.batch
    by_name = all(batch.schema.get_field_index(name) >= 0 for name in schema.names)
    if not by_name and len(schema) != batch.num_columns:
        raise InferenceFailure(
            f"The output schema declares {', '.join(schema.names)}, the model gives {', '.join(batch.schema.names)}.",
            status=400,
        )
    fields, arrays, varying = [], [], set()
    for index, declared in enumerate(schema):
        source = batch.schema.get_field_index(declared.name) if by_name else index
        field, array = _declared(declared, batch.schema.field(source), batch.column(source))
        fields.append(field)
        arrays.append(array)
        if batch.schema.field(source).name in output.varying:
            varying.add(declared.name)
    return ModelOutput(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)), frozenset(varying))


def _declared(declared: pa.Field, source: pa.Field, array: pa.Array) -> tuple[pa.Field, pa.Array]:
    kind, rows = declared.type, len(array)
    try:
        if not cols.is_list(array.type):
            result = array.cast(kind)
            return pa.field(declared.name, kind, nullable=False), result
        elements, offsets = cols.list_parts(array)
        if not cols.is_list(kind):
            if not (np.diff(offsets) == 1).all():
                raise InferenceFailure(
                    f"Output {declared.name!r} is declared as one {kind} per row; the model gives more.", status=400
                )
            return pa.field(declared.name, kind, nullable=False, metadata=tensor_metadata(())), elements.cast(kind)
        return _declared_lists(declared, source, elements, offsets, rows)
    except pa.ArrowException as exc:
        raise InferenceFailure(
            f"Output {declared.name!r} does not fit its declared type {kind}: {exc}", status=400
        ) from exc


def _declared_lists(
    declared: pa.Field, source: pa.Field, elements: pa.Array, offsets: Tensor, rows: int
) -> tuple[pa.Field, pa.Array]:
    """Build the declared (perhaps nested, perhaps fixed-size) lists over flat elements."""
    levels, leaf = [], declared.type
    while cols.is_list(leaf):
        levels.append(leaf)
        leaf = leaf.value_type
    values = elements.cast(leaf)
    total = int(offsets[1] - offsets[0]) if rows else 0
    sizes = [level.list_size if pa.types.is_fixed_size_list(level) else None for level in levels]
    if len(levels) == 1 and sizes[0] is None:
        array = cols.list_array(values, offsets, levels[0].value_field).cast(declared.type)
        return pa.field(declared.name, declared.type, nullable=False, metadata=source.metadata), array
    shape = _level_sizes(sizes, source, total)
    if shape is None or not (np.diff(offsets) == total).all():
        raise InferenceFailure(
            f"Output {declared.name!r} does not have the declared shape of {declared.type}.", status=400
        )
    for level, size in zip(reversed(levels), reversed(shape), strict=True):
        count = len(values) // size if size else rows
        if pa.types.is_fixed_size_list(level):
            values = pa.Array.from_buffers(level, count, [None], children=[values])
        else:
            values = cols.equal_lists(values, count, level.value_field).cast(level)
    return pa.field(declared.name, declared.type, nullable=False, metadata=tensor_metadata(shape)), values


def _level_sizes(sizes: list[int | None], source: pa.Field, total: int) -> list[int] | None:
    """Find the length of the lists at each level: from the declaration, else from the tensor's own shape."""
    own = [
        int(n) for n in (source.metadata or {}).get(b"tensor_type", b"").decode().strip('{"shape:[]}').split(",") if n
    ]
    if len(own) == len(sizes) and all(size in (None, n) for size, n in zip(sizes, own, strict=True)):
        return own
    known = math.prod(size for size in sizes if size is not None)
    if sizes.count(None) == 1 and known and total % known == 0:
        return [total // known if size is None else size for size in sizes]
    return [size for size in sizes if size is not None] if None not in sizes and known == total else None
