"""What the first generation of clients reads: listings that every release can parse, and analyses."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from app.assays.analysis import Analysis, Compared
from app.assays.plan import Given, Moving
from app.assays.schemas import ConfigIn, SummarizerIn
from app.assays.stored import Json, finite, restore, v1_summary, zulu
from app.assays.tables import AssayResult, AssayWatch
from app.assays.v1_config import Described
from app.kit.wire import wire_time
from engine.assays import Status, Summary

UNSHOWN = ("bin_width", "add_outlier_edges")
"""Members of a summarizer that are taken and never shown again."""


def summarizer_json(given: SummarizerIn) -> Json:
    """Return a summarizer as results echo it."""
    return {
        "type": given.type,
        "bin_mode": given.bin_mode,
        "aggregation": given.aggregation,
        "metric": given.metric,
        "num_bins": given.num_bins,
        "bin_weights": given.bin_weights,
        "provided_edges": given.provided_edges,
    }


def shown_config(config: ConfigIn, found: Described, baseline: Given | None) -> Json:
    """Return what is kept of a configuration: baseline and window in the spellings of all releases at once."""
    window = config.window
    model = window.model_name or window.model
    name = window.pipeline_name or window.pipeline or config.pipeline_name
    shown: Json = {
        "iopath": found.iopath,
        "baseline": _both_baselines(config, found, baseline),
        "window": {
            "pipeline": name,
            "model": model or "",
            "pipeline_name": name,
            "model_name": model,
            "width": window.width,
            "start": window.start,
            "interval": window.interval,
            "path": found.iopath,
            "workspace_id": found.pipeline.workspace_id,
            "locations": window.locations or [],
        },
        "summarizer": summarizer_json(config.summarizer),
        "run_until": config.run_until,
        "sent": config.model_dump(mode="json", exclude={"id", "status", "created_at"}),
    }
    return shown


def _both_baselines(config: ConfigIn, found: Described, baseline: Given | None) -> Json:
    both: Json = {key: value for key, value in config.baseline.items() if key in ("Fixed", "Sliding", "calculated")}
    moving = found.plan.baseline
    if isinstance(moving, Moving):
        window, width = config.window, _duration(moving.width)
        name, model = window.pipeline_name or window.pipeline or config.pipeline_name, window.model_name or window.model
        both.setdefault(
            "Sliding",
            {"pipeline": name, "model": model or "", "width": width, "offset": _duration(moving.offset)},
        )
        both.setdefault(
            "calculated",
            {
                "sliding_window": {
                    "window": {
                        "pipeline_name": name,
                        "model_name": model or "",
                        "width": width,
                        "start": window.start,
                        "interval": window.interval,
                        "path": found.iopath,
                        "workspace_id": found.pipeline.workspace_id,
                        "locations": window.locations or [],
                    },
                    "offset": _duration(moving.offset),
                }
            },
        )
    if baseline is not None:
        summary = next(iter(baseline.summaries.values()))
        both["static"] = static_json(summary, baseline.start, baseline.end)
        if "Fixed" not in both and "Sliding" not in both:
            end = baseline.end or found.first
            window = config.window
            both["Fixed"] = {
                "pipeline": window.pipeline_name or window.pipeline or config.pipeline_name,
                "model": window.model_name or window.model or "",
                "start_at": wire_time(baseline.start or end),
                "end_at": wire_time(end),
            }
    return both


def _duration(span: timedelta) -> str:
    seconds = round(span.total_seconds())
    return f"{seconds // 60} minutes" if seconds % 60 == 0 else f"{seconds * 1000} ms"


def static_json(summary: Summary, start: datetime | None, end: datetime | None) -> Json:
    """Return a baseline summary with the names of its bounds in both spellings."""
    shown = v1_summary(summary, start, end)
    return shown | {"start_at": shown["start"], "end_at": shown["end"]}


def listing(watch: AssayWatch) -> Json:
    """Return an assay as `list` and `get_assay_by_id` show it."""
    assay = watch.assay
    assert assay is not None  # noqa: S101 - only assays of the first generation are listed here
    config, workspace = watch.config, watch.pipeline.workspace
    next_run = watch.next_run or watch.last_run or watch.first_run
    return {
        "id": assay.id,
        "name": assay.name,
        "active": assay.active,
        "status": assay.status,
        "warning_threshold": assay.warning_threshold,
        "alert_threshold": assay.alert_threshold,
        "pipeline_id": assay.pipeline_id,
        "pipeline_name": assay.pipeline_name,
        "workspace_id": workspace.id,
        "workspace_name": workspace.name,
        "last_run": wire_time(watch.last_run) if watch.last_run else None,
        "next_run": wire_time(next_run),
        "run_until": config["run_until"],
        "created_at": wire_time(assay.created_at),
        "updated_at": wire_time(assay.updated_at),
        "iopath": config["iopath"],
        "baseline": config["baseline"],
        "window": config["window"],
        "summarizer": config["summarizer"],
    }


def full_config(watch: AssayWatch) -> Json:
    """Return an assay as `filter` shows it: what `create` takes, and how far it got."""
    shown = listing(watch)
    last = watch.last_window_start
    return shown | {"last_window_start": zulu(last)}


def analysis_json(config: ConfigIn, found: Described, result: Analysis) -> Json | None:
    """Return an interactive analysis, None for a window that could not be compared."""
    key = found.plan.paths[0].key
    compared = result.results[key]
    if not isinstance(compared, Compared):
        return None
    window = result.window
    workspace = found.pipeline.workspace
    now = datetime.now(UTC)
    return {
        "id": None,
        "assay_id": config.id,
        "window_start": zulu(window.start),
        "analyzed_at": zulu(now),
        "elapsed_millis": result.elapsed_ms,
        "iopath": found.iopath,
        "pipeline_id": found.pipeline.id,
        "workspace_id": workspace.id,
        "workspace_name": workspace.name,
        "baseline_summary": v1_summary(compared.baseline, result.baseline_start, result.baseline_end),
        "window_summary": v1_summary(compared.window, window.start, window.end, is_window=True),
        "warning_threshold": config.warning_threshold,
        "alert_threshold": config.alert_threshold,
        "score": finite(compared.score.score),
        "scores": [finite(value) for value in compared.score.scores],
        "bin_index": compared.score.bin_index,
        "summarizer": summarizer_json(config.summarizer),
        "status": result.status(found.plan).value,
        "created_at": None,
    }


def baseline_run_json(config: ConfigIn, found: Described, baseline: Given) -> Json:
    """Return the baseline as an analysis of itself."""
    summary = next(iter(baseline.summaries.values()))
    now = datetime.now(UTC)
    return {
        "id": None,
        "assay_id": config.id,
        "window_start": zulu(baseline.start or found.first),
        "analyzed_at": zulu(now),
        "elapsed_millis": 0,
        "iopath": found.iopath,
        "pipeline_id": found.pipeline.id,
        "workspace_id": found.pipeline.workspace_id,
        "workspace_name": found.pipeline.workspace.name,
        "baseline_summary": v1_summary(summary, baseline.start, baseline.end),
        "window_summary": v1_summary(summary, baseline.start, baseline.end, is_window=True),
        "warning_threshold": config.warning_threshold,
        "alert_threshold": config.alert_threshold,
        "score": 0.0,
        "scores": [0.0] * len(summary.bins),
        "bin_index": None,
        "summarizer": summarizer_json(config.summarizer),
        "status": Status.BASELINE_RUN.value,
        "created_at": None,
    }


def result_json(watch: AssayWatch, row: AssayResult, deliveries: list[Json]) -> Json:
    """Return a stored result as an analysis, and beside it what became of its notices."""
    key = next(iter(row.scores))
    scored: Mapping[str, Any] = row.scores[key]
    kept = row.summaries[key]
    base = kept.get("baseline") or watch.baseline[key]
    workspace = watch.pipeline.workspace
    return {
        "id": row.id,
        "assay_id": watch.assay_id,
        "window_start": zulu(row.window_start),
        "analyzed_at": zulu(row.analyzed_at),
        "elapsed_millis": row.elapsed_ms,
        "iopath": watch.iopath,
        "pipeline_id": watch.pipeline_id,
        "workspace_id": workspace.id,
        "workspace_name": workspace.name,
        "baseline_summary": v1_summary(restore(base), *_bounds(base)),
        "window_summary": v1_summary(restore(kept["window"]), row.window_start, row.window_end, is_window=True),
        "warning_threshold": row.warning_threshold,
        "alert_threshold": row.alert_threshold,
        "score": scored["score"],
        "scores": scored["scores"],
        "bin_index": scored["bin_index"],
        "summarizer": watch.config["summarizer"],
        "status": row.status,
        "created_at": zulu(row.created_at),
        "notifications": deliveries,
    }


def _bounds(base: Json) -> tuple[datetime | None, datetime | None]:
    start, end = (base.get(name) for name in ("start", "end"))
    return (
        datetime.fromisoformat(start) if start else None,
        datetime.fromisoformat(end) if end else None,
    )
