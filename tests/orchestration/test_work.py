"""Workers and the clock: every tick one run, every run carried out once, whatever is stopped in between."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from app.kit import worker
from app.kit.context import Context
from app.kit.storage import Blob
from app.orchestration import logs, packaging, runs, runtimes, scheduler, service
from app.orchestration.bundles import Bundle
from app.orchestration.runtimes.base import Outcome, RunSpec
from app.orchestration.schemas import RunIn
from app.orchestration.tables import Orchestration, Task, TaskRun
from app.workspaces.tables import Workspace, WorkspaceUser
from tests.conftest import ANN
from tests.orchestration.test_bundles import zipped

START = datetime(2024, 5, 1, 10, 0, 30, tzinfo=UTC)


class FastClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> datetime:
        return self.time

    def go(self, **delta: float) -> None:
        self.time += timedelta(**delta)


class FakeTasks:
    """A runtime that only counts, and ends as it is told."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.cleaned: list[str] = []
        self.status = "success"
        self.until: asyncio.Event | None = None

    async def execute(self, spec: RunSpec, stop: asyncio.Event) -> Outcome:
        self.done.append(spec.task_id)
        if self.until is not None:
            waits = [asyncio.create_task(e.wait()) for e in (self.until, stop)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if stop.is_set():
                return Outcome("killed", "killed")
        return Outcome(self.status, "as it was told")

    async def clean(self, run_id: str) -> None:
        self.cleaned.append(run_id)


@pytest.fixture
def clock(committed: Context) -> FastClock:
    committed.clock = FastClock()
    return committed.clock


@pytest.fixture
def fake(committed: Context) -> FakeTasks:
    committed.parts[runtimes.PART] = FakeTasks()
    return committed.parts[runtimes.PART]


async def bundle(context: Context, files: dict[str, bytes | str] | None = None, status: str = "ready") -> Orchestration:
    async def chunks() -> Any:
        yield zipped(files or {"main.py": "print('hello')"})

    blob: Blob = await context.storage.put("bundles", chunks())
    async with context.sessions.begin() as session:
        room = Workspace(name=f"w-{uuid.uuid4().hex[:8]}", created_by=ANN.id, owner_id=ANN.id)
        session.add(room)
        await session.flush()
        session.add(WorkspaceUser(workspace_id=room.id, user_id=ANN.id, user_type="OWNER"))
        row = await service.add_bundle(
            session, ANN, workspace_id=room.id, name="b", file_name="b.zip", blob=blob, bundle=Bundle("main.py", "")
        )
        row.status, row.environment = status, "none"
    return row


async def task(context: Context, orch: Orchestration, kind: str = service.ONCE, **more: Any) -> uuid.UUID:
    options = {key: more.pop(key) for key in ("schedule", "may_overlap") if key in more}
    new = RunIn.model_validate({"orch_id": orch.id, "workspace_id": orch.workspace_id, "json": {"a": 1}} | more)
    async with context.sessions.begin() as session:
        return (await service.add_task(session, ANN, new, kind, now=context.clock.now(), **options)).id


async def drain(context: Context) -> int:
    count = 0
    while (key := await runs.claim(context)) is not None:
        await runs.carry_out(context, key, asyncio.Event())
        count += 1
    return count


async def rows_of(context: Context, key: uuid.UUID) -> list[TaskRun]:
    async with context.sessions() as session:
        return list(await session.scalars(select(TaskRun).where(TaskRun.task_id == key).order_by(TaskRun.due_at)))


async def the_task(context: Context, key: uuid.UUID) -> Task:
    async with context.sessions() as session:
        return await session.get_one(Task, key)


async def test_a_bundle_is_packaged_and_run_for_real(committed: Context) -> None:
    committed.settings = committed.settings.model_copy(update={"task_sdk": ""})
    code = "import json, os\nprint(json.load(open('/home/jovyan/arguments.json')), os.environ['WALLAROO_TASK_ID'])"
    orch = await bundle(committed, {"main.py": code}, status="pending_packaging")
    key = await task(committed, orch)

    assert await packaging.package_next(committed)
    assert not await packaging.package_next(committed)
    assert await drain(committed) == 1

    [run] = await rows_of(committed, key)
    assert (run.status, run.reason) == ("success", "The task finished.")
    assert (await the_task(committed, key)).status == "started"
    lines = await logs.lines_of(committed, run, None)
    assert any(f"{{'a': 1}} {key}" in line for line in lines)
    assert not logs.run_folder(committed.settings, run.id).exists()


async def test_requirements_that_cannot_be_installed_end_in_error_with_the_installers_reason(
    committed: Context, tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    committed.settings = committed.settings.model_copy(update={"task_sdk": "", "package_wheels": wheels})
    files: dict[str, bytes | str] = {"main.py": "", "requirements.txt": "no-such-package-of-ours==9.9"}
    orch = await bundle(committed, files, status="pending_packaging")
    key = await task(committed, orch)

    await packaging.package_next(committed)
    await drain(committed)

    async with committed.sessions() as session:
        row = await session.get_one(Orchestration, orch.id)
    assert row.status == "error"
    assert "no-such-package-of-ours" in (row.error_summary or "")
    assert row.packaging_log
    [run] = await rows_of(committed, key)
    assert run.status == "failure"
    assert "could not be packaged" in (run.reason or "")


async def test_every_tick_makes_one_run_however_many_clocks_look(
    committed: Context, clock: FastClock, fake: FakeTasks
) -> None:
    orch = await bundle(committed)
    keys = [await task(committed, orch, service.SCHEDULED, schedule="* * * * *") for _ in range(50)]

    for minute in range(3):
        clock.go(minutes=1)
        await asyncio.gather(*(scheduler.tick(committed) for _ in range(4)))
        await drain(committed)
        assert sorted(fake.done) == sorted([str(k) for k in keys] * (minute + 1))


async def test_missed_ticks_are_coalesced_into_one_run(committed: Context, clock: FastClock, fake: FakeTasks) -> None:
    key = await task(committed, await bundle(committed), service.SCHEDULED, schedule="*/5 * * * *")

    clock.go(hours=3)  # nobody looked at the clock meanwhile
    await scheduler.tick(committed)
    await scheduler.tick(committed)

    [run] = await rows_of(committed, key)
    assert run.due_at == datetime(2024, 5, 1, 13, 0, tzinfo=UTC)
    assert (await the_task(committed, key)).next_run_at == datetime(2024, 5, 1, 13, 5, tzinfo=UTC)


async def test_a_tick_is_left_out_while_the_last_run_goes_on(
    committed: Context, clock: FastClock, fake: FakeTasks
) -> None:
    key = await task(committed, await bundle(committed), service.SCHEDULED, schedule="* * * * *")

    for _ in range(3):
        clock.go(minutes=1)
        await scheduler.tick(committed)

    assert len(await rows_of(committed, key)) == 1
    await drain(committed)
    clock.go(minutes=1)
    await scheduler.tick(committed)
    assert len(await rows_of(committed, key)) == 2


async def test_runs_overlap_when_the_task_asks_for_it(committed: Context, clock: FastClock, fake: FakeTasks) -> None:
    key = await task(committed, await bundle(committed), service.SCHEDULED, schedule="* * * * *", may_overlap=True)

    for _ in range(3):
        clock.go(minutes=1)
        await scheduler.tick(committed)

    assert len(await rows_of(committed, key)) == 3


async def test_runs_of_a_worker_that_is_gone_fail_and_the_schedule_goes_on(
    committed: Context, clock: FastClock, fake: FakeTasks
) -> None:
    key = await task(committed, await bundle(committed), service.SCHEDULED, schedule="* * * * *")
    clock.go(minutes=1)
    await scheduler.tick(committed)
    claimed = await runs.claim(committed)
    assert claimed is not None
    async with committed.sessions.begin() as session:
        run = await session.get_one(TaskRun, claimed)
        run.worker = f"{worker.host()}:999999:1"

    await runs.bury_lost(committed, set())
    clock.go(minutes=1)
    await scheduler.tick(committed)
    await drain(committed)

    first, second = await rows_of(committed, key)
    assert (first.status, first.reason) == ("failure", "The worker that ran it was stopped.")
    assert second.status == "success"
    assert len(fake.done) == 1


async def test_a_run_of_another_machine_is_given_up_after_its_lease(
    committed: Context, clock: FastClock, fake: FakeTasks
) -> None:
    key = await task(committed, await bundle(committed))
    claimed = await runs.claim(committed)
    async with committed.sessions.begin() as session:
        (await session.get_one(TaskRun, claimed)).worker = "elsewhere:1:1"

    await runs.bury_lost(committed, set())
    assert (await rows_of(committed, key))[0].status == "running"
    clock.go(minutes=2)
    await runs.bury_lost(committed, set())

    assert (await rows_of(committed, key))[0].status == "failure"


async def test_a_continuous_task_is_started_again_with_growing_pauses(
    committed: Context, clock: FastClock, fake: FakeTasks
) -> None:
    key = await task(committed, await bundle(committed), service.CONTINUOUS)
    fake.status = "failure"

    pauses = []
    for _ in range(4):
        await drain(committed)
        due = (await the_task(committed, key)).next_run_at
        assert due is not None
        pauses.append((due - clock.now()).total_seconds())
        clock.time = due
        await scheduler.tick(committed)

    assert pauses == [2, 4, 8, 16]
    assert len(fake.done) == 4


async def test_a_killed_task_is_stopped_and_does_not_run_again(
    committed: Context, clock: FastClock, fake: FakeTasks
) -> None:
    fake.until = asyncio.Event()
    key = await task(committed, await bundle(committed), service.SCHEDULED, schedule="* * * * *")
    clock.go(minutes=1)
    await scheduler.tick(committed)
    working = asyncio.create_task(runs.work(committed))
    try:
        await _eventually(lambda: _async(fake.done))
        async with committed.sessions.begin() as session:
            await service.kill(session, ANN, key)

        async def over() -> bool:
            await scheduler.see_kills_through(committed)
            return (await the_task(committed, key)).killed

        await _eventually(over)
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    clock.go(minutes=5)
    await scheduler.tick(committed)

    [run] = await rows_of(committed, key)
    assert run.status == "killed"
    assert (await the_task(committed, key)).status == "killed"


async def test_a_task_killed_before_its_run_started_never_runs(
    committed: Context, clock: FastClock, fake: FakeTasks
) -> None:
    key = await task(committed, await bundle(committed))
    async with committed.sessions.begin() as session:
        await service.kill(session, ANN, key)

    assert await drain(committed) == 0
    await scheduler.see_kills_through(committed)

    assert (await rows_of(committed, key))[0].status == "killed"
    assert (await the_task(committed, key)).killed


async def test_a_worker_that_is_stopped_writes_its_runs_down_as_failed(committed: Context, fake: FakeTasks) -> None:
    fake.until = asyncio.Event()
    key = await task(committed, await bundle(committed))
    working = asyncio.create_task(runs.work(committed))
    await _eventually(lambda: _async(fake.done))

    working.cancel()
    await asyncio.gather(working, return_exceptions=True)

    [run] = await rows_of(committed, key)
    assert (run.status, run.reason) == ("failure", "The worker that ran it was stopped.")


async def test_what_a_killed_worker_left_of_ended_runs_is_removed_when_one_starts(
    committed: Context, fake: FakeTasks
) -> None:
    orch = await bundle(committed)
    ended, going = await task(committed, orch), await task(committed, orch)
    [over], [on] = await rows_of(committed, ended), await rows_of(committed, going)
    async with committed.sessions.begin() as session:
        (await session.get_one(TaskRun, over.id)).status = "success"
    for key in (over.id, on.id):
        (committed.settings.run_dir / "tasks" / str(key)).mkdir(parents=True)

    await runs.clear_ended(committed)

    assert fake.cleaned == [str(over.id)]


async def test_two_workers_never_carry_the_same_run(committed: Context, fake: FakeTasks) -> None:
    orch = await bundle(committed)
    for _ in range(20):
        await task(committed, orch)

    await asyncio.gather(drain(committed), drain(committed), drain(committed))

    assert len(fake.done) == len(set(fake.done)) == 20
    async with committed.sessions() as session:
        assert await session.scalar(select(func.count()).where(TaskRun.status == "success")) == 20


async def test_old_logs_are_dropped_with_their_blobs(committed: Context, clock: FastClock, fake: FakeTasks) -> None:
    async def chunks() -> Any:
        yield b"2024-01-01T00:00:00Z stdout F x\n"

    key = await task(committed, await bundle(committed))
    await drain(committed)
    blob = await committed.storage.put("task-logs", chunks())
    async with committed.sessions.begin() as session:
        run = await session.scalar(select(TaskRun).where(TaskRun.task_id == key))
        assert run is not None
        run.log_key = blob.key

    clock.go(days=31)
    await scheduler.drop_old_logs(committed)

    assert await committed.storage.size(blob.key) is None
    assert (await rows_of(committed, key))[0].log_key is None


async def _async(value: Any) -> Any:
    return value


async def _eventually(check: Any) -> None:
    async with asyncio.timeout(20):
        while not await check():  # noqa: ASYNC110 - what is waited for is a row, not an event
            await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_fifty_tasks_keep_to_their_ticks_over_a_restart_in_the_middle(
    committed: Context, clock: FastClock, tmp_path: Path
) -> None:
    """Real processes: every start is written down by the task itself."""
    committed.settings = committed.settings.model_copy(update={"task_sdk": ""})
    code = f"import os\nopen({str(tmp_path)!r} + '/' + os.environ['TASK_ID'], 'a').write('x')"
    orch = await bundle(committed, {"main.py": code}, status="pending_packaging")
    assert await packaging.package_next(committed)
    keys = [await task(committed, orch, service.SCHEDULED, schedule="* * * * *") for _ in range(50)]

    async def over() -> int:
        async with committed.sessions() as session:
            ended = select(func.count()).select_from(TaskRun).where(TaskRun.status.not_in(service.UNFINISHED))
            return await session.scalar(ended) or 0

    async def server_until(count: int) -> None:
        loops = [asyncio.create_task(loop(committed)) for loop in (runs.work, scheduler.run)]
        try:
            async with asyncio.timeout(120):
                while await over() < count:  # noqa: ASYNC110 - what is waited for is a row, not an event
                    await asyncio.sleep(0.05)
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    clock.go(minutes=1)
    await server_until(50)
    clock.go(minutes=1)
    await server_until(70)  # stopped while runs of the second tick wait and others are under way
    await server_until(100)
    clock.go(minutes=1)
    await server_until(150)

    async with committed.sessions() as session:
        found = (await session.execute(select(TaskRun.task_id, TaskRun.due_at, TaskRun.status, TaskRun.reason))).all()
    assert len(found) == len({(row.task_id, row.due_at) for row in found}) == 150
    failed = [row for row in found if row.status != "success"]
    assert {row.reason for row in failed} <= {"The worker that ran it was stopped."}
    assert len(failed) <= committed.settings.task_slots
    for key in keys:
        starts = (tmp_path / str(key)).read_text()
        lost = sum(row.task_id == key for row in failed)
        assert 3 - lost <= len(starts) <= 3
