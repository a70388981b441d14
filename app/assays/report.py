"""A report on an assay: one HTML page that stands for itself, good enough to attach to a ticket."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, Template, select_autoescape
from markupsafe import Markup
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.assays.charts import Point, bins_chart, scores_chart
from app.assays.lookups import visible_watch
from app.assays.plan import Thresholds
from app.assays.schemas import ReportIn
from app.assays.stored import Json, moment_of
from app.assays.stored_plan import restore_plan
from app.assays.tables import AssayResult, AssayWatch
from app.identity.caller import Caller
from engine.assays import status_of

MOST_WINDOWS = 2000
_UNITS = ((604_800, "week"), (86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
STATISTICS = ("count", "min", "max", "mean", "median", "std")


async def page(session: AsyncSession, caller: Caller, wanted: ReportIn) -> str:
    """Return the report; raises `NotFound`. Only the newest windows are shown where there are very many."""
    watch = await visible_watch(session, caller, wanted.assay_id)
    query = select(AssayResult).where(AssayResult.watch_id == watch.id).order_by(AssayResult.window_start.desc())
    if wanted.start:
        query = query.where(AssayResult.window_start >= moment_of(wanted.start, "start"))
    if wanted.end:
        query = query.where(AssayResult.window_start <= moment_of(wanted.end, "end"))
    rows = list(await session.scalars(query.limit(MOST_WINDOWS)))[::-1]
    return _template().render(**_content(watch, rows))


def _content(watch: AssayWatch, rows: list[AssayResult]) -> dict[str, Any]:
    plan, schedule = restore_plan(watch.plan, watch.baseline)
    spec = plan.summarizer
    name = watch.assay.name if watch.assay else watch.name
    paths = [_path(watch, rows, path.key, plan.thresholds[path.key], name) for path in plan.paths]
    return {
        "name": name,
        "pipeline": watch.pipeline.pipeline_id,
        "workspace": watch.pipeline.workspace.name,
        "active": watch.assay.active if watch.assay else watch.active,
        "status": watch.last_status or "not computed yet",
        "spec": spec,
        "width": plan.width,
        "schedule": schedule,
        "model": plan.source.model,
        "paths": paths,
        "counts": Counter(row.status for row in rows),
        "rows": rows,
        "failures": [row for row in rows if row.reason],
        "statistics": STATISTICS,
    }


def _path(watch: AssayWatch, rows: list[AssayResult], key: str, own: Thresholds, name: str) -> Json:
    scored = [row for row in rows if isinstance(row.scores.get(key), dict) and row.scores[key]["score"] is not None]
    if not scored:
        return {"key": key, "rows": []}
    newest = scored[-1]
    if watch.assay:  # its thresholds may have changed from window to window
        limits = newest.warning_threshold, newest.alert_threshold
        statuses = [row.status for row in scored]
    else:  # a result's status is that of its worst path
        limits = own.warning, own.alert
        statuses = [status_of(row.scores[key]["score"], *limits).value for row in scored]
    judged = list(zip(scored, statuses, strict=True))
    points = [Point(row.window_start, row.scores[key]["score"], status) for row, status in judged]
    worst = max(scored, key=lambda row: float(row.scores[key]["score"]))
    kept = worst.summaries[key]
    base = kept.get("baseline") or watch.baseline[key]
    window = kept["window"]
    return {
        "key": key,
        "rows": judged,
        "worst": worst,
        "base": base,
        "window": window,
        "score": worst.scores[key],
        "chart": Markup(scores_chart(points, *limits, f"Scores of {name}, {key}")),  # noqa: S704 - escaped where made
        "bins": Markup(  # noqa: S704 - escaped where made
            bins_chart(
                base["labels"],
                [value or 0.0 for value in base["aggregated"]],
                [value or 0.0 for value in window["aggregated"]],
                f"Bins of {key}: baseline and worst window",
            )
        ),
    }


def _span(span: timedelta) -> str:
    seconds = round(span.total_seconds())
    size, unit = next((s, u) for s, u in _UNITS if seconds % s == 0)
    count = seconds // size
    return f"{count} {unit}{'' if count == 1 else 's'}"


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("app.assays"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = lambda value: "" if value is None else f"{value:.6g}"
    environment.filters["span"] = _span
    environment.filters["moment"] = lambda value: f"{value:%Y-%m-%d %H:%M}"
    return environment.get_template("report.html")
