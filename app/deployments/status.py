"""A deployment's status, made from what was last seen of it and from nothing else."""

from __future__ import annotations

import hashlib
from typing import Any

from app.deployments import observed as sightings
from app.deployments.plan import Phase, Replica, ReplicaPhase
from app.deployments.schemas import EngineOut, PodOut, StatusOut
from app.deployments.tables import Deployment
from app.errors import NotFound
from app.kit.clients import Client

_SAID = {"Running": "Running", "Error": "Error"}


def status_of(row: Deployment, client: Client) -> StatusOut:
    """Return what is seen of the deployment, as `client` reads it; raises `NotFound` for one that is not deployed."""
    seen = sightings.read(row.observed)
    phase = Phase(row.phase)
    if phase is Phase.STOPPED and not row.deployed:
        raise NotFound(f"Deployment {row.deploy_id}-{row.id} is not deployed.")
    present = [r for r in seen.replicas if r.phase is not ReplicaPhase.STOPPING or not row.deployed]
    replicas = [*present, *seen.waiting]
    if phase is Phase.FAILED:
        known = {r.name for r in replicas}
        replicas += [r for r in seen.failed if r.name not in known]
    lacks_room = any(r.required_cpu or r.required_memory for r in replicas)
    if phase is Phase.FAILED or lacks_room:
        status, details = "Error", [row.reason] if row.reason else [r.reason for r in replicas if r.reason][:1]
    elif phase is Phase.RUNNING:
        status, details = "Running", []
    else:
        status, details = "Starting", ["Terminating" if not row.deployed else "Scaling"]
    return StatusOut(
        status=status,
        details=[text for text in details if text],
        engines=[_engine(replica, client) for replica in replicas],
        engine_lbs=[_balancer(row)],
        sidekicks=[],
    )


def _engine(replica: Replica, client: Client) -> EngineOut:
    phase = "Running" if replica.phase is ReplicaPhase.STOPPING else str(replica.phase)
    reason = replica.reason if replica.phase in (ReplicaPhase.FAILED, ReplicaPhase.PENDING) else None
    details = [f"restarted {replica.restarts} times"] if replica.restarts else []
    if replica.phase is ReplicaPhase.STOPPING:
        details.append("Terminating")
    return EngineOut(
        ip=replica.host,
        name=replica.name,
        status=phase,
        reason=reason,
        details=details,
        required_cpu=replica.required_cpu,
        required_memory=replica.required_memory,
        pipeline_statuses=_said(replica.pipelines, "pipelines", ("id", "status", "version"), client),
        model_statuses=_said(
            replica.models, "models", ("model_version_id", "name", "sha", "status", "version"), client
        ),
    )


def _said(
    entries: tuple[dict[str, Any], ...] | None, key: str, names: tuple[str, ...], client: Client
) -> dict[str, Any] | None:
    if entries is None:
        return None
    left_out: set[str] = set()
    if not client.shows_pipeline_versions:
        left_out = {"version"} if key == "pipelines" else {"model_version_id"}
    return {
        key: [
            {n: _SAID.get(e[n], "Starting") if n == "status" else e.get(n) for n in names if n not in left_out}
            for e in entries
        ]
    }


def _balancer(row: Deployment) -> PodOut:
    """Show the load balancer: the gateway, which answers for every deployment as long as this process does."""
    word = hashlib.sha256(f"lb/{row.id}".encode()).hexdigest()
    return PodOut(
        ip="127.0.0.1", name=f"engine-lb-{word[:10]}-{word[10:15]}", status="Running", reason=None, details=[]
    )
