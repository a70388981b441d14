"""What the orchestration and task routes take and give."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.kit.wire import WireTime
from app.workspaces.schemas import WorkspaceBrief, WorkspaceIdField

_ID = "b3ab48a6-f9b1-4ea5-8a5f-5f5a5d9a2d4b"
RunStatus = Literal["running", "success", "failure", "unknown", "timed_out", "killed"]


class BundleMetadata(BaseModel):
    """The `metadata` part of a bundle's upload."""

    workspace_id: WorkspaceIdField
    name: str | None = Field(None, max_length=255)


class Id(BaseModel):
    """An id."""

    id: uuid.UUID = Field(examples=[_ID])


class OrchestrationBrief(BaseModel):
    """An orchestration; `status` is pending_packaging, packaging, ready or error."""

    id: uuid.UUID = Field(examples=[_ID])
    name: str | None = Field(examples=["nightly-batch"])
    created_at: WireTime
    workspace_id: int
    sha: str = Field(examples=["d3b93c9f280734106376e684792aa8b4285d527092fe87d89c74ec804f8e169e"])
    file_name: str = Field(examples=["nightly.zip"])
    task_id: uuid.UUID | None
    owner_id: str
    status: str = Field(examples=["ready"])


class OrchestrationOut(OrchestrationBrief):
    """An orchestration with everything that clients read."""

    updated_at: WireTime
    image_path: str = ""
    file_size: int
    created_by: str | None
    error_summary: str | None = Field(description="Why packaging failed.")


class ListIn(BaseModel):
    """A workspace."""

    workspace_id: WorkspaceIdField


class ListAllIn(BaseModel):
    """Which orchestrations to list; an empty list filters nothing."""

    task_run_status: list[RunStatus] | None = None
    workspace_ids: list[WorkspaceIdField] | None = None
    killed: bool | None = None
    time_range: tuple[datetime, datetime] | None = None


class TaskRunBrief(BaseModel):
    """A run of a task."""

    run_id: uuid.UUID = Field(examples=[_ID])
    status: RunStatus
    created_at: WireTime
    updated_at: WireTime


class TaskRunOut(TaskRunBrief):
    """A run with the id of its task."""

    task: uuid.UUID


class TaskOut(BaseModel):
    """A task with its last runs, oldest first; `input_data` are its arguments."""

    model_config = ConfigDict(extra="allow")

    id: uuid.UUID = Field(examples=[_ID])
    name: str | None
    status: str = Field(examples=["started"])
    run_type: str = Field(examples=["Oneshot"])
    workspace_id: int
    input_data: dict[str, Any]
    killed: bool
    created_at: WireTime
    updated_at: WireTime
    last_runs: list[TaskRunBrief]


class OrchestrationItem(BaseModel):
    """An orchestration with its tasks and its workspace."""

    orchestration: OrchestrationOut
    tasks: list[TaskOut]
    workspace: WorkspaceBrief


class ListAllOut(BaseModel):
    """Orchestrations, newest first."""

    orchestrations: list[OrchestrationItem]


class DeleteIn(BaseModel):
    """Orchestrations to delete; without `confirm_delete` only what it would free is told."""

    orchestrations: list[uuid.UUID]
    confirm_delete: bool | None = None


class BytesOut(BaseModel):
    """Bytes that were, or would be, freed."""

    bytes: int


class RunIn(BaseModel):
    """A bundle to run, with its arguments."""

    orch_id: uuid.UUID = Field(examples=[_ID])
    workspace_id: WorkspaceIdField
    arguments: dict[str, Any] | None = Field(None, alias="json", examples=[{"table": "houses"}])
    name: str | None = Field(None, max_length=255)
    timeout: int | None = Field(None, gt=0, le=366 * 86400, description="Seconds a run may take; default 900.")
    debug: bool | None = None


class RunScheduledIn(RunIn):
    """A bundle to run by a schedule."""

    schedule: str = Field(examples=["*/5 * * * *"], max_length=200, description="Five-field cron, in UTC.")
    allow_overlap: bool | None = Field(None, description="Make a run even while the last one goes on.")


class TaskListIn(BaseModel):
    """Which tasks to list; `killed: false` leaves killed ones out."""

    workspace_id: WorkspaceIdField | None = None
    killed: bool | None = None
    orch_id: uuid.UUID | None = None
    orch_sha: str | None = None
    run_limit: int | None = Field(None, ge=1, le=1000)


class ShaIn(BaseModel):
    """The SHA-256 of a bundle."""

    sha: str


class IdsOut(BaseModel):
    """Ids of tasks, oldest first."""

    ids: list[uuid.UUID]


class PauseIn(Id):
    """A task to pause, or with `pause: false` to resume."""

    pause: bool


class RunsIn(BaseModel):
    """Which runs of a task to list."""

    task_id: uuid.UUID = Field(examples=[_ID])
    limit: int | None = Field(None, ge=1, le=1000)
    status: Literal["all", "running", "success", "failure", "timed_out", "killed"] | None = None
    time_range: tuple[datetime, datetime] | None = None


class RunDetailsIn(BaseModel):
    """A run of a task; `pod_id` is the run's id."""

    task: uuid.UUID
    pod_id: uuid.UUID


class LogsIn(Id):
    """A run, and how many of its last lines."""

    lines: int | None = Field(None, ge=0)


class LogsOut(BaseModel):
    """Lines, oldest first, each `<time> <stdout|stderr> <F|P> <text>`."""

    logs: list[str] = Field(examples=[["2026-01-09T20:54:10.144212000Z stdout F hello"]])
