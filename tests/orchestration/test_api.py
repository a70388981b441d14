"""Orchestrations and tasks through their REST face."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.kit.context import Context
from app.orchestration import bundle_access
from app.orchestration.tables import TaskRun
from tests.conftest import ANN
from tests.factories import Make
from tests.orchestration.test_bundles import zipped

BUNDLE = zipped({"main.py": "print('hello')"})
OLD, NEW = {"User-Agent": "python-httpx/0.23.3"}, {"User-Agent": "WallarooSDK/2026.1.3"}


async def upload(client: httpx.AsyncClient, workspace_id: int, raw: bytes = BUNDLE, **parts: Any) -> httpx.Response:
    files = {
        "file": ("nightly.zip", raw, "application/octet-stream"),
        "metadata": ("metadata", json.dumps({"workspace_id": workspace_id, "name": "nightly"}), "application/json"),
    } | parts
    return await client.post("/v1/api/orchestration/upload", files={k: v for k, v in files.items() if v})


@pytest.fixture
async def lab(make: Make) -> int:
    return int((await make.workspace(owner=ANN)).id)


async def task_of(client: httpx.AsyncClient, lab: int, path: str = "run_once", **more: Any) -> str:
    orch = (await upload(client, lab)).json()["id"]
    body = {"orch_id": orch, "workspace_id": lab, "json": {"a": 1}, "name": "job"} | more
    answer = await client.post(f"/v1/api/task/{path}", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def add_run(session: AsyncSession, task: str, status: str) -> str:
    first = await session.scalar(TaskRun.__table__.select().where(TaskRun.task_id == uuid.UUID(task)))
    row = await session.get(TaskRun, first)
    assert row is not None
    row.status = status
    await session.commit()
    return str(row.id)


async def test_an_uploaded_bundle_waits_to_be_packaged(ann: httpx.AsyncClient, lab: int) -> None:
    answer = await upload(ann, lab)

    assert answer.status_code == 202
    row = (await ann.post("/v1/api/orchestration/list", json={"workspace_id": lab})).json()[0]
    assert (row["id"], row["status"], row["name"]) == (answer.json()["id"], "pending_packaging", "nightly")
    assert row["file_name"] == "nightly.zip"
    assert row["file_size"] == len(BUNDLE)
    one = (await ann.post("/v1/api/orchestration/get_by_id", json={"id": row["id"]})).json()
    assert one["sha"] == row["sha"]
    assert "updated_at" not in one


@pytest.mark.parametrize("raw", [b"not a zip", zipped({"other.py": ""}), zipped({"main.py": "", "../x.py": ""})])
async def test_a_bad_bundle_is_refused_and_leaves_nothing(
    ann: httpx.AsyncClient, lab: int, raw: bytes, context: Context
) -> None:
    answer = await upload(ann, lab, raw)

    assert answer.status_code == 400
    assert len(answer.json()["msg"]) > 10
    assert (await ann.post("/v1/api/orchestration/list", json={"workspace_id": lab})).json() == []
    assert await context.storage.keys("bundles") == []


async def test_a_form_without_its_parts_is_refused(ann: httpx.AsyncClient, lab: int) -> None:
    assert (await upload(ann, lab, metadata=None)).status_code == 400
    assert (await upload(ann, lab, file=None)).status_code == 400
    assert (await ann.post("/v1/api/orchestration/upload", json={"workspace_id": lab})).status_code == 400


async def test_an_outsider_finds_nothing(ann: httpx.AsyncClient, bob: httpx.AsyncClient, lab: int) -> None:
    task = await task_of(ann, lab)
    row = (await ann.post("/v1/api/task/get_by_id", json={"id": task})).json()
    orch = row["extra_env_vars"]["ORCH_ID"]

    answers = [
        await upload(bob, lab),
        *[
            await bob.post(f"/v1/api/{path}", json=body)
            for path, body in (
                ("orchestration/list", {"workspace_id": lab}),
                ("orchestration/get_by_id", {"id": orch}),
                ("orchestration/delete_orchestrations", {"orchestrations": [orch], "confirm_delete": True}),
                ("task/run_once", {"orch_id": orch, "workspace_id": lab, "json": {}}),
                ("task/get_by_id", {"id": task}),
                ("task/kill", {"id": task}),
                ("task/pause", {"id": task, "pause": True}),
                ("task/list", {"workspace_id": lab}),
                ("task/list_task_runs", {"task_id": task}),
            )
        ],
        await bob.get("/v1/api/orchestration/download", params={"id": orch}),
    ]

    assert [a.status_code for a in answers] == [404] * len(answers)
    assert (await bob.post("/v1/api/task/list", json={})).json() == []
    assert (await bob.post("/v1/api/orchestration/list_all", json={})).json() == {"orchestrations": []}
    assert (
        await bob.post("/v1/api/task/get_tasks_by_orch_sha", json={"sha": row["extra_env_vars"]["ORCH_SHA"]})
    ).json() == {"ids": []}


async def test_a_task_shows_what_every_client_reads(ann: httpx.AsyncClient, lab: int, session: AsyncSession) -> None:
    task = await task_of(ann, lab, timeout=60, debug=True)

    row = (await ann.post("/v1/api/task/get_by_id", json={"id": task})).json()

    assert (row["status"], row["killed"], row["input_data"], row["last_runs"]) == ("pending", False, {"a": 1}, [])
    assert row["run_type"] == "Oneshot"
    assert "/arbex-orch-deploy" in row["image"]
    assert row["extra_env_vars"]["TASK_DEBUG"] == "true"
    assert (await ann.post("/v1/api/task/list", json={"workspace_id": lab})).json() == [row]
    by_sha = await ann.post("/v1/api/task/get_tasks_by_orch_sha", json={"sha": row["extra_env_vars"]["ORCH_SHA"]})
    assert by_sha.json() == {"ids": [task]}


@pytest.mark.parametrize(
    ("status", "old", "new"), [("timed_out", "failure", "timed_out"), ("killed", "failure", "killed")]
)
async def test_statuses_that_old_clients_do_not_know_are_failures_to_them(
    ann: httpx.AsyncClient, lab: int, session: AsyncSession, status: str, old: str, new: str
) -> None:
    task = await task_of(ann, lab)
    await add_run(session, task, status)

    seen = [
        (await ann.post("/v1/api/task/list_task_runs", json={"task_id": task}, headers=h)).json()[0]["status"]
        for h in (OLD, NEW)
    ]

    assert seen == [old, new]


@pytest.mark.parametrize(
    "body", [{"schedule": "every tuesday"}, {"schedule": "0 0 31 2 *"}, {}, {"schedule": "* * * * *", "timeout": 0}]
)
async def test_a_bad_schedule_is_refused(ann: httpx.AsyncClient, lab: int, body: dict[str, Any]) -> None:
    orch = (await upload(ann, lab)).json()["id"]

    answer = await ann.post(
        "/v1/api/task/run_scheduled", json={"orch_id": orch, "workspace_id": lab, "json": {}} | body
    )

    assert answer.status_code == 400
    assert (await ann.post("/v1/api/task/list", json={"workspace_id": lab})).json() == []


async def test_killing_says_pending_and_is_repeatable(ann: httpx.AsyncClient, lab: int) -> None:
    task = await task_of(ann, lab, "run_scheduled", schedule="* * * * *")

    first, second = [await ann.post("/v1/api/task/kill", json={"id": task}) for _ in range(2)]

    assert first.status_code == 202
    assert (first.json()["status"], first.json()["killed"]) == ("pending_kill", False)
    assert second.status_code == 202


async def test_a_task_is_paused_and_resumed(ann: httpx.AsyncClient, lab: int, session: AsyncSession) -> None:
    task = await task_of(ann, lab, "run_scheduled", schedule="* * * * *")

    paused = await ann.post("/v1/api/task/pause", json={"id": task, "pause": True}, headers=NEW)
    old_view = await ann.post("/v1/api/task/get_by_id", json={"id": task}, headers=OLD)
    resumed = await ann.post("/v1/api/task/pause", json={"id": task, "pause": False}, headers=NEW)

    assert paused.status_code == 202
    assert [r.json()["status"] for r in (paused, old_view, resumed)] == ["paused", "started", "started"]


async def test_deleting_tells_the_bytes_first(
    ann: httpx.AsyncClient, lab: int, session: AsyncSession, context: Context
) -> None:
    one, two = (await upload(ann, lab)).json()["id"], (await upload(ann, lab)).json()["id"]
    path = "/v1/api/orchestration/delete_orchestrations"

    shared = await ann.post(path, json={"orchestrations": [one]})
    both = await ann.post(path, json={"orchestrations": [one, two]})
    assert (shared.json(), both.json()) == ({"bytes": 0}, {"bytes": len(BUNDLE)})
    assert len((await ann.post("/v1/api/orchestration/list", json={"workspace_id": lab})).json()) == 2

    await ann.post(path, json={"orchestrations": [one, two], "confirm_delete": True})

    assert (await ann.post("/v1/api/orchestration/list", json={"workspace_id": lab})).json() == []
    assert await context.storage.keys("bundles") == []


async def test_an_orchestration_with_a_task_under_way_is_not_deleted(ann: httpx.AsyncClient, lab: int) -> None:
    task = await task_of(ann, lab)
    orch = (await ann.post("/v1/api/task/get_by_id", json={"id": task})).json()["extra_env_vars"]["ORCH_ID"]

    answer = await ann.post(
        "/v1/api/orchestration/delete_orchestrations", json={"orchestrations": [orch], "confirm_delete": True}
    )

    assert answer.status_code == 409


async def test_a_bundle_is_downloaded_as_it_was_sent(
    ann: httpx.AsyncClient, nobody: httpx.AsyncClient, lab: int
) -> None:
    orch = (await upload(ann, lab)).json()["id"]

    answer = await ann.get("/v1/api/orchestration/download", params={"id": orch})
    by_query = await nobody.get("/v1/api/orchestration/download", params={"id": orch, "token": ANN.username})

    assert answer.content == by_query.content == BUNDLE
    assert (await nobody.get("/v1/api/orchestration/download", params={"id": orch})).status_code == 401


async def test_a_run_on_another_machine_fetches_its_bundle_while_it_goes_on(
    ann: httpx.AsyncClient, nobody: httpx.AsyncClient, lab: int, session: AsyncSession, context: Context
) -> None:
    task = await task_of(ann, lab)
    run = await add_run(session, task, "running")

    async def fetched(made_for: str) -> httpx.Response:
        bearer = {"Authorization": f"Bearer {bundle_access.token_for(context, made_for)}"}
        return await nobody.get(f"/internal/bundles/{run}", headers=bearer)

    assert (await fetched(run)).content == BUNDLE
    assert (await fetched(str(uuid.uuid4()))).status_code == 401
    assert (await nobody.get(f"/internal/bundles/{run}")).status_code == 401
    assert (await ann.get(f"/internal/bundles/{run}")).status_code == 401
    await add_run(session, task, "success")
    assert (await fetched(run)).status_code == 404


async def test_list_all_shows_tasks_and_workspaces(ann: httpx.AsyncClient, lab: int, session: AsyncSession) -> None:
    task = await task_of(ann, lab)
    await add_run(session, task, "success")
    await upload(ann, lab)

    everything = (
        await ann.post("/v1/api/orchestration/list_all", json={"task_run_status": [], "workspace_ids": []})
    ).json()
    chosen = await ann.post(
        "/v1/api/orchestration/list_all", json={"task_run_status": ["success"], "workspace_ids": [lab]}
    )
    none = await ann.post("/v1/api/orchestration/list_all", json={"task_run_status": ["failure"]})

    assert len(everything["orchestrations"]) == 2
    assert [t["id"] for t in chosen.json()["orchestrations"][0]["tasks"]] == [task]
    assert chosen.json()["orchestrations"][0]["workspace"]["id"] == lab
    assert none.json() == {"orchestrations": []}


async def test_the_log_of_a_finished_run_is_read_from_its_blob(
    ann: httpx.AsyncClient, lab: int, session: AsyncSession, context: Context
) -> None:
    task = await task_of(ann, lab)
    run = await add_run(session, task, "success")

    async def chunks() -> Any:
        yield b"2024-01-01T00:00:00Z stdout F one\n2024-01-01T00:00:00Z stdo"
        yield b"ut F two\n"

    row = await session.get(TaskRun, uuid.UUID(run))
    assert row is not None
    row.log_key = (await context.storage.put("task-logs", chunks())).key
    await session.commit()

    whole = (await ann.post("/v1/api/task/get_logs_for_run", json={"id": run})).json()["logs"]
    tail = (await ann.post("/v1/api/task/get_logs_for_run", json={"id": run, "lines": 1})).json()["logs"]
    details = await ann.post("/v1/api/task/get_run_details", json={"task": task, "pod_id": run})

    assert [line.split(" F ")[1] for line in whole] == ["one", "two"]
    assert tail == whole[-1:]
    assert (details.status_code, details.json()["status"]) == (200, "success")


async def test_rows_of_another_kind_are_not_found(ann: httpx.AsyncClient, lab: int) -> None:
    nothing = str(uuid.uuid4())

    for path, body in (
        ("orchestration/get_by_id", {"id": nothing}),
        ("task/get_by_id", {"id": nothing}),
        ("task/get_logs_for_run", {"id": nothing}),
        ("task/get_run_details", {"task": nothing, "pod_id": nothing}),
        ("task/run_once", {"orch_id": nothing, "workspace_id": lab, "json": {}}),
    ):
        assert (await ann.post(f"/v1/api/{path}", json=body)).status_code == 404, path


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("orchestration/list_all", {"workspace_ids": [10**30]}),
        ("task/get_tasks_by_orch_sha", {"sha": "a\u0000b"}),
        ("task/list", {"orch_sha": "\u0000"}),
    ],
)
async def test_values_that_the_database_cannot_hold_are_bad_requests(
    ann: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    answer = await ann.post(f"/v1/api/{path}", json=body)

    assert answer.status_code == 400
    assert answer.json()["code"] == 400
