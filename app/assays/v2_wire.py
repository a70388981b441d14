"""What the second generation of clients reads."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from app.assays.analysis import Analysis, Compared
from app.assays.stored import Json, finite, restore, v2_summary, zulu
from app.assays.stored_plan import restore_plan
from app.assays.tables import AssayResult, AssayWatch
from app.assays.v2_config import Target

_STATUSES = {"Failed": "Warning", "Empty": "Ok"}
"""Clients know Ok, Warning and Alert alone."""


def scores_json(results: Mapping[str, Compared | str]) -> Json:
    """Return scores by path; a text where there is none says why."""
    return {
        key: {
            "score": finite(result.score.score),
            "scores": [finite(value) for value in result.score.scores],
            "bin_index": result.score.bin_index,
        }
        if isinstance(result, Compared)
        else result
        for key, result in results.items()
    }


def preview_json(target: Target, mode: Any, result: Analysis) -> Json:
    """Return one window of a preview."""
    window, workspace = result.window, target.pipeline.workspace
    return {
        "id": 0,
        "assay_id": str(uuid.uuid4()),
        "analyzed_at": zulu(datetime.now(UTC)),
        "elapsed_millis": result.elapsed_ms,
        "pipeline_id": target.pipeline.id,
        "workspace_id": workspace.id,
        "workspace_name": workspace.name,
        "window_start": zulu(window.start),
        "window_end": zulu(window.end),
        "scores": scores_json(result.results),
        "summaries": {
            key: v2_summary(key, one.window, mode, window.start, window.end)
            for key, one in result.results.items()
            if isinstance(one, Compared)
        },
    }


def assay_json(watch: AssayWatch) -> Json:
    """Return an assay."""
    config = watch.config
    return {
        "id": str(watch.public_id),
        "name": watch.name,
        "active": watch.active,
        "baseline": config["baseline"],
        "scheduling": config["scheduling"],
        "summarizer": config["summarizer"],
        "targeting": config["targeting"],
        "window": config["window"],
        "created_at": zulu(watch.created_at),
        "updated_at": zulu(watch.updated_at),
    }


def result_json(watch: AssayWatch, row: AssayResult) -> Json:
    """Return a stored result; one that failed has no summaries, and its reason in place of scores."""
    workspace = watch.pipeline.workspace
    plan, _ = restore_plan(watch.plan, watch.baseline)
    return {
        "id": row.id,
        "assay_id": str(watch.public_id),
        "analyzed_at": zulu(row.analyzed_at),
        "created_at": zulu(row.created_at),
        "updated_at": zulu(row.updated_at),
        "window_start": zulu(row.window_start),
        "window_end": zulu(row.window_end),
        "elapsed_millis": row.elapsed_ms,
        "pipeline_id": watch.pipeline_id,
        "workspace_id": workspace.id,
        "workspace_name": workspace.name,
        "status": _STATUSES.get(row.status, row.status),
        "scores": row.scores or {path.key: row.reason for path in plan.paths},
        "summaries": {
            key: v2_summary(key, restore(kept["window"]), watch.config["mode"], row.window_start, row.window_end)
            for key, kept in row.summaries.items()
        },
        "warning_threshold": row.warning_threshold,
        "alert_threshold": row.alert_threshold,
    }
