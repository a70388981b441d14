"""What goes wrong with an inference, and how each generation of clients reads it."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

FailureSource = Literal["engine", "sidekick", "platform"]

_OLD_REQUESTS = re.compile(r"python-requests/2\.2\d")


class InferenceFailure(Exception):
    """An inference that ends without outputs; its text is for the caller."""

    status = 500

    def __init__(self, message: str, *, source: FailureSource = "engine", status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.source: FailureSource = source
        if status is not None:
            self.status = status


class BadInput(InferenceFailure):
    """The caller's request cannot be inferred on; says which field and row (0-based), and what was expected."""

    status = 400

    def __init__(self, message: str, *, field: str | None = None, row: int | None = None) -> None:
        where = f"field {field!r}" if field is not None else ""
        if row is not None:
            where = f"{where}, row {row}" if where else f"row {row}"
        super().__init__(f"{where}: {message}" if where else message)
        self.reason, self.field, self.row = message, field, row


def speaks_old_dialect(user_agent: str | None) -> bool:
    """Say whether the client is an SDK that reads errors as a list: it pins `requests` 2.25 and shows it."""
    return user_agent is not None and _OLD_REQUESTS.match(user_agent) is not None


def failure_body(message: str, status: int, user_agent: str | None, source: FailureSource = "engine") -> bytes:
    """Render an inference error in the dialect that the client of this user agent can read."""
    body: Any
    if speaks_old_dialect(user_agent):
        body = [{"error_type": "InferenceError", "error": message}]
    else:
        body = {"code": status, "status": "Error", "error": message, "source": source}
    return msgspec.json.encode(body)
