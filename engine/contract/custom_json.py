"""The custom ("wallaroo") JSON: a dict of batch-major arrays in, one result object for the whole batch out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa

from engine.contract import columns as cols
from engine.contract.codecs import Columns
from engine.contract.failures import BadInput
from engine.contract.records import TENSOR_TYPE

_TAGS: dict[pa.DataType, str] = {
    pa.float16(): "Half",
    pa.float32(): "Float",
    pa.float64(): "Double",
    pa.int8(): "Int8",
    pa.int16(): "Int16",
    pa.int32(): "Int32",
    pa.int64(): "Int64",
    pa.uint8(): "Uint8",
    pa.uint16(): "Uint16",
    pa.uint32(): "Uint32",
    pa.uint64(): "Uint64",
    pa.bool_(): "Bool",
    pa.string(): "String",
    pa.large_string(): "String",
}


class CustomResult(msgspec.Struct, frozen=True):
    """What the reply says beside the outputs."""

    pipeline_name: str
    model_name: str
    model_version: str
    elapsed_ns: tuple[int, int]
    time_ms: int
    check_failures: Sequence[Sequence[str]]


def read_arrays(value: Any) -> tuple[Columns, int]:
    """Turn `{"tensor": [[…], […]]}`, or a bare list of rows for a model of one input, into columns.

    Raises `BadInput` when the arrays are not lists of one length.
    """
    if isinstance(value, list):
        return {"tensor": value}, len(value)
    if not isinstance(value, dict) or not value:
        raise BadInput("The body must be an object of arrays, one per input, each with an entry per row.")
    rows = -1
    for name, cells in value.items():
        if not isinstance(cells, list):
            raise BadInput("expected a list with an entry per row", field=name)
        if rows < 0:
            rows = len(cells)
        if len(cells) != rows:
            raise BadInput(f"expected {rows} rows as in the other fields, got {len(cells)}", field=name)
    return value, rows


def encode_result(
    original: Any, outputs: pa.RecordBatch, shadows: Sequence[tuple[str, pa.RecordBatch]], result: CustomResult
) -> bytes:
    """Write the reply; `original` is the request's own JSON value, or its record batch."""
    if isinstance(original, pa.RecordBatch):
        original = {
            name: cols.to_python(column) for name, column in zip(original.schema.names, original.columns, strict=True)
        }
    failures = [{"False": {"expr": text}} for row in result.check_failures for text in row]
    body = {
        "check_failures": failures,
        "elapsed": list(result.elapsed_ns),
        "model_name": result.model_name,
        "model_version": result.model_version,
        "original_data": original,
        "outputs": tagged_outputs(outputs),
        "pipeline_name": result.pipeline_name,
        "shadow_data": {name: tagged_outputs(batch) for name, batch in shadows},
        "time": result.time_ms,
    }
    return msgspec.json.encode([body])


def tagged_outputs(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return each output as `{"Float": {"v": 1, "dim": […], "data": […]}}`."""
    return [_tagged(field, column) for field, column in zip(batch.schema, batch.columns, strict=True)]


def _tagged(field: pa.Field, column: pa.Array) -> dict[str, Any]:
    rows = len(column)
    shape = [rows]
    leaves = column
    while cols.is_list(leaves.type):
        leaves, offsets = cols.list_parts(leaves)
        lengths = set((offsets[1:] - offsets[:-1]).tolist())
        shape.append(lengths.pop() if len(lengths) == 1 else -1)
    if leaves.type not in _TAGS:
        return {"Json": {"v": 1, "dim": [rows], "data": cols.to_python(column)}}
    text = (field.metadata or {}).get(TENSOR_TYPE)
    if text is not None:
        own = msgspec.json.decode(text)["shape"]
        if rows * math.prod(own) == len(leaves):
            shape = [rows, *own]
    if -1 in shape:
        shape = [len(leaves)]
    return {_TAGS[leaves.type]: {"v": 1, "dim": shape, "data": cols.to_python(leaves)}}
