"""`/v1/api/pipelines/infer/…`: the external inference URL."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from app.identity.caller import AnyCaller
from app.inference.errors import PREFIX
from app.inference.gateway import gateway_of
from app.kit.context import context_of

router = APIRouter(prefix=PREFIX, tags=["inference"])

_ROW: dict[str, Any] = {
    "time": 1684356836285,
    "in": {"tensor": [1.0678324729, 0.2177810266]},
    "out": {"dense_1": [0.0014974177]},
    "check_failures": [],
    "metadata": {
        "last_model": '{"model_name":"apimodel","model_sha":"bc85ce59"}',
        "pipeline_version": "",
        "elapsed": [163502, 309804],
    },
}
_ARROW = {"application/vnd.apache.arrow.file": {"schema": {"type": "string", "format": "binary"}}}
_ERROR = {
    "content": {
        "application/json": {
            "schema": {
                "oneOf": [
                    {
                        "type": "object",
                        "required": ["code", "status", "error", "source"],
                        "properties": {
                            "code": {"type": "integer"},
                            "status": {"type": "string"},
                            "error": {"type": "string"},
                            "source": {"type": "string", "enum": ["engine", "sidekick", "platform"]},
                        },
                    },
                    {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"error_type": {"type": "string"}, "error": {"type": "string"}},
                        },
                    },
                ]
            }
        }
    }
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, **_ERROR}
    for status, text in {
        400: "The input does not fit the pipeline.",
        401: "No valid token.",
        403: "Not allowed for this caller.",
        404: "There is no such deployment, or not for this caller.",
        405: "Only POST is understood.",
        409: "The pipeline is not of the kind that this URL is for.",
        413: "The body is too large.",
        500: "A model failed.",
        502: "An engine ended before it answered.",
        503: "No engine is running at the moment.",
        504: "No answer in time.",
    }.items()
}
_DOCS: dict[str, Any] = {
    "responses": {
        200: {
            "description": "One result per input row.",
            "content": {
                "application/json": {"schema": {"type": "array", "items": {"type": "object"}}, "example": [_ROW]},
                **_ARROW,
            },
        },
        **_ERRORS,
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "array", "items": {"type": "object"}},
                    "example": [{"tensor": [1.0678324729, 0.2177810266]}],
                },
                **_ARROW,
            },
        },
        "parameters": [
            {
                "name": "dataset[]",
                "in": "query",
                "description": "Datasets or fields to return, `*` for all.",
                "schema": {"type": "array", "items": {"type": "string"}},
            },
            {
                "name": "dataset.exclude[]",
                "in": "query",
                "description": "Datasets to leave out.",
                "schema": {"type": "array", "items": {"type": "string"}},
            },
            {
                "name": "dataset.separator",
                "in": "query",
                "description": "Flatten nested fields, their names joined by this.",
                "schema": {"type": "string"},
            },
        ],
    },
}


@router.post("/{deployment}/{pipeline}", **_DOCS)
async def infer(request: Request, caller: AnyCaller, deployment: str, pipeline: str) -> Response:
    """Infer: `deployment` is `<deploy id>-<deployment id>`, `pipeline` the pipeline's name.

    Takes pandas records or an Arrow file and answers in kind; the engine that answers checks who may ask.
    """
    return await gateway_of(context_of(request)).infer(request, deployment)


@router.post("/{deployment}", include_in_schema=False)
async def infer_on_only_pipeline(request: Request, caller: AnyCaller, deployment: str) -> Response:
    """Infer on the deployment's one pipeline, as the oldest clients do."""
    return await gateway_of(context_of(request)).infer(request, deployment)


@router.post("/{deployment}/{pipeline}/openai/{path:path}", include_in_schema=False)
async def complete(request: Request, caller: AnyCaller, deployment: str, pipeline: str, path: str) -> Response:
    """Pass a request of an OpenAI client on; an engine whose pipeline is of another kind refuses it."""
    return await gateway_of(context_of(request)).infer(request, deployment)
