"""Pipelines and their versions through the REST face."""

from __future__ import annotations

import uuid

import httpx
import pytest
from sqlalchemy import event

from app.deployments.tables import Deployment, DeploymentPipelineVersion
from app.kit.context import Context
from app.pipelines.tables import Pipeline, PipelinePublish, PipelineVersion
from tests.conftest import ANN, BOB
from tests.factories import Make

STEP = {"ModelInference": {"models": [{"name": "m", "version": "v", "sha": "s"}]}}


async def deployed(make: Make, pipeline: Pipeline, version: PipelineVersion) -> Deployment:
    row = await make.add(Deployment(deploy_id=pipeline.pipeline_id, pipeline_id=pipeline.id, deployed=True))
    await make.add(DeploymentPipelineVersion(deployment_id=row.id, pipeline_version_pk_id=version.id))
    return row  # type: ignore[no-any-return]


async def test_creating_a_name_again_adds_a_version_and_keeps_the_pipeline(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    body = {"pipeline_id": "fraud", "workspace_id": lab.id, "definition": {}}

    first = (await ann.post("/v1/api/pipelines/create", json=body)).json()
    second = (await ann.post("/v1/api/pipelines/create", json=body | {"definition": {"steps": [STEP]}})).json()

    assert set(first) == {"pipeline_pk_id", "pipeline_variant_pk_id", "pipeline_variant_version"}
    assert first["pipeline_pk_id"] == second["pipeline_pk_id"]
    assert first["pipeline_variant_pk_id"] < second["pipeline_variant_pk_id"]
    listed = (
        await ann.post(
            "/v1/api/pipelines/list_pipeline_versions", json={"pipeline_id": "fraud", "workspace_id": lab.id}
        )
    ).json()["pipeline_versions"]
    assert [v["pipeline_version"]["version"] for v in listed] == [
        second["pipeline_variant_version"],
        first["pipeline_variant_version"],
    ]


async def test_a_definition_comes_back_exactly_as_it_was_sent(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    definition = {"id": "fraud", "steps": [STEP, {"Unheard": {"of": [1, 2.5, None, "é"]}}], "more": {"b": 1, "a": 2}}
    made = await ann.post(
        "/v1/api/pipelines/create", json={"pipeline_id": "fraud", "workspace_id": lab.id, "definition": definition}
    )

    version = made.json()["pipeline_variant_version"]
    shown = await ann.post("/v1/api/pipelines/get_version", json={"version": version})

    assert shown.json() == {"pipeline_id": "fraud", "version": version, "definition": definition}


@pytest.mark.parametrize("name", ["under_score", "Upper", "dot.ted", "", "-x", "x-", "a" * 64, "ünï", None, 5])
async def test_a_name_that_is_no_dns_label_is_refused(ann: httpx.AsyncClient, make: Make, name: object) -> None:
    lab = await make.workspace(member=ANN)

    answer = await ann.post(
        "/v1/api/pipelines/create", json={"pipeline_id": name, "workspace_id": lab.id, "definition": {}}
    )

    assert answer.status_code == 400
    assert answer.json()["code"] == 400


@pytest.mark.parametrize("definition", [{"steps": 5}, {"steps": [5]}, {"steps": [{}]}, {"steps": [{"A": {}, "B": {}}]}])
async def test_what_can_be_no_definition_is_refused(ann: httpx.AsyncClient, make: Make, definition: object) -> None:
    lab = await make.workspace(member=ANN)

    answer = await ann.post(
        "/v1/api/pipelines/create", json={"pipeline_id": "x", "workspace_id": lab.id, "definition": definition}
    )

    assert answer.status_code == 400


async def test_a_listing_has_all_that_clients_require(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    pipeline, version = await make.pipeline(lab, name="fraud", definition={"steps": [STEP]})
    await deployed(make, pipeline, version)
    await make.pipeline(await make.workspace(member=ANN), name="other")

    everything = (await ann.post("/v1/api/pipelines/list_pipelines", json={"workspace_id": None})).json()["pipelines"]
    mine = (await ann.post("/v1/api/pipelines/list_pipelines", json={"workspace_id": lab.id})).json()["pipelines"]
    named = (await ann.post("/v1/api/pipelines/list_pipelines", json={"workspace_name": lab.name})).json()["pipelines"]

    assert [p["pipeline"]["name"] for p in everything] == ["other", "fraud"]
    assert mine == named == everything[1:]
    item = mine[0]
    assert item["plateau_topic"] == f"workspace-{lab.id}-pipeline-fraud-inference"
    assert item["deployment"] == {"prewarmed_replicas": 1, "maximum_replicas": 1}
    assert set(item["pipeline"]) == {"id", "name", "created_at", "updated_at"}
    assert set(item["workspace"]) == {"id", "name", "archived", "created_at", "created_by", "group_id"}
    assert item["pipeline_version"]["steps"] == {"steps": [STEP]}
    assert item["pipeline_version"]["version"] == str(version.version)


async def test_a_pipeline_is_found_by_its_name(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    pipeline, _ = await make.pipeline(lab, name="fraud")

    found = await ann.post(
        "/v1/api/pipelines/get_pipeline_by_name", json={"pipeline_name": "fraud", "workspace_id": lab.id}
    )
    missing = await ann.post(
        "/v1/api/pipelines/get_pipeline_by_name", json={"pipeline_name": "nope", "workspace_id": lab.id}
    )

    assert found.json()["pipeline"]["id"] == pipeline.id
    assert set(found.json()) == {"pipeline", "workspace", "plateau_topic"}
    assert missing.status_code == 404


async def test_a_copy_has_the_newest_definition_under_its_own_name(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    pipeline, _ = await make.pipeline(lab, name="fraud", definition={"id": "fraud", "steps": [STEP]})
    body = {"name": "copied", "workspace_id": lab.id, "source_pipeline": pipeline.id}

    made = await ann.post("/v1/api/pipelines/copy", json=body)
    again = await ann.post("/v1/api/pipelines/copy", json=body)

    assert made.json()["pipeline_version"] is None
    assert made.json()["deployment"] is None
    listed = (
        await ann.post(
            "/v1/api/pipelines/list_pipeline_versions", json={"pipeline_id": "copied", "workspace_id": lab.id}
        )
    ).json()["pipeline_versions"]
    assert [v["pipeline_version"]["steps"] for v in listed] == [{"id": "copied", "steps": [STEP]}]
    assert again.status_code == 409


async def test_a_copy_may_be_of_a_named_version(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    pipeline, first = await make.pipeline(lab, name="fraud", definition={"steps": [STEP]})
    await make.add(PipelineVersion(pipeline_pk_id=pipeline.id, definition={}))
    body = {"name": "copied", "workspace_id": lab.id, "source_pipeline": pipeline.id}

    made = await ann.post("/v1/api/pipelines/copy", json=body | {"pipeline_version": str(first.version)})
    foreign = await ann.post("/v1/api/pipelines/copy", json=body | {"pipeline_version": str(uuid.uuid4())})

    shown = await ann.post("/v1/api/pipelines/get_version", json={"version": made.json()["pipeline_version"]})
    assert shown.json()["definition"] == {"steps": [STEP]}
    assert foreign.status_code == 404


async def test_a_deployed_or_published_pipeline_is_not_deleted(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    pipeline, version = await make.pipeline(lab, name="live")
    row = await deployed(make, pipeline, version)
    _, published = await make.pipeline(lab, name="edge")
    await make.add(PipelinePublish(pipeline_version_id=published.id, status="Published"))

    async def delete(name: str) -> httpx.Response:
        return await ann.post("/v1/api/pipelines/delete_pipeline", json={"pipeline_id": name, "workspace_id": lab.id})

    assert [(await delete(name)).status_code for name in ("live", "edge")] == [409, 409]
    row.deployed = False
    await make.add(row)
    gone = await delete("live")
    assert gone.json() == {"pipeline_id": "live", "workspace_id": lab.id}
    assert (await delete("live")).status_code == 404


async def test_versions_in_use_or_a_pipelines_last_are_not_deleted(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    pipeline, first = await make.pipeline(lab)
    second = await make.add(PipelineVersion(pipeline_pk_id=pipeline.id, definition={}))
    await deployed(make, pipeline, second)
    _, only = await make.pipeline(lab)

    async def delete(*versions: PipelineVersion) -> int:
        body = {"pipeline_versions": [str(v.version) for v in versions]}
        return (await ann.post("/v1/api/pipelines/delete_pipeline_versions", json=body)).status_code

    assert await delete(second) == 409
    assert await delete(only) == 409
    assert await delete(first, only) == 409
    assert await delete(first) == 200
    assert await delete(first) == 404


async def test_an_outsider_finds_no_pipeline(bob: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    pipeline, version = await make.pipeline(lab, name="fraud")
    own = await make.workspace(member=BOB)
    named = {"pipeline_id": "fraud", "workspace_id": lab.id}
    asked: list[tuple[str, dict[str, object]]] = [
        ("create", named | {"definition": {}}),
        ("get_version", {"version": str(version.version)}),
        ("list_pipeline_versions", named),
        ("get_pipeline_by_name", {"pipeline_name": "fraud", "workspace_id": lab.id}),
        ("get_pipeline_by_name", {"pipeline_name": "fraud"}),
        ("delete_pipeline", named),
        ("delete_pipeline_versions", {"pipeline_versions": [str(version.version)]}),
        ("copy", {"name": "mine", "workspace_id": own.id, "source_pipeline": pipeline.id}),
        ("deploy", {"deploy_id": "mine", "pipeline_version_pk_id": version.id}),
        ("undeploy", {"pipeline_id": pipeline.id}),
    ]

    answers = [(await bob.post(f"/v1/api/pipelines/{path}", json=body)).status_code for path, body in asked]
    listed = (await bob.post("/v1/api/pipelines/list_pipelines", json={})).json()["pipelines"]

    assert answers == [404] * len(asked)
    assert listed == []


async def test_listing_takes_the_same_number_of_statements_however_many_there_are(
    ann: httpx.AsyncClient, make: Make, context: Context
) -> None:
    lab = await make.workspace(member=ANN)
    seen: list[str] = []
    event.listen(context.database.sync_engine, "before_cursor_execute", lambda *a: seen.append(a[2]))

    counts = []
    for _ in range(2):
        for _ in range(4):
            await deployed(make, *await make.pipeline(lab))
        seen.clear()
        await ann.post("/v1/api/pipelines/list_pipelines", json={})
        counts.append(len([s for s in seen if s.startswith("SELECT")]))

    assert counts[0] == counts[1]
