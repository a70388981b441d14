"""Errors of the first generation, under the statuses whose message the vendor's clients show."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from app.errors import AppError, Invalid
from app.kit.clients import client_of
from app.kit.http import describe

_SHOWN = (400, 401, 500)
_ALONE = {"filter": (500,), "get_assay_results": (500,)}
"""Of these paths they show one status."""


class ShownErrors(APIRoute):
    """A route whose errors reach the people behind the vendor's clients; everybody else gets the true status."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, with errors under a status that the client knows."""
        handle: Callable[[Request], Any] = super().get_route_handler()
        shown = _ALONE.get(self.path.rpartition("/")[2], _SHOWN)

        async def handle_shown(request: Request) -> Response:
            try:
                answer: Response = await handle(request)
            except (AppError, RequestValidationError) as exc:
                error = exc if isinstance(exc, AppError) else Invalid(describe(exc.errors()))
                if error.status in shown or not client_of(request.headers.get("user-agent")).is_sdk:
                    raise
                raise _under(error, 400 if error.status < 500 and 400 in shown else 500) from exc
            return answer

        return handle_shown


def _under(error: AppError, status: int) -> AppError:
    plain = AppError(error.message, **error.details)
    plain.status, plain.code = status, error.code  # type: ignore[misc]  # the same error, as its reader understands it
    plain.headers = error.headers
    return plain
