"""Runtimes that behave as badly as a test needs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec

from app.deployments.plan import Replica, ReplicaPhase, backoff
from app.deployments.runtimes.base import DoesNotFit, Launch, RuntimeFailure

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class FakeClock:
    """A clock that stands still until it is moved."""

    moment: datetime = START

    def now(self) -> datetime:
        return self.moment

    def pass_s(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@dataclass
class FakeRuntime:
    """Keeps replicas in memory; a started one answers when it was looked at `looks` times."""

    clock: FakeClock
    looks: float = 1
    """How often a replica is seen before it answers; infinity for never."""
    broken_revisions: set[int] = field(default_factory=set)
    """Revisions whose replicas say that they cannot serve."""
    no_room: DoesNotFit | None = None
    fails: list[RuntimeFailure] = field(default_factory=list)
    """Failures of the next starts."""
    lingering: bool = False
    """Whether replicas that were asked to go stay for the next look."""
    launches: list[Launch] = field(default_factory=list)
    _replicas: dict[int, dict[str, Replica]] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _call: Callable[[int], None] | None = None

    async def deployments(self) -> set[int]:
        return {key for key, replicas in self._replicas.items() if replicas}

    async def observe(self, deployment_id: int) -> tuple[Replica, ...]:
        replicas = self._replicas.setdefault(deployment_id, {})
        shown = tuple(replicas.values())
        for name, replica in list(replicas.items()):
            if replica.phase is ReplicaPhase.STOPPING:
                del replicas[name]
            elif replica.phase is ReplicaPhase.PENDING:
                self._seen[name] = self._seen.get(name, 0) + 1
                if replica.revision in self.broken_revisions:
                    replicas[name] = self._in(replica, ReplicaPhase.FAILED, "the model is no model", final=True)
                elif self._seen[name] >= self.looks:
                    replicas[name] = self._in(replica, ReplicaPhase.RUNNING)
        return shown

    async def start(self, launch: Launch) -> None:
        if self.no_room is not None:
            raise self.no_room
        if self.fails:
            raise self.fails.pop(0)
        self.launches.append(launch)
        replicas = self._replicas.setdefault(launch.deployment_id, {})
        there = [r for r in replicas.values() if r.revision == launch.revision and r.phase is not ReplicaPhase.STOPPING]
        for _ in range(launch.replicas - len(there)):
            number = next(self._numbers)
            replicas[f"engine-{number}"] = Replica(
                name=f"engine-{number}",
                revision=launch.revision,
                phase=ReplicaPhase.PENDING,
                since=self.clock.now(),
                host="127.0.0.1",
                port=40000 + number,
                models=({"model_version_id": 1, "name": "m", "version": "v", "sha": "s", "status": "Running"},),
                pipelines=tuple(
                    {"id": p.id, "version": p.version, "status": "Running"} for p in launch.document.pipelines
                ),
            )

    async def restart(self, deployment_id: int, revision: int, now: datetime) -> None:
        for name, replica in self._replicas[deployment_id].items():
            is_due = replica.since is not None and now - replica.since >= backoff(replica.restarts)
            if replica.phase is ReplicaPhase.FAILED and replica.revision == revision and is_due:
                again = self._in(replica, ReplicaPhase.PENDING)
                self._seen[name] = 0
                self._replicas[deployment_id][name] = msgspec.structs.replace(again, restarts=replica.restarts + 1)

    async def stop(self, deployment_id: int, *, keep_revision: int | None = None) -> None:
        replicas = self._replicas.get(deployment_id, {})
        for name, replica in list(replicas.items()):
            if replica.revision != keep_revision:
                if self.lingering and replica.phase is not ReplicaPhase.FAILED:
                    replicas[name] = self._in(replica, ReplicaPhase.STOPPING)
                else:
                    del replicas[name]

    async def logs(self, deployment_id: int, name: str, limit: int) -> list[str]:
        return [f"{name} of {deployment_id} began"][:limit] if name in self._replicas.get(deployment_id, {}) else []

    def on_change(self, call: Callable[[int], None]) -> None:
        self._call = call

    async def close(self) -> None:
        self._call = None

    # What tests do to it.

    def kill(self, deployment_id: int, reason: str = "killed") -> None:
        """Have every replica of a deployment end."""
        for name, replica in self._replicas[deployment_id].items():
            self._replicas[deployment_id][name] = self._in(replica, ReplicaPhase.FAILED, reason)
        if self._call is not None:
            self._call(deployment_id)

    def revisions(self, deployment_id: int) -> list[int]:
        """Return the revision of each replica there is."""
        return sorted(r.revision for r in self._replicas.get(deployment_id, {}).values())

    def _in(self, replica: Replica, phase: ReplicaPhase, reason: str | None = None, *, final: bool = False) -> Replica:
        return msgspec.structs.replace(replica, phase=phase, reason=reason, since=self.clock.now(), is_final=final)
