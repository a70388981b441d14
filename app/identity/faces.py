"""How errors look under `/auth`: as RFC 6749 has them for programs, as Keycloak has them in its admin API."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from app.errors import AppError
from app.kit.http import Faces

OAUTH_PREFIX = "/auth/realms/"
ADMIN_PREFIX = "/auth/admin/"
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}

_OAUTH_WORDS = {
    400: "invalid_request",
    401: "invalid_token",
    403: "access_denied",
    429: "too_many_attempts",
    500: "server_error",
    503: "temporarily_unavailable",
}


class OAuthError(AppError):
    """A refusal with one of the words of RFC 6749 and RFC 8628."""

    def __init__(self, status: int, error: str, description: str) -> None:
        super().__init__(description)
        self.status = status  # type: ignore[misc]  # the protocol has one word under several statuses
        self.code = error  # type: ignore[misc]  # the same
        if error == "unauthorized_client" and status == 401:
            self.headers = {"WWW-Authenticate": 'Basic realm="master"'}


class OAuthErrorBody(BaseModel):
    """An error of the token endpoint and its neighbours."""

    error: str = Field(examples=["invalid_grant"])
    error_description: str = Field(examples=["Invalid user credentials"])


class AdminErrorBody(BaseModel):
    """An error of the admin API; conflicts say `errorMessage` instead."""

    error: str | None = Field(None, examples=["User not found"])
    errorMessage: str | None = Field(None, examples=["User exists with same username"])


def oauth_error(request: Request, error: AppError) -> Response:
    """Render `error` as OAuth clients expect it."""
    word = error.code if isinstance(error, OAuthError) else _OAUTH_WORDS.get(error.status, error.code)
    headers = {**NO_STORE, **error.headers}
    if word == "invalid_token":
        headers["WWW-Authenticate"] = 'Bearer realm="master", error="invalid_token"'
    return JSONResponse({"error": word, "error_description": error.message}, error.status, headers=headers)


def admin_error(request: Request, error: AppError) -> Response:
    """Render `error` as Keycloak's admin API does."""
    key = "errorMessage" if error.status == 409 else "error"
    return JSONResponse({key: error.message}, error.status, headers=error.headers)


def register(faces: Faces) -> None:
    """Show errors under `/auth` in their own shapes."""
    faces.register(OAUTH_PREFIX, oauth_error)
    faces.register(ADMIN_PREFIX, admin_error)
