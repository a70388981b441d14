"""What to do next about a deployment: pure, with what runs and the time passed in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec

RETIRE_AFTER = timedelta(seconds=1)
"""How long the former revision stays after the new one answers, so that every gateway has heard of it."""
STEADY = timedelta(minutes=5)
"""A replica that ran this long before it ended is started again at once, whatever happened before."""
FIRST_STARTS = 3
"""Attempts of a replica of a revision that never ran, before the revision counts as failed."""


class Phase(StrEnum):
    """What a deployment was last seen doing."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed"
    STOPPING = "stopping"


class ReplicaPhase(StrEnum):
    """What one replica is doing, in the words of pods."""

    PENDING = "Pending"
    """It has no place yet, or has not begun to answer."""
    RUNNING = "Running"
    FAILED = "Failed"
    """It ended, or says that it cannot serve."""
    STOPPING = "Stopping"


class Action(StrEnum):
    """One step."""

    WAIT = "wait"
    START = "start"
    """Bring up replicas of the desired revision until there are as many as asked for."""
    RESTART = "restart"
    """Replace replicas that ended."""
    RETIRE = "retire"
    """Stop the replicas of every revision but the one in force."""
    STOP = "stop"
    MARK_STARTING = "mark_starting"
    MARK_RUNNING = "mark_running"
    MARK_FAILED = "mark_failed"
    MARK_STOPPED = "mark_stopped"


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One replica as the runtime sees it."""

    name: str
    revision: int
    phase: ReplicaPhase
    reason: str | None = None
    since: datetime | None = None
    """When it entered its phase."""
    restarts: int = 0
    is_final: bool = False
    """A failure that another start would only repeat."""
    host: str | None = None
    port: int | None = None
    sockets: tuple[str, ...] = ()
    """Unix sockets on which it takes connections that a gateway on this machine accepted."""
    pid: int | None = None
    pipelines: tuple[dict[str, Any], ...] | None = None
    models: tuple[dict[str, Any], ...] | None = None
    """What it says of its pipelines and models; None until it answered."""
    required_cpu: str | None = None
    required_memory: str | None = None
    """What the machine or cluster would need to have free for it, when it has not."""


@dataclass(frozen=True, slots=True)
class Desired:
    """What was asked for."""

    active: bool
    revision: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What was written down before."""

    phase: Phase
    since: datetime
    running_revision: int | None = None
    """The last revision that was seen to answer."""
    failed_revision: int | None = None


def backoff(restarts: int) -> timedelta:
    """Return how long to wait before a replica that ended for the `restarts`-th time is started again."""
    return timedelta(seconds=0 if restarts == 0 else min(2.0 ** min(restarts - 1, 6), 60.0))


def goal(desired: Desired, memory: Memory) -> int | None:
    """Return the revision that should run: the desired one, or the one before while the desired one is broken."""
    if not desired.active:
        return None
    if memory.failed_revision != desired.revision:
        return desired.revision
    return memory.running_revision if memory.running_revision != desired.revision else None


def next_action(
    desired: Desired, observed: tuple[Replica, ...], memory: Memory, now: datetime, patience: timedelta
) -> Action:
    """Choose the one step that brings what runs closer to what was asked for."""
    revision = goal(desired, memory)
    alive = [r for r in observed if r.phase is not ReplicaPhase.STOPPING]
    if revision is None:
        return _wind_down(desired, observed, alive, memory)
    current = [r for r in alive if r.revision == revision]
    ready = [r for r in current if r.phase is ReplicaPhase.RUNNING]
    failed = [r for r in current if r.phase is ReplicaPhase.FAILED]
    has_run = memory.running_revision == revision
    if not has_run:
        if failed and (any(r.is_final for r in failed) or max(r.restarts for r in failed) + 1 >= FIRST_STARTS):
            return Action.MARK_FAILED
        if memory.phase is Phase.STARTING and now - memory.since > patience and len(ready) < desired.replicas:
            return Action.MARK_FAILED
    if len(current) < desired.replicas and revision == desired.revision:
        return Action.START if memory.phase in (Phase.STARTING, Phase.FAILED) or has_run else Action.MARK_STARTING
    if any(r.since is None or now - r.since >= backoff(r.restarts) for r in failed):
        return Action.RESTART
    others = [r for r in alive if r.revision != revision]
    if len(ready) >= (desired.replicas if revision == desired.revision else len(current)):
        is_settled = memory.failed_revision == desired.revision and memory.phase is Phase.FAILED
        if not has_run or (memory.phase is not Phase.RUNNING and not is_settled):
            return Action.MARK_RUNNING
        if others and (is_settled or now - memory.since >= RETIRE_AFTER):
            return Action.RETIRE
        return Action.WAIT
    if memory.phase in (Phase.RUNNING, Phase.STOPPED, Phase.STOPPING):
        return Action.MARK_STARTING
    return Action.WAIT


def _wind_down(desired: Desired, observed: tuple[Replica, ...], alive: list[Replica], memory: Memory) -> Action:
    if alive:
        return Action.STOP
    if observed or desired.active:
        return Action.WAIT  # they are stopping; or the revision is broken, until the user changes something
    return Action.WAIT if memory.phase is Phase.STOPPED else Action.MARK_STOPPED
