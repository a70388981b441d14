"""Models, their versions and configurations, as every client reads them."""

from __future__ import annotations

import base64
import uuid
from typing import Any

import httpx
import pyarrow as pa
import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.deployments.tables import Deployment, DeploymentModelConfig
from app.errors import NotFound
from app.kit.context import Context
from app.models import service
from app.models.tables import Model, ModelConfig, ModelVersion
from tests.conftest import ANN
from tests.factories import Make
from tests.models.conftest import upload

API = "/v1/api/models"
SCHEMA = base64.b64encode(bytes(pa.schema([pa.field("x", pa.float32())]).serialize())).decode()


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    answer = await client.post(f"{API}/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def deploy(make: Make, session: AsyncSession, version: ModelVersion, *, on: bool = True) -> None:
    workspace = (await session.get_one(Model, version.models_pk_id)).workspace_id
    pipeline, _ = await make.pipeline(await session.get_one(Model.workspace.property.mapper.class_, workspace))
    deployment = await make.add(Deployment(deploy_id="d", pipeline_id=pipeline.id, deployed=on))
    config = await service.config_in_force(session, version.id)
    assert config is not None
    await make.add(DeploymentModelConfig(deployment_id=deployment.id, model_config_id=config.id))


async def test_a_version_has_every_field_that_clients_demand(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    version_id = await upload(ann, lab, b"abc")

    shown = await post(ann, "get_version_by_id", model_version_id=version_id)

    version, config = shown["model_version"]["model_version"], shown["model_version"]["config"]
    sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert version.items() >= {
        "id": version_id, "name": "fraud", "visibility": "private", "workspace_id": lab.id, "image_path": None,
        "status": "pending_load_native", "task_id": None, "created_on_version": "2024.1.0", "created_by": ANN.email,
        "deployed": False, "error_summary": None,
    }.items()  # fmt: skip
    assert uuid.UUID(version["file_info"]["version"])
    assert version["file_info"] | {"version": ""} == {"version": "", "sha": sha, "file_name": "fraud.onnx", "size": 3}
    assert version["created_at"].endswith("+00:00")
    assert config.items() >= {"model_version_id": version_id, "runtime": "onnx", "tensor_fields": None}.items()
    assert set(config) == {
        "id", "model_version_id", "runtime", "filter_threshold", "tensor_fields", "input_schema", "output_schema",
        "batch_config", "dynamic_batching_config", "continuous_batching_config", "queue_depth", "sidekick_uri",
        "openai",
    }  # fmt: skip
    assert await post(ann, "get_model_version_by_id", model_version_id=version_id) == shown


async def test_a_listing_reads_old_and_new(ann: httpx.AsyncClient, make: Make, session: AsyncSession) -> None:
    lab = await make.workspace(member=ANN)
    first, second = await upload(ann, lab, b"1", name="one"), await upload(ann, lab, b"2", name="two")
    third = await upload(ann, lab, b"3", name="one")
    await make.add(Model(name="bare", workspace_id=lab.id))

    listed = (await post(ann, "list", workspace_id=lab.id))["models"]

    assert [m["name"] for m in listed] == ["bare", "two", "one"]
    assert [[v["model_version"]["id"] for v in m["model_versions"]] for m in listed] == [[], [second], [third, first]]
    one = listed[-1]
    assert one["model"] == {k: one[k] for k in ("id", "name", "owner_id", "workspace_id", "created_at", "updated_at")}
    assert one["workspace"].items() >= {"id": lab.id, "name": lab.name, "archived": False, "group_id": None}.items()
    assert "models" not in one
    shown = await post(ann, "get_version_by_id", model_version_id=first)
    assert one["model_versions"][1] == shown["model_version"]
    named = await post(ann, "list", workspace_id=None, workspace_name=lab.name)
    assert named["models"] == listed
    single = await post(ann, "list_versions_for_model", model_id="one", workspace_id=lab.id)
    assert single["models"] == [one]


async def test_versions_are_listed_by_name_or_number_the_newest_last(ann: httpx.AsyncClient, make: Make) -> None:
    lab, other = await make.workspace(member=ANN), await make.workspace(member=ANN)
    hidden = await make.model_version(await make.workspace(), name="fraud")
    ids = [await upload(ann, w, blob) for w, blob in ((lab, b"1"), (lab, b"2"), (other, b"3"))]
    await upload(ann, lab, b"4", name="other")

    by_name = await post(ann, "list_versions", model_id="fraud", models_pk_id=0)
    by_number = await post(ann, "list_versions", models_pk_id=by_name[0]["models_pk_id"])
    of_strangers = await post(ann, "list_versions", models_pk_id=hidden.models_pk_id)

    assert [v["id"] for v in by_name] == ids
    assert [v["id"] for v in by_number] == ids[:2]
    assert of_strangers == []
    assert set(by_name[0]) == {
        "sha", "models_pk_id", "model_version", "owner_id", "model_id", "id", "file_name", "image_path", "status",
    }  # fmt: skip


async def test_a_model_is_shown_with_its_versions(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    first, second = await upload(ann, lab, b"1"), await upload(ann, lab, b"2")
    number = (await post(ann, "list_versions", model_id="fraud"))[0]["models_pk_id"]

    shown = await post(ann, "get", id=number)
    brief = await post(ann, "get_by_id", id=number)

    assert (shown["name"], shown["workspace"]) == ("fraud", {"id": lab.id, "name": lab.name})
    assert [v["id"] for v in shown["models"]] == [second, first]
    assert shown["models"][0].items() >= {"arch": "x86", "accel": "none", "visibility": "private"}.items()
    assert brief["workspace_id"] == lab.id
    assert brief["model_config"]["runtime"] == "onnx"


@pytest.mark.parametrize(
    ("path", "key"),
    [("get_version_by_id", "model_version_id"), ("get_model_version_by_id", "model_version_id"),
     ("get_config_by_id", "model_id"), ("insert_model_config", "model_version_id"),
     ("get_upload_logs", "model_version_id"), ("get", "id"), ("get_by_id", "id")],
)  # fmt: skip
async def test_what_is_not_yours_does_not_exist(
    ann: httpx.AsyncClient, bob: httpx.AsyncClient, nobody: httpx.AsyncClient, make: Make, path: str, key: str
) -> None:
    version = await make.model_version(await make.workspace(member=ANN))
    number = version.models_pk_id if key == "id" else version.id

    found = [await c.post(f"{API}/{path}", json={key: number}) for c in (ann, bob, nobody)]
    unknown = await ann.post(f"{API}/{path}", json={key: 2**62})
    absurd = [await ann.post(f"{API}/{path}", json={key: v}) for v in (0, -1, 2**63, "x", None)]

    assert [a.status_code for a in found] == [200, 404, 401]
    assert unknown.status_code == 404
    assert {a.status_code for a in absurd} == {400}


async def test_an_outsider_lists_and_deletes_nothing(bob: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    version = await make.model_version(lab, name="fraud")

    found = [
        await bob.post(f"{API}/{path}", json=body)
        for path, body in (
            ("list", {"workspace_id": lab.id}),
            ("list_versions_for_model", {"model_id": "fraud", "workspace_id": lab.id}),
            ("delete_model", {"model_id": "fraud", "workspace_id": lab.id, "confirm_delete": True}),
            ("delete_model_versions", {"model_versions": [version.model_version], "confirm_delete": True}),
        )
    ]

    assert [a.status_code for a in found] == [404] * 4
    assert await post(bob, "list", workspace_name=lab.name) == {"models": []}
    assert await post(bob, "list_versions", model_id="fraud") == []
    assert await post(bob, "list") == {"models": []}


async def test_a_configuration_inherits_what_it_does_not_say(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    version_id = await upload(ann, lab, b"x", input_schema=SCHEMA)
    before = (await post(ann, "get_config_by_id", model_id=version_id))["model_config"]

    fields = await post(ann, "insert_model_config", model_version_id=version_id, tensor_fields=["tensor"])
    batched = await post(ann, "insert_model_config", model_version_id=version_id, batch_config="single")
    dynamic = await post(
        ann, "insert_model_config", model_version_id=version_id,
        dynamic_batching_config={"max_batch_delay_ms": 5, "batch_size_target": 2, "batch_size_limit": None},
        openai_config={"enabled": False},
    )  # fmt: skip

    assert before["input_schema"] == SCHEMA
    assert fields["model_config"] == before | {"id": fields["model_config"]["id"], "tensor_fields": ["tensor"]}
    assert batched["model_config"].items() >= {"batch_config": "single", "tensor_fields": ["tensor"]}.items()
    assert dynamic["model_config"].items() >= {
        "batch_config": None, "tensor_fields": ["tensor"], "input_schema": SCHEMA, "runtime": "onnx",
        "openai": {"enabled": False, "completion_config": None, "chat_completion_config": None},
    }.items()  # fmt: skip
    assert await post(ann, "get_config_by_id", model_id=version_id) == dynamic
    again = await post(ann, "insert_model_config", model_version_id=version_id)
    assert again["model_config"] == dynamic["model_config"] | {"id": again["model_config"]["id"]}


@pytest.mark.parametrize(
    "values",
    [
        {"batch_config": "single", "continuous_batching_config": {"max_concurrent_batch_size": 1}},
        {"batch_config": "double"},
        {"dynamic_batching_config": {"max_batch_delay_ms": 0}},
        {"dynamic_batching_config": {"color": "red"}},
        {"continuous_batching_config": {"max_concurrent_batch_size": 0}},
        {"input_schema": "AAAA"},
        {"tensor_fields": "tensor"},
        {"tensor_fields": ["\x00"]},
        {"filter_threshold": "high"},
        {"openai_config": {"enabled": True, "completion_config": {"stop": "\x00"}}},
    ],
)
async def test_a_configuration_that_makes_no_sense_is_refused(
    ann: httpx.AsyncClient, make: Make, values: dict[str, Any]
) -> None:
    version = await make.model_version(await make.workspace(member=ANN))

    answer = await ann.post(f"{API}/insert_model_config", json={"model_version_id": version.id} | values)

    assert answer.status_code == 400
    assert answer.json()["code"] == 400


async def test_a_dry_run_tells_the_bytes_and_a_confirmed_deletion_frees_them(
    ann: httpx.AsyncClient, make: Make, context: Context
) -> None:
    lab = await make.workspace(member=ANN)
    for blob in (b"12345", b"123"):
        await upload(ann, lab, blob)
    gone = {"model_id": "fraud", "workspace_id": lab.id}

    dry = await post(ann, "delete_model", **gone)
    still = await post(ann, "list", workspace_id=lab.id)
    wet = await post(ann, "delete_model", **gone, confirm_delete=True)

    assert (dry, wet) == ({"bytes": 8}, {"bytes": 8})
    assert len(still["models"]) == 1
    assert await post(ann, "list", workspace_id=lab.id) == {"models": []}
    assert await context.storage.keys("models") == []
    assert (await ann.post(f"{API}/delete_model", json=gone)).status_code == 404


async def test_a_model_in_use_stays(ann: httpx.AsyncClient, make: Make, session: AsyncSession) -> None:
    lab = await make.workspace(member=ANN)
    deployed, stopped = await make.model_version(lab, name="on"), await make.model_version(lab, name="off")
    named = await make.model_version(lab, name="named")
    await deploy(make, session, deployed)
    await deploy(make, session, stopped, on=False)
    step = {"ModelInference": {"models": [{"name": "named", "version": named.model_version, "sha": named.sha}]}}
    await make.pipeline(lab, name="user", definition={"steps": [step]})

    answers = [
        await ann.post(f"{API}/delete_model", json={"model_id": n, "workspace_id": lab.id})
        for n in ("on", "named", "off")
    ]

    assert [a.status_code for a in answers] == [409, 409, 200]
    assert "deployed" in answers[0].json()["msg"]
    assert "'user'" in answers[1].json()["msg"]
    listed = (await post(ann, "list", workspace_id=lab.id))["models"]
    shown = {m["name"]: m["model_versions"][0]["model_version"]["deployed"] for m in listed}
    assert shown == {"on": True, "off": False, "named": False}


async def test_an_unknown_version_deletes_nothing(ann: httpx.AsyncClient, make: Make) -> None:
    version = await make.model_version(await make.workspace(member=ANN))
    wanted = [version.model_version, str(uuid.uuid4())]

    answer = await ann.post(f"{API}/delete_model_versions", json={"model_versions": wanted, "confirm_delete": True})

    assert answer.status_code == 404
    assert await post(ann, "list_versions", models_pk_id=version.models_pk_id) != []


async def test_a_step_names_a_version_by_name_uuid_and_sha(make: Make, session: AsyncSession) -> None:
    lab = await make.workspace()
    version = await make.model_version(lab, name="fraud")
    name = {"workspace_id": lab.id, "name": "fraud", "version": version.model_version}

    found = await service.resolve(session, **name, sha=version.sha)
    assert (found.id, found.model.workspace_id) == (version.id, lab.id)
    for wrong in ({"sha": "0" * 64}, {"name": "other"}, {"workspace_id": lab.id + 1}, {"version": "no uuid"}):
        with pytest.raises(NotFound):
            await service.resolve(session, **(name | wrong))


async def test_the_configurations_in_force_come_in_one_statement(make: Make, session: AsyncSession) -> None:
    lab = await make.workspace()
    versions = [await make.model_version(lab) for _ in range(3)]
    newest = await make.add(ModelConfig(model_id=versions[0].id, runtime="onnx", tensor_fields=["a"]))

    found = await service.latest_configs(session, [v.id for v in versions])

    assert set(found) == {v.id for v in versions}
    assert found[versions[0].id].id == newest.id
    assert await service.latest_configs(session, []) == {}


async def test_names_with_characters_that_cannot_be_stored_are_refused(ann: httpx.AsyncClient) -> None:
    found = [
        await ann.post(f"{API}/list_versions", json={"model_id": "a\x00b"}),
        await ann.post(f"{API}/list", json={"workspace_name": "a\x00b"}),
        await ann.post(f"{API}/list_versions", json={}),
    ]

    assert [a.status_code for a in found] == [400, 400, 400]


async def test_a_large_listing_is_one_statement(
    ann: httpx.AsyncClient, make: Make, session: AsyncSession, context: Context
) -> None:
    lab = await make.workspace(member=ANN)
    models, versions_each = 500, 4
    ids = list(
        await session.scalars(
            insert(Model).returning(Model.id), [{"name": f"m{n}", "workspace_id": lab.id} for n in range(models)]
        )
    )
    conversion = {"framework": "onnx", "python_version": "3.8", "requirements": [], "arch": "x86", "accel": "none"}
    rows = [
        {"model_id": f"m{n}", "models_pk_id": key, "sha": f"{n:064x}", "status": "ready", "file_name": "f.onnx",
         "file_size": 9, "conversion": conversion, "inspection": {"log": ["x" * 200]}}
        for n, key in enumerate(ids) for _ in range(versions_each)
    ]  # fmt: skip
    keys = await session.scalars(insert(ModelVersion).returning(ModelVersion.id), rows)
    await session.execute(insert(ModelConfig), [{"model_id": key, "runtime": "onnx"} for key in keys])
    await session.commit()
    for mapped in (Model, ModelVersion, ModelConfig):  # as Postgres does by itself within a minute
        await session.execute(text(f"ANALYZE {mapped.__tablename__}"))
    await session.commit()
    statements: list[str] = []
    event.listen(context.database.sync_engine, "before_cursor_execute", lambda *a: statements.append(a[2]))

    answer = await ann.post(f"{API}/list", json={"workspace_id": lab.id})

    listed = answer.json()["models"]
    assert (len(listed), sum(len(m["model_versions"]) for m in listed)) == (models, models * versions_each)
    assert len([s for s in statements if s.startswith("SELECT")]) == 2  # may the caller see it; the listing


def test_every_route_is_documented(context: Context) -> None:
    from app.main import create_app

    paths = create_app(context, roles=()).openapi()["paths"]

    ours = {p: item["post"] for p, item in paths.items() if p.startswith(f"{API}/") and "regist" not in p}
    assert len(ours) == 15
    for path, operation in ours.items():
        assert operation["description"], path
        assert operation["requestBody"]["content"], path
        assert any(s in operation["responses"] for s in ("200", "202")), path
