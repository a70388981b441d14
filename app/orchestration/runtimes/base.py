"""What a place that runs tasks has to offer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run, with all it needs."""

    run_id: str
    task_id: str
    orchestration_id: str
    owner_id: str
    sha: str
    bundle: Path
    """The bundle's ZIP, as a file."""
    entry_point: str
    environment: str
    arguments: dict[str, Any]
    timeout_s: int | None
    debug: bool
    token_file: dict[str, Any] | None
    """Content of the client's token cache, when the task can sign in; never shown."""

    def __repr__(self) -> str:
        return f"RunSpec({self.run_id})"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended; `log` is a file with its whole output."""

    status: str
    """success, failure, timed_out or killed."""
    reason: str
    log: Path | None = None


class TaskRuntime(Protocol):
    """Runs tasks."""

    async def execute(self, spec: RunSpec, stop: asyncio.Event) -> Outcome:
        """Run to the end; when `stop` is set, end it early. Cancelled, it stops everything the run started."""
        ...

    async def lines(self, run_id: str, newest: int | None) -> list[bytes]:
        """Return what a run that goes on has written, oldest first; with `newest` only so many of the last lines."""
        ...

    async def clean(self, run_id: str) -> None:
        """Remove what is left of a run, its processes too; no error when there is nothing."""
        ...
