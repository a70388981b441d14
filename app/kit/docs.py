"""The API's own documentation: an OpenAPI document and Swagger UI, served by us alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.routing import APIRoute

from app.errors import NotFound
from app.kit.http import ERRORS

OPENAPI_URL = "/v1/api/openapi.json"
_ASSETS = Path(__file__).parent / "swagger"
_KINDS = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "favicon-32x32.png": "image/png",
}
_EXAMPLE_KINDS = {"application/json", "multipart/form-data"}
_ERRORS = {str(status) for status in ERRORS}
_SCRIPT = f"""
SwaggerUIBundle({{
  url: "{OPENAPI_URL}",
  dom_id: "#swagger-ui",
  deepLinking: true,
  docExpansion: "none",
  filter: true,
  persistAuthorization: true,
  tryItOutEnabled: true,
  validatorUrl: null,
}});
"""
_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Potoroo API (Swagger)</title>
<link rel="icon" href="docs/assets/favicon-32x32.png">
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
</head>
<body>
<main id="swagger-ui"><noscript>This page needs JavaScript; the document itself is at {OPENAPI_URL}.</noscript></main>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script>{_SCRIPT}</script>
</body>
</html>
"""
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": f"default-src 'self'; script-src 'self' 'sha256-{_SCRIPT_HASH}'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter(include_in_schema=False)


@router.get("/v1/api/docs")
async def docs() -> HTMLResponse:
    """Show Swagger UI."""
    return HTMLResponse(_PAGE, headers=_HEADERS)


@router.get("/v1/api/docs/assets/{name}")
async def asset(name: str) -> FileResponse:
    """Return a file that Swagger UI needs."""
    if name not in _KINDS:
        raise NotFound(f"There is no asset {name[:80]!r}.")
    return FileResponse(_ASSETS / name, media_type=_KINDS[name], headers={"Cache-Control": "max-age=86400"})


def routes_of(routers: Iterable[APIRouter]) -> Iterator[APIRoute]:
    """Yield every route of `routers`."""
    for one in routers:
        yield from (route for route in one.routes if isinstance(route, APIRoute))


def checks_caller(route: APIRoute, checks: Iterable[Any]) -> bool:
    """Tell whether one of the dependencies `checks` runs before `route`."""

    def calls(dependant: Dependant) -> Iterator[Any]:
        for inner in dependant.dependencies:
            yield inner.call
            yield from calls(inner)

    return not set(checks).isdisjoint(calls(route.dependant))


def _hoist(node: Any, schemas: dict[str, Any]) -> None:
    """Move definitions that stand within a schema to `schemas`: references start at the document's root."""
    for inner in list(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()):
        _hoist(inner, schemas)
    if isinstance(node, dict):
        schemas.update(node.pop("$defs", {}))
        name = str(node.get("$ref", "")).removeprefix("#/$defs/")
        if "/" not in name and name:
            node["$ref"] = f"#/components/schemas/{name}"


def _show(operation: dict[str, Any], example: Mapping[str, Any]) -> None:
    """Put an example into an operation, where it has none of its own."""
    bodies = [("request", operation.get("requestBody", {}))]
    bodies += [("response", a) for status, a in operation.get("responses", {}).items() if status.startswith("2")]
    for part, body in bodies:
        for kind, content in body.get("content", {}).items():
            if (
                part in example
                and kind.partition(";")[0] in _EXAMPLE_KINDS
                and not {"example", "examples"} & set(content)
            ):
                content["example"] = example[part]


def document(
    api: FastAPI, routers: list[APIRouter], checks: Iterable[Any], examples: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the OpenAPI document: which routes need a token is read off their dependencies.

    `examples` has by method and path what a request and its answer look like. FastAPI's own 422 is left out: no such
    answer leaves this server.
    """
    if api.openapi_schema is not None:
        return api.openapi_schema
    made: dict[str, Any] = get_openapi(
        title=api.title, version=api.version, description=api.description, routes=api.routes
    )
    guarded = {
        (route.path_format, method.lower())
        for route in routes_of(routers)
        if checks_caller(route, checks)
        for method in route.methods or ()
    }
    for path, item in made["paths"].items():
        for method, operation in item.items():
            operation.get("responses", {}).pop("422", None)
            _show(operation, examples.get(f"{method.upper()} {path}", {}))
            for status, answer in operation.get("responses", {}).items():
                if (
                    status in _ERRORS and len(answer.get("content", {})) == 1
                ):  # an error is JSON, whatever the success is
                    answer["content"] = {"application/json": next(iter(answer["content"].values()))}
            if (path, method) in guarded:
                operation["security"] = [{"bearer": []}]
            else:
                for status in ("401", "403"):  # but those it says itself, in a shape of its own
                    if "schemas/ErrorBody" in str(operation["responses"].get(status)):
                        del operation["responses"][status]
    components = made.setdefault("components", {})
    _hoist(made["paths"], components.setdefault("schemas", {}))
    for unused in ("HTTPValidationError", "ValidationError"):
        components.get("schemas", {}).pop(unused, None)
    components["securitySchemes"] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "An access token of /auth/realms/master/protocol/openid-connect/token.",
        }
    }
    api.openapi_schema = made
    return made
