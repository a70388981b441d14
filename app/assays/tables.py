"""Assays: what is watched for drift, how far, and with what results."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import REAL, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.kit.db import Key, Record, Table
from app.models.tables import CREATED_ON_VERSION
from app.pipelines.tables import Pipeline


class Assay(Record, Table):
    """A watch over one value of a pipeline's inputs or outputs; thresholds are single precision on the wire."""

    __tablename__ = "assay"
    __table_args__ = (Index(None, "pipeline_id"),)

    id: Mapped[Key]
    name: Mapped[str] = mapped_column(unique=True)
    active: Mapped[bool] = mapped_column(server_default=text("true"))
    status: Mapped[str] = mapped_column(server_default="created")
    warning_threshold: Mapped[float | None] = mapped_column(REAL)
    alert_threshold: Mapped[float] = mapped_column(REAL)
    pipeline_name: Mapped[str]
    pipeline_id: Mapped[int] = mapped_column(ForeignKey("pipeline.id", ondelete="CASCADE"))
    created_on_version: Mapped[str] = mapped_column(server_default=CREATED_ON_VERSION)

    pipeline: Mapped[Pipeline] = relationship()


class AssayWatch(Record, Table):
    """What the clock needs of an assay of either generation: its configuration, and how far it has been computed."""

    __tablename__ = "assay_watch"
    __table_args__ = (
        UniqueConstraint("assay_id"),
        UniqueConstraint("public_id"),
        Index(None, "pipeline_id"),
        Index("assay_watch_due_idx", "next_run", postgresql_where=text("next_run IS NOT NULL")),
    )

    id: Mapped[Key]
    assay_id: Mapped[int | None] = mapped_column(ForeignKey("assay.id", ondelete="CASCADE"))
    """The row of the first generation; None for an assay of the second."""
    public_id: Mapped[uuid.UUID] = mapped_column(server_default=text("gen_random_uuid()"))
    """What the second generation calls its id."""
    pipeline_id: Mapped[int] = mapped_column(ForeignKey("pipeline.id", ondelete="CASCADE"))
    name: Mapped[str]
    active: Mapped[bool] = mapped_column(server_default=text("true"))
    config: Mapped[dict[str, Any]]
    """As the caller sent it."""
    plan: Mapped[dict[str, Any]]
    """What to compute and when, without any client's spelling."""
    baseline: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    """Summaries by path; empty for a baseline that moves with the window."""
    iopath: Mapped[str] = mapped_column(server_default="")
    first_run: Mapped[datetime]
    """End of the first window."""
    next_run: Mapped[datetime | None]
    """End of the next window to compute; None when there is none any more."""
    last_run: Mapped[datetime | None]
    """When a window was last computed."""
    last_window_start: Mapped[datetime | None]
    paused_at: Mapped[datetime | None]
    last_status: Mapped[str | None]
    """Status of the newest window; what alerts compare with."""
    claimed_until: Mapped[datetime | None]
    claimed_by: Mapped[uuid.UUID | None]
    notifications: Mapped[dict[str, Any] | None]

    assay: Mapped[Assay | None] = relationship()
    pipeline: Mapped[Pipeline] = relationship()


class AssayResult(Record, Table):
    """One computed window; a failed one has a reason instead of a score."""

    __tablename__ = "assay_result"
    __table_args__ = (
        UniqueConstraint("watch_id", "window_start"),
        Index("assay_result_recheck_idx", "recheck_at", postgresql_where=text("recheck_at IS NOT NULL")),
    )

    id: Mapped[Key]
    watch_id: Mapped[int] = mapped_column(ForeignKey("assay_watch.id", ondelete="CASCADE"))
    window_start: Mapped[datetime]
    window_end: Mapped[datetime]
    analyzed_at: Mapped[datetime]
    elapsed_ms: Mapped[int]
    status: Mapped[str]
    """Ok, Warning, Alert; Empty for a window without records, Failed for one that could not be computed."""
    reason: Mapped[str | None]
    scores: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    summaries: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    warning_threshold: Mapped[float | None]
    alert_threshold: Mapped[float | None]
    recheck_at: Mapped[datetime | None]
    """When an empty window is looked at again, for records that come late."""
    rechecks: Mapped[int] = mapped_column(server_default=text("0"))


class AssayDelivery(Record, Table):
    """One notice on its way to one address."""

    __tablename__ = "assay_delivery"
    __table_args__ = (
        UniqueConstraint("result_id", "channel", "address"),
        Index("assay_delivery_due_idx", "due_at", postgresql_where=text("due_at IS NOT NULL")),
    )

    id: Mapped[Key]
    result_id: Mapped[int] = mapped_column(ForeignKey("assay_result.id", ondelete="CASCADE"))
    channel: Mapped[str]
    address: Mapped[str]
    payload: Mapped[dict[str, Any]]
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    due_at: Mapped[datetime | None]
    """When to try (again); None when delivered or given up."""
    delivered_at: Mapped[datetime | None]
    error: Mapped[str | None]
