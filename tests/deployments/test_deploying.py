"""Deploying in all its forms, and what is refused."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.deployments import access, service
from app.deployments.tables import Deployment, DeploymentModelConfig
from app.errors import Conflict
from app.kit.context import Context
from app.models.tables import ModelConfig, ModelVersion
from app.pipelines.tables import Pipeline, PipelineVersion
from engine.contract.deployment import AccessDocument
from tests.conftest import ADA, ANN, BOB
from tests.deployments.conftest import reference, runs
from tests.factories import Make

Fraud = tuple[Pipeline, PipelineVersion, ModelVersion]


async def configs(session: AsyncSession, number: int) -> list[int]:
    """Return the ids of the model configurations that a deployment runs."""
    return list(
        await session.scalars(
            select(DeploymentModelConfig.model_config_id)
            .where(DeploymentModelConfig.deployment_id == number)
            .order_by(DeploymentModelConfig.model_config_id)
        )
    )


async def config_of(session: AsyncSession, model: ModelVersion) -> int:
    found = await session.scalar(select(ModelConfig.id).where(ModelConfig.model_id == model.id))
    assert found is not None
    return found


async def test_every_way_to_name_what_is_deployed_means_the_same(
    ann: httpx.AsyncClient, fraud: Fraud, session: AsyncSession
) -> None:
    pipeline, version, model = fraud
    config = await config_of(session, model)
    ways: list[dict[str, Any]] = [
        {"pipeline_version_pk_id": version.id},
        {"pipeline_version_pk_id": version.id, "pipeline_id": pipeline.id, "models": [reference(model)]},
        {"pipeline_version_pk_id": version.id, "pipeline_id": pipeline.id, "model_ids": [model.id]},
        {"pipeline_version_pk_id": version.id, "pipeline_id": pipeline.id, "model_configs": [config]},
        {"pipeline_version": str(version.version)},
        {"pipeline_id": pipeline.id},
        {"pipeline_id": pipeline.id, "pipeline_version_pk_id": None, "engine_config": "{}", "models": None},
    ]

    answers = [await ann.post("/v1/api/pipelines/deploy", json={"deploy_id": "fraud"} | way) for way in ways]

    numbers = {a.json().get("id") for a in answers}
    assert len(numbers) == 1, [a.text for a in answers]
    assert await configs(session, numbers.pop()) == [config]


async def test_a_named_configuration_wins_over_the_newest(
    ann: httpx.AsyncClient, fraud: Fraud, session: AsyncSession, make: Make
) -> None:
    older = await config_of(session, fraud[2])
    newer = await make.add(ModelConfig(model_id=fraud[2].id, runtime="onnx", tensor_fields=["x"]))
    body = {"deploy_id": "fraud", "pipeline_version_pk_id": fraud[1].id}

    number = (await ann.post("/v1/api/pipelines/deploy", json=body)).json()["id"]
    first = await configs(session, number)
    await ann.post("/v1/api/pipelines/deploy", json=body | {"model_configs": [older]})

    assert first == [newer.id]
    assert await configs(session, number) == [older]


async def test_a_version_without_a_configuration_gets_one(
    ann: httpx.AsyncClient, make: Make, session: AsyncSession
) -> None:
    lab = await make.workspace(member=ANN)
    model = await make.model_version(lab)
    await session.delete((await session.scalars(select(ModelConfig).where(ModelConfig.model_id == model.id))).one())
    await session.commit()
    _, version = await make.pipeline(lab, definition=runs(model))

    answer = await ann.post("/v1/api/pipelines/deploy", json={"deploy_id": "p", "pipeline_version_pk_id": version.id})

    assert await configs(session, answer.json()["id"]) == [await config_of(session, model)]


async def test_models_of_every_kind_of_step_are_found(
    ann: httpx.AsyncClient, make: Make, session: AsyncSession
) -> None:
    lab = await make.workspace(member=ANN)
    a, b, c = [await make.model_version(lab) for _ in range(3)]
    steps = [
        {"RandomSplit": {"hash_key": None, "weights": [{"model": reference(a), "weight": 1}]}},
        {"MetaValueSplit": {"split_key": "k", "control": reference(b), "routes": {"x": reference(c)}}},
    ]
    _, version = await make.pipeline(lab, definition={"steps": steps})

    answer = await ann.post("/v1/api/pipelines/deploy", json={"deploy_id": "p", "pipeline_version_pk_id": version.id})

    assert answer.status_code == 200, answer.text
    assert await configs(session, answer.json()["id"]) == [await config_of(session, m) for m in (a, b, c)]


async def test_a_model_of_another_workspace_that_the_caller_sees_may_be_used(
    ann: httpx.AsyncClient, make: Make
) -> None:
    model = await make.model_version(await make.workspace(member=ANN))
    hidden = await make.model_version(await make.workspace(member=BOB))
    lab = await make.workspace(member=ANN)

    async def deploy(model: ModelVersion) -> int:
        _, version = await make.pipeline(lab, definition=runs(model))
        body = {"deploy_id": "p", "pipeline_version_pk_id": version.id}
        return (await ann.post("/v1/api/pipelines/deploy", json=body)).status_code

    assert [await deploy(model), await deploy(hidden)] == [200, 404]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"deploy_id": "fraud"}, 400),
        ({"deploy_id": "Fraud_", "pipeline_version_pk_id": "version"}, 400),
        ({"deploy_id": "fraud", "pipeline_version_pk_id": 10**9}, 404),
        ({"deploy_id": "fraud", "pipeline_version_pk_id": 2**70}, 400),
        ({"deploy_id": "fraud", "pipeline_version_pk_id": "version", "pipeline_id": 10**9}, 400),
        ({"deploy_id": "fraud", "pipeline_version_pk_id": "version", "pipeline_version": str(uuid.uuid4())}, 400),
        ({"deploy_id": "fraud", "pipeline_version": str(uuid.uuid4())}, 404),
        ({"deploy_id": "fraud", "pipeline_version_pk_id": "version", "model_ids": [10**9]}, 404),
        ({"deploy_id": "fraud", "pipeline_version_pk_id": "version", "model_configs": [10**9]}, 404),
        ({"deploy_id": "fraud", "pipeline_version_pk_id": "version", "models": [{"name": "x", "version": "y"}]}, 404),
        ({"deploy_id": "fraud", "pipeline_version_pk_id": "version", "engine_config": {"cpus": "many"}}, 400),
        ({"deploy_id": "fraud", "pipeline_version_pk_id": "version", "engine_config": "{"}, 400),
    ],
)
async def test_what_cannot_be_deployed_is_refused(
    ann: httpx.AsyncClient, fraud: Fraud, body: dict[str, Any], status: int
) -> None:
    body = {key: fraud[1].id if value == "version" else value for key, value in body.items()}

    answer = await ann.post("/v1/api/pipelines/deploy", json=body)

    assert (answer.status_code, answer.json()["code"]) == (status, status), answer.text


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"sha": "0" * 64}, 400, "hash"),
        ({"name": "other"}, 404, "other"),
        ({"version": str(uuid.uuid4())}, 404, "no version"),
    ],
)
async def test_a_step_that_names_its_model_wrongly_is_not_deployed(
    ann: httpx.AsyncClient, make: Make, change: dict[str, str], status: int, word: str
) -> None:
    lab = await make.workspace(member=ANN)
    model = await make.model_version(lab)
    definition = {"steps": [{"ModelInference": {"models": [reference(model) | change]}}]}
    _, version = await make.pipeline(lab, definition=definition)

    answer = await ann.post("/v1/api/pipelines/deploy", json={"deploy_id": "p", "pipeline_version_pk_id": version.id})

    assert answer.status_code == status
    assert word in answer.json()["msg"]


@pytest.mark.parametrize(("state", "word"), [("pending_load_native", "not ready"), ("error", "not a model")])
async def test_a_model_that_is_not_ready_is_not_deployed(
    ann: httpx.AsyncClient, make: Make, state: str, word: str
) -> None:
    lab = await make.workspace(member=ANN)
    model = await make.model_version(lab, status=state, error_summary="not a model" if state == "error" else None)
    _, version = await make.pipeline(lab, definition=runs(model))

    answer = await ann.post("/v1/api/pipelines/deploy", json={"deploy_id": "p", "pipeline_version_pk_id": version.id})

    assert answer.status_code == 409
    assert word in answer.json()["msg"]


async def test_steps_that_nobody_knows_are_kept_but_not_deployed(ann: httpx.AsyncClient, make: Make) -> None:
    lab = await make.workspace(member=ANN)
    _, version = await make.pipeline(lab, definition={"steps": [{"Teleport": {}}]})

    answer = await ann.post("/v1/api/pipelines/deploy", json={"deploy_id": "p", "pipeline_version_pk_id": version.id})

    assert answer.status_code == 400
    assert "Teleport" in answer.json()["msg"]


async def test_old_generated_clients_get_their_errors_as_500(ann: httpx.AsyncClient) -> None:
    body = {"deploy_id": "p", "pipeline_version_pk_id": 10**9}

    old = await ann.post("/v1/api/pipelines/deploy", json=body, headers={"User-Agent": "python-httpx/0.24.1"})
    new = await ann.post("/v1/api/pipelines/deploy", json=body, headers={"User-Agent": "WallarooSDK/2024.1.0"})

    assert (old.status_code, new.status_code) == (500, 404)
    assert old.json()["msg"] == new.json()["msg"]


async def test_the_configuration_comes_back_nested(ann: httpx.AsyncClient, fraud: Fraud, session: AsyncSession) -> None:
    body = {"deploy_id": "fraud", "pipeline_version_pk_id": fraud[1].id}
    config = {"cpus": 1, "sidekick_arch": {"model": "ccfraud", "arch": "x86"}}

    answer = await ann.post("/v1/api/pipelines/deploy", json=body | {"engine_config": config})

    row = await session.get_one(Deployment, answer.json()["id"])
    assert row.engine_config["engine"]["resources"]["limits"] == {"cpu": 1}
    assert list(row.engine_config["engineAux"]["images"]) == [f"ccfraud-{fraud[2].id}"]


async def test_undeploy_takes_either_number_and_refuses_none_or_strange_ones(
    ann: httpx.AsyncClient, fraud: Fraud
) -> None:
    body = {"deploy_id": "fraud", "pipeline_version_pk_id": fraud[1].id}
    number = (await ann.post("/v1/api/pipelines/deploy", json=body)).json()["id"]

    async def undeploy(**named: int) -> int:
        return (await ann.post("/v1/api/pipelines/undeploy", json=named)).status_code

    assert await undeploy() == 400
    assert await undeploy(deployment_id=10**9) == 404
    assert await undeploy(deployment_id=number, pipeline_id=10**9) == 400
    assert await undeploy(pipeline_id=fraud[0].id) == 200
    assert await undeploy(deployment_id=number, pipeline_id=fraud[0].id) == 200


async def test_the_external_url_has_the_form_of_the_guide(ann: httpx.AsyncClient, fraud: Fraud) -> None:
    asked = {"workspace_id": fraud[0].workspace_id, "pipeline_name": "fraud"}
    before = await ann.post("/v1/api/admin/get_pipeline_external_url", json=asked)
    body = {"deploy_id": "mine", "pipeline_version_pk_id": fraud[1].id}
    number = (await ann.post("/v1/api/pipelines/deploy", json=body)).json()["id"]

    after = await ann.post("/v1/api/admin/get_pipeline_external_url", json=asked)
    internal = await ann.post("/v1/api/admin/get_pipeline_internal_url", json=asked)

    assert before.status_code == 404
    assert after.json() == {"url": f"http://potoroo.test/v1/api/pipelines/infer/mine-{number}/fraud"}
    assert internal.status_code == 503


async def test_a_copy_can_be_deployed_at_once(ann: httpx.AsyncClient, fraud: Fraud, session: AsyncSession) -> None:
    body = {
        "name": "copied",
        "workspace_id": fraud[0].workspace_id,
        "source_pipeline": fraud[0].id,
        "deploy": "copied",
        "engine_config": {"replica_count": 2},
    }

    answer = (await ann.post("/v1/api/pipelines/copy", json=body)).json()

    row = await session.get_one(Deployment, answer["deployment"]["id"])
    assert (row.pipeline_id, row.deployed, row.engine_config["engine"]["replicas"]) == (
        answer["pipeline_pk_id"],
        True,
        2,
    )


@pytest.mark.parametrize("name", ["", "fraud", "fraud-", "fraud-x", "-1", "fraud-99999999999999999999", "other-1", "-"])
async def test_a_status_name_that_names_nothing_is_not_found(ann: httpx.AsyncClient, fraud: Fraud, name: str) -> None:
    answer = await ann.post("/v1/api/status/get_deployment", json={"name": name})

    assert answer.status_code == 404


async def test_an_outsider_sees_no_deployment(ann: httpx.AsyncClient, bob: httpx.AsyncClient, fraud: Fraud) -> None:
    body = {"deploy_id": "fraud", "pipeline_version_pk_id": fraud[1].id}
    number = (await ann.post("/v1/api/pipelines/deploy", json=body)).json()["id"]
    asked: list[tuple[str, dict[str, Any]]] = [
        ("status/get_deployment", {"name": f"fraud-{number}"}),
        ("pipelines/undeploy", {"deployment_id": number}),
        ("admin/get_pipeline_external_url", {"workspace_id": fraud[0].workspace_id, "pipeline_name": "fraud"}),
        ("admin/get_pipeline_internal_url", {"workspace_id": fraud[0].workspace_id, "pipeline_name": "fraud"}),
    ]

    answers = [(await bob.post(f"/v1/api/{path}", json=body)).status_code for path, body in asked]

    assert answers == [404] * len(asked)


async def test_a_model_is_replaced_by_another_configuration_of_it(
    ann: httpx.AsyncClient, fraud: Fraud, session: AsyncSession, make: Make
) -> None:
    body = {"deploy_id": "fraud", "pipeline_version_pk_id": fraud[1].id}
    number = (await ann.post("/v1/api/pipelines/deploy", json=body)).json()["id"]
    other = await make.add(ModelConfig(model_id=fraud[2].id, runtime="onnx", tensor_fields=["y"]))
    stranger = await make.model_version(await make.workspace(member=ANN))
    foreign = await config_of(session, stranger)

    row = await service.replace_model(session, ANN, number, other.id)
    with pytest.raises(Conflict):
        await service.replace_model(session, ANN, number, foreign)

    assert row.model_config_id == other.id
    assert await configs(session, number) == [other.id]
    assert (await session.get_one(Deployment, number)).revision == 2


async def test_a_model_is_replaced_by_another_version_of_it(
    ann: httpx.AsyncClient, fraud: Fraud, session: AsyncSession, make: Make
) -> None:
    body = {"deploy_id": "fraud", "pipeline_version_pk_id": fraud[1].id}
    number = (await ann.post("/v1/api/pipelines/deploy", json=body)).json()["id"]
    old = fraud[2]
    newer = await make.add(
        ModelVersion(
            model_id=old.model_id,
            models_pk_id=old.models_pk_id,
            status="ready",
            sha="f" * 64,
            file_name="fraud.onnx",
            conversion=old.conversion,
        )
    )
    config = await make.add(ModelConfig(model_id=newer.id, runtime="onnx"))

    row = await service.replace_model(session, ANN, number, config.id)
    again = await service.replace_model(session, ANN, number, config.id)

    assert again.id == row.id
    assert row.pipeline_version_pk_id != fraud[1].id
    version = await session.get_one(PipelineVersion, row.pipeline_version_pk_id)
    (model,) = version.definition["steps"][0]["ModelInference"]["models"]
    assert model == {"name": old.model_id, "version": newer.model_version, "sha": "f" * 64}
    assert old.model_version in str((await session.get_one(PipelineVersion, fraud[1].id)).definition)
    assert await configs(session, number) == sorted([await config_of(session, old), config.id])  # one of each version
    assert (await session.get_one(Deployment, number)).revision == 2


async def test_which_of_two_versions_is_to_give_way_must_be_said(
    ann: httpx.AsyncClient, fraud: Fraud, session: AsyncSession, make: Make
) -> None:
    old = fraud[2]
    made = [
        await make.add(
            ModelVersion(
                model_id=old.model_id, models_pk_id=old.models_pk_id, status="ready", sha=letter * 64,
                file_name="fraud.onnx", conversion=old.conversion,
            )
        )
        for letter in "de"
    ]  # fmt: skip
    named = [{"name": v.model_id, "version": v.model_version, "sha": v.sha} for v in (old, made[0])]
    steps = [{"ModelInference": {"models": named}}, {"MultiOut": {}}]
    both = await make.add(PipelineVersion(pipeline_pk_id=fraud[0].id, definition={"steps": steps}))
    body = {"deploy_id": "fraud", "pipeline_version_pk_id": both.id}
    number = (await ann.post("/v1/api/pipelines/deploy", json=body)).json()["id"]
    config = await make.add(ModelConfig(model_id=made[1].id, runtime="onnx"))

    with pytest.raises(Conflict, match="2 versions"):
        await service.replace_model(session, ANN, number, config.id)


async def test_redeploying_starts_what_was_stopped_and_leaves_what_runs(
    ann: httpx.AsyncClient, fraud: Fraud, session: AsyncSession
) -> None:
    body = {"deploy_id": "fraud", "pipeline_version_pk_id": fraud[1].id}
    number = (await ann.post("/v1/api/pipelines/deploy", json=body)).json()["id"]

    same = (await service.redeploy(session, ANN, number)).revision
    await service.undeploy(session, ANN, number, None)
    again = await service.redeploy(session, ANN, number)

    assert (same, again.revision, again.deployed) == (1, 2, True)


async def test_an_engine_learns_who_may_infer_by_its_own_secret_alone(
    ann: httpx.AsyncClient, nobody: httpx.AsyncClient, context: Context, fraud: Fraud, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"deploy_id": "fraud", "pipeline_version_pk_id": fraud[1].id}
    number = (await ann.post("/v1/api/pipelines/deploy", json=body)).json()["id"]
    from app.identity.keys import AccessFacts

    facts = AccessFacts([], [{"kid": "k"}], ["s"], {"u": 5}, admins=[ADA.id], disabled=[BOB.id])

    async def known(_: Context) -> AccessFacts:
        return facts

    monkeypatch.setattr(access, "access_facts", known)
    token = access.access_token(context, number)

    async def ask(secret: str | None, deployment: int = number) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}".encode("latin-1")} if secret else {}
        return await nobody.get(f"/internal/access/{deployment}", headers=headers)

    document = msgspec.json.decode((await ask(token)).content, type=AccessDocument)
    assert document.users == sorted([ADA.id, ANN.id])
    assert (document.keys, document.revoked_sessions, document.not_before) == ([{"kid": "k"}], ["s"], {"u": 5})
    assert [
        (await ask(secret)).status_code for secret in (None, "junk", "é", access.access_token(context, number + 1))
    ] == [401] * 4
    assert (await ask(access.access_token(context, 10**9), 10**9)).status_code == 404


async def test_an_engine_fetches_the_models_it_runs_and_no_others(
    ann: httpx.AsyncClient, nobody: httpx.AsyncClient, context: Context, fraud: Fraud, make: Make
) -> None:
    body = {"deploy_id": "fraud", "pipeline_version_pk_id": fraud[1].id}
    number = (await ann.post("/v1/api/pipelines/deploy", json=body)).json()["id"]
    other = await make.model_version(await make.workspace(member=ANN))
    path = context.storage.local_path(f"models/{fraud[2].sha}")
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a model")
    headers = {"Authorization": f"Bearer {access.access_token(context, number)}"}

    mine = await nobody.get(f"/internal/models/{number}/{fraud[2].id}", headers=headers)
    foreign = await nobody.get(f"/internal/models/{number}/{other.id}", headers=headers)
    without = await nobody.get(f"/internal/models/{number}/{fraud[2].id}")

    assert (mine.status_code, mine.content) == (200, b"a model")
    assert (foreign.status_code, without.status_code) == (404, 401)
