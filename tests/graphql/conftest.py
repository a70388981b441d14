"""Two worlds, Ann's and Bob's, with a row in every published table; every text of Bob's holds the word `bobs`."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from app.graphql.service import Endpoint
from app.identity.caller import Caller
from app.kit.context import Context
from app.schema import assays, deployments, models, orchestration, pipelines, workspaces
from tests.conftest import ANN, BOB
from tests.factories import Make

Ask = Callable[..., Awaitable[dict[str, Any]]]


class Refused(Exception):
    """The answer was an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.message: str = error["message"]
        self.code: str = error["extensions"]["code"]
        self.path: str = error["extensions"]["path"]


@pytest.fixture(scope="session")
def endpoint() -> Endpoint:
    return Endpoint()


@pytest.fixture
def ask() -> Ask:
    async def send(client: httpx.AsyncClient, query: str, **variables: Any) -> dict[str, Any]:
        body: dict[str, Any] = {"query": query}
        if variables:
            body["variables"] = variables
        reply = await client.post("/v1/graphql", json=body)
        assert reply.status_code == 200, reply.text
        answer = reply.json()
        if "errors" in answer:
            assert set(answer) == {"errors"}
            raise Refused(answer["errors"][0])
        data: dict[str, Any] = answer["data"]
        return data

    return send


@pytest.fixture
def statements(context: Context) -> Iterator[list[str]]:
    """The statements sent to the database from now on, savepoints aside."""
    seen: list[str] = []

    def note(*args: Any) -> None:
        if not re.match(r"(RELEASE |ROLLBACK TO )?SAVEPOINT", args[2]):
            seen.append(args[2])

    event.listen(context.database.sync_engine, "before_cursor_execute", note)
    yield seen
    event.remove(context.database.sync_engine, "before_cursor_execute", note)


@dataclass
class World:
    """What one person has: the rows of each table, by the table's name."""

    word: str
    rows: dict[str, list[Any]] = field(default_factory=dict)

    def one(self, table: str) -> Any:
        return self.rows[table][0]


async def make_world(make: Make, person: Caller, word: str) -> World:
    world = World(word)

    async def add(row: Any) -> Any:
        make.session.add(row)
        await make.session.flush()
        world.rows.setdefault(row.__tablename__, []).append(row)
        return row

    space = await add(workspaces.Workspace(name=f"{word}-space", created_by=word, owner_id=person.id))
    await add(workspaces.WorkspaceUser(workspace_id=space.id, user_id=person.id, user_type="OWNER"))
    await add(workspaces.UserDefaultWorkspace(workspace_id=space.id, user_id=person.id))
    name = await add(models.Model(name=f"{word}-model", workspace_id=space.id, owner_id=word))
    for number in range(3):
        version = await add(
            models.ModelVersion(
                model_id=f"{word}-model",
                models_pk_id=name.id,
                status="ready",
                sha=f"{word}{number}".ljust(64, "0"),
                file_name=f"{word}.onnx",
                file_size=number,
                image_path=word,
                owner_id=word,
                created_by=word,
                error_summary=word,
                task_id=uuid.uuid4(),
                conversion={"framework": "onnx", "arch": word, "deep": {"list": [word, 7]}},
                inspection={"secret": "never-published"},
            )
        )
    version = world.one("model")
    config = await add(
        models.ModelConfig(
            model_id=version.id, runtime="onnx", tensor_fields=[word], batch_config=word, input_schema=word
        )
    )
    pipeline = await add(pipelines.Pipeline(pipeline_id=f"{word}-pipeline", workspace_id=space.id, owner_id=word))
    named = {"name": version.model_id, "version": version.model_version, "sha": version.sha}
    definition = {"id": word, "steps": [{"ModelInference": {"models": [named]}}]}
    for _ in range(2):
        pipeline_version = await add(
            pipelines.PipelineVersion(pipeline_pk_id=pipeline.id, definition=definition, owner_id=word)
        )
    deployment = await add(
        deployments.Deployment(
            deploy_id=f"{word}-pipeline", pipeline_id=pipeline.id, updated_by=word, observed={"x": "never-published"}
        )
    )
    await add(
        deployments.DeploymentModelConfig(
            deployment_id=deployment.id, model_config_id=config.id, pipeline_version_pk_id=pipeline_version.id
        )
    )
    await add(
        deployments.DeploymentPipelineVersion(deployment_id=deployment.id, pipeline_version_pk_id=pipeline_version.id)
    )
    await add(
        pipelines.PipelinePublish(
            pipeline_version_id=pipeline_version.id, status="Published", chart_url=word, created_by=word
        )
    )
    tag = await add(pipelines.Tag(tag=f"{word}-tag", owner_id=person.id))
    await add(pipelines.ModelTag(model_id=version.id, tag_id=tag.id))
    await add(pipelines.PipelineTag(pipeline_pk_id=pipeline.id, tag_pk_id=tag.id))
    await add(
        orchestration.Orchestration(
            name=word, file_name=word, file_size=1, sha=word, owner_id=word, workspace_id=space.id, created_by=word
        )
    )
    await add(assays.Assay(name=f"{word}-assay", alert_threshold=0.25, pipeline_name=word, pipeline_id=pipeline.id))
    await add(pipelines.AlertConfiguration(name=word, pipeline_version_pk_id=pipeline.id))
    comment = await add(pipelines.Comment(message=word, user_id=person.id))
    await add(pipelines.ModelComment(model_pk_id=version.id, comment_id=comment.id))
    await add(pipelines.PipelineComment(pipeline_pk_id=pipeline.id, comment_pk_id=comment.id))
    await make.session.commit()
    return world


@pytest.fixture
async def anns(make: Make) -> World:
    return await make_world(make, ANN, "anns")


@pytest.fixture
async def bobs(make: Make) -> World:
    return await make_world(make, BOB, "bobs")
