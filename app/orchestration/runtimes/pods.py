"""Reads the pods of task runs: whether one is over, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from app.orchestration.runtimes.base import Outcome
from app.orchestration.runtimes.manifests import PREPARE, TASK

_FINAL = frozenset({"InvalidImageName", "CreateContainerConfigError", "CreateContainerError", "ErrImageNeverPull"})


def ending(pod: Mapping[str, Any]) -> Outcome | None:
    """Return how the run of a pod (as the API prints it) ended, or None while it goes on."""
    status = pod.get("status") or {}
    task, prepare = _state(status, "containerStatuses", TASK), _state(status, "initContainerStatuses", PREPARE)
    if done := task.get("terminated"):
        return _outcome(done)
    if (done := prepare.get("terminated")) and done.get("exitCode"):
        said = (done.get("message") or "").strip()
        why = said or f"exit status {done['exitCode']} ({done.get('reason') or 'Error'})."
        return Outcome("failure", f"The task could not be prepared: {why}")
    if status.get("phase") == "Failed":
        why = ": ".join(filter(None, [status.get("reason"), status.get("message")]))
        return Outcome("failure", f"The cluster stopped the task's pod: {why or 'no reason given'}.")
    for state in (prepare, task):
        waiting = state.get("waiting") or {}
        if waiting.get("reason") in _FINAL:
            return Outcome("failure", f"The task's pod cannot start: {_reason(waiting)}")
    return None


def running(pod: Mapping[str, Any]) -> bool:
    """Tell whether the task itself has begun."""
    state = _state(pod.get("status") or {}, "containerStatuses", TASK)
    return state.get("running") is not None or state.get("terminated") is not None


def holdup(pod: Mapping[str, Any]) -> str:
    """Return why a pod has not begun, as far as it says."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "")
    for state in (
        _state(status, "initContainerStatuses", PREPARE),
        _state(status, "containerStatuses", TASK),
    ):
        if waiting := state.get("waiting"):
            return _reason(waiting)
    return ""


def _state(status: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next((c for c in status.get(kind) or [] if c["name"] == name), {})
    return found.get("state") or {}


def _outcome(done: Mapping[str, Any]) -> Outcome:
    """Return what the runner left as its last words, or what can be told of one that left none."""
    try:
        result = json.loads(done.get("message") or "")
        return Outcome(result["status"], result["text"])
    except (ValueError, KeyError, TypeError):
        if done.get("reason") == "OOMKilled":
            return Outcome("failure", "The task was stopped by the cluster: it used more memory than it may.")
        return Outcome("failure", f"The task's runner ended with exit status {done.get('exitCode')}.")


def _reason(waiting: Mapping[str, Any]) -> str:
    return ": ".join(filter(None, [waiting.get("reason"), waiting.get("message")]))
