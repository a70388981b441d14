"""`/v1/api/assays/…`: the first generation, and what both generations share."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.responses import HTMLResponse

from app.assays import notifications, report, shared, v1_service
from app.assays import schemas as s
from app.assays.v1_errors import ShownErrors
from app.identity.caller import CurrentCaller
from app.kit.context import context_of
from app.kit.db import Session

router = APIRouter(prefix="/v1/api/assays", tags=["assays"], route_class=ShownErrors)


@router.post("/create")
async def create_assay(request: Request, caller: CurrentCaller, config: s.ConfigIn) -> s.CreateOut:
    """Create an assay; its windows, past ones first, are computed in the background.

    Both spellings of the configuration are taken: that of the guide and clients of 2023.2, and that of later clients.
    """
    return s.CreateOut(assay_id=await v1_service.create(context_of(request), caller, config))


@router.post("/list")
async def list_assays(
    session: Session, caller: CurrentCaller, wanted: Annotated[s.ListIn | None, Body()] = None
) -> list[s.Wire]:
    """List assays, newest first. Baseline and window carry the members of all releases at once."""
    return await v1_service.listed(session, caller, wanted or s.ListIn())


@router.post("/filter")
async def filter_assays(session: Session, caller: CurrentCaller, wanted: s.FilterIn) -> list[s.Wire]:
    """List the full configurations of a pipeline's assays that meet all conditions."""
    return await v1_service.filtered(session, caller, wanted)


@router.post("/get_assay_by_id")
async def get_assay_by_id(session: Session, caller: CurrentCaller, wanted: s.AssayRef) -> s.Wire:
    """Return one assay as `list` shows it."""
    return await v1_service.get(session, caller, wanted.id)


@router.post("/set_active")
async def set_active(request: Request, session: Session, caller: CurrentCaller, wanted: s.ActiveIn) -> s.ActiveIn:
    """Pause an assay, or let it go on; windows that passed meanwhile are then computed."""
    now = context_of(request).clock.now()
    await v1_service.set_active(session, caller, wanted.id, wanted.active, now)
    return wanted


@router.post("/run_interactive")
async def run_interactive(request: Request, caller: CurrentCaller, config: s.ConfigIn) -> list[s.Wire]:
    """Compute the windows of a configuration at once and store nothing; windows without records are left out."""
    return await v1_service.run_interactive(context_of(request), caller, config)


@router.post("/run_interactive_baseline")
async def run_interactive_baseline(request: Request, caller: CurrentCaller, config: s.ConfigIn) -> s.Wire:
    """Return the baseline of a configuration as an analysis of itself, with score 0."""
    return await v1_service.run_baseline(context_of(request), caller, config)


@router.post("/summarize")
async def summarize(request: Request, caller: CurrentCaller, wanted: s.SummarizeIn) -> s.Wire:
    """Cut a baseline into bins: a window of the log, or a vector of numbers (null where one is missing)."""
    return await v1_service.summarize(context_of(request), caller, wanted)


@router.post("/get_baseline")
async def get_baseline(request: Request, caller: CurrentCaller, wanted: s.BaselineIn) -> list[s.Wire]:
    """Return logged records, flat: `time` in milliseconds, `in.<field>`, `out.<field>`, `metadata.<field>`."""
    return await shared.baseline_records(context_of(request), caller, wanted)


@router.post("/get_assay_results")
@router.post("/get_results")
async def get_results(session: Session, caller: CurrentCaller, wanted: s.ResultsIn) -> list[s.Wire]:
    """Return the stored analyses of an assay, oldest window first."""
    return await v1_service.results(session, caller, wanted)


@router.post("/set_notifications")
async def set_notifications(session: Session, caller: CurrentCaller, wanted: s.NotificationsIn) -> s.NotificationsOut:
    """Tell a webhook and an e-mail address once whenever the status of an assay changes.

    Works for both generations. Leave an address out to tell it no more.
    """
    return await notifications.change(session, caller, wanted)


@router.post("/backfill")
async def backfill(session: Session, caller: CurrentCaller, wanted: s.BackfillIn) -> s.BackfillOut:
    """Compute windows of an assay again, for history that was imported after they were computed."""
    return s.BackfillOut(discarded=await shared.backfill(session, caller, wanted))


@router.post("/report", response_class=HTMLResponse)
async def make_report(session: Session, caller: CurrentCaller, wanted: s.ReportIn) -> HTMLResponse:
    """Return one HTML page about an assay that stands for itself: nothing in it is loaded from elsewhere."""
    return HTMLResponse(await report.page(session, caller, wanted))
