"""Plans as the database keeps them, so that the clock needs no client's spelling."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from app.assays.plan import Baseline, Given, Moving, Path, Plan, Source, Thresholds
from app.assays.schedule import Schedule
from app.assays.stored import Json, keep, restore, zulu
from engine.assays import Aggregation, BinMode, Generation, Metric, Summarizer


def keep_plan(plan: Plan, schedule: Schedule) -> Json:
    """Return a plan and its schedule as the database keeps them; the baseline is settled, or moves."""
    spec, moving = plan.summarizer, plan.baseline
    return {
        "source": _keep_source(plan.source),
        "paths": [
            {
                "side": path.side,
                "field": path.field,
                "indexes": None if path.indexes is None else list(path.indexes),
                "warning": plan.thresholds[path.key].warning,
                "alert": plan.thresholds[path.key].alert,
            }
            for path in plan.paths
        ],
        "summarizer": {
            "bin_mode": spec.bin_mode.value,
            "num_bins": spec.num_bins,
            "provided": list(spec.provided),
            "weights": None if spec.weights is None else list(spec.weights),
            "aggregation": spec.aggregation.value,
            "metric": spec.metric.value,
            "generation": spec.generation.value,
        },
        "moving": {
            "source": _keep_source(moving.source),
            "width_s": moving.width.total_seconds(),
            "offset_s": moving.offset.total_seconds(),
            "start": zulu(moving.start),
        }
        if isinstance(moving, Moving)
        else None,
        "schedule": {
            "first": zulu(schedule.first),
            "width_s": schedule.width.total_seconds(),
            "step_s": None if schedule.step is None else schedule.step.total_seconds(),
            "cron": schedule.cron,
            "until": zulu(schedule.until),
        },
    }


def restore_plan(kept: Json, baseline: Json) -> tuple[Plan, Schedule]:
    """Return what `keep_plan` kept, against a kept baseline."""
    paths = tuple(
        Path(p["side"], p["field"], None if p["indexes"] is None else tuple(p["indexes"])) for p in kept["paths"]
    )
    spec, when = kept["summarizer"], kept["schedule"]
    plan = Plan(
        _source(kept["source"]),
        paths,
        Summarizer(
            BinMode(spec["bin_mode"]),
            spec["num_bins"],
            tuple(spec["provided"]),
            None if spec["weights"] is None else tuple(spec["weights"]),
            Aggregation(spec["aggregation"]),
            Metric(spec["metric"]),
            Generation(spec["generation"]),
        ),
        _baseline(kept["moving"], baseline),
        timedelta(seconds=when["width_s"]),
        {path.key: Thresholds(p["warning"], p["alert"]) for path, p in zip(paths, kept["paths"], strict=True)},
    )
    schedule = Schedule(
        datetime.fromisoformat(when["first"]),
        plan.width,
        None if when["step_s"] is None else timedelta(seconds=when["step_s"]),
        when["cron"],
        _moment(when["until"]),
    )
    return plan, schedule


def keep_baseline(baseline: Given | None) -> Json:
    """Return a settled baseline as the database keeps it, by path; nothing for one that moves."""
    if baseline is None:
        return {}
    bounds = {"start": zulu(baseline.start), "end": zulu(baseline.end)}
    return {key: keep(summary) | bounds for key, summary in baseline.summaries.items()}


def restore_baseline(kept: Json) -> Given:
    """Return what `keep_baseline` kept."""
    first: Json = next(iter(kept.values()), {})
    return Given(
        {key: restore(summary) for key, summary in kept.items()}, _moment(first.get("start")), _moment(first.get("end"))
    )


def _baseline(moving: Json | None, kept: Json) -> Baseline:
    if moving is None:
        return restore_baseline(kept)
    return Moving(
        _source(moving["source"]),
        timedelta(seconds=moving["width_s"]),
        timedelta(seconds=moving["offset_s"]),
        _moment(moving["start"]),
    )


def _keep_source(source: Source) -> Json:
    return {"topic": source.topic, "model": source.model, "locations": sorted(source.locations)}


def _source(kept: Json) -> Source:
    return Source(kept["topic"], kept["model"], frozenset(kept["locations"]))


def _moment(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
