"""The Kubernetes objects of one deployment, as plain dicts made by pure functions.

A deployment has a namespace of its own; in it, one Deployment per revision, the secret that its document and its token
are in, one Service in front of the revision that answers, and a HorizontalPodAutoscaler when the number of replicas is
to follow the load.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import msgspec

from app.deployments.engine_config import Resources, Wanted
from app.deployments.quantities import memory_quantity
from app.deployments.runtimes.base import Launch
from engine.contract.deployment import AccessSettings, EngineResources

PORT = 8080
SERVICE_PORT = 29502
MODELS_DIR = "/models"
CONFIG_DIR = "/etc/potoroo"
STATE_DIR = "/var/lib/potoroo"
MANAGED = "potoroo"
LABEL = "potoroo.io"
DEFAULT_CPUS, DEFAULT_MEMORY = 1.0, 1024**3
_POD_NAME: dict[str, Any] = {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the cluster's objects need to know of the instance."""

    image: str
    internal_url: str
    log_url: str
    service_account: str = "default"
    pull_secrets: tuple[str, ...] = ()
    node_selector: dict[str, str] = field(default_factory=dict)


def namespace_name(deploy_id: str, deployment_id: int) -> str:
    """Return `<deploy id>-<deployment id>`, shortened by a hash when it is too long for a namespace."""
    name = f"{deploy_id}-{deployment_id}"
    if len(name) <= 63:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    tail = f"-{digest}-{deployment_id}"
    return name[: 63 - len(tail)].rstrip("-") + tail


def revision_name(revision: int) -> str:
    """Return the name that the objects of a revision share."""
    return f"engine-{revision}"


def labels(deployment_id: int, revision: int | None = None) -> dict[str, str]:
    """Return the labels by which the objects of a deployment are found."""
    made = {"app.kubernetes.io/managed-by": MANAGED, f"{LABEL}/deployment": str(deployment_id)}
    if revision is not None:
        made |= {"app.kubernetes.io/component": "engine", f"{LABEL}/revision": str(revision)}
    return made


def make_namespace(launch: Launch) -> dict[str, Any]:
    """Return the namespace of a deployment."""
    document = launch.document
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": namespace_name(document.deploy_id, document.deployment_id),
            "labels": labels(document.deployment_id),
            "annotations": {f"{LABEL}/workspace": str(document.workspace_id)},
        },
    }


def make_secret(launch: Launch, cluster: Cluster, token: str) -> dict[str, Any]:
    """Return the secret with the document and the token that every pod of the revision starts from."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(launch),
        "type": "Opaque",
        "stringData": {"document.json": document_text(launch, cluster), "access.token": token},
    }


def document_text(launch: Launch, cluster: Cluster) -> str:
    """Return the document of the revision's pods; each completes it by its own name (`engine.fetch`)."""
    given, wanted = launch.document, launch.wanted.engine
    log = given.log and msgspec.structs.replace(
        given.log, root=cluster.log_url, spool=f"{STATE_DIR}/spool", token_file=f"{CONFIG_DIR}/access.token"
    )
    document = msgspec.structs.replace(
        given,
        replica="",
        models=[msgspec.structs.replace(m, path=f"{MODELS_DIR}/{m.sha}") for m in given.models],
        resources=EngineResources(
            threads=1, workers=max(1, int(wanted.cpus or DEFAULT_CPUS)), memory_bytes=wanted.memory_bytes
        ),
        access=AccessSettings(
            url=f"{cluster.internal_url}/internal/access/{given.deployment_id}",
            token_file=f"{CONFIG_DIR}/access.token",
        ),
        log=log,
        host="0.0.0.0",  # noqa: S104 - a pod's address is not known before it runs
        port=PORT,
        handoff_socket=None,
        status_file=f"{STATE_DIR}/status.json",
    )
    return msgspec.json.encode(document).decode()


def make_deployment(launch: Launch, cluster: Cluster) -> dict[str, Any]:
    """Return the Deployment that keeps the revision's replicas up."""
    wanted = launch.wanted
    pod: dict[str, Any] = {
        "serviceAccountName": cluster.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": int(launch.document.limits.drain_s) + 10,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [_fetch_container(launch, cluster)],
        "containers": [_engine_container(launch, cluster)],
        "volumes": [
            {"name": "config", "secret": {"secretName": revision_name(launch.revision), "defaultMode": 0o440}},
            {"name": "models", "emptyDir": {}},
            {"name": "state", "emptyDir": {}},
        ],
    }
    if cluster.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in cluster.pull_secrets]
    selector = cluster.node_selector | _arch_selector(wanted) | (wanted.node_selector or {})
    if selector:
        pod["nodeSelector"] = selector
    if wanted.engine.gpus:
        pod["tolerations"] = [{"key": wanted.engine.gpu_key, "operator": "Exists", "effect": "NoSchedule"}]
    spec: dict[str, Any] = {
        "selector": {"matchLabels": labels(launch.deployment_id, launch.revision)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {"metadata": {"labels": labels(launch.deployment_id, launch.revision)}, "spec": pod},
    }
    if wanted.autoscale is None:
        spec["replicas"] = launch.replicas
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": _metadata(launch), "spec": spec}


def make_service(launch: Launch) -> dict[str, Any]:
    """Return the Service at which the cluster reaches the revision that answers."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "engine-lb",
            "namespace": namespace_name(launch.document.deploy_id, launch.deployment_id),
            "labels": labels(launch.deployment_id),
        },
        "spec": {
            "selector": labels(launch.deployment_id, launch.revision),
            "ports": [{"name": "http", "port": SERVICE_PORT, "targetPort": PORT, "protocol": "TCP"}],
        },
    }


def make_autoscaler(launch: Launch) -> dict[str, Any] | None:
    """Return the HorizontalPodAutoscaler of the revision, or None when its replicas are fixed."""
    scale = launch.wanted.autoscale
    if scale is None:
        return None
    if scale.queue_depth is not None:
        metric: dict[str, Any] = {
            "type": "Pods",
            "pods": {
                "metric": {"name": "potoroo_engine_queue_depth"},
                "target": {"type": "AverageValue", "averageValue": str(scale.queue_depth)},
            },
        }
    else:
        target = {"type": "Utilization", "averageUtilization": scale.cpu_percent or 50}
        metric = {"type": "Resource", "resource": {"name": "cpu", "target": target}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(launch),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": revision_name(launch.revision)},
            # A cluster without the alpha feature for it does not scale to zero: one replica stays.
            "minReplicas": max(scale.least, 1),
            "maxReplicas": scale.most,
            "metrics": [metric],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": scale.window_s}},
        },
    }


def _metadata(launch: Launch) -> dict[str, Any]:
    return {
        "name": revision_name(launch.revision),
        "namespace": namespace_name(launch.document.deploy_id, launch.deployment_id),
        "labels": labels(launch.deployment_id, launch.revision),
    }


def _fetch_container(launch: Launch, cluster: Cluster) -> dict[str, Any]:
    """Return the container that brings the models into the pod before the engine starts."""
    return {
        "name": "models",
        "image": launch.wanted.image or cluster.image,
        "command": ["python", "-m", "engine.fetch"],
        "args": [
            f"--document={CONFIG_DIR}/document.json",
            f"--write={STATE_DIR}/document.json",
            f"--models={MODELS_DIR}",
            f"--url={cluster.internal_url}/internal/models/{launch.deployment_id}",
            f"--token-file={CONFIG_DIR}/access.token",
            "--replica=$(POD_NAME)",
        ],
        "env": [_POD_NAME],
        "resources": make_resources(launch.wanted.engine),
        "securityContext": _confined(),
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
            {"name": "models", "mountPath": MODELS_DIR},
            {"name": "state", "mountPath": STATE_DIR},
        ],
    }


def _engine_container(launch: Launch, cluster: Cluster) -> dict[str, Any]:
    return {
        "name": "engine",
        "image": launch.wanted.image or cluster.image,
        "command": ["python", "-m", "engine.server"],
        "args": [f"--document={STATE_DIR}/document.json"],
        "env": [_POD_NAME, {"name": "ORT_DISABLE_TELEMETRY", "value": "1"}],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": make_resources(launch.wanted.engine),
        "startupProbe": _probe("/livez", period_s=1, failures=300),
        "readinessProbe": _probe("/readyz", period_s=1, failures=2),
        "livenessProbe": _probe("/livez", period_s=5, failures=6),
        "securityContext": _confined(),
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
            {"name": "models", "mountPath": MODELS_DIR, "readOnly": True},
            {"name": "state", "mountPath": STATE_DIR},
        ],
    }


def make_resources(wanted: Resources) -> dict[str, Any]:
    """Return requests and limits; what was not asked for gets a modest default."""
    amounts: dict[str, Any] = {
        "cpu": f"{round((wanted.cpus or DEFAULT_CPUS) * 1000)}m",
        "memory": memory_quantity(wanted.memory_bytes or DEFAULT_MEMORY),
    }
    if wanted.gpus:
        amounts[wanted.gpu_key] = str(wanted.gpus)
    return {"requests": amounts, "limits": amounts}


def _probe(path: str, *, period_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": PORT},
        "periodSeconds": period_s,
        "failureThreshold": failures,
        "timeoutSeconds": 2,
    }


def _confined() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _arch_selector(wanted: Wanted) -> dict[str, str]:
    known = {"x86": "amd64", "arm": "arm64", "power10": "ppc64le"}
    return {"kubernetes.io/arch": known[wanted.arch]} if wanted.arch in known else {}
