"""The clock of the assays: computes each window that is due, exactly once, whoever else is computing.

A watch is claimed in one short transaction, computed without any, and its results are written in another together with
how far it got. Whoever lost the claim meanwhile writes nothing; whoever is killed leaves nothing half done.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import structlog
from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.assays.analysis import Analysis, Compared, analyse_windows
from app.assays.notifications import announce
from app.assays.plan import Moving, Plan, Thresholds
from app.assays.run import in_thread
from app.assays.schedule import Schedule
from app.assays.stored import Json, finite, keep, zulu
from app.assays.stored_plan import restore_plan
from app.assays.tables import Assay, AssayResult, AssayWatch
from app.assays.timeline import Scan, Timeline
from app.errors import AppError
from app.kit.context import Context
from engine.assays import Window

log = structlog.get_logger()

BATCH = 48
"""Windows of one claim; after them it is the next assay's turn."""
CLAIMS = 32
"""Claims of one tick."""
LONGEST_S = 30.0
"""A claim that takes longer writes what it has."""
MOST_KNOWN = 500
GRACE = timedelta(seconds=2)
"""Between the end of a window and its computation: records on their way get there."""
LEASE = timedelta(minutes=2)
"""After which a claim counts as left behind by a process that was killed."""
POLL_S = 5.0
FIRST_RECHECK, RECHECKS = timedelta(minutes=1), 15
"""A window that was empty or could not be read is looked at again after one minute, two, four …: for three weeks."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A watch that is this process's to compute, for a while."""

    watch_id: int
    token: uuid.UUID
    begin: datetime
    until: datetime
    plan: Plan
    schedule: Schedule
    done: list[tuple[datetime, datetime]]
    """From when to when there are results already."""
    known_to: datetime | None
    """Up to which start of windows `done` tells; None for all."""


async def run(context: Context) -> None:
    """Tick for ever: at once while there is work, at a wake-up or every few seconds otherwise."""
    woken = context.events.subscribe("assays")
    while True:
        if not await tick(context):
            await context.events.wait(woken, POLL_S)


async def tick(context: Context) -> int:
    """Compute windows that are due, a bounded number; returns how many assays were moved on or looked at again."""
    moved = 0
    for _ in range(CLAIMS):
        claim = await _claim(context)
        if claim is None:
            break
        await _advance(context, claim)
        moved += 1
    return moved + await _look_again(context)


def _due(now: datetime, present: datetime) -> ColumnElement[bool]:
    active = func.coalesce(Assay.active, AssayWatch.active)
    # the second generation goes on with windows that had ended when it was paused
    paused_later = and_(AssayWatch.assay_id.is_(None), AssayWatch.next_run <= AssayWatch.paused_at)
    free = or_(AssayWatch.claimed_until.is_(None), AssayWatch.claimed_until <= present)
    return and_(AssayWatch.next_run <= now, free, or_(active, paused_later))


async def _claim(context: Context) -> Claim | None:
    present, token = context.clock.now(), uuid.uuid4()
    now = present - GRACE
    async with context.sessions.begin() as session:
        watch = await session.scalar(
            select(AssayWatch)
            .outerjoin(Assay, Assay.id == AssayWatch.assay_id)
            .where(_due(now, present))
            .order_by(AssayWatch.claimed_until.asc().nulls_first(), AssayWatch.next_run, AssayWatch.id)
            .limit(1)
            .with_for_update(skip_locked=True, of=AssayWatch)
        )
        if watch is None:
            return None
        assert watch.next_run is not None  # noqa: S101 - `_due` asks for it
        assay = await session.get(Assay, watch.assay_id) if watch.assay_id is not None else None
        watch.claimed_by, watch.claimed_until = token, present + LEASE
        plan, schedule = restore_plan(watch.plan, watch.baseline)
        if assay is not None:  # thresholds change through GraphQL
            limits = Thresholds(assay.warning_threshold, assay.alert_threshold)
            plan = plan.with_thresholds({path.key: limits for path in plan.paths})
        until = now if watch.paused_at is None or assay is not None else min(now, watch.paused_at)
        known = await session.execute(
            select(AssayResult.window_start, AssayResult.window_end)
            .where(AssayResult.watch_id == watch.id, AssayResult.window_end >= watch.next_run)
            .order_by(AssayResult.window_start)
            .limit(MOST_KNOWN)
        )
        done = [(start, end) for start, end in known]
        known_to = done[-1][0] if len(done) == MOST_KNOWN else None
        return Claim(watch.id, token, watch.next_run, until, plan, schedule, done, known_to)


async def _advance(context: Context, claim: Claim) -> None:
    began, is_unread = context.clock.now(), False
    try:
        rows, reached = await _computed(context, claim)
    except Exception as exc:  # one window that cannot be computed must not stop the clock
        if not isinstance(exc, AppError):
            log.exception("assays.failed", watch=claim.watch_id)
        batch, _ = _batch(claim, 1)
        reason = (
            exc.message if isinstance(exc, AppError) else f"The window could not be computed: {type(exc).__name__}."
        )
        rows, is_unread = [_failed(window, reason) for window in batch], True
        reached = batch[0].end if batch else claim.until
    now = context.clock.now()
    async with context.sessions.begin() as session:
        held = await session.scalar(
            update(AssayWatch)
            .where(AssayWatch.id == claim.watch_id, AssayWatch.claimed_by == claim.token)
            .values(claimed_by=None, claimed_until=now, next_run=claim.schedule.after(reached), last_run=began)
            .returning(AssayWatch.id)
        )
        if held is None:
            log.info("assays.claim_lost", watch=claim.watch_id)
            return
        await _write(session, claim, rows, now, is_unread=is_unread)
    log.debug("assays.computed", watch=claim.watch_id, windows=len(rows))


async def _computed(context: Context, claim: Claim) -> tuple[list[Json], datetime]:
    try:
        return await in_thread(context, lambda scan: _compute(scan, claim, BATCH))
    except Exception:  # whichever window it was: the first alone tells whether it is that one
        return await in_thread(context, lambda scan: _compute(scan, claim, 1))


async def _write(session: AsyncSession, claim: Claim, rows: list[Json], now: datetime, *, is_unread: bool) -> None:
    watch = await session.get_one(AssayWatch, claim.watch_id, populate_existing=True)
    for row in rows:
        recheck = now + FIRST_RECHECK if row["status"] == "Empty" or is_unread else None
        values = row | {"watch_id": claim.watch_id, "analyzed_at": now, "recheck_at": recheck}
        made = await session.scalar(
            insert(AssayResult).values(values).on_conflict_do_nothing().returning(AssayResult.id)
        )
        if made is None or row["status"] == "Empty":
            continue
        newest = watch.last_window_start is None or row["window_start"] > watch.last_window_start
        if newest:
            if row["status"] != (watch.last_status or "Ok"):
                await announce(session, watch, made, row, now)
            watch.last_status, watch.last_window_start = row["status"], row["window_start"]
    await session.flush()


def _compute(scan: Scan, claim: Claim, most: int) -> tuple[list[Json], datetime]:
    """Compute up to `most` windows; returns their rows and up to when windows were dealt with."""
    batch, reached = _batch(claim, most)
    rows: list[Json] = []
    empty: list[Window] = []
    stop = time.monotonic() + LONGEST_S
    for result in analyse_windows(scan, claim.plan, batch):
        if result.records:
            rows.extend(_empty(empty, claim.plan))
            empty = []
            rows.append(_row(claim.plan, result))
        else:
            empty.append(result.window)
        if time.monotonic() > stop:
            reached = result.window.end
            break
    if empty and empty[-1].end == reached:  # a long gap is one row, and one look at the log
        reached = _end_of_gap(scan, claim, reached)
        empty[-1] = Window(empty[-1].start, reached)
    rows.extend(_empty(empty, claim.plan))
    return rows, reached


def _batch(claim: Claim, most: int) -> tuple[list[Window], datetime]:
    """Return the next windows without results, at most `most`, and up to when there are no others."""
    batch: list[Window] = []
    for window in claim.schedule.windows(claim.begin, claim.until):
        if claim.known_to is not None and window.start > claim.known_to:
            break
        if not any(start <= window.start and window.end <= end for start, end in claim.done):
            batch.append(window)
        if len(batch) == most:
            return batch, window.end
    else:
        return batch, max(claim.begin, claim.until)
    return batch, claim.known_to + claim.schedule.width


def _end_of_gap(scan: Scan, claim: Claim, reached: datetime) -> datetime:
    """Return the end of the last window without records after `reached`, or `reached` if the next one has any."""
    if reached >= claim.until or any(end > reached for _, end in claim.done):
        return reached
    record = Timeline(scan, claim.plan.source, claim.plan.paths, claim.until).next_time(reached)
    last = claim.schedule.last_by(min(record or claim.until, claim.until))
    return max(reached, last or reached)


def _empty(windows: list[Window], plan: Plan) -> list[Json]:
    if not windows:
        return []
    source = plan.source
    what = "There are no records"
    if source.model is not None:
        what += f" of model {source.model!r}"
    if source.locations:
        what += f" from {', '.join(sorted(source.locations))}"
    window = Window(windows[0].start, windows[-1].end)
    return [_blank(window) | {"status": "Empty", "reason": f"{what} in this time."}]


def _failed(window: Window, reason: str) -> Json:
    return _blank(window) | {"status": "Failed", "reason": reason}


def _blank(window: Window) -> Json:
    return {
        "window_start": window.start,
        "window_end": window.end,
        "elapsed_ms": 0,
        "status": "",
        "reason": None,
        "scores": {},
        "summaries": {},
        "warning_threshold": None,
        "alert_threshold": None,
    }


def _row(plan: Plan, result: Analysis) -> Json:
    scores: Json = {}
    summaries: Json = {}
    for key, compared in result.results.items():
        if isinstance(compared, Compared):
            scores[key] = {
                "score": finite(compared.score.score),
                "scores": [finite(value) for value in compared.score.scores],
                "bin_index": compared.score.bin_index,
            }
            summaries[key] = {"window": keep(compared.window)}
            if isinstance(plan.baseline, Moving):
                bounds = {"start": zulu(result.baseline_start), "end": zulu(result.baseline_end)}
                summaries[key]["baseline"] = keep(compared.baseline) | bounds
        else:
            scores[key] = compared
    reason = result.reason
    limits = plan.thresholds[plan.paths[0].key]
    return _blank(result.window) | {
        "elapsed_ms": result.elapsed_ms,
        "status": "Failed" if reason else result.status(plan).value,
        "reason": reason,
        "scores": scores,
        "summaries": summaries,
        "warning_threshold": limits.warning,
        "alert_threshold": limits.alert,
    }


async def _look_again(context: Context) -> int:
    """See whether records came late for windows that were empty, and whether those that could not be read now can.

    Returns for how many; they are computed anew.
    """
    now = context.clock.now()
    async with context.sessions.begin() as session:
        due = list(
            await session.scalars(
                select(AssayResult)
                .where(AssayResult.recheck_at <= now)
                .order_by(AssayResult.recheck_at)
                .limit(BATCH)
                .with_for_update(skip_locked=True)
            )
        )
        for row in due:
            row.rechecks += 1
            row.recheck_at = now + FIRST_RECHECK * 2**row.rechecks if row.rechecks < RECHECKS else None
        known = {row.watch_id: await session.get_one(AssayWatch, row.watch_id) for row in due}
        plans = {key: restore_plan(watch.plan, watch.baseline) for key, watch in known.items()}
    found = 0
    for row in due:
        plan, schedule = plans[row.watch_id]
        if await _is_worth_it(context, plan, schedule, row):
            found += 1
            async with context.sessions.begin() as session:
                await session.execute(delete(AssayResult).where(AssayResult.id == row.id))
                first = schedule.at_or_after(row.window_start + plan.width)
                await session.execute(
                    update(AssayWatch)
                    .where(AssayWatch.id == row.watch_id)
                    # `least` passes over nulls; whoever computes it now must begin anew
                    .values(next_run=func.least(AssayWatch.next_run, first), claimed_by=None, claimed_until=None)
                )
    return found


async def _is_worth_it(context: Context, plan: Plan, schedule: Schedule, row: AssayResult) -> bool:
    try:
        if row.status == "Empty":
            return await in_thread(context, partial(_has_records, plan=plan, schedule=schedule, row=row))
        return await in_thread(context, partial(_can_be_computed, plan=plan, row=row))
    except Exception as exc:  # it is looked at again later
        log.warning("assays.still_failing", watch=row.watch_id, error=str(exc))
        return False


def _can_be_computed(scan: Scan, plan: Plan, row: AssayResult) -> bool:
    return len(list(analyse_windows(scan, plan, [Window(row.window_start, row.window_end)]))) == 1


def _has_records(scan: Scan, plan: Plan, schedule: Schedule, row: AssayResult) -> bool:
    """Tell whether any window of an empty stretch has a record now; one between two windows does not count."""
    line = Timeline(scan, plan.source, plan.paths, row.window_end)
    record = line.next_time(row.window_start)
    while record is not None and record < row.window_end:
        end = schedule.after(record)
        if end is None:
            return False
        if end - plan.width <= record:
            return True
        record = line.next_time(end - plan.width)
    return False
