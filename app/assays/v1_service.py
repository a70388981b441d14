"""The rules of the first generation of assays."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.assays import schemas, stored
from app.assays.analysis import NoBaseline, analyse, read_baseline
from app.assays.lookups import visible_watch, watches
from app.assays.notifications import delivery_json
from app.assays.plan import Given, Moving, Path, Plan, Source
from app.assays.run import in_thread
from app.assays.schedule import Schedule
from app.assays.stored import Json, moment_of
from app.assays.stored_plan import keep_baseline, keep_plan
from app.assays.tables import Assay, AssayDelivery, AssayResult, AssayWatch
from app.assays.timeline import Scan
from app.assays.v1_config import Described, calculated_of, describe, path_of_window, summarizer_of
from app.assays.v1_wire import analysis_json, baseline_run_json, full_config, listing, result_json, shown_config
from app.errors import Invalid
from app.identity.caller import Caller
from app.kit.context import Context
from app.kit.events import notify
from app.pipelines.tables import Pipeline
from app.workspaces.tables import Workspace
from engine.assays import Window

MOST_ANALYSES = 20_000
"""Windows of one interactive run."""
_NO_SOURCE, _ANY_PATH = Source(""), Path("out", "vector")
TOPIC = "assays"
"""Wakes the scheduler."""


async def create(context: Context, caller: Caller, config: schemas.ConfigIn) -> int:
    """Store an assay and return its number; its baseline is read first, outside the transaction.

    Raises as `v1_config.describe` does, `Invalid` for an empty baseline or a name that is taken.
    """
    found, baseline = await _with_baseline(context, caller, config)
    width = found.plan.width
    schedule = Schedule(found.first + width, width, found.step, until=found.until)
    async with context.sessions.begin() as session:
        row = Assay(
            name=config.name,
            active=config.active,
            warning_threshold=config.warning_threshold,
            alert_threshold=config.alert_threshold,
            pipeline_name=found.pipeline.pipeline_id,
            pipeline_id=found.pipeline.id,
        )
        try:
            async with session.begin_nested():
                session.add(row)
        except IntegrityError as exc:
            raise Invalid(f"An assay named {config.name[:80]!r} exists already; names are unique.") from exc
        session.add(
            AssayWatch(
                assay_id=row.id,
                pipeline_id=found.pipeline.id,
                name=config.name,
                active=config.active,
                config=shown_config(config, found, baseline),
                plan=keep_plan(found.plan, schedule),
                baseline=keep_baseline(baseline),
                iopath=found.iopath,
                first_run=schedule.first,
                next_run=schedule.at_or_after(schedule.first),
                last_run=None,
                paused_at=None if config.active else context.clock.now(),
            )
        )
        await notify(session, TOPIC)
        return row.id


async def listed(session: AsyncSession, caller: Caller, wanted: schemas.ListIn) -> list[Json]:
    """Return the assays the caller may see, newest first."""
    query = watches(caller).where(AssayWatch.assay_id.is_not(None)).order_by(AssayWatch.assay_id.desc())
    if wanted.pipeline_id is not None:
        query = query.where(AssayWatch.pipeline_id == wanted.pipeline_id)
    if wanted.workspace_id is not None:
        query = query.where(Pipeline.workspace_id == wanted.workspace_id)
    if wanted.workspace_name is not None:
        query = query.where(Workspace.name == wanted.workspace_name)
    return [listing(watch) for watch in await session.scalars(query)]


async def filtered(session: AsyncSession, caller: Caller, wanted: schemas.FilterIn) -> list[Json]:
    """Return the configurations that meet all conditions."""
    query = watches(caller).where(
        AssayWatch.assay_id.is_not(None),
        Pipeline.workspace_id == wanted.workspace_id,
        AssayWatch.pipeline_id == wanted.pipeline_id,
    )
    if wanted.name is not None:
        query = query.where(Assay.name.icontains(wanted.name, autoescape=True))
    if wanted.active is not None:
        query = query.where(Assay.active.is_(wanted.active))
    if wanted.locations:
        query = query.where(AssayWatch.config["window"]["locations"].contains(wanted.locations))
    if wanted.drift_window is not None:
        start, end = moment_of(wanted.drift_window.start, "start"), moment_of(wanted.drift_window.end, "end")
        drifted = select(AssayResult.watch_id).where(AssayResult.window_start.between(start, end))
        query = query.where(AssayWatch.id.in_(drifted.where(AssayResult.status.in_(("Warning", "Alert")))))
    newest = Assay.created_at if wanted.sort_by == "CreationDateDesc" else AssayWatch.last_run
    query = query.order_by(newest.desc().nulls_last(), Assay.id.desc())
    return [full_config(watch) for watch in await session.scalars(query)]


async def get(session: AsyncSession, caller: Caller, assay_id: int) -> Json:
    """Return an assay; raises `NotFound`."""
    return listing(await visible_watch(session, caller, assay_id))


async def set_active(session: AsyncSession, caller: Caller, assay_id: int, active: bool, now: datetime) -> None:
    """Let an assay go on, from where it stopped, or pause it; raises `NotFound`."""
    watch = await visible_watch(session, caller, assay_id)
    assert watch.assay is not None  # noqa: S101 - a number is of the first generation
    watch.assay.active = active
    await switch(session, watch, active, now)


async def switch(session: AsyncSession, watch: AssayWatch, active: bool, now: datetime) -> None:
    """Pause or resume; windows that were empty are looked at again at once."""
    watch.active = active
    watch.paused_at = None if active else watch.paused_at or now
    if active:
        empty = select(AssayResult).where(AssayResult.watch_id == watch.id, AssayResult.recheck_at.is_not(None))
        for row in await session.scalars(empty):
            row.recheck_at = now
    await session.flush()
    await notify(session, TOPIC)


async def run_interactive(context: Context, caller: Caller, config: schemas.ConfigIn) -> list[Json]:
    """Return an analysis for each window with records up to `run_until` or now; nothing is stored.

    Raises as `describe` does, and `Invalid` where the baseline is empty or no window could be compared.
    """
    async with context.sessions.begin() as session:
        found = await describe(session, caller, config)
    until = min(found.until or context.clock.now(), context.clock.now())

    def work(scan: Scan) -> list[Json]:
        shown, reasons = [], []
        for result in analyse(scan, found.plan, found.first, found.step, until, limit=MOST_ANALYSES):
            item = analysis_json(config, found, result)
            if item is not None:
                shown.append(item)
            elif result.reason is not None:
                reasons.append(result.reason)
        if reasons and not shown:
            raise NoBaseline(f"None of {len(reasons)} windows could be compared: {reasons[0]}")
        return shown

    return await in_thread(context, work)


async def run_baseline(context: Context, caller: Caller, config: schemas.ConfigIn) -> Json:
    """Return the baseline as an analysis of itself; raises as `run_interactive` does."""
    found, baseline = await _with_baseline(context, caller, config)
    if baseline is None:
        raise Invalid("A baseline that moves with the window has no summary of its own.")
    return baseline_run_json(config, found, baseline)


async def summarize(context: Context, caller: Caller, wanted: schemas.SummarizeIn) -> Json:
    """Return the summary of a baseline that lies in the log or comes as a vector."""
    spec = summarizer_of(wanted.summarizer)
    async with context.sessions.begin() as session:
        baseline, _ = await calculated_of(session, caller, None, wanted.baseline)
    path = path_of_window(wanted.baseline) or _ANY_PATH
    if isinstance(baseline, Moving):
        start = (wanted.baseline["sliding_window"].get("window") or {}).get("start")
        end = moment_of(start, "start") if start else context.clock.now()
        baseline = baseline.before(Window(end, end))
    plan = Plan(_NO_SOURCE, (path,), spec, baseline, timedelta(days=1), {})
    given = await in_thread(context, lambda scan: read_baseline(scan, plan))
    return stored.v1_summary(given.summaries[path.key], given.start, given.end)


async def results(session: AsyncSession, caller: Caller, wanted: schemas.ResultsIn) -> list[Json]:
    """Return the stored results of an assay, oldest window first; raises `NotFound`."""
    watch = await visible_watch(session, caller, wanted.assay_id)
    query = (
        select(AssayResult)
        .where(AssayResult.watch_id == watch.id, AssayResult.status.in_(("Ok", "Warning", "Alert")))
        .order_by(AssayResult.window_start)
    )
    if wanted.start:
        query = query.where(AssayResult.window_start >= moment_of(wanted.start, "start"))
    if wanted.end:
        query = query.where(AssayResult.window_start <= moment_of(wanted.end, "end"))
    rows = list(await session.scalars(query.limit(wanted.limit)))
    notices = await deliveries_of(session, rows)
    return [result_json(watch, row, notices.get(row.id, [])) for row in rows]


async def deliveries_of(session: AsyncSession, rows: Sequence[AssayResult]) -> dict[int, list[Json]]:
    """Return what became of the notices of results, by result."""
    found: dict[int, list[Json]] = {}
    ids = [row.id for row in rows]
    if ids:
        query = select(AssayDelivery).where(AssayDelivery.result_id.in_(ids)).order_by(AssayDelivery.id)
        for row in await session.scalars(query):
            found.setdefault(row.result_id, []).append(delivery_json(row))
    return found


async def _with_baseline(context: Context, caller: Caller, config: schemas.ConfigIn) -> tuple[Described, Given | None]:
    async with context.sessions.begin() as session:
        found = await describe(session, caller, config)
    if isinstance(found.plan.baseline, Moving):
        return found, None
    return found, await in_thread(context, lambda scan: read_baseline(scan, found.plan))
