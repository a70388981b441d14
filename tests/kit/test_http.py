"""What every REST answer has in common."""

from __future__ import annotations

import httpx


async def test_a_body_that_is_no_json_is_told_where_it_breaks(ann: httpx.AsyncClient) -> None:
    answer = await ann.post("/v1/api/workspaces/list", content=b'{"a": }', headers={"X-Request-Id": "mine"})

    assert answer.status_code == 400
    assert answer.headers["x-request-id"] == "mine"
    assert answer.json() == {
        "msg": "The body is no JSON: Expecting value at character 6.",
        "code": 400,
        "error": "invalid",
        "request_id": "mine",
    }


async def test_a_field_of_the_wrong_kind_is_named(ann: httpx.AsyncClient) -> None:
    answer = await ann.post("/v1/api/workspaces/create", json={"workspace_name": 7})

    assert answer.status_code == 400
    assert answer.json()["msg"].startswith("workspace_name: ")


async def test_a_part_of_a_form_that_is_no_json_is_a_400_too(ann: httpx.AsyncClient) -> None:
    files = {"file": ("a.zip", b"PK"), "metadata": (None, b"{")}

    for path in ("orchestration/upload", "models/upload"):
        answer = await ann.post(f"/v1/api/{path}", files=files)

        assert (answer.status_code, answer.json()["error"]) == (400, "invalid")
        assert "JSON" in answer.json()["msg"]
