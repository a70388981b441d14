"""What a record batch must look like to be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pyarrow as pa

from engine.logs.errors import InvalidRecord

MAX_FRAME_ROWS = 16_384
MAX_FRAME_BYTES = 8 << 20


def check_schema(schema: pa.Schema) -> None:
    """Raise `InvalidRecord` unless batches of `schema` can be kept."""
    if not schema.names or schema.names[0] != "time" or schema.field(0).type != pa.int64():
        raise InvalidRecord('The first column must be "time", int64 milliseconds since the epoch.')
    for field in schema:
        _check_type(field.type, field.name)


def _check_type(kind: pa.DataType, path: str) -> None:
    if pa.types.is_null(kind):
        raise InvalidRecord(f'Column "{path}" has the null type, which a log cannot hold.')
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        raise InvalidRecord(f'Column "{path}" is {kind}; decode it to plain values first.')
    for i in range(kind.num_fields):
        child = kind.field(i)
        _check_type(child.type, f"{path}.{child.name}")


def schema_key(serialized: bytes) -> str:
    """Return the key of a serialised schema in a manifest: equal keys mean equal schemas, metadata included."""
    return hashlib.sha256(serialized).hexdigest()[:24]


def time_bounds(batch: pa.RecordBatch) -> tuple[int, int]:
    """Return the least and the greatest time of a batch with rows.

    Raises `InvalidRecord` where a time is null.
    """
    times = batch.column(0)
    if times.null_count:
        raise InvalidRecord('Column "time" has a null; every record needs its time.')
    values = times.to_numpy()
    if len(values) == 1:
        return int(values[0]), int(values[0])
    return int(values.min()), int(values.max())


def pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch so that no piece is larger than a frame should be."""
    rows = batch.num_rows
    step = MAX_FRAME_ROWS
    if rows > 1 and batch.nbytes > MAX_FRAME_BYTES:
        step = max(1, min(step, rows * MAX_FRAME_BYTES // batch.nbytes))
    if rows <= step:
        yield batch
        return
    for start in range(0, rows, step):
        yield batch.slice(start, step)
