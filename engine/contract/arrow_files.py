"""Arrow IPC files: read with care, because anybody may have written them, and written with pyarrow.

Reading gives one record batch of plain types: dictionaries are decoded, views and extension types become what they
stand for, and a fixed-shape tensor column becomes a list column whose field metadata says the shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from engine.contract import columns as cols
from engine.contract import kernels as pc
from engine.contract.arrow_layout import BadLayout, measure
from engine.contract.failures import BadInput
from engine.contract.records import row_bytes, tensor_metadata

MAGIC = b"ARROW1"
BYTES_LIMIT = 2**31
"""What a file may unpack to."""
ROWS_LIMIT = 2**24


def decode_file(body: bytes | bytearray | memoryview) -> pa.RecordBatch:
    """Return the rows of an Arrow IPC file as one record batch; raises `BadInput` saying what is wrong with it."""
    if bytes(body[: len(MAGIC)]) != MAGIC or bytes(body[-len(MAGIC) :]) != MAGIC:
        raise BadInput("The body is not an Arrow IPC file (the stream format is not accepted).")
    try:
        extent = measure(body)
    except BadLayout as exc:
        raise BadInput(f"The Arrow file cannot be read: {exc}") from exc
    if extent.unpacked_bytes > BYTES_LIMIT or extent.rows > ROWS_LIMIT:
        raise BadInput(
            f"The Arrow file unpacks to {extent.rows} rows in {extent.unpacked_bytes} bytes; "
            f"at most {ROWS_LIMIT} rows and {BYTES_LIMIT} bytes are taken at once."
        )
    try:
        reader = pa.ipc.open_file(pa.py_buffer(body))
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
        schema = reader.schema
        for field in schema:
            _read_names(field)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as exc:
        raise BadInput(f"The Arrow file cannot be read: {exc}") from exc
    _check_names(schema)
    return _plain(_one_batch(batches, schema))


def _read_names(field: pa.Field) -> None:
    """Decode the names within a field; one that is no UTF-8 raises `ValueError`."""
    str(field.name)
    for index in range(field.type.num_fields):
        _read_names(field.type.field(index))


def _check_names(schema: pa.Schema) -> None:
    seen: set[str] = set()
    for name in schema.names:
        if name in seen:
            raise BadInput("the file has two columns of this name", field=name)
        seen.add(name)


def _one_batch(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    table = pa.Table.from_batches(batches, schema=schema)
    arrays = []
    for name, column in zip(schema.names, table.columns, strict=True):
        try:
            arrays.append(pa.concat_arrays(column.chunks) if column.num_chunks else _empty(column.type))
        except pa.ArrowException as exc:
            raise BadInput(f"the batches of the file cannot be joined: {exc}", field=name) from exc
    if not arrays:
        return pa.RecordBatch.from_struct_array(cols.struct_array([], [], table.num_rows))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _empty(kind: pa.DataType) -> pa.Array:
    return pa.array([], kind)


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    fields, arrays = [], []
    for field, array in zip(batch.schema, batch.columns, strict=True):
        try:
            plain, metadata = plain_array(array)
        except (pa.ArrowException, ValueError, KeyError) as exc:
            raise BadInput(f"a column of type {field.type} cannot be read: {exc}", field=field.name) from exc
        if plain is array:
            fields.append(field)
        else:
            fields.append(pa.field(field.name, plain.type, field.nullable, {**(field.metadata or {}), **metadata}))
        arrays.append(plain)
    if not fields:
        return batch.replace_schema_metadata(None)
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def plain_array(array: pa.Array) -> tuple[pa.Array, dict[bytes, bytes]]:
    """Return the array in plain types, the same object if it is so already, and field metadata that says its shape."""
    kind = array.type
    if isinstance(kind, pa.FixedShapeTensorType):
        return _tensor_lists(array)
    if isinstance(kind, pa.BaseExtensionType):
        return plain_array(array.storage)[0], {}
    types = pa.types
    if types.is_dictionary(kind):
        _refuse_blow_up(array.dictionary, array.indices)
        return plain_array(array.dictionary_decode())[0], {}
    if types.is_run_end_encoded(kind):
        return plain_array(pc.run_end_decode(array))[0], {}
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        return _view_lists(array), {}
    if types.is_null(kind):
        return array.cast(pa.float64()), {}
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return array.cast(pa.large_string() if types.is_string_view(kind) else pa.large_binary()), {}
    if types.is_union(kind):
        raise ValueError("union columns are not supported")
    if types.is_map(kind):
        return _plain_lists(array.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))), {}
    if types.is_struct(kind):
        return _plain_structs(array), {}
    return (_plain_lists(array) if cols.is_list(kind) else array), {}


def _plain_structs(array: pa.Array) -> pa.Array:
    children = [array.field(index) for index in range(array.type.num_fields)]
    plain = [plain_array(child)[0] for child in children]
    if all(one is two for one, two in zip(children, plain, strict=True)):
        return array
    fields = [field.with_type(child.type) for field, child in zip(array.type, plain, strict=True)]
    return pa.Array.from_buffers(pa.struct(fields), len(array), [_bitmap(array)], children=plain)


def _plain_lists(array: pa.Array) -> pa.Array:
    elements, offsets = cols.list_parts(array)
    plain, _ = plain_array(elements)
    if plain is elements:
        return array
    item = array.type.value_field.with_type(plain.type)
    if pa.types.is_fixed_size_list(array.type):
        kind = pa.list_(item, array.type.list_size)
        return pa.Array.from_buffers(kind, len(array), [_bitmap(array)], children=[plain])
    return cols.list_array(plain, offsets, item, _bitmap(array))


def _bitmap(array: pa.Array) -> pa.Buffer | None:
    known = cols.validity(array)
    return None if known is None else pa.py_buffer(np.packbits(known, bitorder="little"))


def _view_lists(array: pa.Array) -> pa.Array:
    """Return lists for a column of list views, which may overlap and lie in any order."""
    lengths = cols.numbers(pc.cast(pc.fill_null(pc.list_value_length(array), 0), pa.int64()))
    if int(lengths.sum()) * max(array.values.nbytes // max(len(array.values), 1), 1) > BYTES_LIMIT:
        raise ValueError("its lists overlap so much that they are too large one by one")
    values, _ = plain_array(array.flatten())
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return cols.list_array(values, offsets, pa.field("item", values.type), _bitmap(array))


def _refuse_blow_up(dictionary: pa.Array, indices: pa.Array) -> None:
    """Raise `ValueError` where a small dictionary stands for more than may be unpacked."""
    if not len(dictionary):
        return
    sizes = cols.numeric_array(row_bytes(plain_array(dictionary)[0]))
    total = pc.sum(sizes.take(pc.fill_null(indices, 0))).as_py() or 0
    if total > BYTES_LIMIT:
        raise ValueError(f"it unpacks to {total} bytes")


def _tensor_lists(array: Any) -> tuple[pa.Array, dict[bytes, bytes]]:
    """Return a fixed-shape tensor column as lists, in the order that its permutation asks for."""
    kind = array.type
    shape, storage = list(kind.shape), array.storage
    order = kind.permutation
    if order is None or list(order) == sorted(order):
        return storage, tensor_metadata(shape)
    values, _ = cols.list_parts(storage)
    logical = np.moveaxis(
        cols.numbers(values).reshape(len(storage), *shape), [axis + 1 for axis in order], range(1, len(shape) + 1)
    )
    flat = cols.numeric_array(np.ascontiguousarray(logical).reshape(-1))
    lists = pa.Array.from_buffers(storage.type, len(storage), [None], children=[flat])
    return lists, tensor_metadata([shape[axis] for axis in order])


def encode_file(records: pa.RecordBatch | pa.Table) -> bytes:
    """Write records as an Arrow IPC file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, records.schema) as writer:
        if isinstance(records, pa.Table):
            writer.write_table(records)
        else:
            writer.write_batch(records)
    return bytes(sink.getvalue())
