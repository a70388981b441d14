"""The rules of the second generation of assays."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.assays import v2_schemas as schemas
from app.assays.analysis import (
    Analysis,
    analyse,
    analyse_values,
    analyse_windows,
    read_baseline,
)
from app.assays.lookups import visible_watch, watches
from app.assays.plan import Given, Moving, Path, Plan, Source
from app.assays.run import in_thread
from app.assays.stored import Json, moment_of, v2_summary, zulu
from app.assays.stored_plan import keep_baseline, keep_plan, restore_plan
from app.assays.tables import AssayResult, AssayWatch
from app.assays.timeline import Scan
from app.assays.v1_config import check_vector
from app.assays.v1_service import MOST_ANALYSES, TOPIC, deliveries_of, switch
from app.assays.v2_config import NO_PATH, Target, baseline_of, plan_of, schedule_of, summarizer_of, target_of
from app.assays.v2_wire import assay_json, preview_json, result_json, scores_json
from app.errors import Invalid
from app.identity.caller import Caller
from app.kit.context import Context
from app.kit.events import notify
from app.pipelines.tables import Pipeline
from engine.assays import BadSpec, Window


async def bin_baseline(context: Context, caller: Caller, wanted: schemas.BinningIn) -> Json:
    """Return a baseline cut into bins, by path; raises `Invalid` where it holds no numbers."""
    spec, mode = summarizer_of(wanted.summarizer)
    target = await _target(context, caller, wanted.targeting)
    baseline = baseline_of(wanted.baseline, spec, target)
    if isinstance(baseline, Given) and "Summary" in wanted.baseline:
        summaries: Json = wanted.baseline["Summary"]
        return summaries
    now = context.clock.now()
    if isinstance(baseline, Moving):
        baseline = baseline.before(Window(now, now))
    paths: tuple[Path, ...] = target.paths if target else (NO_PATH,)
    source = target.source if target else Source("")
    plan = Plan(source, paths, spec, baseline, timedelta(days=1), {})
    given = await in_thread(context, lambda scan: read_baseline(scan, plan))
    name = {path.key: "vector" if path is NO_PATH else path.key for path in paths}
    return {
        name[key]: v2_summary(name[key], summary, mode, given.start, given.end)
        for key, summary in given.summaries.items()
    }


async def preview(context: Context, caller: Caller, wanted: schemas.PreviewIn) -> list[Json]:
    """Return what an assay would find from `preview_start` to `preview_end`; nothing is stored.

    Windows without records are left out; those that fail have their reason in place of a score.
    """
    spec, mode = summarizer_of(wanted.summarizer)
    start, end = moment_of(wanted.preview_start, "preview_start"), moment_of(wanted.preview_end, "preview_end")
    target = await _target(context, caller, wanted.targeting)
    assert target is not None  # noqa: S101 - targeting is not optional here
    schedule = schedule_of(wanted.scheduling, wanted.window, first=start)
    plan = plan_of(target, spec, baseline_of(wanted.baseline, spec, target), schedule.width)

    def work(scan: Scan) -> list[Json]:
        settled = plan if isinstance(plan.baseline, Moving) else plan.with_baseline(read_baseline(scan, plan))
        if schedule.step is not None:
            found = analyse(scan, settled, start, schedule.step, end, limit=MOST_ANALYSES)
        else:
            windows = []
            for window in schedule.windows(start + schedule.width, end):
                windows.append(window)
                if len(windows) > MOST_ANALYSES:
                    raise BadSpec(f"The preview has more than {MOST_ANALYSES} windows; choose a shorter time.")
            found = (result for result in analyse_windows(scan, settled, windows) if result.records)
        return [preview_json(target, mode, result) for result in found]

    return await in_thread(context, work)


async def schedule(context: Context, caller: Caller, wanted: schemas.ScheduleIn) -> uuid.UUID:
    """Store an assay and return its id; its baseline is settled first, outside the transaction."""
    spec, mode = summarizer_of(wanted.summarizer)
    target = await _target(context, caller, wanted.targeting)
    assert target is not None  # noqa: S101 - targeting is not optional here
    when = schedule_of(wanted.scheduling, wanted.window)
    plan = plan_of(target, spec, baseline_of(wanted.baseline, spec, target), when.width)
    given = None
    if not isinstance(plan.baseline, Moving):
        given = await in_thread(context, lambda scan: read_baseline(scan, plan))
        missing = [path.key for path in target.paths if path.key not in given.summaries]
        if missing:
            raise Invalid(f"The baseline has no summary of {', '.join(missing)}.")
    config = wanted.model_dump(mode="json")
    config["mode"] = mode
    if given is not None and "Summary" not in wanted.baseline:
        shown = {k: v2_summary(k, one, mode, given.start, given.end) for k, one in given.summaries.items()}
        config["baseline"] = {"Summary": shown}
    origin = config["targeting"]["data_origin"]
    workspace = target.pipeline.workspace
    origin |= {
        "pipeline_id": target.pipeline.id,
        "pipeline_name": target.pipeline.pipeline_id,
        "workspace_id": workspace.id,
        "workspace_name": workspace.name,
    }
    async with context.sessions.begin() as session:
        row = AssayWatch(
            pipeline_id=target.pipeline.id,
            name=wanted.name,
            config=config,
            plan=keep_plan(plan, when),
            baseline=keep_baseline(given),
            first_run=when.first,
            next_run=when.at_or_after(when.first),
        )
        session.add(row)
        await session.flush()
        await notify(session, TOPIC)
        return row.public_id


async def listed(session: AsyncSession, caller: Caller, wanted: schemas.GetIn) -> list[Json]:
    """Return the assays the caller may see, newest first."""
    query = watches(caller).where(AssayWatch.assay_id.is_(None)).order_by(AssayWatch.id.desc())
    if wanted.active != "All":
        query = query.where(AssayWatch.active.is_(wanted.active == "ActiveOnly"))
    if wanted.workspace_id is not None:
        query = query.where(Pipeline.workspace_id == wanted.workspace_id)
    if wanted.pipeline_name is not None:
        query = query.where(Pipeline.pipeline_id == wanted.pipeline_name)
    return [assay_json(watch) for watch in await session.scalars(query)]


async def get(session: AsyncSession, caller: Caller, assay_id: uuid.UUID) -> Json:
    """Return an assay; raises `NotFound`."""
    return assay_json(await visible_watch(session, caller, str(assay_id)))


async def set_active(session: AsyncSession, caller: Caller, wanted: schemas.ActiveIn, now: datetime) -> None:
    """Pause an assay, or let it go on; windows that had ended by the pause are still computed."""
    await switch(session, await visible_watch(session, caller, str(wanted.assay_id)), wanted.active, now)


async def next_run(session: AsyncSession, caller: Caller, assay_id: uuid.UUID) -> schemas.NextRunOut:
    """Return when an assay last ran and when it runs next; a paused one does not."""
    watch = await visible_watch(session, caller, str(assay_id))
    _, when = restore_plan(watch.plan, watch.baseline)
    last = watch.last_run
    if last is not None and when.step is not None:
        last = when.last_by(last if watch.next_run is None else watch.next_run - timedelta(microseconds=1)) or last
    following = watch.next_run if watch.active else None
    return schemas.NextRunOut(last_run=zulu(last), next_run=zulu(following))


async def results(session: AsyncSession, caller: Caller, wanted: schemas.ResultsIn) -> list[Json]:
    """Return the stored results of an assay, oldest window first; failed ones have no summaries.

    With `debug` each shows what became of its notices: the vendor's clients trip over members they do not know.
    """
    watch = await visible_watch(session, caller, str(wanted.id))
    query = select(AssayResult).where(AssayResult.watch_id == watch.id).order_by(AssayResult.window_start)
    if wanted.start:
        query = query.where(AssayResult.window_start >= moment_of(wanted.start, "start"))
    if wanted.end:
        query = query.where(AssayResult.window_start <= moment_of(wanted.end, "end"))
    rows = list(await session.scalars(query))
    if not wanted.debug:
        return [result_json(watch, row) for row in rows]
    notices = await deliveries_of(session, rows)
    return [result_json(watch, row) | {"notifications": notices.get(row.id, [])} for row in rows]


async def score(context: Context, caller: Caller, wanted: schemas.ScoreIn) -> Json:
    """Return the score of raw numbers, or of a stretch of the log, by path."""
    spec, _ = summarizer_of(wanted.summarizer)
    target = await _target(context, caller, wanted.targeting)
    assert target is not None  # noqa: S101 - targeting is not optional here
    baseline = baseline_of(wanted.baseline, spec, target)
    raw, stored = wanted.window.get("Raw"), wanted.window.get("Stored")
    if isinstance(raw, list):
        values = check_vector(raw)
        now = context.clock.now()
        if isinstance(baseline, Moving):
            baseline = baseline.before(Window(now, now))
        plan = plan_of(target, spec, baseline, timedelta(days=1))
        return scores_json(
            await in_thread(context, lambda scan: analyse_values(plan, values, read_baseline(scan, plan)))
        )
    if not (isinstance(stored, list) and len(stored) == 2):
        raise Invalid("The window must be Raw numbers, or Stored [start, end].")
    window = Window(moment_of(stored[0], "start"), moment_of(stored[1], "end"))
    if window.end <= window.start:
        raise Invalid("The window must end after it starts.")
    plan = plan_of(target, spec, baseline, window.end - window.start)

    def work(scan: Scan) -> Analysis:
        settled = plan if isinstance(plan.baseline, Moving) else plan.with_baseline(read_baseline(scan, plan))
        return next(iter(analyse_windows(scan, settled, [window])))

    return scores_json((await in_thread(context, work)).results)


async def _target(context: Context, caller: Caller, given: schemas.TargetingIn | None) -> Target | None:
    if given is None:
        return None
    async with context.sessions.begin() as session:
        return await target_of(session, caller, given)
