"""The inference record: what a reply shows and what the log keeps.

A record has one row per inference row and nested columns: `time`, `in`, `out`, `check_failures` and/or `anomaly`,
`out_<model>` per shadow model, `metadata`. The full record makes the reply; `for_log` makes of it what is stored:
no nulls, and no row larger than the limit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec
import numpy as np
import pyarrow as pa

from engine.contract import columns as cols
from engine.contract import kernels as pc

TENSOR_TYPE = b"tensor_type"

CHECK_FAILURE_TYPE = pa.struct([pa.field("False", pa.struct([pa.field("expr", pa.string())]))])
TIME_FIELD = pa.field("time", pa.int64(), nullable=False)
CHECK_FAILURES_FIELD = pa.field("check_failures", pa.list_(pa.field("item", CHECK_FAILURE_TYPE)), nullable=False)
_SCALAR_META = {TENSOR_TYPE: b'{"shape":[]}'}
COUNT_FIELD = pa.field("count", pa.uint32(), nullable=False, metadata=_SCALAR_META)
_ELAPSED_ITEM = pa.field("steps", pa.uint64(), nullable=False)
_DROPPED_ITEM = pa.field("item", pa.string())
METADATA_FIELDS = [
    pa.field("last_model", pa.string(), nullable=False),
    pa.field("pipeline_version", pa.string(), nullable=False),
    pa.field("elapsed", pa.list_(_ELAPSED_ITEM), nullable=False),
    pa.field("dropped", pa.list_(_DROPPED_ITEM), nullable=False),
    pa.field("partition", pa.string(), nullable=False),
]


def tensor_metadata(shape: Sequence[int]) -> dict[bytes, bytes]:
    """Return the field metadata that says which shape one row has (`[]`: a scalar)."""
    return {TENSOR_TYPE: msgspec.json.encode({"shape": list(shape)})}


class RecordMetadata(msgspec.Struct, frozen=True):
    """The `metadata` of a record: the same for every row of a request."""

    last_model: str
    """JSON text `{"model_name", "model_sha"}` of the model that ran last; empty when none did."""
    pipeline_version: str
    elapsed_ns: tuple[int, int]
    """Input handling, and execution of the steps."""
    partition: str


def last_model_text(name: str, sha: str) -> str:
    """Return the `metadata.last_model` text of a model."""
    return msgspec.json.encode({"model_name": name, "model_sha": sha}).decode()


def build_record(  # noqa: PLR0917 - the parts of a record, in its order
    time_ms: int,
    inputs: pa.RecordBatch,
    outputs: pa.RecordBatch,
    check_failures: pa.Array | None,
    anomaly: pa.RecordBatch | None,
    others: Iterable[tuple[str, pa.RecordBatch]],
    metadata: RecordMetadata,
) -> pa.RecordBatch:
    """Put the parts of an inference together, in the contract's order.

    `others` are the outputs of further models, each under the name of its dataset (`out_<model>`).
    """
    rows = inputs.num_rows
    fields = [TIME_FIELD]
    arrays = [cols.numeric_array(np.full(rows, time_ms, "i8"))]
    datasets = [("in", inputs), ("out", outputs)]
    for name, batch in datasets:
        _add_struct(name, batch, fields, arrays)
    if check_failures is not None:
        fields.append(CHECK_FAILURES_FIELD)
        arrays.append(check_failures)
    if anomaly is not None:
        _add_struct("anomaly", anomaly, fields, arrays)
    for name, batch in others:
        _add_struct(name, batch, fields, arrays)
    _add_struct("metadata", metadata_batch(metadata, rows), fields, arrays)
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _add_struct(name: str, batch: pa.RecordBatch, fields: list[pa.Field], arrays: list[pa.Array]) -> None:
    array = cols.struct_array(batch.columns, list(batch.schema), batch.num_rows)
    fields.append(pa.field(name, array.type, nullable=False))
    arrays.append(array)


def metadata_batch(metadata: RecordMetadata, rows: int) -> pa.RecordBatch:
    """Return the children of the `metadata` column, with nothing dropped."""
    elapsed = cols.numeric_array(np.tile(np.array(metadata.elapsed_ns, "u8"), rows))
    arrays = [
        cols.constant_strings(metadata.last_model, rows),
        cols.constant_strings(metadata.pipeline_version, rows),
        cols.equal_lists(elapsed, rows, _ELAPSED_ITEM),
        _no_names(rows),
        cols.constant_strings(metadata.partition, rows),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(METADATA_FIELDS))


def _no_names(rows: int) -> pa.Array:
    return cols.list_array(cols.string_array([]), np.zeros(rows + 1, "i8"), _DROPPED_ITEM)


def no_check_failures(rows: int) -> pa.Array:
    """Return an empty list of failures per row."""
    return cols.list_array(_NO_FAILURES, np.zeros(rows + 1, "i8"), CHECK_FAILURES_FIELD.type.value_field)


def check_failure_array(expressions: Sequence[Sequence[str]]) -> pa.Array:
    """Return the failures of each row, given the text of each check that did not hold."""
    values = _failure_structs([text for row in expressions for text in row])
    return cols.list_array(values, cols.starts(expressions), CHECK_FAILURES_FIELD.type.value_field)


def _failure_structs(texts: list[str]) -> pa.Array:
    inner = cols.struct_array([cols.string_array(texts)], [pa.field("expr", pa.string())], len(texts))
    return cols.struct_array([inner], [pa.field("False", inner.type)], len(texts))


_NO_FAILURES = _failure_structs([])


def anomaly_batch(flags: Sequence[tuple[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]], rows: int) -> pa.RecordBatch:
    """Return `count` and one boolean column per named validation; True is an anomaly."""
    count = np.zeros(rows, "u4")
    for _, marks in flags:
        count += marks
    arrays = [cols.numeric_array(count), *(cols.numeric_array(marks) for _, marks in flags)]
    fields = [COUNT_FIELD, *(pa.field(name, pa.bool_()) for name, _ in flags)]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def for_log(
    record: pa.RecordBatch,
    bytes_limit: int,
    log_only: Iterable[tuple[str, pa.RecordBatch]] = (),
    varying: Collection[str] = (),
) -> pa.RecordBatch:
    """Return the record as the log keeps it: nulls as zeroes, and rows over the limit without their largest columns.

    `log_only` are audited outputs that the reply does not show; they go before `metadata`. The shape of `varying`
    fields of `out` is left out of the schema, so that pages of the log do not end where a shape changes.
    """
    fields, arrays = list(record.schema), record.columns
    for name, batch in log_only:
        if record.schema.get_field_index(name) < 0:
            array = cols.struct_array(batch.columns, list(batch.schema), batch.num_rows)
            fields.insert(-1, pa.field(name, array.type, nullable=False))
            arrays.insert(-1, array)
    if varying:
        index = record.schema.get_field_index("out")
        children = [field.remove_metadata() if field.name in varying else field for field in fields[index].type]
        arrays[index] = cols.struct_array(arrays[index].flatten(), children, record.num_rows)
    arrays = [zero_like(array) for array in arrays]
    schema = pa.schema([_plain_field(field, array) for field, array in zip(fields, arrays, strict=True)])
    bare = pa.RecordBatch.from_arrays(arrays, schema=schema)
    if not bare.num_rows or bare.nbytes <= bytes_limit:
        return bare
    return _within_limit(bare, bytes_limit)


def _plain_field(field: pa.Field, array: pa.Array) -> pa.Field:
    return field if field.type.equals(array.type, check_metadata=True) else field.with_type(array.type)


def zero_like(array: pa.Array) -> pa.Array:
    """Return the array with every null replaced: zero, empty text, empty list, struct of zeroes."""
    kind = array.type
    if not _has_nulls(array):
        return array
    if pa.types.is_struct(kind):
        children = [zero_like(child) for child in array.flatten()]
        fields = [_plain_field(field, child) for field, child in zip(kind, children, strict=True)]
        return cols.struct_array(children, fields, len(array))
    if pa.types.is_fixed_size_list(kind):
        elements, _ = cols.list_parts(array)
        valid = cols.validity(array)
        if valid is not None:
            kept = np.repeat(valid, kind.list_size)
            elements = pc.if_else(cols.numeric_array(kept), elements, pa.scalar(None, elements.type))
        values = zero_like(elements)
        return pa.Array.from_buffers(kind, len(array), [None], children=[values])
    if cols.is_list(kind):
        return _zero_like_lists(array)
    if pa.types.is_null(kind):
        return cols.numeric_array(np.zeros(len(array)))
    return array.fill_null(_zero(kind))


def _has_nulls(array: pa.Array) -> bool:
    """Say whether there may be a null anywhere in the array."""
    kind = array.type
    if array.null_count:
        return True
    if cols.is_list(kind):
        return _has_nulls(array.values)
    return any(_has_nulls(array.field(index)) for index in range(kind.num_fields))


def _zero(kind: pa.DataType) -> pa.Scalar:
    if cols.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        buffers = [None, pa.py_buffer(bytes(16)), pa.py_buffer(b"")]
    else:
        buffers = [None, pa.py_buffer(bytes(max(kind.bit_width // 8, 1)))]
    return pa.Array.from_buffers(kind, 1, buffers)[0]


def _zero_like_lists(array: pa.Array) -> pa.Array:
    if array.null_count:
        nothing = [None, pa.py_buffer(bytes(16))]
        array = array.fill_null(pa.Array.from_buffers(array.type, 1, nothing, children=[array.values.slice(0, 0)])[0])
    elements, offsets = cols.list_parts(array)
    values = zero_like(elements)
    width = "i8" if pa.types.is_large_list(array.type) else "i4"
    item = _plain_field(array.type.value_field, values)
    kind = pa.large_list(item) if width == "i8" else pa.list_(item)
    return pa.Array.from_buffers(kind, len(array), [None, pa.py_buffer(offsets.astype(width))], children=[values])


def _within_limit(record: pa.RecordBatch, bytes_limit: int) -> pa.RecordBatch:
    """Drop columns of `in`, largest first, then of the outputs, from rows that are over the limit.

    A column that no row keeps disappears; one that some rows keep stays, and is empty in the others.
    """
    sizes = {name: row_bytes(record.column(name)) for name in record.schema.names}
    total = np.sum(list(sizes.values()), axis=0)
    if not (total > bytes_limit).any():
        return record
    dropped: list[list[str]] = [[] for _ in range(record.num_rows)]
    outputs = [name for name in record.schema.names if name == "out" or name.startswith("out_")]
    blanks: dict[str, np.ndarray[tuple[int], np.dtype[np.bool_]]] = {}
    for group in (["in"], outputs):
        children = [
            (f"{name}.{field.name}", row_bytes(child))
            for name in group
            for field, child in zip(record.column(name).type, record.column(name).flatten(), strict=True)
        ]
        for path, size in sorted(children, key=lambda child: -int(child[1].sum())):
            marks = (total > bytes_limit) & (size > 0)
            if marks.any():
                total -= np.where(marks, size, 0)
                blanks[path] = marks
                for row in np.flatnonzero(marks).tolist():
                    dropped[row].append(path)
    return _without(record, blanks, dropped)


def _without(
    record: pa.RecordBatch, blanks: dict[str, np.ndarray[tuple[int], np.dtype[np.bool_]]], dropped: list[list[str]]
) -> pa.RecordBatch:
    fields, arrays = [], []
    for field, column in zip(record.schema, record.columns, strict=True):
        array = column
        if field.name == "metadata":
            array = _with_dropped(column, dropped)
        elif any(path.startswith(f"{field.name}.") for path in blanks):
            kept = []
            for child_field, child in zip(field.type, array.flatten(), strict=True):
                marks = blanks.get(f"{field.name}.{child_field.name}")
                if marks is None:
                    kept.append((child_field, child))
                elif not marks.all():
                    hidden = pc.if_else(cols.numeric_array(~marks), child, pa.scalar(None, child.type))
                    kept.append((child_field, zero_like(hidden)))
            array = cols.struct_array([child for _, child in kept], [f for f, _ in kept], record.num_rows)
        fields.append(_plain_field(field, array))
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _with_dropped(metadata: pa.Array, dropped: list[list[str]]) -> pa.Array:
    names = [name for row in dropped for name in row]
    offsets = cols.starts(dropped)
    children = metadata.flatten()
    index = metadata.type.get_field_index("dropped")
    children[index] = cols.list_array(cols.string_array(names), offsets, _DROPPED_ITEM)
    return cols.struct_array(children, list(metadata.type), len(metadata))


def row_bytes(array: pa.Array) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return about how many bytes each row of a column takes."""
    kind, rows = array.type, len(array)
    if pa.types.is_struct(kind):
        return np.asarray(sum((row_bytes(child) for child in array.flatten()), np.zeros(rows, "i8")), "i8")
    if cols.is_list(kind):
        elements, offsets = cols.list_parts(array)
        below = np.concatenate(([0], np.cumsum(row_bytes(elements))))
        return np.asarray(below[offsets[1:]] - below[offsets[:-1]], "i8")
    if cols.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return cols.numbers(pc.cast(pc.fill_null(pc.binary_length(array), 0), pa.int64())) + 4
    return np.full(rows, max(kind.bit_width // 8, 1), "i8")
