"""Reads Kubernetes pods: what state a replica is in, and why."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from app.deployments.plan import Replica, ReplicaPhase
from app.deployments.runtimes.manifests import LABEL, PORT

CANNOT_LOAD = 2
"""Exit status of an engine whose document makes no engine."""
_FINAL = frozenset({"InvalidImageName", "CreateContainerConfigError"})


def replica_of(pod: Mapping[str, Any]) -> Replica:
    """Return the replica that a pod (as the API prints it) is."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    phase, reason, is_final = ReplicaPhase.PENDING, None, False
    needs: dict[str, str] = {}
    if metadata.get("deletionTimestamp"):
        phase = ReplicaPhase.STOPPING
    elif conditions.get("Ready", {}).get("status") == "True":
        phase = ReplicaPhase.RUNNING
    elif (failure := _failure(containers)) is not None:
        phase, (reason, is_final) = ReplicaPhase.FAILED, failure
    elif conditions.get("PodScheduled", {}).get("status") == "False":
        reason = conditions["PodScheduled"].get("message")
        needs = _needs(pod, reason or "")
    else:
        reason = next((_waiting(c) for c in containers if _waiting(c)), None)
    return Replica(
        name=metadata["name"],
        revision=int(metadata["labels"][f"{LABEL}/revision"]),
        phase=phase,
        reason=reason,
        since=_moment(metadata.get("creationTimestamp")),
        restarts=sum(c.get("restartCount", 0) for c in containers),
        is_final=is_final,
        host=status.get("podIP"),
        port=PORT if status.get("podIP") else None,
        required_cpu=needs.get("cpu"),
        required_memory=needs.get("memory"),
    )


def _failure(containers: list[Mapping[str, Any]]) -> tuple[str, bool] | None:
    """Return why a container that ended, or is held back after ending, did so, and whether that is final."""
    for container in containers:
        state = container.get("state") or {}
        waiting = state.get("waiting") or {}
        ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
        if waiting.get("reason") in _FINAL:
            return f"{waiting['reason']}: {waiting.get('message', '')}", True
        if state.get("terminated", {}).get("exitCode") == 0:
            continue  # an init container that did its work
        if ended and not state.get("running"):
            word, code = ended.get("reason") or "Error", ended.get("exitCode")
            said = (ended.get("message") or "").strip()
            text = f"{container['name']} ended with exit status {code} ({word})"
            return f"{text}: {said}" if said else f"{text}.", code == CANNOT_LOAD
    return None


def _waiting(container: Mapping[str, Any]) -> str | None:
    waiting = (container.get("state") or {}).get("waiting") or {}
    if waiting.get("reason") in (None, "ContainerCreating", "PodInitializing"):
        return None
    return f"{waiting['reason']}: {waiting.get('message', '')}"


def _needs(pod: Mapping[str, Any], message: str) -> dict[str, str]:
    """Return what the scheduler misses, by what it says, in the amounts the pod asks for."""
    asked: dict[str, str] = {}
    for container in pod["spec"]["containers"]:
        asked |= (container.get("resources") or {}).get("requests") or {}
    return {key: str(asked[key]) for key in ("cpu", "memory") if f"Insufficient {key}" in message and key in asked}


def _moment(text: str | datetime | None) -> datetime | None:
    if text is None or isinstance(text, datetime):
        return text
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
