"""The log row of an inference that failed."""

from __future__ import annotations

import msgspec
import numpy as np
import pyarrow as pa

from engine.contract import codecs, records
from engine.contract import columns as cols
from engine.contract.failures import BadInput, InferenceFailure
from engine.runtime.formats import Decoded

_REQUEST_LIMIT = 64 * 1024
_REQUEST_FIELD = pa.field("request", pa.string(), nullable=False)
_ERROR_FIELDS = [pa.field("code", pa.int32(), nullable=False), pa.field("message", pa.string(), nullable=False)]


def failure_record(
    failure: InferenceFailure, decoded: Decoded | None, version: str, partition: str, wall_ms: int
) -> pa.RecordBatch:
    """Return one row: `time`, `in.request` (the row at fault as JSON text, empty when the body could not be read),
    `error` and `metadata`. Its schema is the same whatever was sent, so that failures can be paged through.
    """
    request = cols.struct_array([cols.string_array([_request_text(failure, decoded)])], [_REQUEST_FIELD], 1)
    code = cols.numeric_array(np.array([failure.status], "i4"))
    error = cols.struct_array([code, cols.string_array([failure.message])], _ERROR_FIELDS, 1)
    metadata = records.metadata_batch(records.RecordMetadata("", version, (0, 0), partition), 1)
    described = cols.struct_array(metadata.columns, list(metadata.schema), 1)
    arrays = [cols.numeric_array(np.array([wall_ms], "i8")), request, error, described]
    fields = [
        records.TIME_FIELD,
        pa.field("in", request.type, nullable=False),
        pa.field("error", error.type, nullable=False),
        pa.field("metadata", described.type, nullable=False),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _request_text(failure: InferenceFailure, decoded: Decoded | None) -> str:
    if decoded is None or not decoded.batch.num_rows or decoded.batch.nbytes > 64 * _REQUEST_LIMIT:
        return ""
    row = failure.row if isinstance(failure, BadInput) and failure.row is not None else 0
    text = msgspec.json.encode(codecs.to_rows(decoded.batch.slice(row, 1))[0]).decode("utf-8", "replace")
    return text if len(text) <= _REQUEST_LIMIT else text[:_REQUEST_LIMIT]
