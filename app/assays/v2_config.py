"""The second generation's configurations as plans."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.assays.lookups import pipeline_named, visible_pipeline
from app.assays.plan import (
    Baseline,
    Given,
    Moving,
    Path,
    Period,
    Plan,
    Source,
    Thresholds,
    Vector,
    check_span,
)
from app.assays.schedule import Schedule, check_cron
from app.assays.stored import INFINITY, Json, is_number, moment_of, summary_from
from app.assays.v1_config import check_vector
from app.assays.v2_schemas import PathIn, SchedulingIn, TargetingIn, WindowIn
from app.errors import Invalid
from app.identity.caller import Caller
from app.pipelines.service import topic_name
from app.pipelines.tables import Pipeline
from engine.assays import Aggregation, BadSpec, BinMode, Generation, Metric, Summarizer

UNITS = {"Minute": "minutes", "Hour": "hours", "Day": "days", "Week": "weeks"}
NO_PATH = Path("out", "vector")
"""Stands for the path where a vector is binned without targeting."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which records, and which values of them."""

    pipeline: Pipeline
    source: Source
    paths: tuple[Path, ...]
    thresholds: dict[str, Thresholds]


def summarizer_of(given: Json) -> tuple[Summarizer, Any]:
    """Return the summarizer a client describes, and its bin mode as it was written."""
    one = given.get("UnivariateContinuous")
    if not isinstance(one, dict):
        raise Invalid("The summarizer must be UnivariateContinuous.")
    mode, weights = one.get("bin_mode", {"Quantile": 5}), one.get("bin_weights")
    if weights is not None and not (isinstance(weights, list) and all(is_number(w) for w in weights)):
        raise Invalid("bin_weights must be a list of numbers.")
    name, size = next(iter(mode.items())) if isinstance(mode, dict) and len(mode) == 1 else (mode, None)
    try:
        kind = BinMode(name)
        aggregation = Aggregation(one.get("aggregation", Aggregation.DENSITY))
        metric = Metric(one.get("metric", Metric.PSI))
    except ValueError as exc:
        raise Invalid(f"The summarizer is not understood: {exc}.") from exc
    edges: tuple[float, ...] = ()
    if kind is BinMode.PROVIDED:
        if not isinstance(size, list):
            raise Invalid("Bin mode Provided needs its edges.")
        finite = [edge for edge in size if edge is not None and edge != INFINITY]
        if not all(is_number(edge) for edge in finite):
            raise Invalid("Edges must be finite numbers.")
        edges, size = tuple(sorted(map(float, finite))), len(finite)
    if kind is BinMode.NONE:
        size = 1
    if not isinstance(size, int) or isinstance(size, bool):
        raise Invalid(f"Bin mode {kind} needs a whole number of bins.")
    try:
        spec = Summarizer(
            kind,
            size,
            edges,
            None if weights is None else tuple(weights),
            aggregation,
            metric,
            generation=Generation.V2,
        )
    except BadSpec as exc:
        raise Invalid(str(exc)) from exc
    return spec, mode


async def target_of(session: AsyncSession, caller: Caller, given: TargetingIn) -> Target:
    """Return what `given` aims at; raises `NotFound` for a pipeline the caller does not see."""
    origin = given.data_origin
    if origin.pipeline_id is not None:
        pipeline = await visible_pipeline(session, caller, origin.pipeline_id)
        if origin.pipeline_name not in (None, pipeline.pipeline_id):
            raise Invalid(f"Pipeline {pipeline.id} is called {pipeline.pipeline_id!r}.")
        if origin.workspace_id not in (None, pipeline.workspace_id):
            raise Invalid(f"Pipeline {pipeline.id} is not in workspace {origin.workspace_id}.")
    elif origin.pipeline_name:
        pipeline = await pipeline_named(session, caller, origin.workspace_id, origin.pipeline_name)
    else:
        raise Invalid("data_origin needs pipeline_id or pipeline_name.")
    topic = topic_name(pipeline.workspace_id, pipeline.pipeline_id)
    paths = tuple(_path(path) for path in given.iopath)
    keys = [path.key for path in paths]
    if len(set(keys)) < len(keys):
        raise Invalid("iopath names a value twice.")
    limits = {
        path.key: Thresholds(*((one.thresholds.warning, one.thresholds.alert) if one.thresholds else ()))
        for path, one in zip(paths, given.iopath, strict=True)
    }
    return Target(pipeline, Source(topic, origin.model_id or None, frozenset(origin.locations or ())), paths, limits)


def baseline_of(given: Json, spec: Summarizer, target: Target | None) -> Baseline:
    """Return the baseline a client describes: Summary, Static, Rolling or Vector; raises `Invalid`."""
    if isinstance(summaries := given.get("Summary"), dict) and summaries:
        found = {}
        for key, one in summaries.items():
            bins = one.get("bins") if isinstance(one, dict) else None
            if not isinstance(bins, dict) or not all(isinstance(bins.get(k), list) for k in ("edges", "labels")):
                raise Invalid(f"The summary of {key[:80]!r} needs bins with edges and labels.")
            statistics = one.get("statistics")
            flat = one | statistics if isinstance(statistics, dict) else one
            found[key] = summary_from(flat, spec, edges=bins["edges"], labels=bins["labels"], mode=spec.bin_mode)
        first = next(iter(summaries.values()))
        start, end = first.get("start"), first.get("end")
        return Given(found, moment_of(start, "start") if start else None, moment_of(end, "end") if end else None)
    if isinstance(vector := given.get("Vector"), list):
        return Vector(check_vector(vector))
    if target is None:
        raise Invalid("A baseline that lies in the log needs targeting.")
    if isinstance(static := given.get("Static"), list) and len(static) == 2:
        bounds = moment_of(static[0], "baseline start"), moment_of(static[1], "baseline end")
        if bounds[1] <= bounds[0]:
            raise Invalid("The baseline must end after it starts.")
        return Period(target.source, *bounds)
    if isinstance(rolling := given.get("Rolling"), dict):
        width = rolling.get("width")
        seconds = width.get("seconds") if isinstance(width, dict) else None
        start = moment_of(rolling.get("start"), "baseline start")
        return Moving(target.source, _span(seconds, "baseline width"), start=start)
    raise Invalid("The baseline must be one of Summary, Static, Rolling, Vector.")


def schedule_of(given: SchedulingIn, window: WindowIn, *, first: datetime | None = None) -> Schedule:
    """Return when runs take place, the first at `first` or when the scheduling says."""
    width = _span(window.width.seconds, "window width")
    simple, cron = given.run_frequency.get("SimpleRunFrequency"), given.run_frequency.get("Cron")
    step: timedelta | None = None
    if isinstance(simple, dict):
        quantity, unit = simple.get("quantity"), simple.get("unit")
        if not isinstance(quantity, int) or isinstance(quantity, bool) or unit not in UNITS:
            raise Invalid("run_frequency needs a whole quantity of Minute, Hour, Day or Week.")
        try:
            step = check_span(timedelta(**{UNITS[unit]: quantity}), "run_frequency")
        except OverflowError as exc:
            raise Invalid("run_frequency is too long.") from exc
    elif isinstance(cron, str):
        check_cron(cron)
    else:
        raise Invalid("run_frequency must be SimpleRunFrequency or Cron.")
    begin = first or moment_of(given.first_run, "first_run")
    return Schedule(
        begin, width, step, cron if step is None else None, moment_of(given.end, "end") if given.end else None
    )


def plan_of(target: Target, spec: Summarizer, baseline: Baseline, width: timedelta) -> Plan:
    """Return the plan for a target."""
    return Plan(target.source, target.paths, spec, baseline, width, target.thresholds)


def _path(given: PathIn) -> Path:
    side, _, field = given.field.partition(".")
    if side not in ("in", "out") or not field:
        raise Invalid(f"The field {given.field[:80]!r} must begin with 'in.' or 'out.', as in 'out.variable'.")
    indexes = None if given.indexes is None else tuple(given.indexes)
    if indexes == ():
        raise Invalid("indexes must name a place in the list, or be null for a plain value.")
    return Path("in" if side == "in" else "out", field, indexes)


def _span(seconds: Any, what: str) -> timedelta:
    if not is_number(seconds) or abs(seconds) > 1e10:
        raise Invalid(f"{what} needs a number of seconds.")
    return check_span(timedelta(seconds=seconds), what)
