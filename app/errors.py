"""The errors a caller may see; each has an HTTP status and a stable code.

Services raise them, the faces render them: REST as `{"msg", "code"}`, GraphQL, OAuth and inference each in their own
shape. Whatever is not an `AppError` is a bug.
"""

from __future__ import annotations

from typing import Any, ClassVar


class AppError(Exception):
    """Base of all errors with a meaning for the caller; `message` says what is wrong and what to do."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.headers: dict[str, str] = {}


class Invalid(AppError):
    """The request cannot be carried out as it stands."""

    status, code = 400, "invalid"


class Unauthenticated(AppError):
    """No valid token came with the request."""

    status, code = 401, "unauthenticated"


class Forbidden(AppError):
    """The caller is known, and may see the thing, but may not do this."""

    status, code = 403, "forbidden"


class NotFound(AppError):
    """The thing does not exist, or not for this caller."""

    status, code = 404, "not_found"


class Conflict(AppError):
    """The thing exists already, or is in a state that forbids the change."""

    status, code = 409, "conflict"


class TooLarge(AppError):
    """The body is larger than the limit."""

    status, code = 413, "too_large"


class TooManyRequests(AppError):
    """The caller has to slow down."""

    status, code = 429, "too_many_requests"


class Unavailable(AppError):
    """A part the request needs is away for the moment; the same request may work later."""

    status, code = 503, "unavailable"

    def __init__(self, message: str, *, retry_after_s: int = 1, **details: Any) -> None:
        super().__init__(message, **details)
        self.headers = {"Retry-After": str(retry_after_s)}


class InsufficientStorage(AppError):
    """There is no room for what was sent."""

    status, code = 507, "insufficient_storage"


class CommandFailed(Exception):
    """A command cannot be carried out; its text is for the person at the terminal, who sees it without a traceback."""
