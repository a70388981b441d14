"""From what was asked for to what runs, and what people see of it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from app.deployments.controller import Controller
from app.deployments.runtimes.base import DoesNotFit, RuntimeFailure
from app.kit.context import Context
from app.models.tables import ModelVersion
from app.pipelines.tables import Pipeline, PipelineVersion
from tests.deployments.conftest import Status
from tests.deployments.fakes import FakeClock, FakeRuntime
from tests.factories import Make

Fraud = tuple[Pipeline, PipelineVersion, ModelVersion]
Deploy = Callable[..., Awaitable[int]]


async def work(controller: Controller, number: int, clock: FakeClock, seconds: float = 20) -> None:
    """Let the controller look again and again while time passes."""
    for _ in range(20):
        await controller.reconcile(number)
        clock.pass_s(seconds / 20)


async def test_a_deploy_comes_to_run_and_its_status_is_as_in_the_guide(
    controller: Controller, clock: FakeClock, fraud: Fraud, deploy: Deploy, status: Status
) -> None:
    number = await deploy(fraud[1])
    before = await status(number)

    await work(controller, number, clock)

    seen = await status(number)
    assert before is not None
    assert (before["status"], before["details"], before["engines"]) == ("Starting", ["Scaling"], [])
    assert seen is not None
    assert (seen["status"], seen["details"], seen["sidekicks"]) == ("Running", [], [])
    (engine,), (balancer,) = seen["engines"], seen["engine_lbs"]
    assert (engine["status"], engine["reason"], engine["details"]) == ("Running", None, [])
    assert engine["name"]
    assert engine["ip"] == "127.0.0.1"
    assert engine["pipeline_statuses"] == {"pipelines": [{"id": "fraud", "status": "Running"}]}
    assert engine["model_statuses"] == {"models": [{"name": "m", "sha": "s", "status": "Running", "version": "v"}]}
    assert balancer["status"] == "Running"


async def test_newer_clients_see_versions_in_the_status(
    controller: Controller, clock: FakeClock, fraud: Fraud, deploy: Deploy, ann: httpx.AsyncClient
) -> None:
    number = await deploy(fraud[1])
    await work(controller, number, clock)

    answer = await ann.post(
        "/v1/api/status/get_deployment",
        json={"name": f"fraud-{number}"},
        headers={"User-Agent": "WallarooSDK/2025.2.5"},
    )

    engine = answer.json()["engines"][0]
    assert engine["pipeline_statuses"]["pipelines"][0]["version"] == str(fraud[1].version)
    assert engine["model_statuses"]["models"][0]["model_version_id"] == 1


async def test_the_engine_is_told_all_it_needs(
    controller: Controller, runtime: FakeRuntime, clock: FakeClock, fraud: Fraud, deploy: Deploy
) -> None:
    pipeline, version, model = fraud
    number = await deploy(version, engine_config={"cpus": 2, "memory": "1Gi", "replica_count": 2})

    await work(controller, number, clock)

    (launch,) = runtime.launches
    document = launch.document
    assert (document.deployment_id, document.deploy_id, document.revision) == (number, "fraud", 1)
    assert [(p.id, p.version, p.definition) for p in document.pipelines] == [
        ("fraud", str(version.version), version.definition)
    ]
    assert document.pipelines[0].topic == f"workspace-{pipeline.workspace_id}-pipeline-fraud-inference"
    assert [(m.name, m.version, m.sha, m.config.runtime) for m in document.models] == [
        ("ccfraud", model.model_version, model.sha, "onnx")
    ]
    assert document.models[0].record["model_version"]["name"] == "ccfraud"
    assert launch.blobs == {model.id: f"models/{model.sha}"}
    assert (launch.replicas, launch.wanted.engine.cpus, launch.wanted.engine.memory_bytes) == (2, 2.0, 1024**3)
    assert runtime.revisions(number) == [1, 1]


async def test_an_undeployed_pipeline_is_gone_when_its_engines_are(
    controller: Controller,
    runtime: FakeRuntime,
    clock: FakeClock,
    fraud: Fraud,
    deploy: Deploy,
    status: Status,
    ann: httpx.AsyncClient,
) -> None:
    number = await deploy(fraud[1])
    await work(controller, number, clock)
    runtime.lingering = True

    answers = [await ann.post("/v1/api/pipelines/undeploy", json={"deployment_id": number}) for _ in range(2)]
    await controller.reconcile(number)
    during = await status(number)
    await work(controller, number, clock)

    assert [(a.status_code, a.json()) for a in answers] == [(200, {}), (200, {})]
    assert during is not None
    assert during["status"] != "Running"
    assert await status(number) is None
    assert runtime.revisions(number) == []


async def test_deploying_again_keeps_the_number_and_changes_over_without_a_gap(
    controller: Controller,
    runtime: FakeRuntime,
    clock: FakeClock,
    fraud: Fraud,
    deploy: Deploy,
    status: Status,
    make: Make,
) -> None:
    number = await deploy(fraud[1])
    await work(controller, number, clock)
    runtime.looks = 100
    second = await make.add(PipelineVersion(pipeline_pk_id=fraud[0].id, definition=fraud[1].definition))

    again = await deploy(second)
    await work(controller, number, clock)
    during, revisions = await status(number), runtime.revisions(number)
    runtime.looks = 1
    await work(controller, number, clock)
    after = await status(number)

    assert again == number
    assert revisions == [1, 2]
    assert during is not None
    assert during["status"] == "Starting"
    assert runtime.revisions(number) == [2]
    assert after is not None
    assert after["status"] == "Running"


async def test_deploying_the_same_again_changes_nothing(
    controller: Controller, runtime: FakeRuntime, clock: FakeClock, fraud: Fraud, deploy: Deploy, status: Status
) -> None:
    number = await deploy(fraud[1])
    await work(controller, number, clock)

    assert await deploy(fraud[1]) == number

    seen = await status(number)
    assert seen is not None
    assert seen["status"] == "Running"
    await work(controller, number, clock)
    assert len(runtime.launches) == 1


async def test_why_a_model_cannot_be_served_is_shown_until_the_next_deploy(
    controller: Controller,
    runtime: FakeRuntime,
    clock: FakeClock,
    fraud: Fraud,
    deploy: Deploy,
    status: Status,
) -> None:
    runtime.broken_revisions = {1}
    number = await deploy(fraud[1])
    await work(controller, number, clock)

    seen = await status(number)
    assert seen is not None
    assert (seen["status"], seen["details"]) == ("Error", ["the model is no model"])
    assert [(e["status"], e["reason"]) for e in seen["engines"]] == [("Failed", "the model is no model")]
    assert runtime.revisions(number) == []

    assert await deploy(fraud[1]) == number
    await work(controller, number, clock)
    after = await status(number)
    assert after is not None
    assert after["status"] == "Running"


async def test_what_ran_before_goes_on_when_the_new_version_fails(
    controller: Controller,
    runtime: FakeRuntime,
    clock: FakeClock,
    fraud: Fraud,
    deploy: Deploy,
    status: Status,
    make: Make,
) -> None:
    number = await deploy(fraud[1])
    await work(controller, number, clock)
    runtime.broken_revisions = {2}
    second = await make.add(PipelineVersion(pipeline_pk_id=fraud[0].id, definition=fraud[1].definition))

    await deploy(second)
    await work(controller, number, clock)

    seen = await status(number)
    assert seen is not None
    assert seen["status"] == "Error"
    assert [e["status"] for e in seen["engines"]] == ["Running", "Failed"]
    assert runtime.revisions(number) == [1]


async def test_engines_that_never_answer_fail_at_the_deadline(
    controller: Controller,
    runtime: FakeRuntime,
    clock: FakeClock,
    context: Context,
    fraud: Fraud,
    deploy: Deploy,
    status: Status,
) -> None:
    runtime.looks = float("inf")
    number = await deploy(fraud[1])
    await work(controller, number, clock, seconds=context.settings.engine_start_s - 10)
    before = await status(number)
    clock.pass_s(3600 * 24 * 365)

    await work(controller, number, clock)

    seen = await status(number)
    assert before is not None
    assert before["status"] == "Starting"
    assert seen is not None
    assert seen["status"] == "Error"
    assert "300 seconds" in seen["details"][0]
    assert runtime.revisions(number) == []


async def test_a_dead_engine_is_started_again(
    controller: Controller, runtime: FakeRuntime, clock: FakeClock, fraud: Fraud, deploy: Deploy, status: Status
) -> None:
    number = await deploy(fraud[1])
    await work(controller, number, clock)
    runtime.kill(number)
    runtime.looks = 100

    await controller.reconcile(number)
    during = await status(number)
    runtime.looks = 1
    await work(controller, number, clock)

    after = await status(number)
    assert during is not None
    assert during["status"] == "Starting"
    assert after is not None
    assert after["status"] == "Running"
    assert after["engines"][0]["details"] == ["restarted 1 times"]


async def test_what_does_not_fit_says_what_it_would_need_and_starts_when_there_is_room(
    controller: Controller, runtime: FakeRuntime, clock: FakeClock, fraud: Fraud, deploy: Deploy, status: Status
) -> None:
    runtime.no_room = DoesNotFit("It needs 8Gi; there are 2 GiB.", memory="8Gi")
    number = await deploy(fraud[1])
    await work(controller, number, clock)
    waiting = await status(number)
    runtime.no_room = None
    await work(controller, number, clock)

    after = await status(number)
    assert waiting is not None
    assert waiting["status"] == "Error"
    assert [(e["status"], e["required_memory"]) for e in waiting["engines"]] == [("Pending", "8Gi")]
    assert after is not None
    assert after["status"] == "Running"


async def test_a_start_that_fails_is_tried_again(
    controller: Controller, runtime: FakeRuntime, clock: FakeClock, fraud: Fraud, deploy: Deploy, status: Status
) -> None:
    runtime.fails = [RuntimeFailure("The disk was away.")]
    number = await deploy(fraud[1])

    assert await controller.reconcile(number) is not None
    await work(controller, number, clock)

    seen = await status(number)
    assert seen is not None
    assert seen["status"] == "Running"


async def test_engines_of_a_deleted_pipeline_are_stopped(
    controller: Controller,
    runtime: FakeRuntime,
    clock: FakeClock,
    fraud: Fraud,
    deploy: Deploy,
    session: AsyncSession,
) -> None:
    number = await deploy(fraud[1])
    await work(controller, number, clock)
    await session.execute(delete(Pipeline).where(Pipeline.id == fraud[0].id))
    await session.commit()

    await work(controller, number, clock)

    assert runtime.revisions(number) == []
    assert await controller.reconcile(number) is None


async def test_a_bad_deployment_does_not_keep_the_others_waiting(
    controller: Controller, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    async def reconcile(number: int) -> None:
        if number == 1:
            raise ZeroDivisionError
        done.append(number)

    monkeypatch.setattr(controller, "reconcile", reconcile)
    from app.deployments.workqueue import WorkQueue

    queue = WorkQueue()
    worker = asyncio.create_task(controller._work(queue))
    for number in (1, 2, 3):
        queue.add(number)
    await asyncio.sleep(0.05)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)

    assert done == [2, 3]


async def test_scaled_to_none_is_running_without_engines(
    controller: Controller, clock: FakeClock, fraud: Fraud, deploy: Deploy, status: Status
) -> None:
    number = await deploy(fraud[1], engine_config={"replica_count": 0})
    await work(controller, number, clock)

    seen: dict[str, Any] | None = await status(number)
    assert seen is not None
    assert (seen["status"], seen["engines"]) == ("Running", [])
