"""`/v2/api/assays/…`: the second generation."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from app.assays import v2_schemas as s
from app.assays import v2_service as service
from app.identity.caller import CurrentCaller
from app.kit.context import context_of
from app.kit.db import Session

router = APIRouter(prefix="/v2/api/assays", tags=["assays"])

Wire = dict[str, Any]


@router.post("/preview_baseline_binning")
async def preview_baseline_binning(request: Request, caller: CurrentCaller, wanted: s.BinningIn) -> Wire:
    """Cut a baseline into bins; the answer has a summary for each path."""
    return await service.bin_baseline(context_of(request), caller, wanted)


@router.post("/preview")
async def preview(request: Request, caller: CurrentCaller, wanted: s.PreviewIn) -> list[Wire]:
    """Compute the windows of an assay at once and store nothing."""
    return await service.preview(context_of(request), caller, wanted)


@router.post("/schedule")
async def schedule(request: Request, caller: CurrentCaller, wanted: s.ScheduleIn) -> uuid.UUID:
    """Create an assay and return its id; its runs, past ones first, take place in the background."""
    return await service.schedule(context_of(request), caller, wanted)


@router.post("/get/{segment}", include_in_schema=False)
async def get_assay(session: Session, caller: CurrentCaller, segment: str, wanted: s.AssayRef) -> Wire:
    """Return one assay; clients send the path segment `:id` as it stands."""
    return await service.get(session, caller, wanted.id)


@router.post("/get")
async def get_assays(
    session: Session, caller: CurrentCaller, wanted: Annotated[s.GetIn | None, Body()] = None
) -> list[Wire]:
    """List assays, newest first."""
    return await service.listed(session, caller, wanted or s.GetIn())


@router.post("/set_active")
async def set_active(request: Request, session: Session, caller: CurrentCaller, wanted: s.ActiveIn) -> None:
    """Pause an assay, or let it go on."""
    await service.set_active(session, caller, wanted, context_of(request).clock.now())


@router.post("/get_next_run")
async def get_next_run(session: Session, caller: CurrentCaller, wanted: s.AssayIdRef) -> s.NextRunOut:
    """Return when an assay last ran, and when it runs next."""
    return await service.next_run(session, caller, wanted.assay_id)


@router.post("/get_results")
async def get_results(session: Session, caller: CurrentCaller, wanted: s.ResultsIn) -> list[Wire]:
    """Return the stored results of an assay, oldest window first."""
    return await service.results(session, caller, wanted)


@router.post("/score")
async def score(request: Request, caller: CurrentCaller, wanted: s.ScoreIn) -> Wire:
    """Compare numbers, or a stretch of the log, with a baseline; a path without a score has a text that says why."""
    return await service.score(context_of(request), caller, wanted)
