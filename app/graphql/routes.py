"""`POST /v1/graphql`."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from app.errors import TooLarge
from app.graphql import errors, service
from app.graphql.errors import Fault
from app.graphql.introspection import Answer
from app.identity.caller import CurrentCaller
from app.kit.context import context_of
from app.kit.http import Faces

PATH = "/v1/graphql"
BODY_LIMIT = 4 * 1024**2

router = APIRouter(tags=["graphql"])


@cache
def endpoint() -> service.Endpoint:
    """Return the process's endpoint; it is the same whatever the settings are."""
    return service.Endpoint()


def register(faces: Faces) -> None:
    """Show the errors of this endpoint as Hasura does."""
    faces.register(PATH, errors.render)


@router.post(PATH, include_in_schema=False)
async def graphql(request: Request, caller: CurrentCaller) -> Response:
    """Answer a GraphQL query or mutation."""
    asked = _read(await _body(request))
    answer = await endpoint().answer(context_of(request).sessions, caller, asked)
    if isinstance(answer, Answer):
        headers = {"Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(
                answer.packed, media_type="application/json", headers=headers | {"Content-Encoding": "gzip"}
            )
        return Response(answer.plain, media_type="application/json", headers=headers)
    return Response(answer, media_type="application/json")


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise TooLarge(f"The request is larger than {BODY_LIMIT} bytes.")
    return bytes(body)


def _read(body: bytes) -> service.Request:
    try:
        given: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise Fault(f"invalid JSON in the request: {exc}", "invalid-json") from exc
    if not isinstance(given, dict):
        raise Fault("The request is a JSON object with `query` and `variables`.", errors.PARSE)
    query, variables, operation = given.get("query"), given.get("variables"), given.get("operationName")
    if not isinstance(query, str):
        raise Fault("the key 'query' was not present" if query is None else "'query' is a string", errors.PARSE)
    if variables is not None and not isinstance(variables, dict):
        raise Fault("'variables' is an object", errors.PARSE)
    if operation is not None and not isinstance(operation, str):
        raise Fault("'operationName' is a string", errors.PARSE)
    return service.Request(query, variables or {}, operation)
