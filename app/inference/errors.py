"""How errors look on inference URLs: in the dialect that the caller's client reads."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response

from app.errors import AppError, NotFound, Unauthenticated, Unavailable
from app.kit.http import Faces
from engine.contract.failures import FailureSource, failure_body

PREFIX = "/v1/api/pipelines/infer"


class BadGateway(AppError):
    """An engine broke off before its answer."""

    status, code = 502, "bad_gateway"


class GatewayTimeout(AppError):
    """An engine did not answer in time."""

    status, code = 504, "gateway_timeout"


def register(faces: Faces) -> None:
    """Show errors below the inference URLs as the inference contract has them."""
    faces.register(PREFIX, render)


def render(request: Request, error: AppError) -> Response:
    """Return the answer for `error`."""
    message = error.message
    if isinstance(error, Unauthenticated) and "authorization" not in request.headers:
        message = "Jwt is missing"
    source: FailureSource = "engine" if isinstance(error, BadGateway | GatewayTimeout | Unavailable) else "platform"
    headers = dict(error.headers)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = failure_body(message, error.status, request.headers.get("user-agent"), source)
    return Response(body, error.status, headers, "application/json")


def not_found() -> NotFound:
    """Return the error for a deployment that does not exist, is off, or is not the caller's."""
    return NotFound("Deployment not found")
