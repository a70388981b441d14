"""`/v1/api/orchestration/…` and `/v1/api/task/…`."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from app.errors import Invalid, NotFound
from app.identity.caller import CurrentCaller, authenticator_of, bearer_token, current_caller
from app.kit.clients import Client, client_of
from app.kit.context import context_of
from app.kit.db import Session
from app.kit.multipart import Form, boundary_of
from app.orchestration import bundle_access, listings, schemas, service, uploads, views
from app.orchestration.logs import lines_of
from app.orchestration.tables import TaskRun

router = APIRouter(prefix="/v1/api", tags=["orchestration"])
internal = APIRouter(prefix="/internal", include_in_schema=False)


def calling_client(request: Request) -> Client:
    """Return which client makes `request`."""
    return client_of(request.headers.get("user-agent"))


CallingClient = Annotated[Client, Depends(calling_client)]

_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "metadata"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "A ZIP with one main.py."},
                        "metadata": {"type": "string", "description": "JSON.", "example": '{"workspace_id": 7}'},
                    },
                }
            }
        },
    }
}


@router.post("/orchestration/upload", status_code=202, openapi_extra=_UPLOAD, max_body_size=1 << 62)
async def upload_orchestration(request: Request, caller: CurrentCaller) -> schemas.Id:
    """Upload a bundle: a ZIP with a main.py at its root or in a folder, and at most one requirements.txt.

    Its environment is made in the background; the orchestration is ready when its status says so.
    """
    boundary = boundary_of(request.headers.get("content-type"))
    if boundary is None:
        raise Invalid("Send the bundle as multipart/form-data with the parts `file` and `metadata`.")
    row = await uploads.receive(context_of(request), caller, Form(aiter(request.stream()), boundary))
    return schemas.Id(id=row.id)


@router.post("/orchestration/list")
async def list_orchestrations(
    session: Session, caller: CurrentCaller, wanted: schemas.ListIn
) -> list[schemas.OrchestrationOut]:
    """List the orchestrations of a workspace, newest first."""
    return await listings.in_workspace(session, caller, wanted.workspace_id)


@router.post("/orchestration/list_all")
async def list_all_orchestrations(
    session: Session, caller: CurrentCaller, client: CallingClient, wanted: schemas.ListAllIn
) -> schemas.ListAllOut:
    """List orchestrations with their tasks and workspaces, newest first."""
    return schemas.ListAllOut(orchestrations=await listings.everything(session, caller, client, wanted))


@router.post("/orchestration/get_by_id")
async def get_orchestration(session: Session, caller: CurrentCaller, wanted: schemas.Id) -> schemas.OrchestrationBrief:
    """Return an orchestration."""
    shown = views.orchestration(await service.orchestration(session, caller, wanted.id))
    return schemas.OrchestrationBrief.model_validate(shown.model_dump())


@router.get("/orchestration/download", response_class=StreamingResponse)
async def download_orchestration(
    request: Request,
    key: Annotated[uuid.UUID, Query(alias="id")],
    token: Annotated[str | None, Query(description="Access token, for clients that send no header.")] = None,
) -> StreamingResponse:
    """Return the bundle's ZIP."""
    context = context_of(request)
    if token and "authorization" not in request.headers:
        caller = await authenticator_of(context).authenticate(token)
    else:
        caller = await current_caller(request)
    async with context.sessions() as session:
        row = await service.orchestration(session, caller, key)
    blob = service.blob_key(row.sha)
    size = await context.storage.size(blob)
    if size is None:
        raise NotFound(f"The file of orchestration {key} is gone from the storage.")
    name = row.file_name.encode("ascii", "replace").decode().replace('"', "'")
    headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(context.storage.stream(blob), media_type="application/zip", headers=headers)


@router.post("/orchestration/delete_orchestrations")
async def delete_orchestrations(request: Request, caller: CurrentCaller, gone: schemas.DeleteIn) -> schemas.BytesOut:
    """Delete orchestrations with their tasks; without `confirm_delete` only tell what that would free."""
    context = context_of(request)
    async with context.sessions.begin() as session:
        freed, blobs = await service.remove(session, caller, gone.orchestrations, confirmed=bool(gone.confirm_delete))
    if gone.confirm_delete:
        for blob in blobs:
            await uploads.discard(context, blob)
    return schemas.BytesOut(bytes=freed)


@router.post("/task/run_once", status_code=201)
async def run_once(request: Request, session: Session, caller: CurrentCaller, new: schemas.RunIn) -> schemas.Id:
    """Run an orchestration once."""
    now = context_of(request).clock.now()
    return schemas.Id(id=(await service.add_task(session, caller, new, service.ONCE, now=now)).id)


@router.post("/task/run_scheduled", status_code=201)
async def run_scheduled(
    request: Request, session: Session, caller: CurrentCaller, new: schemas.RunScheduledIn
) -> schemas.Id:
    """Run an orchestration by a cron schedule, in UTC.

    A run that is due while the last one goes on is left out, unless `allow_overlap` asks for it.
    """
    now = context_of(request).clock.now()
    row = await service.add_task(
        session,
        caller,
        new,
        service.SCHEDULED,
        now=now,
        schedule=new.schedule,
        may_overlap=bool(new.allow_overlap),
    )
    return schemas.Id(id=row.id)


@router.post("/task/run_continuously", status_code=201)
async def run_continuously(request: Request, session: Session, caller: CurrentCaller, new: schemas.RunIn) -> schemas.Id:
    """Run an orchestration for ever: whenever it ends it is started again, after growing pauses while it fails."""
    now = context_of(request).clock.now()
    return schemas.Id(id=(await service.add_task(session, caller, new, service.CONTINUOUS, now=now)).id)


@router.post("/task/get_by_id")
async def get_task(
    session: Session, caller: CurrentCaller, client: CallingClient, wanted: schemas.Id
) -> schemas.TaskOut:
    """Return a task with its last runs."""
    row = await service.task(session, caller, wanted.id)
    return (await listings.shown_tasks(session, [row], client))[0]


@router.post("/task/list")
async def list_tasks(
    session: Session, caller: CurrentCaller, client: CallingClient, wanted: schemas.TaskListIn
) -> list[schemas.TaskOut]:
    """List tasks, last changed first."""
    return await listings.tasks(session, caller, client, wanted)


@router.post("/task/get_tasks_by_orch_sha")
async def get_tasks_by_orch_sha(session: Session, caller: CurrentCaller, wanted: schemas.ShaIn) -> schemas.IdsOut:
    """Return the ids of the tasks made of a bundle, by its SHA-256."""
    return schemas.IdsOut(ids=await listings.ids_by_sha(session, caller, wanted.sha))


@router.post("/task/kill", status_code=202)
async def kill_task(
    session: Session, caller: CurrentCaller, client: CallingClient, gone: schemas.Id
) -> schemas.TaskOut:
    """End a task: it is not run again, and a run under way is stopped."""
    row = await service.kill(session, caller, gone.id)
    return (await listings.shown_tasks(session, [row], client))[0]


@router.post("/task/pause", status_code=202)
async def pause_task(
    request: Request, session: Session, caller: CurrentCaller, client: CallingClient, wanted: schemas.PauseIn
) -> schemas.TaskOut:
    """Pause a task, or resume it with `pause: false`."""
    now = context_of(request).clock.now()
    row = await service.pause(session, caller, wanted.id, paused=wanted.pause, now=now)
    return (await listings.shown_tasks(session, [row], client))[0]


@router.post("/task/list_task_runs")
async def list_task_runs(
    session: Session, caller: CurrentCaller, client: CallingClient, wanted: schemas.RunsIn
) -> list[schemas.TaskRunOut]:
    """List the runs of a task, last changed first."""
    await service.task(session, caller, wanted.task_id)
    return await listings.runs(session, client, wanted)


@router.post("/task/get_run_details")
async def get_run_details(
    session: Session, caller: CurrentCaller, client: CallingClient, wanted: schemas.RunDetailsIn
) -> schemas.TaskRunBrief:
    """Return a run of a task."""
    await service.task(session, caller, wanted.task)
    row = await session.scalar(select(TaskRun).where(TaskRun.id == wanted.pod_id, TaskRun.task_id == wanted.task))
    if row is None or row.status == "queued":
        raise NotFound(f"Task {wanted.task} has no run {wanted.pod_id}.")
    return views.run(row, client)


@router.post("/task/get_logs_for_run")
async def get_logs_for_run(request: Request, caller: CurrentCaller, wanted: schemas.LogsIn) -> schemas.LogsOut:
    """Return the output of a run, of one that is still going too; `lines` gives the newest."""
    context = context_of(request)
    async with context.sessions() as session:
        row = await service.run(session, caller, wanted.id)
    return schemas.LogsOut(logs=await lines_of(context, row, wanted.lines))


@internal.get("/bundles/{run_id}")
async def get_bundle(request: Request, run_id: uuid.UUID) -> StreamingResponse:
    """Give a run on another machine its bundle; it proves itself by the secret it was started with."""
    context = context_of(request)
    bundle_access.check_token(context, run_id, bearer_token(request))
    async with context.sessions() as session:
        blob = service.blob_key(await bundle_access.sha_of(session, run_id))
    size = await context.storage.size(blob)
    if size is None:
        raise NotFound(f"The bundle of task run {run_id} is gone from the storage.")
    headers = {"Content-Length": str(size)}
    return StreamingResponse(context.storage.stream(blob), media_type="application/zip", headers=headers)
