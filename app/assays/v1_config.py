"""The first generation's configurations, in both spellings, as plans."""

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
    parse_duration,
    parse_path,
)
from app.assays.schemas import ConfigIn, SummarizerIn
from app.assays.stored import Json, is_number, moment_of, summary_from
from app.errors import Invalid
from app.identity.caller import Caller
from app.pipelines.service import topic_name
from app.pipelines.tables import Pipeline
from engine.assays import Aggregation, BadSpec, BinMode, Metric, Summarizer


@dataclass(frozen=True, slots=True)
class Described:
    """A configuration that was understood: what to compute, and when."""

    plan: Plan
    pipeline: Pipeline
    iopath: str
    first: datetime
    step: timedelta
    until: datetime | None


def summarizer_of(given: SummarizerIn) -> Summarizer:
    """Return the summarizer a client describes; raises `Invalid` for one that contradicts itself."""
    try:
        return Summarizer(
            BinMode(given.bin_mode),
            given.num_bins,
            tuple(sorted(given.provided_edges or ())),
            None if given.bin_weights is None else tuple(given.bin_weights),
            Aggregation(given.aggregation),
            Metric(given.metric),
        )
    except BadSpec as exc:
        raise Invalid(str(exc)) from exc


async def describe(session: AsyncSession, caller: Caller, config: ConfigIn) -> Described:
    """Return what `config` asks for.

    Raises `NotFound` for pipelines the caller does not see, `Invalid` for what cannot be computed.
    """
    pipeline = await visible_pipeline(session, caller, config.pipeline_id)
    if pipeline.pipeline_id != config.pipeline_name:
        raise Invalid(f"Pipeline {pipeline.id} is called {pipeline.pipeline_id!r}, not {config.pipeline_name[:80]!r}.")
    if config.workspace_id not in (None, pipeline.workspace_id):
        raise Invalid(f"Pipeline {pipeline.id} is not in workspace {config.workspace_id}.")
    text = config.iopath or config.window.path
    if not text:
        raise Invalid("Say which value to watch: `iopath`, or `window.path`.")
    path, summarizer = parse_path(text), summarizer_of(config.summarizer)
    window = config.window
    name = window.pipeline_name or window.pipeline or config.pipeline_name
    source = await _source(
        session, caller, pipeline, name=name, model=window.model_name or window.model, locations=window.locations
    )
    width = parse_duration(window.width, "window.width")
    step = parse_duration(window.interval, "window.interval") if window.interval else width
    baseline, bounds = await baseline_of(session, caller, pipeline, config.baseline, path=path, spec=summarizer)
    first = moment_of(window.start, "window.start") if window.start else bounds[1]
    if first is None:
        raise Invalid("This baseline has no end of its own, so `window.start` must say where windows begin.")
    until = moment_of(config.run_until, "run_until") if config.run_until else None
    plan = Plan(
        source,
        (path,),
        summarizer,
        baseline,
        width,
        {path.key: Thresholds(config.warning_threshold, config.alert_threshold)},
    )
    return Described(plan, pipeline, text, first, step, until)


async def baseline_of(
    session: AsyncSession, caller: Caller, pipeline: Pipeline, given: Json, *, path: Path, spec: Summarizer
) -> tuple[Baseline, tuple[datetime | None, datetime | None]]:
    """Return the baseline of any form that clients send, and from when to when it reaches where that is known."""
    if isinstance(fixed := given.get("Fixed"), dict):
        source = await _source(session, caller, pipeline, name=fixed.get("pipeline"), model=fixed.get("model"))
        return _period(source, fixed.get("start_at"), fixed.get("end_at"))
    if isinstance(static := given.get("static"), dict):
        edges, names = static.get("edges"), static.get("edge_names")
        if not isinstance(edges, list) or not isinstance(names, list):
            raise Invalid("baseline.static needs edges and edge_names.")
        summary = summary_from(static, spec, edges=edges, labels=names, mode=spec.bin_mode)
        start = static.get("start") or static.get("start_at")
        end = static.get("end") or static.get("end_at")
        bounds = (moment_of(start, "start") if start else None, moment_of(end, "end") if end else None)
        return Given({path.key: summary}, *bounds), bounds
    if isinstance(sliding := given.get("Sliding"), dict):
        source = await _source(session, caller, pipeline, name=sliding.get("pipeline"), model=sliding.get("model"))
        return _moving(source, sliding.get("width"), sliding.get("offset")), (None, None)
    if isinstance(calculated := given.get("calculated"), dict):
        return await calculated_of(session, caller, pipeline, calculated)
    if "UserProvided" in given:
        raise Invalid("Baselines behind a URL are not fetched; send the numbers as `calculated.vector`.")
    raise Invalid("The baseline must be one of Fixed, Sliding, static, calculated.")


async def calculated_of(
    session: AsyncSession, caller: Caller, pipeline: Pipeline | None, given: Json
) -> tuple[Baseline, tuple[datetime | None, datetime | None]]:
    """Return a baseline that is still to be summarised: `vector`, `fixed_window` or `sliding_window`."""
    vector, fixed, sliding = (given.get(k) for k in ("vector", "fixed_window", "sliding_window"))
    if isinstance(vector, list):
        return Vector(check_vector(vector)), (None, None)
    window = fixed if isinstance(fixed, dict) else sliding.get("window") if isinstance(sliding, dict) else None
    if not isinstance(window, dict):
        raise Invalid("The baseline must be one of vector, fixed_window, sliding_window.")
    name = window.get("pipeline_name")
    if pipeline is None:
        if not isinstance(name, str):
            raise Invalid("The baseline's window needs pipeline_name.")
        workspace_id = window.get("workspace_id")
        if workspace_id is not None and not (is_number(workspace_id) and 0 < workspace_id < 2**63):
            raise Invalid("workspace_id must be a number.")
        pipeline = await pipeline_named(session, caller, workspace_id, name)
    source = await _source(
        session, caller, pipeline, name=name, model=window.get("model_name"), locations=window.get("locations")
    )
    if isinstance(sliding, dict) and not isinstance(fixed, dict):
        return _moving(source, window.get("width"), sliding.get("offset")), (None, None)
    start = moment_of(window.get("start"), "baseline start")
    end = start + parse_duration(str(window.get("width")), "baseline width")
    return Period(source, start, end), (start, end)


def path_of_window(given: Json) -> Path | None:
    """Return the path a calculated baseline's window names, None for a vector."""
    for window in (given.get("fixed_window"), (given.get("sliding_window") or {}).get("window")):
        if isinstance(window, dict):
            text = window.get("path")
            if not isinstance(text, str):
                raise Invalid("The baseline's window needs a path.")
            return parse_path(text)
    return None


def check_vector(values: list[Any]) -> tuple[float | None, ...]:
    """Return `values` if all are numbers or null; raises `Invalid`."""
    if not all(value is None or is_number(value) for value in values):
        raise Invalid("A vector baseline holds numbers, and null where one is missing.")
    return tuple(None if value is None else float(value) for value in values)


async def _source(
    session: AsyncSession, caller: Caller, pipeline: Pipeline, *, name: Any, model: Any, locations: Any = None
) -> Source:
    """Return the records of the pipeline called `name` in the same workspace (of `pipeline` itself by default)."""
    if name and not isinstance(name, str):
        raise Invalid("The name of a pipeline must be a text.")
    if name and name != pipeline.pipeline_id:
        pipeline = await pipeline_named(session, caller, pipeline.workspace_id, name)
    if model is not None and not isinstance(model, str):
        raise Invalid("The name of a model must be a text.")
    if locations is not None and not (isinstance(locations, list) and all(isinstance(x, str) for x in locations)):
        raise Invalid("locations must be a list of texts.")
    return Source(topic_name(pipeline.workspace_id, pipeline.pipeline_id), model or None, frozenset(locations or ()))


def _period(source: Source, start: Any, end: Any) -> tuple[Period, tuple[datetime, datetime]]:
    bounds = moment_of(start, "baseline start"), moment_of(end, "baseline end")
    if bounds[1] <= bounds[0]:
        raise Invalid("The baseline must end after it starts.")
    return Period(source, *bounds), bounds


def _moving(source: Source, width: Any, offset: Any) -> Moving:
    back = parse_duration(str(offset), "baseline offset") if offset else timedelta(0)
    return Moving(source, parse_duration(str(width), "baseline width"), back)
