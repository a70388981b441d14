"""What a controller asks of the place where engines run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from app.deployments.engine_config import Wanted
from app.deployments.plan import Replica
from engine.contract.deployment import DeploymentDocument


class RuntimeFailure(Exception):
    """The runtime could not take a step; the message is for the owner of the deployment. Trying again may help."""


class DoesNotFit(RuntimeFailure):
    """There is no room for a replica at the moment."""

    def __init__(self, message: str, *, cpu: str | None = None, memory: str | None = None) -> None:
        super().__init__(message)
        self.cpu = cpu
        self.memory = memory


@dataclass(frozen=True, slots=True)
class Launch:
    """All it takes to bring up the replicas of one revision."""

    document: DeploymentDocument
    """What every replica is told; the runtime fills in its name, its addresses and where its models lie."""
    blobs: dict[int, str]
    """Storage key of each model's artifact, by model version id."""
    access_token: str
    """Secret by which its engines fetch who may infer."""
    replicas: int
    wanted: Wanted = field(default_factory=Wanted)
    engine_config: dict[str, Any] = field(default_factory=dict)

    @property
    def deployment_id(self) -> int:
        """Return whose replicas these are."""
        return self.document.deployment_id

    @property
    def revision(self) -> int:
        """Return of which revision they are."""
        return self.document.revision


class Runtime(Protocol):
    """Runs engines. Every call may be repeated: done twice is done once.

    What runs is the runtime's own to remember, in a form that survives this process.
    """

    async def deployments(self) -> set[int]:
        """Return the ids of the deployments of which anything is left here."""
        ...

    async def observe(self, deployment_id: int) -> tuple[Replica, ...]:
        """Return what there is of a deployment now; one that it knows nothing of has no replicas."""
        ...

    async def start(self, launch: Launch) -> None:
        """Bring up replicas of the launch's revision until there are as many as it says.

        Raises `DoesNotFit` when there is no room for them, another `RuntimeFailure` when they cannot be started.
        """
        ...

    async def restart(self, deployment_id: int, revision: int, now: datetime) -> None:
        """Replace the replicas of a revision that ended and whose turn it is; needs nothing but what is remembered."""
        ...

    async def stop(self, deployment_id: int, *, keep_revision: int | None = None) -> None:
        """Ask the replicas to finish what they work on and go, all but those of `keep_revision`. Does not wait."""
        ...

    async def logs(self, deployment_id: int, name: str, limit: int) -> list[str]:
        """Return the last lines a replica (or a sidekick of it) wrote, newest first; empty when there are none."""
        ...

    def on_change(self, call: Callable[[int], None]) -> None:
        """Have `call`, and nobody else, told which deployment changed by itself, as far as it is noticed unasked."""
        ...

    async def close(self) -> None:
        """Let go of the runtime; what runs goes on."""
        ...
