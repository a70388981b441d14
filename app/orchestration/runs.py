"""Carries out task runs: claims them one by one, each exactly once, and writes down how they ended."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import uuid
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import contains_eager

from app.errors import AppError
from app.identity import tokens
from app.kit import worker
from app.kit.context import Context
from app.kit.events import notify
from app.orchestration import service
from app.orchestration.runtimes import runtime_of, task_url
from app.orchestration.runtimes.base import Outcome, RunSpec, TaskRuntime
from app.orchestration.tables import Orchestration, Task, TaskRun

log = structlog.get_logger()

_POLL_S = 1.0
_LEASE = timedelta(seconds=60)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1, 300
_WORKER_GONE = "The worker that ran it was stopped."


async def work(context: Context) -> None:
    """Carry out runs as they fall due, as many at once as there are slots, until cancelled."""
    await clear_ended(context)
    wake = context.events.subscribe(service.TOPIC)
    carried: dict[uuid.UUID, tuple[asyncio.Task[None], asyncio.Event]] = {}
    try:
        while True:
            for done in [key for key, (task, _) in carried.items() if task.done()]:
                task, _ = carried.pop(done)
                if (failure := task.exception()) is not None:
                    log.error("task_run.lost", run=str(done), exc_info=failure)
            await bury_lost(context, set(carried))
            await _keep(context, carried)
            while len(carried) < context.settings.task_slots and (key := await claim(context)) is not None:
                stop = asyncio.Event()
                carried[key] = (asyncio.create_task(carry_out(context, key, stop)), stop)
            waiting = asyncio.create_task(context.events.wait(wake, _POLL_S))
            await asyncio.wait({waiting, *(task for task, _ in carried.values())}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
    finally:
        for task, _ in carried.values():
            task.cancel()
        await asyncio.gather(*(task for task, _ in carried.values()), return_exceptions=True)


async def _keep(context: Context, carried: dict[uuid.UUID, tuple[asyncio.Task[None], asyncio.Event]]) -> None:
    """Renew the lease on the runs that are carried, and stop those that somebody wants to end."""
    if not carried:
        return
    async with context.sessions.begin() as session:
        rows = await session.execute(
            update(TaskRun)
            .where(TaskRun.id.in_(carried))
            .values(heartbeat_at=context.clock.now())
            .returning(TaskRun.id, TaskRun.kill_requested)
        )
        for key, kill_requested in rows:
            if kill_requested:
                carried[key][1].set()


async def claim(context: Context) -> uuid.UUID | None:
    """Claim the run that waits longest and may start now; returns its id, or None when there is none."""
    now = context.clock.now()
    async with context.sessions.begin() as session:
        row = await session.scalar(
            select(TaskRun)
            .join(TaskRun.task)
            .join(Task.orchestration)
            .options(contains_eager(TaskRun.task))
            .where(
                TaskRun.status == "queued",
                ~TaskRun.kill_requested,
                Orchestration.status.in_(("ready", "error")),
                TaskRun.due_at <= now,
            )
            .order_by(TaskRun.due_at, TaskRun.id)
            .limit(1)
            .with_for_update(of=TaskRun, skip_locked=True)
        )
        if row is None:
            return None
        row.status, row.worker, row.heartbeat_at, row.started_at = "running", worker.name(), now, now
        if row.task.status == "pending":
            row.task.status = "started"
        return row.id


async def carry_out(context: Context, key: uuid.UUID, stop: asyncio.Event) -> None:
    """Carry a claimed run out and write down how it ended."""
    runtime = runtime_of(context)
    session_id: str | None = None
    try:
        async with context.sessions.begin() as session:
            run = await session.scalar(
                select(TaskRun)
                .join(TaskRun.task)
                .join(Task.orchestration)
                .options(contains_eager(TaskRun.task).contains_eager(Task.orchestration))
                .where(TaskRun.id == key)
            )
            if run is None:  # deleted with its orchestration
                return
            token_file = None
            if run.task.orchestration.status == "ready":
                with contextlib.suppress(AppError):  # no tokens to give (an external provider): the task runs without
                    owner, url = run.task.owner_id, task_url(context)
                    token = await tokens.offline_token(context, session, owner, base_url=url)
                    session_id, token_file = token.session_id, token.document
        outcome = await _executed(context, runtime, run, token_file, stop)
    except asyncio.CancelledError:
        await asyncio.shield(_finish(context, runtime, key, session_id, Outcome("failure", _WORKER_GONE)))
        raise
    except OSError as exc:
        outcome = Outcome("failure", f"The task could not be started: {exc}.")
    await asyncio.shield(_finish(context, runtime, key, session_id, outcome))


async def _executed(
    context: Context, runtime: TaskRuntime, run: TaskRun, token_file: dict[str, object] | None, stop: asyncio.Event
) -> Outcome:
    task, bundle = run.task, run.task.orchestration
    if bundle.status != "ready" or bundle.environment is None:
        return Outcome("failure", f"The orchestration could not be packaged: {bundle.error_summary}")
    timeout_s = task.timeout_s
    if timeout_s is None and task.run_type != service.CONTINUOUS:
        timeout_s = context.settings.task_timeout_s
    with tempfile.TemporaryDirectory(prefix="potoroo-bundle-") as folder:
        path = Path(folder) / "bundle.zip"
        try:
            await context.storage.fetch(service.blob_key(bundle.sha), path)
        except AppError as exc:
            return Outcome("failure", exc.message)
        return await runtime.execute(
            RunSpec(
                run_id=str(run.id),
                task_id=str(task.id),
                orchestration_id=str(bundle.id),
                owner_id=task.owner_id,
                sha=bundle.sha,
                bundle=path,
                entry_point=bundle.entry_point,
                environment=bundle.environment,
                arguments=task.input_data,
                timeout_s=timeout_s,
                debug=task.debug,
                token_file=token_file,
            ),
            stop,
        )


async def _finish(
    context: Context, runtime: TaskRuntime, key: uuid.UUID, session_id: str | None, outcome: Outcome
) -> None:
    """Keep the run's output, write its end down, and remove what it left behind."""
    log_key = None
    if outcome.log is not None:
        log_key = (await context.storage.put("task-logs", _chunks(outcome.log))).key
    now = context.clock.now()
    async with context.sessions.begin() as session:
        await end(session, key, outcome.status, outcome.reason, now=now, log_key=log_key)
        if session_id is not None:
            await tokens.revoke_session(context, session, session_id)
        await notify(session, service.TOPIC)
    await runtime.clean(str(key))
    log.info("task_run.ended", run=str(key), status=outcome.status, reason=outcome.reason)


async def end(
    session: AsyncSession, key: uuid.UUID, status: str, reason: str, *, now: datetime, log_key: str | None = None
) -> None:
    """Write down how a run ended; a continuous task is due again, later the more often it failed in a row."""
    run = await session.scalar(
        select(TaskRun).where(TaskRun.id == key, TaskRun.status.in_(service.UNFINISHED)).with_for_update()
    )
    if run is None:
        return
    run.status, run.reason, run.finished_at, run.log_key = status, reason, now, log_key
    task = await session.get_one(Task, run.task_id, with_for_update=True)
    if task.status == "pending":  # it never got as far as running
        task.status = "started"
    if task.run_type == service.CONTINUOUS and not task.killed and task.status != "pending_kill":
        task.failures = 0 if status == "success" else task.failures + 1
        pause_s = (
            min(_FIRST_PAUSE_S * 2 ** min(task.failures, 10), _LONGEST_PAUSE_S) if task.failures else _FIRST_PAUSE_S
        )
        task.next_run_at = now + timedelta(seconds=pause_s)


async def clear_ended(context: Context) -> None:
    """Remove what is left of runs whose worker was killed after it had written down how they ended."""
    folders = {path.name for path in (context.settings.run_dir / "tasks").glob("*")}
    async with context.sessions() as session:
        going = await session.scalars(select(TaskRun.id).where(TaskRun.status.in_(service.UNFINISHED)))
        over = folders - {str(key) for key in going}
    for name in over:
        await runtime_of(context).clean(name)


async def bury_lost(context: Context, own: set[uuid.UUID]) -> None:
    """Mark runs as failed whose worker is gone: nothing runs twice, and the next tick goes on."""
    now = context.clock.now()
    async with context.sessions() as session:
        rows = list(
            await session.execute(
                select(TaskRun.id, TaskRun.worker, TaskRun.heartbeat_at).where(TaskRun.status == "running")
            )
        )
    for key, name, seen in rows:
        if key in own or name is None:
            continue
        gone = worker.is_gone(name)
        if gone or name == worker.name() or (gone is None and seen is not None and seen < now - _LEASE):
            async with context.sessions.begin() as session:
                await end(session, key, "failure", _WORKER_GONE, now=now)
                await notify(session, service.TOPIC)
            await runtime_of(context).clean(str(key))
            log.warning("task_run.lost", run=str(key), worker=name)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, 1024 * 1024):
            yield chunk
