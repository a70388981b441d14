"""Connections through their REST face."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.connections import service, upkeep
from app.connections.schemas import ConnectionIn
from app.kit.context import Context
from app.kit.secrets import SecretBox, WrongKey
from tests.conftest import ANN, BOB
from tests.factories import Make

DETAILS = {"host": "db.example.test", "port": 5432, "password": "s3cret-pass"}


async def created(client: httpx.AsyncClient, name: str = "houses", details: Any = DETAILS) -> str:
    answer = await client.post("/v1/api/connections/create", json={"name": name, "type": "PG", "details": details})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def test_a_connection_is_made_attached_and_read(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(owner=ANN, name="lab")
    key = await created(ann)

    link = await ann.post("/v1/api/connections/add_to_workspace", json={"workspace_id": lab.id, "connection_id": key})
    listed = (await ann.post("/v1/api/connections/list", json={"workspace_id": lab.id})).json()["connections"]

    assert uuid.UUID(link.json()["id"]) != uuid.UUID(key)
    assert [(c["id"], c["name"], c["details"], c["workspace_names"]) for c in listed] == [
        (key, "houses", DETAILS, ["lab"])
    ]
    assert (await ann.post("/v1/api/connections/get", json={"name": "houses"})).json() == listed[0]
    assert (await ann.post("/v1/api/connections/get_by_id", json={"id": key})).json() == listed[0]


async def test_attaching_twice_gives_the_same_link(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(owner=ANN)
    body = {"workspace_id": lab.id, "connection_id": await created(ann)}

    first, second = [await ann.post("/v1/api/connections/add_to_workspace", json=body) for _ in range(2)]

    assert first.json() == second.json()


async def test_details_lie_encrypted_in_the_table(ann: httpx.AsyncClient, session: AsyncSession) -> None:
    await created(ann)

    stored = await session.scalar(text("SELECT details FROM connections"))

    assert stored
    assert b"s3cret" not in bytes(stored)


async def test_a_taken_name_is_a_conflict_for_everybody(ann: httpx.AsyncClient, bob: httpx.AsyncClient) -> None:
    await created(ann)

    answer = await bob.post("/v1/api/connections/create", json={"name": "houses", "type": "X", "details": {}})

    assert answer.status_code == 409
    assert answer.json()["code"] == 409


async def test_an_outsider_finds_no_connection(ann: httpx.AsyncClient, bob: httpx.AsyncClient, make: Make) -> None:
    key = await created(ann)
    room = await make.workspace(owner=BOB)

    answers = [
        await bob.post(f"/v1/api/connections/{path}", json=body)
        for path, body in (
            ("get", {"name": "houses"}),
            ("get_by_id", {"id": key}),
            ("add_to_workspace", {"workspace_id": room.id, "connection_id": key}),
            ("remove_from_workspace", {"workspace_id": room.id, "connection_id": key}),
            ("delete", {"name": "houses"}),
        )
    ]

    assert [a.status_code for a in answers] == [404] * 5
    assert (await bob.post("/v1/api/connections/list", json={})).json() == {"connections": []}


async def test_members_of_an_attached_workspace_see_it_but_not_where_else_it_is(
    ann: httpx.AsyncClient, bob: httpx.AsyncClient, make: Make
) -> None:
    shared, own = await make.workspace(owner=ANN, member=BOB, name="shared"), await make.workspace(owner=ANN)
    key = await created(ann)
    for room in (shared, own):
        await ann.post("/v1/api/connections/add_to_workspace", json={"workspace_id": room.id, "connection_id": key})

    seen = (await bob.post("/v1/api/connections/get", json={"name": "houses"})).json()

    assert seen["details"] == DETAILS
    assert seen["workspace_names"] == ["shared"]


async def test_an_attached_connection_is_not_deleted(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(owner=ANN, name="lab")
    key = await created(ann)
    link = {"workspace_id": lab.id, "connection_id": key}
    await ann.post("/v1/api/connections/add_to_workspace", json=link)

    refused = await ann.post("/v1/api/connections/delete", json={"name": "houses"})
    off = await ann.post("/v1/api/connections/remove_from_workspace", json=link)
    gone = await ann.post("/v1/api/connections/delete", json={"name": "houses"})
    again = await ann.post("/v1/api/connections/delete", json={"name": "houses"})

    assert (refused.status_code, off.status_code, gone.status_code, again.status_code) == (400, 204, 204, 404)
    assert "lab" in refused.json()["msg"]
    assert off.content == b""


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "x"},
        {"name": "", "type": "X"},
        {"name": "x", "type": "X", "details": [1]},
        {"name": None, "type": "X"},
    ],
)
async def test_bad_connections_are_refused(ann: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await ann.post("/v1/api/connections/create", json=body)).status_code == 400


async def test_keys_are_changed_one_by_one(ann: httpx.AsyncClient, session: AsyncSession, context: Any) -> None:
    key = await created(ann)
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    row, _ = await service.get(session, ANN, key=uuid.UUID(key))
    row.details = SecretBox([old]).encrypt(b'{"a": 1}')

    await service.reseal(session, SecretBox([new, old]))

    assert service.details_of(SecretBox([new]), row) == {"a": 1}
    with pytest.raises(WrongKey):
        service.details_of(SecretBox([old]), row)


async def test_a_restart_with_a_new_key_before_the_old_one_makes_the_old_one_needless(
    committed: Context,
) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    given = ConnectionIn.model_validate({"name": "lake", "type": "X", "details": {"password": "hunter2"}})
    async with committed.sessions.begin() as session:
        key = (await service.create(session, ANN, SecretBox([old]), given)).id
    committed.settings = committed.settings.model_copy(update={"secret_key": SecretStr(f"{new},{old}")})

    following = asyncio.create_task(upkeep.run(committed))
    try:
        async with asyncio.timeout(20):
            while not await _opens(committed, key, new):  # noqa: ASYNC110 - what is waited for is a row
                await asyncio.sleep(0.02)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    assert not await _opens(committed, key, old)


async def _opens(context: Context, key: uuid.UUID, with_key: str) -> bool:
    async with context.sessions() as session:
        row, _ = await service.get(session, ANN, key=key)
    try:
        return service.details_of(SecretBox([with_key]), row) == {"password": "hunter2"}
    except WrongKey:
        return False


async def test_a_refused_connection_tells_nothing_of_its_details(ann: httpx.AsyncClient) -> None:
    body = {"name": "lake", "type": ["X"], "details": {"password": "hunter2"}}
    answer = await ann.post("/v1/api/connections/create", json=body)
    twice = await ann.post("/v1/api/connections/create", json=body | {"type": "X", "details": ["hunter2"]})

    assert (answer.status_code, twice.status_code) == (400, 400)
    assert "hunter2" not in answer.text + twice.text


async def test_no_details_stay_none(ann: httpx.AsyncClient) -> None:
    await created(ann, details=None)

    assert (await ann.post("/v1/api/connections/get", json={"name": "houses"})).json()["details"] is None
