"""The documentation that the server itself shows."""

from __future__ import annotations

import re

import httpx


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


async def test_an_unknown_asset_is_not_found(nobody: httpx.AsyncClient) -> None:
    assert (await nobody.get("/v1/api/docs/assets/..%2Fdocs.py")).status_code == 404
