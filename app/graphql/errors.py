"""Errors as Hasura shows them: HTTP 200, `{"errors": [{"message", "extensions": {"path", "code"}}]}`."""

from __future__ import annotations

import re
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from graphql import (
    ArgumentNode,
    DocumentNode,
    FieldNode,
    GraphQLError,
    Node,
    ObjectFieldNode,
    VariableDefinitionNode,
    VariableNode,
)
from sqlalchemy.exc import DBAPIError

from app.errors import AppError, Conflict, Forbidden, Invalid, NotFound, Unauthenticated, Unavailable

VALIDATION, PARSE, DATA = "validation-failed", "parse-failed", "data-exception"
PERMISSION, CONSTRAINT, UNSUPPORTED = "permission-error", "constraint-violation", "not-supported"
CHECK_FAILED = "check constraint of an insert/update permission has failed"


class Fault(AppError):
    """A GraphQL request that cannot be answered; `reason` is Hasura's code, `path` the place in the request."""

    status = 200

    def __init__(self, message: str, reason: str = VALIDATION, path: str = "$") -> None:
        super().__init__(message)
        self.reason = reason
        self.path = path

    def at(self, path: str) -> Fault:
        """Return this fault with `path` as its place, unless it names one already."""
        return self if self.path != "$" else Fault(self.message, self.reason, path)


class Unreadable(ValueError):
    """A value of the request that its scalar type cannot read."""


_CODES: tuple[tuple[type[AppError], str], ...] = (
    (Forbidden, PERMISSION),
    (NotFound, "not-exists"),
    (Conflict, CONSTRAINT),
    (Invalid, DATA),
    (Unavailable, "postgres-error"),
)


def as_fault(error: AppError, path: str) -> Fault:
    """Return what a service refused as a fault at `path`."""
    if isinstance(error, Fault):
        return error.at(path)
    reason = next((code for kind, code in _CODES if isinstance(error, kind)), "unexpected")
    return Fault(error.message, reason, path)


def body_of(message: str, reason: str, path: str = "$") -> dict[str, Any]:
    """Return the body of an error answer."""
    return {"errors": [{"message": message, "extensions": {"path": path, "code": reason}}]}


def render(request: Request, error: AppError) -> Response:
    """Render an error of the GraphQL endpoint; only a wrong path or method has another status than 200."""
    status = error.status if error.status in (404, 405) else 200
    fault = _authentication(request, error) or as_fault(error, "$")
    return JSONResponse(body_of(fault.message, fault.reason, fault.path), status, headers=error.headers)


def _authentication(request: Request, error: AppError) -> Fault | None:
    if isinstance(error, Unauthenticated):
        if "authorization" not in request.headers:
            return Fault("Missing 'Authorization' or 'Cookie' header in JWT authentication mode", "invalid-headers")
        detail = "JWTExpired" if "expired" in error.message else error.message
        return Fault(f"Could not verify JWT: {detail}", "invalid-jwt")
    if isinstance(error, Forbidden):
        return Fault(error.message, "access-denied")
    return None


_UNKNOWN_FIELD = re.compile(r"Cannot query field '(\w+)' on type '(\w+)'")
_UNKNOWN_ARGUMENT = re.compile(r"Unknown argument '(\w+)' on field '(\w+)\.(\w+)'")


def of_graphql(error: GraphQLError, document: DocumentNode | None) -> Fault:
    """Return what graphql-core found wrong with a request, in Hasura's words where those are known."""
    message = error.message
    if found := _UNKNOWN_FIELD.match(message):
        message = f"field '{found[1]}' not found in type: '{found[2]}'"
    elif found := _UNKNOWN_ARGUMENT.match(message):
        message = f"'{found[3]}' has no argument named '{found[1]}'"
    reason, cause = VALIDATION, error.original_error
    while isinstance(cause, GraphQLError):
        cause = cause.original_error
    if isinstance(cause, Unreadable):
        message, reason = str(cause), PARSE
    node = error.nodes[0] if error.nodes else None
    place = _place(document, node) if document and node else None
    return Fault(message, reason, place or "$")


def _is_wanted(node: Node, wanted: Node) -> bool:
    if isinstance(wanted, VariableDefinitionNode):  # what is wrong with a variable shows where it is used
        return isinstance(node, VariableNode) and node.name.value == wanted.variable.name.value
    return node is wanted


def _place(document: DocumentNode, wanted: Node) -> str | None:
    """Return the path of a node of `document` in Hasura's notation."""
    stack: list[tuple[Node, str]] = [(definition, "$") for definition in document.definitions]
    while stack:
        node, path = stack.pop()
        if isinstance(node, FieldNode):
            path += f".selectionSet.{node.alias.value if node.alias else node.name.value}"
        elif isinstance(node, ArgumentNode):
            path += f".args.{node.name.value}"
        elif isinstance(node, ObjectFieldNode):
            path += f".{node.name.value}"
        if path != "$" and _is_wanted(node, wanted):
            return path
        for key in node.keys:
            child = getattr(node, key, None)
            children = child if isinstance(child, list | tuple) else (child,)
            stack.extend((c, path) for c in children if isinstance(c, Node))
    return None


def of_database(error: DBAPIError) -> Fault | None:
    """Return what Postgres refused because of the request, or None when the request is not to blame."""
    state = getattr(error.orig, "sqlstate", None) or ""
    detail = getattr(getattr(error.orig, "diag", None), "message_primary", None) or "the value does not fit"
    kinds = {
        "23505": "Uniqueness violation. ",
        "23502": "Not-NULL violation. ",
        "23503": "Foreign key violation. ",
        "23514": "Check constraint violation. ",
    }
    if state in kinds:
        return Fault(kinds[state] + detail, CONSTRAINT)
    if state == "57014":
        return Fault("The query took too long and was stopped; ask for less at once.", "postgres-error")
    if state.startswith("22") or state in {"21000", "42P10"}:
        return Fault(detail, DATA)
    if state.startswith("54"):
        return Fault("The query is too complex; ask for less at once.", "postgres-error")
    if state in {"40001", "40P01"}:
        return Fault("Another change got in the way; send the request again.", "postgres-error")
    return None
