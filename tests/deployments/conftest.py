"""A controller over a fake runtime and a clock that stands still."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from app.deployments import runtimes
from app.deployments.controller import Controller
from app.deployments.tables import Deployment
from app.kit.context import Context
from app.models.tables import ModelVersion
from app.pipelines.tables import Pipeline, PipelineVersion
from tests.conftest import ANN
from tests.deployments.fakes import FakeClock, FakeRuntime
from tests.factories import Make

Status = Callable[[int], Awaitable[dict[str, Any] | None]]


@pytest.fixture
def clock(context: Context) -> FakeClock:
    """The process's clock."""
    clock = FakeClock()
    context.clock = clock
    return clock


@pytest.fixture
def runtime(context: Context, clock: FakeClock) -> FakeRuntime:
    """The process's runtime."""
    runtime = FakeRuntime(clock)
    context.parts[runtimes.PART] = runtime
    return runtime


@pytest.fixture
def controller(context: Context, runtime: FakeRuntime) -> Controller:
    """A controller that works when it is told to."""
    return Controller(context, runtime)


@pytest.fixture
async def fraud(make: Make) -> tuple[Pipeline, PipelineVersion, ModelVersion]:
    """A pipeline of one model, in a workspace of Ann's."""
    lab = await make.workspace(member=ANN)
    model = await make.model_version(lab, name="ccfraud")
    pipeline, version = await make.pipeline(lab, name="fraud", definition=runs(model))
    return pipeline, version, model


@pytest.fixture
def deploy(ann: httpx.AsyncClient) -> Callable[..., Awaitable[int]]:
    """Deploys a version as Ann; returns the deployment's number."""

    async def ask(version: PipelineVersion, **more: Any) -> int:
        body = {"deploy_id": "fraud", "pipeline_version_pk_id": version.id} | more
        answer = await ann.post("/v1/api/pipelines/deploy", json=body)
        assert answer.status_code == 200, answer.text
        number: int = answer.json()["id"]
        return number

    return ask


@pytest.fixture
def status(ann: httpx.AsyncClient) -> Status:
    """Asks for a deployment's status; None for a 404."""

    async def ask(number: int) -> dict[str, Any] | None:
        answer = await ann.post("/v1/api/status/get_deployment", json={"name": f"fraud-{number}"})
        assert answer.status_code in (200, 404), answer.text
        return answer.json() if answer.status_code == 200 else None

    return ask


def runs(*models: ModelVersion, kind: str = "ModelInference") -> dict[str, Any]:
    """Return a definition of one step per model."""
    return {"steps": [{kind: {"models": [reference(model)]}} for model in models]}


def reference(model: ModelVersion) -> dict[str, Any]:
    """Return how steps name a model."""
    return {"name": model.model_id, "version": model.model_version, "sha": model.sha}


__all__ = ["Deployment", "Status", "reference", "runs"]
