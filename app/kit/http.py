"""The HTTP face: request ids, one shape for all errors, body reading."""

from __future__ import annotations

import time
import uuid
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import AppError, Invalid, Unavailable
from app.kit.metrics import REQUEST_SECONDS

log = structlog.get_logger()

Renderer = Any
"""`(Request, AppError) -> Response`: how one face shows an error."""

_QUIET_PATHS = {"/livez", "/readyz", "/metrics"}


def request_id_of(request: Request) -> str:
    """Return the id of `request`: the caller's `X-Request-Id`, or one made for it."""
    return str(request.scope.get("request_id", ""))


def rest_error(request: Request, error: AppError) -> Response:
    """Render `error` as the REST contract has it: `{"msg", "code"}`, with the stable code and the request id beside."""
    body = {"msg": error.message, "code": error.status, "error": error.code, "request_id": request_id_of(request)}
    if error.details:
        body["details"] = error.details
    return JSONResponse(body, error.status, headers=error.headers)


class Faces:
    """Which renderer shows the errors of which paths; REST wherever nobody else is registered."""

    def __init__(self) -> None:
        self._renderers: list[tuple[str, Renderer]] = []

    def register(self, prefix: str, renderer: Renderer) -> None:
        """Show errors below `prefix` by `renderer`; the longest prefix wins."""
        self._renderers.append((prefix, renderer))
        self._renderers.sort(key=lambda item: -len(item[0]))

    def render(self, request: Request, error: AppError) -> Response:
        """Return the answer for `error` in the shape of the face that `request` came to."""
        for prefix, renderer in self._renderers:
            if request.url.path.startswith(prefix):
                response: Response = renderer(request, error)
                return response
        return rest_error(request, error)


class RequestScope:
    """ASGI middleware: gives each request an id, binds it to the logs, counts and logs the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"x-request-id"), "")
        request_id = given if given and len(given) <= 128 and given.isprintable() else uuid.uuid4().hex
        scope["request_id"] = request_id
        scope["path"] = _collapse(scope["path"])
        started, status, started_answer = time.perf_counter(), 500, False
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request=request_id)

        async def answer(message: Message) -> None:
            nonlocal status, started_answer
            if message["type"] == "http.response.start":
                started_answer = True
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode("latin-1"))]
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except Exception as exc:  # the outermost place where a bug still becomes an answer
            if started_answer:
                raise
            request = Request(scope, receive)
            await _bug(request, exc)(scope, receive, answer)
        finally:
            elapsed = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "unmatched")
            REQUEST_SECONDS.labels(scope["method"], route, str(status)).observe(elapsed)
            if scope["path"] not in _QUIET_PATHS:
                log.debug(
                    "http", method=scope["method"], path=scope["path"], status=status, ms=round(elapsed * 1000, 1)
                )


def _collapse(path: str) -> str:
    """Return `path` without doubled slashes: old clients make them from a trailing slash in their base URL."""
    while "//" in path:
        path = path.replace("//", "/")
    return path


def install(app: FastAPI) -> Faces:
    """Put the error handlers and the request scope on `app`; returns the faces, for modules to register with."""
    faces = Faces()
    app.add_middleware(RequestScope)

    async def app_error(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, AppError)  # noqa: S101
        return faces.render(request, exc)

    async def invalid(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)  # noqa: S101
        return faces.render(request, Invalid(describe(exc.errors())))

    async def http_error(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)  # noqa: S101
        return faces.render(request, _of_http(request, exc))

    async def database_error(request: Request, exc: Exception) -> Response:
        if isinstance(exc, DataError):  # a number out of the column's range, a text with a NUL
            return faces.render(request, Invalid("A value of the request is out of range, or cannot be stored."))
        if is_away(exc):
            log.warning("database.away", error=type(exc).__name__)
            return faces.render(request, Unavailable("The database is not available at the moment; try again shortly."))
        raise exc

    app.add_exception_handler(AppError, app_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(DBAPIError, database_error)
    app.add_exception_handler(PoolTimeout, database_error)
    return faces


def _bug(request: Request, exc: Exception) -> Response:
    log.error("http.bug", path=request.url.path, exc_info=exc)
    error = AppError("Something went wrong on the server; its log tells more under this request id.")
    faces: Faces = request.app.state.faces
    return faces.render(request, error)


def is_away(exc: BaseException) -> bool:
    """Tell whether `exc` means that the database cannot be reached, and not that the query was wrong."""
    if isinstance(exc, PoolTimeout | InterfaceError):
        return True
    if not isinstance(exc, DBAPIError):
        return False
    state = getattr(exc.orig, "sqlstate", None) or ""
    return (
        exc.connection_invalidated
        or state[:2] in {"08", "57", "53"}
        or (isinstance(exc, OperationalError) and not state)
    )


def _of_http(request: Request, exc: HTTPException) -> AppError:
    text = {
        404: f"There is no {request.method} {request.url.path} here; the API is described at /v1/api/docs.",
        405: f"{request.url.path} does not take {request.method}.",
    }.get(exc.status_code, str(exc.detail))
    error = AppError(text)
    error.status = exc.status_code  # type: ignore[misc]  # the one error whose status comes from elsewhere
    error.code = {404: "not_found", 405: "method_not_allowed"}.get(exc.status_code, "http")  # type: ignore[misc]
    error.headers = dict(exc.headers or {})
    return error


def describe(errors: Any) -> str:
    """Return what pydantic found wrong as one sentence a person can act on: where, what, and what was given."""
    parts = []
    for error in list(errors)[:5]:
        if error["type"] == "json_invalid" and len(error["loc"]) == 2:  # the body itself, not a text in a form
            parts.append(f"The body is no JSON: {error['ctx']['error']} at character {error['loc'][-1]}")
            continue
        place = ".".join(str(x) for x in error["loc"] if x not in ("body", "query", "path", "form")) or "body"
        message = error["msg"][:1].lower() + error["msg"][1:]
        parts.append(f"{place}: {message}")
    return "; ".join(parts) + "."


class ErrorBody(BaseModel):
    """An error as every REST answer carries it."""

    msg: str = Field(examples=["There is no workspace 7."], description="What is wrong, and what to do about it.")
    code: int = Field(examples=[404], description="The HTTP status.")
    error: str = Field(examples=["not_found"], description="A stable word for programs.")
    request_id: str = Field(examples=["5f1f4b1c"], description="Finds the request in the server's log.")
    details: dict[str, Any] | None = None


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request cannot be carried out as it stands."},
    401: {"model": ErrorBody, "description": "No valid token."},
    403: {"model": ErrorBody, "description": "Not allowed for this caller."},
    404: {"model": ErrorBody, "description": "Does not exist, or not for this caller."},
    409: {"model": ErrorBody, "description": "Exists already, or is in a state that forbids the change."},
    500: {"model": ErrorBody, "description": "A bug; the server's log has more under the request id."},
    503: {"model": ErrorBody, "description": "A part is away for the moment; try again."},
}
"""What any route may answer besides its success; FastAPI's own 422 never leaves the server."""
