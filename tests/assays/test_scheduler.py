"""The clock: each due window once, in bounded batches, whatever fails or dies."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from typer.testing import CliRunner

from app.assays import scheduler
from app.assays.tables import Assay, AssayResult, AssayWatch
from app.kit import db
from app.kit.context import Context
from app.logs.cli import logs
from app.workspaces.tables import Workspace
from engine.assays import Window
from tests.assays.conftest import FixedClock, House
from tests.assays.history import DAY, DAY0, append, config, records
from tests.conftest import ANN
from tests.factories import Make

API = "/v1/api/assays"


async def call(client: httpx.AsyncClient, path: str, body: Any) -> Any:
    answer = await client.post(f"{API}/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def drain(context: Context) -> int:
    ticks = 0
    while await scheduler.tick(context):
        ticks += 1
        assert ticks < 200
    return ticks


async def rows(session: AsyncSession) -> list[AssayResult]:
    query = select(AssayResult).order_by(AssayResult.window_start).execution_options(populate_existing=True)
    return list(await session.scalars(query))


async def test_a_new_assay_over_old_records_gets_its_past_windows(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context, session: AsyncSession
) -> None:
    body = config(house.pipeline)
    made = (await call(ann, "create", body))["assay_id"]

    await drain(context)

    results = await call(ann, "get_results", {"assay_id": made, "pipeline_id": house.pipeline.id})
    interactive = await call(ann, "run_interactive", body)
    assert [r["score"] for r in results] == [r["score"] for r in interactive]
    assert [r["scores"] for r in results] == [r["scores"] for r in interactive]
    assert [r["status"] for r in results] == [r["status"] for r in interactive]
    for stored, now in zip(results, interactive, strict=True):
        assert stored["baseline_summary"] == now["baseline_summary"]
        assert stored["window_summary"] == now["window_summary"]
        assert stored["assay_id"] == made
    span = {"assay_id": made, "start": DAY0.isoformat(), "end": (DAY0 + 9 * DAY).isoformat()}
    assert await call(ann, "get_assay_results", span) == results
    assert len(await call(ann, "get_results", {"assay_id": made, "limit": 2})) == 2
    (empty,) = [row for row in await rows(session) if row.status == "Empty"]
    assert (empty.window_start, empty.window_end) == (DAY0 + 3 * DAY, DAY0 + 4 * DAY)
    assert "house-model" in (empty.reason or "")
    (listed,) = await call(ann, "list", {})
    assert listed["last_run"] is not None
    (last,) = await session.scalars(select(AssayWatch.next_run))
    assert last is None  # run_until is reached


async def test_a_tick_with_nothing_due_does_nothing(context: Context, house: House, clock: FixedClock) -> None:
    assert await scheduler.tick(context) == 0


async def test_a_paused_assay_waits_and_then_catches_up(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context, session: AsyncSession
) -> None:
    made = (await call(ann, "create", config(house.pipeline, active=False)))["assay_id"]
    await drain(context)
    assert await rows(session) == []

    await call(ann, "set_active", {"id": made, "active": True})
    await drain(context)

    assert len(await rows(session)) == 7


async def test_windows_are_computed_as_they_end_and_not_before(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context, session: AsyncSession
) -> None:
    clock.moment = DAY0 + 2 * DAY + timedelta(seconds=1)
    await call(ann, "create", config(house.pipeline, run_until=None))
    await drain(context)
    assert await rows(session) == []  # records of the window may still be on their way

    clock.moment += timedelta(seconds=2)
    await drain(context)
    first = [row.window_start for row in await rows(session)]
    clock.moment += DAY
    await drain(context)

    assert first == [DAY0 + DAY]
    assert [row.window_start for row in await rows(session)] == [DAY0 + DAY, DAY0 + 2 * DAY]


async def test_a_long_past_is_caught_up_in_bounded_batches(
    ann: httpx.AsyncClient,
    house: House,
    clock: FixedClock,
    context: Context,
    session: AsyncSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "CLAIMS", 1)
    monkeypatch.setattr(scheduler, "BATCH", 4)
    body = config(house.pipeline)
    body["window"] |= {"width": "4 hours"}
    await call(ann, "create", body)

    sizes = []
    while await scheduler.tick(context):
        sizes.append(len(await rows(session)))

    assert max(b - a for a, b in zip([0, *sizes], sizes, strict=False)) <= 5
    scored = [row for row in await rows(session) if row.status != "Empty"]
    assert len(scored) == 36
    assert len({row.window_start for row in scored}) == 36


async def test_a_gap_of_years_is_one_row_and_one_look(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context, session: AsyncSession
) -> None:
    clock.moment = DAY0 + 1500 * DAY
    later = [(DAY0 + 1400 * DAY + timedelta(minutes=i), 13.0) for i in range(90)]
    append(house.root, house.topic, records(later), partition="engine-2")
    body = config(house.pipeline, run_until=None)
    body["window"] |= {"width": "30 minutes"}
    await call(ann, "create", body)

    ticks = await drain(context)

    found = await rows(session)
    assert ticks < 30
    assert sum(row.status == "Empty" for row in found) < 12
    assert [row.window_start for row in found if row.window_start >= DAY0 + 1400 * DAY and row.status != "Empty"] == [
        DAY0 + 1400 * DAY + timedelta(minutes=30 * k) for k in range(3)
    ]
    gaps = [(row.window_start, row.window_end) for row in found if row.status == "Empty"]
    for (_, end), (start, _) in pairwise(gaps):
        assert end <= start


async def test_a_window_that_fails_says_why_and_does_not_block_the_next(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context, session: AsyncSession
) -> None:
    text = [(DAY0 + 3 * DAY + timedelta(minutes=i), "broken") for i in range(5)]
    append(house.root, house.topic, records(text), partition="engine-2")
    gone = [(DAY0 + 8 * DAY + timedelta(minutes=i), 13.0) for i in range(5)]
    append(house.root, house.topic, records(gone, field="renamed"), partition="engine-3")
    made = (await call(ann, "create", config(house.pipeline, run_until=None)))["assay_id"]

    await drain(context)

    failed = {row.window_start: row.reason or "" for row in await rows(session) if row.status == "Failed"}
    assert set(failed) == {DAY0 + 3 * DAY, DAY0 + 8 * DAY}
    assert "not numbers" in failed[DAY0 + 3 * DAY]
    assert "out.variable" in failed[DAY0 + 8 * DAY]
    assert len(await call(ann, "get_results", {"assay_id": made})) == 6


async def test_even_a_bug_costs_one_window(
    ann: httpx.AsyncClient,
    house: House,
    clock: FixedClock,
    context: Context,
    session: AsyncSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await call(ann, "create", config(house.pipeline))
    real = scheduler.analyse_windows

    def broken(scan: Any, plan: Any, windows: list[Window]) -> Any:
        for result in real(scan, plan, windows):
            if result.window.start == DAY0 + 5 * DAY:
                raise ZeroDivisionError
            yield result

    monkeypatch.setattr(scheduler, "analyse_windows", broken)
    await drain(context)

    found = await rows(session)
    assert [row.window_start for row in found if row.status == "Failed"] == [DAY0 + 5 * DAY]
    assert [row.window_start for row in found if row.scores] == [DAY0 + k * DAY for k in (1, 2, 4, 6, 7)]
    assert len(found) == 7


async def test_what_could_not_be_read_is_computed_when_it_can_be_read_again(
    ann: httpx.AsyncClient,
    house: House,
    clock: FixedClock,
    context: Context,
    session: AsyncSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = (await call(ann, "create", config(house.pipeline)))["assay_id"]
    real = scheduler.analyse_windows

    def unreadable(*given: Any) -> Any:
        raise OSError("the archive does not answer")

    monkeypatch.setattr(scheduler, "analyse_windows", unreadable)
    await drain(context)
    failed = await rows(session)
    for _ in range(3):  # it is tried again, with growing pauses
        clock.moment += timedelta(minutes=1)
        await drain(context)
    tried = {row.rechecks for row in await rows(session)}
    monkeypatch.setattr(scheduler, "analyse_windows", real)
    clock.moment += timedelta(hours=1)
    await drain(context)

    assert [row.status for row in failed] == ["Failed"] * 7
    assert "OSError" in (failed[0].reason or "")
    assert tried == {2}
    results = await call(ann, "get_results", {"assay_id": made})
    assert [r["score"] for r in results] == [
        r["score"] for r in await call(ann, "run_interactive", config(house.pipeline))
    ]
    assert {row.status for row in await rows(session)} == {"Ok", "Alert", "Empty"}


async def test_records_that_come_late_are_assayed_like_any_other(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context, session: AsyncSession
) -> None:
    made = (await call(ann, "create", config(house.pipeline)))["assay_id"]
    await drain(context)
    late = [(DAY0 + 3 * DAY + timedelta(minutes=i), 13.0) for i in range(60)]
    append(house.root, house.topic, records(late), partition="import")

    await drain(context)
    before = len(await call(ann, "get_results", {"assay_id": made}))
    clock.moment += timedelta(minutes=2)
    await drain(context)

    assert before == 6
    results = await call(ann, "get_results", {"assay_id": made})
    assert [r["window_summary"]["count"] for r in results][2] == 60
    assert len(results) == 7
    assert not [row for row in await rows(session) if row.status == "Empty"]


async def test_history_imported_in_any_way_is_assayed_like_any_other(
    ann: httpx.AsyncClient,
    house: House,
    clock: FixedClock,
    context: Context,
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POTOROO_HOME", str(context.settings.home))
    imported, _ = await make.pipeline(house.workspace, name="imported")
    topic = f"workspace-{house.workspace.id}-pipeline-imported-inference"
    parts = [records([(t, v) for t, v in house.past.rows if (t - DAY0).days in days]) for days in ({0, 1}, {2, 4}, {5})]
    rest = records([(t, v) for t, v in house.past.rows if (t - DAY0).days > 5])
    with pa.ipc.new_file(tmp_path / "a.arrow", parts[0].schema) as writer:
        writer.write_batch(parts[0])
    with pa.ipc.new_file(tmp_path / "b.arrow", parts[1].schema) as writer:
        writer.write_batch(parts[1])
    pq.write_table(pa.Table.from_batches([parts[2]]), tmp_path / "c.parquet")
    (tmp_path / "d.json").write_text("".join(json.dumps(row) + "\n" for row in rest.to_pylist()))

    sent = await ann.post(
        f"/v1/logs/topic/{topic}/partition/import",
        content=(tmp_path / "a.arrow").read_bytes(),
        headers={"content-type": "application/vnd.apache.arrow.file"},
    )
    for name in ("b.arrow", "c.parquet", "d.json"):
        done = CliRunner().invoke(logs, ["import", topic, str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    made = [(await call(ann, "create", config(p, name=p.pipeline_id)))["assay_id"] for p in (house.pipeline, imported)]
    await drain(context)

    assert sent.status_code == 200
    logged, found = [await call(ann, "get_results", {"assay_id": one}) for one in made]
    assert [r["window_summary"]["count"] for r in found] == [181] * 6
    assert [(r["window_start"], r["score"]) for r in found] == [(r["window_start"], r["score"]) for r in logged]


async def test_switching_on_looks_at_empty_windows_at_once(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context
) -> None:
    made = (await call(ann, "create", config(house.pipeline)))["assay_id"]
    await drain(context)
    append(house.root, house.topic, records([(DAY0 + 3 * DAY, 13.0)]), partition="import")

    await call(ann, "set_active", {"id": made, "active": True})
    await drain(context)

    assert len(await call(ann, "get_results", {"assay_id": made})) == 7


async def test_backfill_computes_windows_again(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context
) -> None:
    made = (await call(ann, "create", config(house.pipeline)))["assay_id"]
    await drain(context)
    more = [(DAY0 + 5 * DAY + timedelta(minutes=i), 13.0) for i in range(19)]
    append(house.root, house.topic, records(more), partition="import")
    span = {"start": (DAY0 + 4 * DAY).isoformat(), "end": (DAY0 + 6 * DAY).isoformat()}

    discarded = await call(ann, "backfill", {"assay_id": made} | span)
    await drain(context)

    results = await call(ann, "get_results", {"assay_id": made})
    assert discarded == {"discarded": 2}
    assert [r["window_summary"]["count"] for r in results] == [181, 181, 181, 200, 181, 181]


async def test_a_claim_left_behind_is_taken_over_and_a_lost_one_writes_nothing(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context, session: AsyncSession
) -> None:
    await call(ann, "create", config(house.pipeline))
    killed = await scheduler._claim(context)  # and never heard of again
    assert killed is not None
    assert await scheduler.tick(context) == 0  # it is still being computed, for all we know

    clock.moment += scheduler.LEASE
    await drain(context)
    await scheduler._advance(context, killed)  # it was only slow

    assert len(await rows(session)) == 7
    (watch,) = await session.scalars(select(AssayWatch).execution_options(populate_existing=True))
    assert watch.next_run is None


async def test_thresholds_changed_elsewhere_count_from_the_next_window_on(
    ann: httpx.AsyncClient, house: House, clock: FixedClock, context: Context, session: AsyncSession
) -> None:
    made = (await call(ann, "create", config(house.pipeline)))["assay_id"]
    await session.execute(update(Assay).where(Assay.id == made).values(alert_threshold=1e6, warning_threshold=None))
    await session.commit()

    await drain(context)

    assert {r["status"] for r in await call(ann, "get_results", {"assay_id": made})} == {"Ok"}


@pytest.fixture
async def two_processes(
    postgres_url: str, context: Context, clock: FixedClock
) -> AsyncIterator[tuple[Context, Context]]:
    """Contexts with connections of their own, as two schedulers have; what they commit is deleted afterwards."""
    made = []
    for _ in range(2):
        engine = db.connect(postgres_url, pool=4)
        made.append(Context(context.settings, engine, db.sessions_on(engine), context.events, context.storage, clock))
    yield made[0], made[1]
    async with made[0].sessions.begin() as session:
        await session.execute(delete(AssayWatch))
        await session.execute(delete(Assay))
    for one in made:
        await one.database.dispose()


async def test_two_schedulers_at_once_compute_each_window_once(
    two_processes: tuple[Context, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two_processes
    monkeypatch.setattr(scheduler, "BATCH", 3)
    async with one.sessions() as session:
        make = Make(session)
        workspace: Workspace = await make.workspace(owner=ANN)
        pipeline, _ = await make.pipeline(workspace, name="shared")
    topic = f"workspace-{workspace.id}-pipeline-shared-inference"
    stretch = [(DAY0 + timedelta(minutes=10 * i), float(i % 17)) for i in range(6 * 24 * 4)]
    append(one.settings.logs_root, topic, records(stretch))
    from app.assays import schemas, v1_service

    for number in range(4):
        body = config(pipeline, name=f"assay {number}", run_until=(DAY0 + 4 * DAY).isoformat())
        body["window"] |= {"width": "6 hours"}
        await v1_service.create(one, ANN, schemas.ConfigIn(**body))

    async def work(context: Context) -> int:
        done = 0
        while moved := await scheduler.tick(context):
            done += moved
        return done

    shares = await asyncio.gather(work(one), work(other))

    async with one.sessions() as session:
        total = await session.scalar(select(func.count()).select_from(AssayResult))
        distinct = await session.scalar(
            select(func.count()).select_from(
                select(AssayResult.watch_id, AssayResult.window_start).distinct().subquery()
            )
        )
        await session.execute(delete(AssayWatch))
        await session.execute(delete(type(pipeline)).where(type(pipeline).id == pipeline.id))
        await session.execute(delete(Workspace).where(Workspace.id == workspace.id))
        await session.commit()
    assert total == distinct == 4 * 12
    assert min(shares) > 0


KILLED = """
import asyncio, os, signal, sys
from datetime import datetime
from pathlib import Path
from app.assays import scheduler
from app.kit import db
from app.kit.context import Context
from app.kit.events import Events
from app.kit.storage import open_storage
from app.settings import Settings
from tests.assays.conftest import FixedClock

moment, url, home, now = sys.argv[1:]
calls = 0

def die_on(nth):
    global calls
    calls += 1
    if calls == nth:
        os.kill(os.getpid(), signal.SIGKILL)

analyse_windows, write = scheduler.analyse_windows, scheduler._write

def dies_while_computing(*given):
    for result in analyse_windows(*given):
        die_on(8)  # in the middle of the third batch
        yield result

async def dies_before_the_commit(session, *given, **named):
    await write(session, *given, **named)
    await session.flush()
    die_on(3)

scheduler.BATCH = 3
if moment == "computing":
    scheduler.analyse_windows = dies_while_computing
else:
    scheduler._write = dies_before_the_commit

async def main():
    engine = db.connect(url, pool=2)
    settings = Settings(home=Path(home))
    clock = FixedClock(datetime.fromisoformat(now))
    events, storage = Events(db.plain_url(url)), open_storage(settings.blobs_url)
    context = Context(settings, engine, db.sessions_on(engine), events, storage, clock)
    while await scheduler.tick(context):
        pass

asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["computing", "writing"])
async def test_a_scheduler_that_is_killed_leaves_nothing_half_done(
    two_processes: tuple[Context, Context], postgres_url: str, clock: FixedClock, moment: str
) -> None:
    context, _ = two_processes
    async with context.sessions() as session:
        make = Make(session)
        workspace: Workspace = await make.workspace(owner=ANN)
        pipeline, _ = await make.pipeline(workspace, name="shared")
    topic = f"workspace-{workspace.id}-pipeline-shared-inference"
    append(context.settings.logs_root, topic, records([(DAY0 + timedelta(hours=i), float(i % 17)) for i in range(96)]))
    body = config(pipeline, run_until=(DAY0 + 4 * DAY).isoformat())
    body["window"] |= {"width": "6 hours"}
    from app.assays import schemas, v1_service

    await v1_service.create(context, ANN, schemas.ConfigIn(**body))
    told = (moment, postgres_url, str(context.settings.home), clock.now().isoformat())
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, *told)
    status = await killed.wait()

    async with context.sessions() as session:
        before = await rows(session)
    at_once = await scheduler.tick(context)
    clock.moment += scheduler.LEASE
    await drain(context)
    async with context.sessions.begin() as session:
        after = await rows(session)
        await session.execute(delete(AssayWatch))
        await session.execute(delete(type(pipeline)).where(type(pipeline).id == pipeline.id))
        await session.execute(delete(Workspace).where(Workspace.id == workspace.id))

    assert status == -signal.SIGKILL
    assert len(before) == 6  # two batches; of the third nothing
    assert at_once == 0  # for all we know it is still being computed
    assert [row.window_start for row in after] == [DAY0 + DAY + k * timedelta(hours=6) for k in range(12)]
    assert {row.status for row in after} <= {"Ok", "Warning", "Alert"}


def test_a_schedule_by_cron_counts_days_from_sunday() -> None:
    from app.assays.schedule import Schedule

    hourly = Schedule(DAY0, timedelta(hours=1), None, cron="0 */6 * * *")
    weekly = Schedule(DAY0, DAY, None, cron="30 2 * * 1-2", until=DAY0 + 9 * DAY)  # DAY0 is a Sunday

    assert [w.end.hour for w in hourly.windows(DAY0, DAY0 + DAY)] == [0, 6, 12, 18, 0]
    assert [w.end.day for w in weekly.windows(DAY0, DAY0 + 30 * DAY)] == [2, 3, 9]
    assert next(iter(hourly.windows(DAY0, DAY0))) == Window(DAY0 - timedelta(hours=1), DAY0)
