"""The Kubernetes objects of one task run, as plain dicts made by pure functions.

A run is a Job of one pod that is never started twice: the clock and the record of what ran are in the database, so a
schedule needs no CronJob, and a tick makes one run here as it does on one machine. The pod's first container fetches
the bundle and makes the environment; the second is the runner that keeps the task inside its limits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from app.deployments.quantities import memory_quantity
from app.orchestration.runtimes.base import RunSpec

MANAGED, LABEL = "potoroo", "potoroo.io"
HOME = "/home/jovyan"
CONFIG_DIR = "/etc/potoroo"
STATE_DIR = "/var/lib/potoroo"
ENVIRONMENTS_DIR = "/var/lib/potoroo-environments"
TERMINATION_LOG = "/dev/termination-log"
PREPARE, TASK = "prepare", "task"
GRACE_S = 5.0
_RUNNER_BYTES = 64 * 1024**2
_LEFT_OVER_S = 3600


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the cluster's objects need to know of the instance."""

    image: str
    namespace: str
    internal_url: str
    """Where pods fetch bundles."""
    task_url: str
    """Where tasks find the API."""
    sdk: str
    package_index: str | None
    package_wheels: str | None
    """Folder of wheels in the image."""
    packaging_timeout_s: int
    memory_bytes: int
    processes: int
    environments_claim: str | None = None
    """Volume claim that keeps environments from run to run; without one each run makes its own."""
    pull_secrets: tuple[str, ...] = ()


def run_name(run_id: str) -> str:
    """Return the name that the objects of a run share."""
    return f"task-{run_id}"


def labels(run_id: str) -> dict[str, str]:
    """Return the labels by which the objects of a run are found."""
    return {
        "app.kubernetes.io/managed-by": MANAGED,
        "app.kubernetes.io/component": "task",
        f"{LABEL}/run": run_id,
    }


def make_namespace(cluster: Cluster) -> dict[str, Any]:
    """Return the namespace of all task runs."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": cluster.namespace, "labels": {"app.kubernetes.io/managed-by": MANAGED}},
    }


def make_secret(spec: RunSpec, cluster: Cluster, token: str) -> dict[str, Any]:
    """Return the secret with all that the pod's first container needs; the task's own container does not see it."""
    order = {
        "bundle_url": f"{cluster.internal_url}/internal/bundles/{spec.run_id}",
        "bundle_token": token,
        "sha": spec.sha,
        "sdk": cluster.sdk,
        "package_index": cluster.package_index,
        "package_wheels": cluster.package_wheels,
        "packaging_timeout_s": cluster.packaging_timeout_s,
        "arguments": spec.arguments,
        "token_file": spec.token_file,
        "runner": _runner(spec, cluster),
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(spec, cluster),
        "type": "Opaque",
        "stringData": {"run.json": json.dumps(order)},
    }


def _runner(spec: RunSpec, cluster: Cluster) -> dict[str, Any]:
    """Return the runner's specification, all but what is known only once the bundle is there."""
    return {
        "run_id": spec.run_id,
        "env": {
            "HOME": HOME,
            "PYTHONUNBUFFERED": "1",
            "MPLBACKEND": "Agg",
            "LANG": "C.UTF-8",
            "POTOROO_RUN_ID": spec.run_id,
            "WALLAROO_TASK_ID": spec.task_id,
            "WALLAROO_URL": cluster.task_url,
            "WALLAROO_AUTH_URL": cluster.task_url,
            "TASK_ID": spec.task_id,
            "TASK_DEBUG": "true" if spec.debug else "false",
            "ORCH_ID": spec.orchestration_id,
            "ORCH_SHA": spec.sha,
            "ORCH_OWNER_ID": spec.owner_id,
        },
        "timeout_s": spec.timeout_s,
        "memory_bytes": cluster.memory_bytes,
        "processes": cluster.processes,
        "log_bytes": 1024**2,  # the container's output is what is kept; this is the pod's own copy
        "grace_s": GRACE_S,
        "parent": 0,
        "echo": True,
        "user_limit": False,
        "termination_log": TERMINATION_LOG,
    }


def make_job(spec: RunSpec, cluster: Cluster) -> dict[str, Any]:
    """Return the Job that carries the run out once."""
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": int(GRACE_S) + 10,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [_prepare_container(cluster)],
        "containers": [_task_container(cluster)],
        "volumes": [
            {"name": "config", "secret": {"secretName": run_name(spec.run_id), "defaultMode": 0o440}},
            {"name": "home", "emptyDir": {}},
            {"name": "state", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "environments"}
            | (
                {"persistentVolumeClaim": {"claimName": cluster.environments_claim}}
                if cluster.environments_claim
                else {"emptyDir": {}}
            ),
        ],
    }
    if cluster.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in cluster.pull_secrets]
    job: dict[str, Any] = {
        "backoffLimit": 0,
        "completions": 1,
        "parallelism": 1,
        "ttlSecondsAfterFinished": _LEFT_OVER_S,
        "template": {"metadata": {"labels": labels(spec.run_id)}, "spec": pod},
    }
    if spec.timeout_s is not None:  # the runner keeps the time; this is for a node that does not answer any more
        job["activeDeadlineSeconds"] = cluster.packaging_timeout_s + spec.timeout_s + 120
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(spec, cluster), "spec": job}


def _metadata(spec: RunSpec, cluster: Cluster) -> dict[str, Any]:
    return {
        "name": run_name(spec.run_id),
        "namespace": cluster.namespace,
        "labels": labels(spec.run_id),
        "annotations": {f"{LABEL}/task": spec.task_id, f"{LABEL}/orchestration": spec.orchestration_id},
    }


def _prepare_container(cluster: Cluster) -> dict[str, Any]:
    return {
        "name": PREPARE,
        "image": cluster.image,
        "command": ["python", "-m", "app.orchestration.pod"],
        "args": [
            f"--order={CONFIG_DIR}/run.json",
            f"--home={HOME}",
            f"--state={STATE_DIR}",
            f"--environments={ENVIRONMENTS_DIR}",
            f"--last-words={TERMINATION_LOG}",
        ],
        "resources": _resources(cluster),
        "securityContext": _confined(),
        "terminationMessagePath": TERMINATION_LOG,
        "volumeMounts": [{"name": "config", "mountPath": CONFIG_DIR, "readOnly": True}, *_mounts(read_only=False)],
    }


def _task_container(cluster: Cluster) -> dict[str, Any]:
    return {
        "name": TASK,
        "image": cluster.image,
        "command": ["python", "-m", "app.orchestration.runner"],
        "args": [STATE_DIR],
        "resources": _resources(cluster),
        "securityContext": _confined(),
        "terminationMessagePath": TERMINATION_LOG,
        "volumeMounts": _mounts(read_only=True),
    }


def _mounts(*, read_only: bool) -> list[dict[str, Any]]:
    """Return the pod's folders; the task may read the environment and no more: others may share it."""
    return [
        {"name": "home", "mountPath": HOME},
        {"name": "state", "mountPath": STATE_DIR},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
        {"name": "environments", "mountPath": ENVIRONMENTS_DIR} | ({"readOnly": True} if read_only else {}),
    ]


def _resources(cluster: Cluster) -> dict[str, Any]:
    """Return requests and limits: the runner stops a task at its limit before the cluster does, and says so."""
    return {
        "requests": {"cpu": "250m", "memory": memory_quantity(min(cluster.memory_bytes, 512 * 1024**2))},
        "limits": {"memory": memory_quantity(cluster.memory_bytes + _RUNNER_BYTES)},
    }


def _confined() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
