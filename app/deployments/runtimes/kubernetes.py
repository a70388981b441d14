"""Engines as pods of a Kubernetes cluster, a namespace per deployment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

import httpx
import msgspec
import structlog
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from app.deployments.plan import Replica, ReplicaPhase
from app.deployments.runtimes import manifests
from app.deployments.runtimes.base import Launch, RuntimeFailure
from app.deployments.runtimes.manifests import LABEL, MANAGED, Cluster
from app.deployments.runtimes.pods import replica_of
from engine.contract.deployment import EngineStatus

log = structlog.get_logger()

TIMEOUT_S = 15
_MERGE = "application/merge-patch+json"


class KubernetesRuntime:
    """Runs engines in a cluster; what runs is remembered by the cluster itself."""

    def __init__(self, cluster: Cluster, api: client.ApiClient | None = None) -> None:
        self._cluster = cluster
        if api is None:
            try:
                config.load_incluster_config()
            except config.ConfigException:
                config.load_kube_config()
            api = client.ApiClient()
        self._api = api
        self._core = client.CoreV1Api(api)
        self._apps = client.AppsV1Api(api)
        self._scaling = client.AutoscalingV2Api(api)
        self._http = httpx.AsyncClient(timeout=2.0)

    # What the controller asks.

    async def deployments(self) -> set[int]:
        """Return the deployments that have a namespace here which is not going away."""
        found = await self._ask(
            self._core.list_namespace, label_selector=f"app.kubernetes.io/managed-by={MANAGED},{LABEL}/deployment"
        )
        return {
            int(item.metadata.labels[f"{LABEL}/deployment"])
            for item in found.items
            if item.metadata.deletion_timestamp is None
        }

    async def observe(self, deployment_id: int) -> tuple[Replica, ...]:
        """Look at the deployment's pods, and ask those that answer what they serve."""
        namespace = await self._namespace(deployment_id)
        if namespace is None:
            return ()
        found = await self._ask(
            self._core.list_namespaced_pod, namespace, label_selector=f"{LABEL}/deployment={deployment_id}"
        )
        seen = [replica_of(self._api.sanitize_for_serialization(pod)) for pod in found.items]
        missing = await self._without_pods(namespace, {replica.revision for replica in seen})
        return (*await asyncio.gather(*map(self._asked, seen)), *missing)

    async def start(self, launch: Launch) -> None:
        """Create the objects of the revision; those that exist are brought to the form they should have."""
        namespace = manifests.namespace_name(launch.document.deploy_id, launch.deployment_id)
        try:
            await self._apply(self._core, "namespace", manifests.make_namespace(launch))
            secret = manifests.make_secret(launch, self._cluster, launch.access_token)
            await self._apply(self._core, "namespaced_secret", secret, namespace)
            deployment = manifests.make_deployment(launch, self._cluster)
            await self._apply(self._apps, "namespaced_deployment", deployment, namespace)
            await self._apply(self._core, "namespaced_service", manifests.make_service(launch), namespace)
            autoscaler = manifests.make_autoscaler(launch)
            if autoscaler is not None:
                name = "namespaced_horizontal_pod_autoscaler"
                await self._apply(self._scaling, name, autoscaler, namespace)
        except ApiException as exc:
            raise RuntimeFailure(f"The cluster refused the deployment: {_message(exc)}") from exc

    async def restart(self, deployment_id: int, revision: int, now: datetime) -> None:
        """Leave it to the cluster, which restarts containers by itself, with pauses of its own."""

    async def stop(self, deployment_id: int, *, keep_revision: int | None = None) -> None:
        """Delete the namespace, or only the objects of the revisions that are not kept."""
        namespace = await self._namespace(deployment_id)
        if namespace is None:
            return
        if keep_revision is None:
            with _absent():
                await self._ask(self._core.delete_namespace, namespace)
            return
        await self._point_service(namespace, deployment_id, keep_revision)
        found = await self._ask(self._apps.list_namespaced_deployment, namespace)
        for item in found.items:
            revision = int(item.metadata.labels[f"{LABEL}/revision"])
            if revision != keep_revision:
                await self._delete_revision(namespace, revision)

    async def logs(self, deployment_id: int, name: str, limit: int) -> list[str]:
        """Return the last lines of a pod."""
        namespace = await self._namespace(deployment_id)
        if namespace is None:
            return []
        with _absent():
            text = await self._ask(self._core.read_namespaced_pod_log, name, namespace, tail_lines=limit)
            return list(text.splitlines())[::-1]
        return []

    def on_change(self, call: Callable[[int], None]) -> None:
        """Do nothing: the controller looks often enough, and the cluster acts by itself meanwhile."""

    async def close(self) -> None:
        """Close the connections to the cluster."""
        await self._http.aclose()
        await asyncio.to_thread(self._api.close)

    # Parts.

    async def _ask(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return await asyncio.to_thread(call, *arguments, _request_timeout=TIMEOUT_S, **options)

    async def _namespace(self, deployment_id: int) -> str | None:
        found = await self._ask(self._core.list_namespace, label_selector=f"{LABEL}/deployment={deployment_id}")
        for item in found.items:
            return str(item.metadata.name)
        return None

    async def _without_pods(self, namespace: str, revisions: set[int]) -> list[Replica]:
        """Return a pending replica for each revision that was made and has no pod yet: it is not to be made twice."""
        found = await self._ask(self._apps.list_namespaced_deployment, namespace)
        missing = []
        for item in found.items:
            revision = int(item.metadata.labels[f"{LABEL}/revision"])
            if revision not in revisions and item.spec.replicas:
                missing.append(
                    Replica(
                        name=item.metadata.name,
                        revision=revision,
                        phase=ReplicaPhase.PENDING,
                        since=item.metadata.creation_timestamp,
                        reason=_progress(item),
                    )
                )
        return missing

    async def _asked(self, replica: Replica) -> Replica:
        """Return `replica` with what its engine says of its pipelines and models, if it answers."""
        if replica.phase is not ReplicaPhase.RUNNING:
            return replica
        try:
            answer = await self._http.get(f"http://{replica.host}:{replica.port}/status")
            status = msgspec.json.decode(answer.content, type=EngineStatus)
        except (httpx.HTTPError, msgspec.MsgspecError) as exc:
            log.debug("engine.silent", engine=replica.name, error=repr(exc))
            return replica
        return msgspec.structs.replace(
            replica,
            pipelines=tuple(msgspec.to_builtins(status.pipelines)),
            models=tuple(msgspec.to_builtins(status.models)),
        )

    async def _apply(self, api: Any, kind: str, body: dict[str, Any], namespace: str | None = None) -> None:
        """Create an object, or bring the one that exists to the form of `body`."""
        place = (namespace,) if namespace is not None else ()
        try:
            await self._ask(getattr(api, f"create_{kind}"), *place, body)
        except ApiException as exc:
            if exc.status != 409:
                raise
            name = body["metadata"]["name"]
            await self._ask(getattr(api, f"patch_{kind}"), name, *place, body, _content_type=_MERGE)

    async def _point_service(self, namespace: str, deployment_id: int, revision: int) -> None:
        body = {"spec": {"selector": manifests.labels(deployment_id, revision)}}
        with _absent():
            await self._ask(self._core.patch_namespaced_service, "engine-lb", namespace, body, _content_type=_MERGE)

    async def _delete_revision(self, namespace: str, revision: int) -> None:
        name = manifests.revision_name(revision)
        for call in (
            self._scaling.delete_namespaced_horizontal_pod_autoscaler,
            self._apps.delete_namespaced_deployment,
            self._core.delete_namespaced_secret,
        ):
            with _absent():
                await self._ask(call, name, namespace)


@contextlib.contextmanager
def _absent() -> Any:
    """Take an object that is not there for one that is gone."""
    try:
        yield
    except ApiException as exc:
        if exc.status != 404:
            raise


def _message(exc: ApiException) -> str:
    try:
        return str(msgspec.json.decode(exc.body or "{}")["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return str(exc.reason)


def _progress(item: Any) -> str | None:
    """Return why a Deployment has no pods: a quota, a policy."""
    for condition in item.status.conditions or []:
        if condition.type == "ReplicaFailure" and condition.status == "True":
            return str(condition.message)
    return None
