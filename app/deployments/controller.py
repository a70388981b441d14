"""The loop that makes what runs match what was asked for.

Always the same: read what is wanted, look at what runs, choose one step (`plan`), take it (`runtimes`), write down what
was seen. One process at a time does this, by an advisory lock.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.deployments import observed as sightings
from app.deployments.launches import launch_of, wanted_replicas
from app.deployments.observed import Observed
from app.deployments.plan import Action, Desired, Memory, Phase, Replica, ReplicaPhase, goal, next_action
from app.deployments.runtimes import runtime_of
from app.deployments.runtimes.base import DoesNotFit, Launch, Runtime, RuntimeFailure
from app.deployments.service import TOPIC
from app.deployments.tables import Deployment
from app.deployments.workqueue import WorkQueue
from app.kit.context import Context
from app.kit.db import leadership
from app.kit.events import notify
from app.kit.http import is_away

log = structlog.get_logger()

SEEN_TOPIC = "deployments.seen"
"""Wake-ups of this topic mean: what runs has changed."""
WORKERS = 4
SCAN_S = 5.0
LEADER_POLL_S = 2.0
STEPS_AT_ONCE = 8
SOON_S, STEADY_S, ROOM_S = 0.1, 2.0, 5.0


class Controller:
    """Works off deployments, each by small steps."""

    def __init__(self, context: Context, runtime: Runtime) -> None:
        self._context = context
        self._runtime = runtime
        self._wake = context.events.subscribe(TOPIC)
        self._patience = timedelta(seconds=context.settings.engine_start_s)

    async def lead(self) -> None:
        """Work for as long as this process holds the lock; returns after a while if another one does."""
        async with leadership(self._context.database, "deployments.controller") as lock:
            if lock is None:
                await asyncio.sleep(LEADER_POLL_S)
                return
            log.info("controller.leads")
            queue = WorkQueue()
            self._runtime.on_change(queue.add)
            work = [self._scan(lock, queue), *(self._work(queue) for _ in range(WORKERS))]
            # No task group: before Python 3.13 it loses a cancellation that comes while one of its tasks fails.
            tasks = [asyncio.create_task(each) for each in work]
            try:
                ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in ended:
                task.result()

    async def _scan(self, lock: AsyncConnection, queue: WorkQueue) -> None:
        """Put every deployment that is not at rest into the queue, at each wake-up and every few seconds."""
        while True:
            await lock.execute(text("SELECT 1"))  # without the connection the lock is gone: stop leading
            async with self._context.sessions() as session:
                ids = await session.scalars(
                    select(Deployment.id).where(Deployment.deployed | (Deployment.phase != Phase.STOPPED))
                )
                for deployment_id in {*ids, *await self._runtime.deployments()}:
                    queue.add(deployment_id)
            await self._context.events.wait(self._wake, SCAN_S)

    async def _work(self, queue: WorkQueue) -> None:
        while True:
            key = await queue.get()
            try:
                next_look_s = await self.reconcile(key)
            except Exception as exc:  # one bad deployment must not stop the others
                pause_s = queue.failed(key)
                if is_away(exc):
                    log.warning("controller.database_away", deployment=key, pause_s=pause_s)
                else:
                    log.exception("controller.failed", deployment=key, pause_s=pause_s)
            else:
                queue.done(key, next_look_s)

    async def reconcile(self, deployment_id: int) -> float | None:
        """Take steps until there is nothing to do at once; returns when to look again, None if it is at rest."""
        for _ in range(STEPS_AT_ONCE):
            action, next_look_s = await self._step(deployment_id)
            if action is Action.WAIT:
                return next_look_s
        return SOON_S

    async def _step(self, deployment_id: int) -> tuple[Action, float | None]:
        seen = await self._runtime.observe(deployment_id)
        now = self._context.clock.now()
        launch: Launch | None = None
        revision = 0
        async with self._context.sessions.begin() as session:
            row = await session.scalar(select(Deployment).where(Deployment.id == deployment_id).with_for_update())
            if row is not None:
                desired = Desired(row.deployed, row.revision, wanted_replicas(row))
                memory = Memory(Phase(row.phase), row.phase_since, row.running_revision, row.failed_revision)
                action = next_action(desired, seen, memory, now, self._patience)
                self._mark(row, action, seen)
                await self._note(session, row, seen)
                revision = goal(desired, memory) or row.revision
                if action is Action.START:
                    launch = await launch_of(self._context, session, row, desired.replicas)
                next_look_s = _next_look_s(Phase(row.phase), seen)
            else:
                alive = any(replica.phase is not ReplicaPhase.STOPPING for replica in seen)
                action = Action.STOP if alive else Action.WAIT
                next_look_s = SOON_S if seen else None
        if action is Action.START and launch is not None:
            return await self._start(launch)
        if action is Action.RESTART:
            await self._runtime.restart(deployment_id, revision, now)
        elif action is Action.RETIRE:
            await self._runtime.stop(deployment_id, keep_revision=revision)
        elif action is Action.STOP:
            await self._runtime.stop(deployment_id)
        return action, next_look_s

    async def _start(self, launch: Launch) -> tuple[Action, float]:
        try:
            await self._runtime.start(launch)
        except RuntimeFailure as exc:
            log.warning("deployment.cannot_start", deployment=launch.deployment_id, reason=str(exc))
            await self._note_waiting(launch, exc)
            return Action.WAIT, ROOM_S
        return Action.START, SOON_S

    def _mark(self, row: Deployment, action: Action, seen: tuple[Replica, ...]) -> None:
        """Write down the new phase that `action` stands for, if it does."""
        if action is Action.MARK_RUNNING:
            self._enter(row, Phase.RUNNING)
            row.running_revision, row.failed_revision, row.reason = row.revision, None, None
        elif action is Action.MARK_STARTING:
            self._enter(row, Phase.STARTING)
        elif action is Action.MARK_STOPPED:
            self._enter(row, Phase.STOPPED)
            row.running_revision = row.failed_revision = row.reason = None
        elif action is Action.MARK_FAILED:
            failed = [r for r in seen if r.revision == row.revision and r.phase is ReplicaPhase.FAILED]
            waiting = [r for r in sightings.read(row.observed).waiting if r.reason]
            told = [r.reason for r in [*failed, *waiting] if r.reason]
            seconds = int(self._patience.total_seconds())
            row.reason = told[0] if told else f"No engine began to answer within {seconds} seconds."
            row.failed_revision = row.revision
            self._enter(row, Phase.FAILED)
            log.warning("deployment.failed", deployment=row.id, revision=row.revision, reason=row.reason)

    def _enter(self, row: Deployment, phase: Phase) -> None:
        log.info("deployment.phase", deployment=row.id, revision=row.revision, phase=str(phase))
        row.phase = phase
        row.phase_since = self._context.clock.now()

    async def _note(self, session: AsyncSession, row: Deployment, seen: tuple[Replica, ...]) -> None:
        """Write down what was seen, and wake the gateways, if it is something else than last time."""
        before = sightings.read(row.observed)
        failed = before.failed if row.phase == Phase.FAILED else ()
        if row.phase == Phase.FAILED:
            ended = tuple(r for r in seen if r.revision == row.failed_revision and r.phase is not ReplicaPhase.STOPPING)
            failed = ended or before.failed or before.waiting
        waiting = before.waiting if row.phase == Phase.STARTING and not seen else ()
        stored = sightings.write(Observed(replicas=seen, failed=failed, waiting=waiting))
        if stored != row.observed:
            row.observed = stored
            await notify(session, SEEN_TOPIC, str(row.id))
        elif session.is_modified(row):
            await notify(session, SEEN_TOPIC, str(row.id))

    async def _note_waiting(self, launch: Launch, exc: RuntimeFailure) -> None:
        fit = exc if isinstance(exc, DoesNotFit) else None
        waiting = Replica(
            name=f"engine-{launch.revision}",
            revision=launch.revision,
            phase=ReplicaPhase.PENDING,
            reason=str(exc),
            required_cpu=fit.cpu if fit else None,
            required_memory=fit.memory if fit else None,
        )
        async with self._context.sessions.begin() as session:
            row = await session.scalar(
                select(Deployment).where(Deployment.id == launch.deployment_id).with_for_update()
            )
            if row is not None and row.revision == launch.revision:
                now = sightings.read(row.observed)
                row.observed = sightings.write(Observed(replicas=now.replicas, waiting=(waiting,)))


def _next_look_s(phase: Phase, seen: tuple[Replica, ...]) -> float | None:
    if phase is Phase.STOPPED and not seen:
        return None
    if phase in (Phase.STARTING, Phase.STOPPING) or any(r.phase is not ReplicaPhase.RUNNING for r in seen):
        return SOON_S
    if len({r.revision for r in seen}) > 1:  # the former engines are to go soon, and their connections with them
        return SOON_S
    return STEADY_S


async def run(context: Context) -> None:
    """Lead whenever nobody else does, for ever."""
    controller = Controller(context, runtime_of(context))
    while True:
        try:
            await controller.lead()
        except Exception as exc:
            if not is_away(exc):
                raise
            log.warning("controller.database_away")
            await asyncio.sleep(1.0)
