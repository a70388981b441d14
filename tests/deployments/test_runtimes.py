"""What every runtime must do, and what the local one does besides."""

# ruff: noqa: ASYNC110, ASYNC240 - what is waited for happens in other processes, and the files are small

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.deployments.engine_config import interpret, normalise
from app.deployments.plan import Replica, ReplicaPhase
from app.deployments.runtimes import processes
from app.deployments.runtimes.base import DoesNotFit, Launch, Runtime
from app.deployments.runtimes.local import LocalRuntime
from app.kit.storage import open_storage
from engine.contract.deployment import (
    DeploymentDocument,
    Limits,
    ModelConfigDocument,
    ModelDocument,
    PipelineDocument,
    load_document,
)
from tests.deployments.fakes import FakeClock, FakeRuntime

STUB = str(Path(__file__).with_name("stub_engine.py"))


def launch(manner: str = "good", revision: int = 1, replicas: int = 1, **config: Any) -> Launch:
    model = ModelDocument(
        model_version_id=9,
        name="m",
        version="v",
        sha="f" * 64,
        framework="onnx",
        path="",
        config=ModelConfigDocument(id=1, runtime="onnx"),
    )
    document = DeploymentDocument(
        deployment_id=7,
        deploy_id="fraud",
        revision=revision,
        workspace_id=1,
        replica="",
        pipelines=[PipelineDocument(id=manner, version="v", definition={}, topic="t")],
        models=[model],
        limits=Limits(drain_s=0.2),
    )
    nested = normalise(config)
    return Launch(document, {9: "models/x"}, "a secret", replicas, interpret(nested), nested)


@pytest.fixture
async def local() -> AsyncIterator[LocalRuntime]:
    """A local runtime whose engines are stubs."""
    with tempfile.TemporaryDirectory(prefix="potoroo-") as folder:
        runtime = reopened(Path(folder))
        yield runtime
        for replica in await runtime.observe(7):
            if replica.pid is not None:
                os.kill(replica.pid, signal.SIGKILL)
        await runtime.close()


def reopened(folder: Path) -> LocalRuntime:
    """Return a runtime on `folder`, as a server that was started anew has it."""
    storage = open_storage(str(folder / "blobs"))
    runtime = LocalRuntime(folder / "run", storage, lambda number: f"http://127.0.0.1:1/internal/access/{number}")
    runtime._command = [sys.executable, STUB, "--document"]
    return runtime


@pytest.fixture(params=["fake", "local"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """Every runtime in turn."""
    if request.param == "fake":
        return FakeRuntime(FakeClock())
    made: Runtime = request.getfixturevalue("local")
    return made


async def seen(runtime: Runtime, wanted: Callable[[tuple[Replica, ...]], bool]) -> tuple[Replica, ...]:
    """Look until what is seen is as wanted."""
    async with asyncio.timeout(20):
        while not wanted(found := await runtime.observe(7)):
            await asyncio.sleep(0.02)
    return found


def phases(*wanted: ReplicaPhase) -> Callable[[tuple[Replica, ...]], bool]:
    return lambda found: sorted(r.phase for r in found) == sorted(wanted)


RUNNING, FAILED, PENDING, STOPPING = (
    ReplicaPhase.RUNNING,
    ReplicaPhase.FAILED,
    ReplicaPhase.PENDING,
    ReplicaPhase.STOPPING,
)


async def test_nothing_is_known_of_what_never_was(runtime: Runtime) -> None:
    assert await runtime.deployments() == set()
    assert await runtime.observe(7) == ()
    await runtime.stop(7)
    assert await runtime.logs(7, "engine", 10) == []


async def test_started_replicas_come_to_run_and_say_where_and_what(runtime: Runtime) -> None:
    await runtime.start(launch(replicas=2))

    found = await seen(runtime, phases(RUNNING, RUNNING))

    assert await runtime.deployments() == {7}
    assert len({r.name for r in found}) == 2
    assert all(r.name.startswith("engine-") and r.revision == 1 and r.host and r.port for r in found)
    assert found[0].pipelines == ({"id": "good", "version": "v", "status": "Running"},) or found[0].pipelines


async def test_starting_again_only_adds_what_is_missing(runtime: Runtime) -> None:
    await runtime.start(launch(replicas=1))
    await runtime.start(launch(replicas=1))
    assert len(await runtime.observe(7)) == 1

    await runtime.start(launch(replicas=2))

    assert len(await seen(runtime, phases(RUNNING, RUNNING))) == 2


async def test_revisions_stand_side_by_side_and_go_one_by_one(runtime: Runtime) -> None:
    await runtime.start(launch(revision=1))
    await runtime.start(launch(revision=2))
    await seen(runtime, phases(RUNNING, RUNNING))

    await runtime.stop(7, keep_revision=2)
    left = await seen(runtime, lambda found: [r.revision for r in found] == [2])
    await runtime.stop(7)
    await runtime.stop(7)
    await seen(runtime, lambda found: not found)

    assert left[0].phase is RUNNING
    assert await runtime.deployments() == set()


# The local runtime.


async def test_an_engine_gets_its_document_and_its_secret_in_files_of_its_owner_alone(local: LocalRuntime) -> None:
    await local.start(launch(cpus=1, memory="1Gi"))
    (replica,) = await seen(local, phases(RUNNING))

    folder = local._root / "7" / replica.name
    document = load_document((folder / "document.json").read_bytes())
    assert document.replica == replica.name
    assert document.resources.memory_bytes == 1024**3
    assert document.models[0].path.endswith("/blobs/models/x")
    assert document.access is not None
    assert Path(document.access.token_file).read_text() == "a secret"
    assert folder.stat().st_mode & 0o077 == 0
    assert Path(document.access.token_file).stat().st_mode & 0o077 == 0
    assert replica.pid is not None
    environment = Path(f"/proc/{replica.pid}/environ").read_bytes()
    assert b"POTOROO" not in environment


async def test_engines_are_found_again_by_the_next_server(local: LocalRuntime) -> None:
    await local.start(launch())
    (before,) = await seen(local, phases(RUNNING))
    await local.close()

    (after,) = await reopened(local._root.parents[1]).observe(7)

    assert (after.pid, after.phase) == (before.pid, RUNNING)


async def test_an_engine_whose_process_was_not_yet_written_down_is_found_by_its_command(local: LocalRuntime) -> None:
    await local.start(launch())
    (before,) = await seen(local, phases(RUNNING))
    file = local._root / "7" / before.name / "process.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": None, "started": -1}))

    (after,) = await local.observe(7)

    assert (after.pid, after.phase) == (before.pid, RUNNING)


async def test_a_folder_that_was_not_finished_is_cleared_away(local: LocalRuntime) -> None:
    (local._root / "7" / "engine-half").mkdir(parents=True)

    assert await local.observe(7) == ()
    assert await local.deployments() == set()


async def test_an_engine_that_ends_tells_how_and_is_noticed_at_once(local: LocalRuntime) -> None:
    told: list[int] = []
    local.on_change(told.append)
    await local.start(launch())
    (replica,) = await seen(local, phases(RUNNING))
    assert replica.pid is not None

    os.kill(replica.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        while not told:
            await asyncio.sleep(0.01)
    (ended,) = await local.observe(7)

    assert told == [7]
    assert ended.phase is FAILED
    assert "SIGKILL" in (ended.reason or "")
    assert not ended.is_final


async def test_why_an_engine_does_not_start_is_in_its_last_words(local: LocalRuntime) -> None:
    await local.start(launch("dies"))

    (ended,) = await seen(local, phases(FAILED))

    assert "exit status 3" in (ended.reason or "")
    assert "something broke" in (ended.reason or "")
    assert await local.logs(7, ended.name, 10) == ["something broke"]


async def test_what_an_engine_says_of_its_model_is_final(local: LocalRuntime) -> None:
    await local.start(launch("broken"))

    (ended,) = await seen(local, lambda found: [r.phase for r in found] == [FAILED] and found[0].pid is None)

    assert (ended.reason, ended.is_final) == ("the model is no model", True)


async def test_a_restart_waits_its_turn_and_counts(local: LocalRuntime) -> None:
    await local.start(launch("dies"))
    (first,) = await seen(local, phases(FAILED))

    await local.restart(7, 1, datetime.now(UTC))
    (second,) = await seen(local, lambda found: found[0].phase is FAILED and found[0].restarts == 1)
    await local.restart(7, 1, datetime.now(UTC) - timedelta(seconds=30))
    (third,) = await local.observe(7)

    assert (first.name, first.restarts) == (second.name, 0)
    assert (third.phase, third.restarts) == (FAILED, 1)


async def test_an_engine_that_does_not_go_is_killed(local: LocalRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.deployments.runtimes.local.KILL_AFTER_S", 0.2)
    await local.start(launch("stubborn"))
    await seen(local, phases(RUNNING))

    await local.stop(7)
    (going,) = await local.observe(7)
    await seen(local, lambda found: not found)

    assert going.phase is STOPPING


async def test_more_memory_than_the_machine_has_does_not_fit(local: LocalRuntime) -> None:
    with pytest.raises(DoesNotFit) as caught:
        await local.start(launch(memory="900Ti"))

    assert caught.value.memory == "900Ti"
    assert await local.observe(7) == ()


async def test_an_engine_over_its_memory_limit_is_ended_and_says_so(local: LocalRuntime) -> None:
    await local.start(launch("greedy", memory="100Mi"))

    (ended,) = await seen(local, phases(FAILED))

    assert "its limit is 100Mi" in (ended.reason or "")


async def test_an_engine_keeps_to_the_cores_it_was_given(local: LocalRuntime) -> None:
    everything = os.sched_getaffinity(0)
    await local.start(launch(cpus=1))
    (replica,) = await seen(local, phases(RUNNING))
    assert replica.pid is not None

    assert len(os.sched_getaffinity(replica.pid)) == 1 or len(everything) == 1
    assert processes.resident_bytes(replica.pid) > 1024**2


async def test_a_home_with_a_long_name_still_has_room_for_sockets(local: LocalRuntime, tmp_path: Path) -> None:
    deep = tmp_path / ("very-long-name-" * 8)
    runtime = reopened(deep)

    path = runtime._socket(deep / "run" / "engines" / "7" / "engine-1")

    assert len(str(path)) <= 100
    assert path.parent.stat().st_mode & 0o077 == 0
