"""What every place that runs tasks has to offer: one suite for processes of this machine and for Kubernetes."""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from app.kit.context import Context
from app.orchestration import environments, runtimes
from app.orchestration.runtimes import manifests, pods
from app.orchestration.runtimes.base import Outcome, RunSpec, TaskRuntime
from app.orchestration.runtimes.followed import Followed
from app.orchestration.runtimes.kubernetes import KubernetesTasks
from app.orchestration.runtimes.local import LocalTasks
from app.orchestration.runtimes.manifests import Cluster
from app.settings import Settings
from tests.orchestration.cluster import FakeCluster
from tests.orchestration.test_bundles import zipped

CLUSTER = Cluster(
    image="potoroo:7",
    namespace="jobs",
    internal_url="http://potoroo:8080",
    task_url="http://potoroo:8080",
    sdk="",
    package_index=None,
    package_wheels=None,
    packaging_timeout_s=60,
    memory_bytes=1 << 30,
    processes=64,
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", task_sdk="", packaging_timeout_s=60, task_log_bytes=256 * 1024)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    made = FakeCluster(tmp_path / "node")
    yield made
    made.close()


@pytest.fixture
def kubernetes(settings: Settings, cluster: FakeCluster) -> Iterator[KubernetesTasks]:
    configuration = client.Configuration(host=cluster.url)
    configuration.retries = 0
    api = client.ApiClient(configuration)
    there = Cluster(**{f: getattr(CLUSTER, f) for f in Cluster.__slots__} | {"internal_url": cluster.url})
    yield KubernetesTasks(settings, there, lambda run: f"token-of-{run}", api, poll_s=0.05)
    api.close()


@pytest.fixture(params=["local", "kubernetes"])
async def runtime(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[TaskRuntime]:
    if request.param == "local":
        await environments.ensure(settings, "\n", lambda _: None)
        yield LocalTasks(settings, "http://potoroo:8080")
    else:
        yield request.getfixturevalue("kubernetes")


def spec(request: Any, tmp_path: Path, code: str, **more: Any) -> RunSpec:
    """Return a run of `code`; the cluster, when there is one, hands out its bundle."""
    bundle = tmp_path / f"{uuid.uuid4().hex}.zip"
    bundle.write_bytes(zipped({"job/main.py": code, "job/beside.txt": "beside"}))
    if "cluster" in request.fixturenames or isinstance(request, FakeCluster):
        request.getfixturevalue("cluster").bundle = bundle
    given = {
        "run_id": str(uuid.uuid4()),
        "task_id": str(uuid.uuid4()),
        "orchestration_id": str(uuid.uuid4()),
        "owner_id": "ann",
        "sha": hashlib.sha256(bundle.read_bytes()).hexdigest(),
        "bundle": bundle,
        "entry_point": "job/main.py",
        "environment": environments.name_of("\n"),
        "arguments": {"a": [1, "ü"]},
        "timeout_s": 60,
        "debug": False,
        "token_file": {"access_token": "s3cr3t-of-ann"},
    }
    return RunSpec(**given | more)


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.node.callspec.params.get("runtime") == "kubernetes" if hasattr(request.node, "callspec") else True:
        request.getfixturevalue("cluster")
    return lambda code, **more: spec(request, tmp_path, code, **more)


def said(outcome: Outcome) -> list[str]:
    assert outcome.log is not None
    lines = [re.fullmatch(r"(\S+Z) (stdout|stderr) (F|P) (.*)", x) for x in outcome.log.read_text().splitlines()]
    assert all(lines)
    return [line[4] for line in lines if line]


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await check():  # noqa: ASYNC110 - what is waited for is no event of ours
            await asyncio.sleep(0.05)


async def written(runtime: TaskRuntime, wanted: RunSpec, text: bytes) -> bool:
    return any(text in line for line in await runtime.lines(wanted.run_id, None))


# Every place.


async def test_a_task_finds_its_code_arguments_and_sign_in(runtime: TaskRuntime, run: Any) -> None:
    code = (
        "import json, os, pathlib\n"
        "home = pathlib.Path.home()\n"
        "print(json.loads((home / 'arguments.json').read_text()))\n"
        "print(json.loads((home / '.cache/wallaroo_sdk/auth/keycloak.json').read_text())['access_token'][:6])\n"
        "print(oct((home / '.cache/wallaroo_sdk/auth/keycloak.json').stat().st_mode & 0o777))\n"
        "print(open('beside.txt').read(), os.environ['WALLAROO_URL'], os.environ['WALLAROO_TASK_ID'])\n"
        "print([k for k, v in os.environ.items() if 's3cr3t' in v])\n"
    )
    wanted = run(code)

    outcome = await runtime.execute(wanted, asyncio.Event())

    assert (outcome.status, outcome.reason) == ("success", "The task finished.")
    lines = said(outcome)
    assert lines[:2] == ["WALLAROO: Setting up task run...", "WALLAROO: Task environment ready. Running..."]
    beside = f"beside http://potoroo:8080 {wanted.task_id}"
    assert lines[2:7] == ["{'a': [1, 'ü']}", "s3cr3t", "0o600", beside, "[]"]
    await runtime.clean(wanted.run_id)


async def test_a_failure_tells_its_exit_status(runtime: TaskRuntime, run: Any) -> None:
    outcome = await runtime.execute(run("raise SystemExit(3)"), asyncio.Event())

    assert (outcome.status, outcome.reason) == ("failure", "The task ended with exit status 3.")


async def test_a_task_over_its_time_is_stopped(runtime: TaskRuntime, run: Any) -> None:
    outcome = await runtime.execute(run("import time\ntime.sleep(600)", timeout_s=1), asyncio.Event())

    assert outcome.status == "timed_out"
    assert "1 s" in outcome.reason


async def test_a_running_task_is_followed_and_killed(runtime: TaskRuntime, run: Any) -> None:
    wanted, stop = run("import time\nfor i in range(9): print('line', i, flush=True)\ntime.sleep(600)"), asyncio.Event()
    going = asyncio.create_task(runtime.execute(wanted, stop))
    try:
        await until(lambda: written(runtime, wanted, b"line 8"))
        assert len(await runtime.lines(wanted.run_id, 2)) == 2
    finally:
        stop.set()
    outcome = await going

    assert outcome.status == "killed"
    assert [line for line in said(outcome) if line.startswith("line")] == [f"line {i}" for i in range(9)]


async def test_the_output_of_a_task_is_bounded_and_keeps_its_two_ends(runtime: TaskRuntime, run: Any) -> None:
    code = "print('first')\nfor i in range(40_000): print('filler', i)\nprint('last')"

    outcome = await runtime.execute(run(code), asyncio.Event())

    assert outcome.log is not None
    assert outcome.log.stat().st_size < 1.2 * 256 * 1024
    assert {"first", "last"} <= set(said(outcome))


async def test_cancelled_it_leaves_nothing_that_runs(runtime: TaskRuntime, run: Any, settings: Settings) -> None:
    wanted = run("import subprocess\nprint('begins', flush=True)\nsubprocess.run(['sleep', '600'])")
    going = asyncio.create_task(runtime.execute(wanted, asyncio.Event()))
    await until(lambda: written(runtime, wanted, b"begins"))

    going.cancel()
    await asyncio.gather(going, return_exceptions=True)
    await runtime.clean(wanted.run_id)
    await runtime.clean(wanted.run_id)

    await until(lambda: asyncio.to_thread(lambda: not _marked(wanted.run_id)))
    assert not (settings.run_dir / "tasks" / wanted.run_id).exists()

    async def is_silent() -> bool:
        return await runtime.lines(wanted.run_id, None) == []

    await until(is_silent)


def _marked(run_id: str) -> list[str]:
    """Return the processes that carry a run's mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"POTOROO_RUN_ID={run_id}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(process.name)
        except OSError:
            continue
    return found


# Processes of this machine alone.


async def test_an_environment_that_was_made_elsewhere_or_cleared_away_is_made_again(
    settings: Settings, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    wanted = spec(request, tmp_path, "print('x')")
    assert not environments.folder_of(settings, wanted.environment).exists()

    outcome = await LocalTasks(settings, "http://potoroo:8080").execute(wanted, asyncio.Event())

    assert outcome.status == "success"
    assert environments.python_of(settings, wanted.environment).exists()


async def test_an_environment_that_cannot_be_made_again_is_the_reason(
    settings: Settings, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    (tmp_path / "wheels").mkdir()
    offline = settings.model_copy(update={"task_sdk": "1.2.3", "package_wheels": tmp_path / "wheels"})
    wanted = spec(request, tmp_path, "print('x')")

    outcome = await LocalTasks(offline, "http://potoroo:8080").execute(wanted, asyncio.Event())

    assert outcome.status == "failure"
    assert "wallaroo" in outcome.reason


# Kubernetes alone.


async def test_a_run_leaves_no_object_behind(kubernetes: KubernetesTasks, cluster: FakeCluster, run: Any) -> None:
    wanted = run("print('x')")
    await kubernetes.execute(wanted, asyncio.Event())
    assert list(cluster.jobs) == list(cluster.secrets) == [f"task-{wanted.run_id}"]

    await kubernetes.clean(wanted.run_id)

    assert (cluster.jobs, cluster.secrets) == ({}, {})


async def test_what_a_pod_cannot_prepare_is_the_reason(kubernetes: KubernetesTasks, run: Any) -> None:
    outcome = await kubernetes.execute(run("", sha="0" * 64), asyncio.Event())

    assert outcome.status == "failure"
    assert "arrived damaged" in outcome.reason
    assert any("cannot be fetched yet" in line for line in said(outcome))


async def test_a_cluster_that_refuses_says_why(kubernetes: KubernetesTasks, cluster: FakeCluster, run: Any) -> None:
    cluster.refusal = (403, "exceeded quota: jobs")

    outcome = await kubernetes.execute(run(""), asyncio.Event())

    assert (outcome.status, outcome.reason) == ("failure", "The cluster refused the task: exceeded quota: jobs")


async def test_output_has_no_gap_when_its_connection_breaks(
    kubernetes: KubernetesTasks, cluster: FakeCluster, run: Any
) -> None:
    cluster.break_output_after = 1000
    code = "import time\nfor i in range(300):\n  print('line', i, flush=True)\n  time.sleep(0.002)"

    outcome = await kubernetes.execute(run(code), asyncio.Event())

    assert cluster.break_output_after is None
    assert [line for line in said(outcome) if line.startswith("line")] == [f"line {i}" for i in range(300)]


async def test_an_api_that_is_away_for_a_moment_does_not_fail_a_run(
    kubernetes: KubernetesTasks, cluster: FakeCluster, run: Any
) -> None:
    cluster.fails_once.add("/api/v1/namespaces/jobs/pods")

    outcome = await kubernetes.execute(run("print('x')"), asyncio.Event())

    assert not cluster.fails_once
    assert outcome.status == "success"


async def test_a_job_that_somebody_deleted_is_a_failure(
    kubernetes: KubernetesTasks, cluster: FakeCluster, run: Any
) -> None:
    cluster.makes_pods = False
    wanted = run("")
    going = asyncio.create_task(kubernetes.execute(wanted, asyncio.Event()))
    await until(lambda: asyncio.to_thread(lambda: bool(cluster.jobs)))
    cluster.jobs.clear()

    outcome = await going

    assert (outcome.status, outcome.reason) == ("failure", "The task's Job was deleted.")


def the_spec(**more: Any) -> RunSpec:
    given = {"run_id": "r1", "task_id": "t1", "orchestration_id": "o1", "owner_id": "ann", "sha": "5" * 64}
    rest = {"bundle": Path("b.zip"), "entry_point": "main.py", "environment": "e", "arguments": {"a": 1}}
    return RunSpec(**given | rest | {"timeout_s": 30, "debug": True, "token_file": {"access_token": "s3cr3t"}} | more)


def test_a_job_is_one_pod_that_is_never_started_twice() -> None:
    job = manifests.make_job(the_spec(), CLUSTER)

    template = job["spec"].pop("template")
    assert job == {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "task-r1",
            "namespace": "jobs",
            "labels": manifests.labels("r1"),
            "annotations": {"potoroo.io/task": "t1", "potoroo.io/orchestration": "o1"},
        },
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "ttlSecondsAfterFinished": 3600,
            "activeDeadlineSeconds": 60 + 30 + 120,
        },
    }
    pod = template["spec"]
    assert (pod["restartPolicy"], pod["automountServiceAccountToken"]) == ("Never", False)
    assert pod["securityContext"]["runAsNonRoot"]
    [prepare], [task] = pod["initContainers"], pod["containers"]
    assert prepare["image"] == task["image"] == "potoroo:7"
    assert prepare["command"] == ["python", "-m", "app.orchestration.pod"]
    assert (task["command"], task["args"]) == (["python", "-m", "app.orchestration.runner"], ["/var/lib/potoroo"])
    assert task["resources"]["limits"] == {"memory": "1088Mi"}
    assert task["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_secret_of_a_run_is_not_seen_by_its_task_nor_in_its_job() -> None:
    job, secret = manifests.make_job(the_spec(), CLUSTER), manifests.make_secret(the_spec(), CLUSTER, "run-token")

    [task] = job["spec"]["template"]["spec"]["containers"]
    assert "config" not in [mount["name"] for mount in task["volumeMounts"]]
    assert "s3cr3t" not in str(job)
    assert "run-token" not in str(job)
    assert "s3cr3t" in secret["stringData"]["run.json"]


def test_a_continuous_run_has_no_deadline() -> None:
    assert "activeDeadlineSeconds" not in manifests.make_job(the_spec(timeout_s=None), CLUSTER)["spec"]


def test_a_claim_keeps_environments_that_the_task_cannot_change() -> None:
    kept = Cluster(**{f: getattr(CLUSTER, f) for f in Cluster.__slots__} | {"environments_claim": "envs"})
    pod = manifests.make_job(the_spec(), kept)["spec"]["template"]["spec"]

    assert {"name": "environments", "persistentVolumeClaim": {"claimName": "envs"}} in pod["volumes"]
    mounts = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "environments"]
    assert mounts == [{"name": "environments", "mountPath": "/var/lib/potoroo-environments", "readOnly": True}]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"phase": "Pending"}, None),
        ({"phase": "Running", "containerStatuses": [{"name": "task", "state": {"running": {}}}]}, None),
        (
            {
                "containerStatuses": [
                    {"name": "task", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
                ]
            },
            "The task was stopped by the cluster: it used more memory than it may.",
        ),
        (
            {"containerStatuses": [{"name": "task", "state": {"terminated": {"exitCode": 1, "message": "[]"}}}]},
            "The task's runner ended with exit status 1.",
        ),
        (
            {"initContainerStatuses": [{"name": "prepare", "state": {"terminated": {"exitCode": 137}}}]},
            "The task could not be prepared: exit status 137 (Error).",
        ),
        ({"initContainerStatuses": [{"name": "prepare", "state": {"terminated": {"exitCode": 0}}}]}, None),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "The node was low on disk."},
            "The cluster stopped the task's pod: Evicted: The node was low on disk..",
        ),
        (
            {"initContainerStatuses": [{"name": "prepare", "state": {"waiting": {"reason": "InvalidImageName"}}}]},
            "The task's pod cannot start: InvalidImageName",
        ),
        (
            {"initContainerStatuses": [{"name": "prepare", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]},
            None,
        ),
    ],
)
def test_how_a_pod_ended_is_read_off_its_status(status: dict[str, Any], expected: str | None) -> None:
    outcome = pods.ending({"status": status})

    assert (outcome and outcome.reason) == expected
    assert outcome is None or outcome.status == "failure"


def test_output_that_comes_again_is_kept_once(tmp_path: Path) -> None:
    lines = [f"2024-05-01T10:00:0{i // 3}.0Z stdout F {i}\n".encode() for i in range(9)]
    kept = Followed(tmp_path, 1 << 20)
    kept.feed(b"".join(lines[:5]) + lines[5][:10])
    kept.again()
    kept.feed(b"".join(lines[:7])[:-3])
    kept.again()
    kept.feed(b"".join(lines[3:]))  # the beginning is gone by now
    kept.close()

    assert (tmp_path / "log.0").read_bytes() == b"".join(lines)


async def test_settings_choose_where_tasks_run(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(runtimes.runtime_of(context), LocalTasks)

    context.parts.pop(runtimes.PART)
    monkeypatch.setattr("kubernetes.config.load_incluster_config", lambda: None)
    context.settings = context.settings.model_copy(update={"runtime": "kubernetes"})
    assert isinstance(runtimes.runtime_of(context), KubernetesTasks)

    context.parts.pop(runtimes.PART)
    context.settings = context.settings.model_copy(update={"task_runtime": "local"})
    assert isinstance(runtimes.runtime_of(context), LocalTasks)
