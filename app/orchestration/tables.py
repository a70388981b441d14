"""Bundles of user code, the tasks made of them and the runs of those."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import CHAR, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.kit.db import Record, Table
from app.models.tables import CREATED_ON_VERSION
from app.workspaces.tables import Workspace


class Orchestration(Record, Table):
    """An uploaded bundle; `status` goes from pending_packaging over packaging to ready or error."""

    __tablename__ = "orchestration"
    __table_args__ = (Index(None, "workspace_id"), Index(None, "sha"))

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    name: Mapped[str | None]
    file_name: Mapped[str]
    file_size: Mapped[int]
    sha: Mapped[str] = mapped_column(CHAR(64))
    owner_id: Mapped[str]
    created_by: Mapped[str | None]
    status: Mapped[str] = mapped_column(server_default="pending_packaging")
    image_path: Mapped[str | None]
    task_id: Mapped[uuid.UUID | None]
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspace.id"))
    created_on_version: Mapped[str] = mapped_column(server_default=CREATED_ON_VERSION)
    entry_point: Mapped[str] = mapped_column(server_default="main.py")
    """Path of main.py in the bundle."""
    environment: Mapped[str | None]
    """Hash that names the environment its tasks run in."""
    error_summary: Mapped[str | None]
    packaging_log: Mapped[str] = mapped_column(server_default="")
    claimed_by: Mapped[str | None]
    claimed_at: Mapped[datetime | None]

    workspace: Mapped[Workspace] = relationship()


class Task(Record, Table):
    """A bundle to be run: once, by a schedule, or continuously."""

    __tablename__ = "task"
    __table_args__ = (Index(None, "workspace_id"), Index(None, "orch_id"), Index(None, "next_run_at"))

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    name: Mapped[str | None]
    orch_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("orchestration.id", ondelete="CASCADE"))
    workspace_id: Mapped[int] = mapped_column(ForeignKey("workspace.id"))
    owner_id: Mapped[str]
    run_type: Mapped[str]
    """Oneshot, CronJob or NetworkService."""
    schedule: Mapped[str | None]
    input_data: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    timeout_s: Mapped[int | None]
    debug: Mapped[bool] = mapped_column(server_default=text("false"))
    status: Mapped[str] = mapped_column(server_default="pending")
    killed: Mapped[bool] = mapped_column(server_default=text("false"))
    paused: Mapped[bool] = mapped_column(server_default=text("false"))
    next_run_at: Mapped[datetime | None]
    """When a scheduled task is due, or a continuous one starts again after a failure."""
    may_overlap: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether a tick makes a run while the last one goes on."""
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    """Failed runs in a row of a continuous task; its pauses grow with them."""

    orchestration: Mapped[Orchestration] = relationship()
    runs: Mapped[list[TaskRun]] = relationship(back_populates="task", order_by="TaskRun.created_at")


class TaskRun(Record, Table):
    """One run of a task; queued until a worker claims it, then running, then success, failure, timed_out or killed."""

    __tablename__ = "task_run"
    __table_args__ = (
        UniqueConstraint("task_id", "due_at"),
        Index("task_run_unfinished_idx", "status", postgresql_where=text("status IN ('queued', 'running')")),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    task_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("task.id", ondelete="CASCADE"))
    due_at: Mapped[datetime]
    """The tick it belongs to: a tick makes one run, whoever looks at the clock."""
    status: Mapped[str] = mapped_column(server_default="queued")
    reason: Mapped[str | None]
    worker: Mapped[str | None]
    heartbeat_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    kill_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    log_key: Mapped[str | None]
    """Blob of the whole log, once the run is over."""

    task: Mapped[Task] = relationship(back_populates="runs")
