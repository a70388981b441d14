"""What both generations of assays share: records, and computing windows again."""

from __future__ import annotations

import asyncio

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from app.assays import schemas
from app.assays.lookups import pipeline_named, visible_watch
from app.assays.plan import Source
from app.assays.records import flat_records
from app.assays.stored import Json, moment_of
from app.assays.stored_plan import restore_plan
from app.assays.tables import AssayResult
from app.assays.timeline import to_ms
from app.errors import Invalid
from app.identity.caller import Caller
from app.kit.context import Context
from app.kit.events import notify
from app.pipelines.service import topic_name

_MOST_BY_DEFAULT = 1000
_BEGINNING, _END = 0, 2**62


async def baseline_records(context: Context, caller: Caller, wanted: schemas.BaselineIn) -> list[Json]:
    """Return logged records of a pipeline the caller may see; raises `NotFound`."""
    start = to_ms(moment_of(wanted.start, "start")) if wanted.start else _BEGINNING
    end = to_ms(moment_of(wanted.end, "end")) if wanted.end else _END
    if end <= start:
        raise Invalid("The end must lie after the start.")
    async with context.sessions.begin() as session:
        pipeline = await pipeline_named(session, caller, wanted.workspace_id, wanted.pipeline_name)
    topic = topic_name(pipeline.workspace_id, pipeline.pipeline_id)
    source = Source(topic, wanted.model_name or None, frozenset(wanted.locations or ()))
    within = (start, end) if wanted.start or wanted.end else None
    limit = wanted.limit or _MOST_BY_DEFAULT
    return await asyncio.to_thread(flat_records, context.settings.logs_root, source, within, limit, wanted.next)


async def backfill(session: AsyncSession, caller: Caller, wanted: schemas.BackfillIn) -> int:
    """Throw away the results of windows in a time and have them computed again; raises `NotFound`.

    Notices about the old results have gone out and are not sent again for an unchanged status.
    """
    watch = await visible_watch(session, caller, wanted.assay_id)
    start = moment_of(wanted.start, "start")
    query = delete(AssayResult).where(AssayResult.watch_id == watch.id, AssayResult.window_start >= start)
    if wanted.end:
        query = query.where(AssayResult.window_start < moment_of(wanted.end, "end"))
    gone = list(await session.scalars(query.returning(AssayResult.id)))
    plan, schedule = restore_plan(watch.plan, watch.baseline)
    first = schedule.at_or_after(start + plan.width)
    watch.next_run = first if watch.next_run is None or first is None else min(first, watch.next_run)
    watch.claimed_by = watch.claimed_until = None  # whoever computes it now must begin anew
    await session.flush()
    await notify(session, "assays")
    return len(gone)
