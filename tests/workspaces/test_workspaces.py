"""Workspaces through their REST face."""

from __future__ import annotations

import httpx
import pytest
from sqlalchemy import event

from app.kit.context import Context
from tests.conftest import ADA, ANN, BOB
from tests.factories import Make


async def test_a_new_workspace_belongs_to_its_maker(ann: httpx.AsyncClient) -> None:
    made = await ann.post("/v1/api/workspaces/create", json={"workspace_name": "lab"})

    assert made.status_code == 200
    listed = (await ann.post("/v1/api/workspaces/list", json={})).json()["workspaces"]
    row = next(w for w in listed if w["id"] == made.json()["workspace_id"])
    assert (row["name"], row["created_by"], row["archived"], row["models"]) == ("lab", ANN.id, False, [])
    users = await ann.post("/v1/api/workspaces/list_users", json={"workspace_id": row["id"]})
    assert users.json() == {"users": [{"user_id": ANN.id, "user_type": "OWNER"}]}


async def test_a_taken_name_is_a_conflict(ann: httpx.AsyncClient, bob: httpx.AsyncClient) -> None:
    await ann.post("/v1/api/workspaces/create", json={"workspace_name": "lab"})

    answer = await bob.post("/v1/api/workspaces/create", json={"workspace_name": "lab"})

    assert answer.status_code == 409
    assert answer.json()["code"] == 409
    assert "lab" in answer.json()["msg"]


@pytest.mark.parametrize("name", ["has space", "under_score", "dot.ted", "", "a" * 64, "ünï", "1st", "end-", None, 7])
async def test_a_name_that_is_not_allowed_is_refused(ann: httpx.AsyncClient, name: object) -> None:
    answer = await ann.post("/v1/api/workspaces/create", json={"workspace_name": name})

    assert answer.status_code == 400
    assert set(answer.json()) >= {"msg", "code"}


async def test_the_default_workspace_is_there_at_the_first_look_and_made_once(ann: httpx.AsyncClient) -> None:
    first = (await ann.post("/v1/api/workspaces/list", json={"user_id": ANN.id})).json()
    second = (await ann.post("/v1/api/workspaces/list", json={})).json()

    assert [w["name"] for w in first["workspaces"]] == ["ann@example.test - Default Workspace"]
    assert first == second


async def test_a_body_without_a_content_type_and_with_unknown_members_is_read(ann: httpx.AsyncClient) -> None:
    answer = await ann.post("/v1/api/workspaces/list", content=b'{"user_id": null, "color": "red"}')

    assert answer.status_code == 200


async def test_doubled_slashes_of_old_clients_are_one(ann: httpx.AsyncClient) -> None:
    answer = await ann.post("http://potoroo.test//v1/api/workspaces/list", json={})

    assert answer.status_code == 200


async def test_adding_a_user_twice_keeps_the_last_kind(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(owner=ANN)
    body = {"workspace_id": lab.id, "email": BOB.email}

    for kind in ("owner", "COLLABORATOR"):
        assert (await ann.post("/v1/api/workspaces/add_user", json=body | {"user_type": kind})).json() == {}

    users = (await ann.post("/v1/api/workspaces/list_users", json={"workspace_id": lab.id})).json()["users"]
    assert {u["user_id"]: u["user_type"] for u in users} == {ANN.id: "OWNER", BOB.id: "COLLABORATOR"}


async def test_removing_a_user_counts_and_is_repeatable(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(owner=ANN, member=BOB)
    body = {"workspace_id": lab.id, "email": BOB.email}

    assert (await ann.post("/v1/api/workspaces/remove_user", json=body)).json() == {"affected_rows": 1}
    assert (await ann.post("/v1/api/workspaces/remove_user", json=body)).json() == {"affected_rows": 0}


async def test_the_last_owner_stays(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(owner=ANN, member=BOB)

    gone = await ann.post("/v1/api/workspaces/remove_user", json={"workspace_id": lab.id, "user_id": ANN.id})
    lowered = await ann.post("/v1/api/workspaces/add_user", json={"workspace_id": lab.id, "user_id": ANN.id})

    assert (gone.status_code, lowered.status_code) == (409, 409)


async def test_a_collaborator_does_not_manage_members(bob: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(owner=ANN, member=BOB)

    answer = await bob.post("/v1/api/workspaces/add_user", json={"workspace_id": lab.id, "email": ADA.email})

    assert answer.status_code == 403


async def test_a_stranger_finds_no_workspace(bob: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(owner=ANN)

    listed = (await bob.post("/v1/api/workspaces/list", json={})).json()["workspaces"]
    answers = [
        await bob.post(f"/v1/api/workspaces/{path}", json={"workspace_id": lab.id} | more)
        for path, more in (
            ("list_users", {}),
            ("add_user", {"email": BOB.email}),
            ("remove_user", {"email": ANN.email}),
        )
    ]

    assert lab.id not in [w["id"] for w in listed]
    assert [a.status_code for a in answers] == [404, 404, 404]


async def test_an_administrator_sees_every_workspace(ada: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(owner=ANN)

    listed = (await ada.post("/v1/api/workspaces/list", json={})).json()["workspaces"]

    assert lab.id in [w["id"] for w in listed]


async def test_an_unknown_user_is_not_found(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(owner=ANN)

    answer = await ann.post("/v1/api/workspaces/add_user", json={"workspace_id": lab.id, "email": "ghost@example.test"})

    assert answer.status_code == 404
    assert "ghost@example.test" in answer.json()["msg"]


@pytest.mark.parametrize("body", [{}, {"workspace_id": "abc"}, {"workspace_id": 0}, {"workspace_id": 2**63}, [], "x"])
async def test_bad_bodies_are_400_in_the_shape_of_the_contract(ann: httpx.AsyncClient, body: object) -> None:
    answer = await ann.post("/v1/api/workspaces/list_users", json=body)

    assert answer.status_code == 400
    assert answer.json()["code"] == 400


async def test_without_a_token_nothing_is_listed(nobody: httpx.AsyncClient) -> None:
    answer = await nobody.post("/v1/api/workspaces/list", json={})

    assert answer.status_code == 401
    assert answer.json()["code"] == 401


async def test_listing_takes_the_same_number_of_statements_however_many_there_are(
    ann: httpx.AsyncClient, make: Make, context: Context
) -> None:
    await ann.post("/v1/api/workspaces/list", json={})
    seen: list[str] = []
    event.listen(context.database.sync_engine, "before_cursor_execute", lambda *a: seen.append(a[2]))

    counts = []
    for _ in range(2):
        for _ in range(5):
            lab = await make.workspace(owner=ANN)
            await make.model_version(lab)
            await make.pipeline(lab)
        seen.clear()
        await ann.post("/v1/api/workspaces/list", json={})
        counts.append(len([s for s in seen if s.startswith("SELECT")]))

    assert counts[0] == counts[1]
