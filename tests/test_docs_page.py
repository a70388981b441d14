"""The documentation that the server itself shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs


async def test_the_docs_page_needs_nothing_from_outside(nobody: httpx.AsyncClient) -> None:
    page = await nobody.get("/v1/api/docs")

    assert page.status_code == 200
    links = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
    assert links
    assert not [link for link in links if link.startswith(("http", "//"))]
    for link in links:
        assert (await nobody.get(f"/v1/api/{link}")).status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'self'; ")


async def test_the_openapi_document_tells_which_routes_need_a_token(nobody: httpx.AsyncClient) -> None:
    document = (await nobody.get("/v1/api/openapi.json")).json()

    assert document["paths"]["/v1/api/workspaces/list"]["post"]["security"] == [{"bearer": []}]
    assert "security" not in document["paths"]["/livez"]["get"]
    assert "422" not in str(document["paths"]["/v1/api/workspaces/create"]["post"]["responses"])


def errors(schema: dict[str, Any], value: Any) -> list[str]:
    return [e.message for e in jsonschema_rs.Draft202012Validator(schema).iter_errors(value)]


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


async def test_every_operation_of_the_api_shows_a_request_and_an_answer_that_fit(nobody: httpx.AsyncClient) -> None:
    document = (await nobody.get("/v1/api/openapi.json")).json()
    without, misfits = [], []

    for name, operation in operations(document):
        answers = [a for status, a in operation["responses"].items() if status.startswith("2")]
        for body in [operation.get("requestBody", {}), *answers]:
            for kind, content in body.get("content", {}).items():
                shown = [content[key] for key in ("example",) if key in content]
                shown += [one["value"] for one in content.get("examples", {}).values()]
                if not shown and "json" in kind and name.split()[1].startswith(("/v1/api/", "/v2/")):
                    without.append(name)
                schema = content.get("schema", {}) | {"components": document["components"]}
                misfits += [f"{name}: {e}" for value in shown for e in errors(schema, value)]

    assert without == []
    assert misfits == []


async def test_an_unknown_asset_is_not_found(nobody: httpx.AsyncClient) -> None:
    assert (await nobody.get("/v1/api/docs/assets/..%2Fdocs.py")).status_code == 404
