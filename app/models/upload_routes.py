"""`/v1/api/models/upload…`: bodies that are read as they arrive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Request
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from app.errors import Invalid, TooLarge
from app.identity.caller import CurrentCaller
from app.kit.context import context_of
from app.kit.http import ErrorBody, describe
from app.kit.multipart import Form, boundary_of
from app.models import schemas, uploads
from app.models.outcomes import outcomes_of

router = APIRouter(prefix="/v1/api/models", tags=["models"])

_ERRORS: dict[int | str, dict[str, Any]] = {
    413: {"model": ErrorBody, "description": "The upload is larger than this server accepts."},
    507: {"model": ErrorBody, "description": "There is no room for the upload."},
}
_FILE = {"type": "string", "format": "binary", "description": "The model's bytes."}
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["metadata", "file"],
                    "properties": {"metadata": schemas.UploadIn.model_json_schema(), "file": _FILE},
                },
                "encoding": {
                    "metadata": {"contentType": "application/json"},
                    "file": {"contentType": "application/octet-stream"},
                },
            }
        },
    }
}
_STREAM = {
    "parameters": [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": "With a raw body."}
        for name, schema in schemas.StreamQuery.model_json_schema()["properties"].items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name", "workspace_id", "file"],
                    "properties": schemas.StreamQuery.model_json_schema()["properties"] | {"file": _FILE},
                }
            },
            "application/octet-stream": {"schema": _FILE},
        },
    },
}


@router.post("/upload", responses=_ERRORS, openapi_extra=_FORM)
async def upload(request: Request, caller: CurrentCaller) -> schemas.UploadOut:
    """Upload a model: a form with `metadata` (JSON) and `file`.

    The answer comes when the model is ready, or when looking into it takes longer than a moment; its status tells.
    """
    return await _from_form(request, caller)


@router.post("/upload_and_convert", status_code=202, responses=_ERRORS, openapi_extra=_FORM)
async def upload_and_convert(request: Request, caller: CurrentCaller) -> schemas.UploadOut:
    """Upload a model and have it made ready to run: the same form as for upload, for every framework."""
    return await _from_form(request, caller)


@router.post("/upload_stream", responses=_ERRORS, openapi_extra=_STREAM)
async def upload_stream(request: Request, caller: CurrentCaller) -> schemas.UploadOut:
    """Upload a model as a raw body with its description in the query, or as a form with the same fields and `file`.

    The framework is told by the file's name.
    """
    context = context_of(request)
    reception = uploads.Reception(context, caller)
    async with _body(request) as chunks:
        if (boundary := boundary_of(request.headers.get("content-type"))) is not None:
            version_id = await reception.form(Form(chunks, boundary), uploads.read_stream_fields)
        else:
            try:
                query = _QUERY.validate_python(dict(request.query_params))
            except ValidationError as exc:
                raise Invalid(describe(exc.errors())) from exc
            version_id = await reception.body(chunks, uploads.of_stream(query), query.filename)
    return await _answer(request, version_id)


_QUERY = TypeAdapter(schemas.StreamQuery)


async def _from_form(request: Request, caller: CurrentCaller) -> schemas.UploadOut:
    boundary = boundary_of(request.headers.get("content-type"))
    if boundary is None:
        raise Invalid(
            "Send the model as multipart/form-data: a part `metadata` with JSON, a part `file` with its bytes."
        )
    reception = uploads.Reception(context_of(request), caller)
    async with _body(request) as chunks:
        version_id = await reception.form(Form(chunks, boundary), uploads.read_metadata)
    return await _answer(request, version_id)


async def _answer(request: Request, version_id: int) -> schemas.UploadOut:
    """Answer when the version has settled, or after a few seconds: some clients do not ask again."""
    context = context_of(request)
    await outcomes_of(context).wait(version_id, context.settings.upload_wait_s)
    return schemas.UploadOut.of(version_id)


@asynccontextmanager
async def _body(request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
    """Yield the body's chunks, which are never more than the limit; raises `Invalid` when the client goes away."""
    limit_bytes = context_of(request).settings.upload_limit_bytes
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit_bytes:
        raise TooLarge(f"The upload is larger than this server accepts ({limit_bytes:,} bytes).")
    try:
        yield uploads.limited(request.stream(), limit_bytes)
    except ClientDisconnect as exc:
        raise Invalid("The connection broke before the upload was complete; nothing of it was kept.") from exc
