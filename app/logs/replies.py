"""Pages of the log as clients read them: Arrow files or pandas-records, each with its status."""

from __future__ import annotations

import pyarrow as pa
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from app.errors import AppError, Invalid
from app.kit.http import request_id_of
from engine.contract.codecs import encode_records

ARROW = "application/vnd.apache.arrow.file"
RECORDS = "application/json; format=pandas-records"

_JSON_TYPES = {"", "*/*", "application/*", "application/json"}

PAGE_CONTENT: dict[int | str, dict[str, object]] = {
    200: {
        "description": "Records, as the Accept header asks for them.",
        "content": {
            RECORDS: {"schema": {"type": "array", "items": {"type": "object"}}},
            ARROW: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def wants_arrow(accept: str | None, *, strict: bool) -> bool:
    """Tell whether an Accept header asks for Arrow rather than JSON.

    With `strict`, raises `Invalid` for a header that allows neither.
    """
    accepted = [part.partition(";")[0].strip().lower() for part in (accept or "").split(",")]
    if ARROW in accepted:
        return True
    if strict and not _JSON_TYPES.intersection(accepted):
        raise Invalid(f"cannot emit requested format {accept!r}; ask for {ARROW} or {RECORDS}.")
    return False


def is_plain_json(accept: str | None) -> bool:
    """Tell whether an Accept header asks for JSON without saying of which form, and for nothing else."""
    return (accept or "").strip().lower() == "application/json"


def arrow_file(table: pa.Table) -> memoryview:
    """Return a table as an Arrow IPC file; one without rows becomes a file without columns and metadata."""
    if table.num_rows == 0:
        table = pa.table({})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def encode(table: pa.Table, *, arrow: bool, metadata: dict[str, str] | None = None) -> tuple[bytes | memoryview, str]:
    """Return the body of a page and its content type; Arrow carries `metadata` in its schema, besides what is there."""
    if not arrow:
        return (encode_records(table) if table.num_rows else b"[]"), RECORDS
    if metadata and table.num_rows:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
    return arrow_file(table), ARROW


def join_records(parts: list[pa.Table]) -> bytes:
    """Return the rows of several tables as one JSON array, numbers as each table holds them."""
    return b"[" + b",".join(encode_records(part)[1:-1] for part in parts) + b"]"


def answer(body: bytes | memoryview, content_type: str, headers: dict[str, str] | None = None) -> Response:
    """Return the response for an encoded page."""
    return Response(body, headers={**(headers or {}), "content-type": content_type})


def log_error(request: Request, error: AppError) -> Response:
    """Render an error as the log store's clients expect it: `{"message", "code"}`, and the REST keys beside."""
    body = {
        "message": error.message,
        "msg": error.message,
        "code": error.status,
        "error": error.code,
        "request_id": request_id_of(request),
    }
    return JSONResponse(body, error.status, headers=error.headers)
