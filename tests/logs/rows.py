"""Records for tests of the log: an id, a time, and columns like those of an inference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

METADATA = pa.struct([pa.field("last_model", pa.string(), nullable=False), pa.field("dropped", pa.list_(pa.string()))])
FLOATS = pa.list_(pa.field("inner", pa.float32(), nullable=False))
SHAPE = {b"tensor_type": b'{"shape":[1]}'}


def schema_of(kind: int = 0) -> pa.Schema:
    """Return one of several schemas."""
    outputs = [pa.field("y", FLOATS, nullable=False, metadata=SHAPE)]
    if kind:
        outputs.append(pa.field(f"extra_{kind}", pa.int32()))
    return pa.schema(
        [
            pa.field("time", pa.int64(), nullable=False),
            pa.field("in", pa.struct([pa.field("id", pa.int64()), pa.field("tensor", pa.list_(pa.float32()))])),
            pa.field("out", pa.struct(outputs), nullable=False),
            pa.field("metadata", METADATA, nullable=False),
        ]
    )


def batch(ids: Iterable[int], times: Iterable[int] | None = None, kind: int = 0, width: int = 3) -> pa.RecordBatch:
    """Return a record for each id; its time is the id unless given."""
    ids = list(ids)
    stamps = ids if times is None else list(times)
    rows = [
        {
            "time": time,
            "in": {"id": i, "tensor": [float(i)] * width},
            "out": {"y": [i / 2]} | ({f"extra_{kind}": i} if kind else {}),
            "metadata": {"last_model": f'{{"model_name":"m{i % 3}"}}', "dropped": []},
        }
        for i, time in zip(ids, stamps, strict=True)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=schema_of(kind))


def ids_of(table: pa.Table | pa.RecordBatch | Sequence[pa.RecordBatch]) -> list[int]:
    """Return the ids of records, in their order."""
    if isinstance(table, list | tuple):
        return [i for part in table for i in ids_of(part)]
    if not table.num_rows:
        return []
    return [row["id"] for row in table.column("in").to_pylist()]
