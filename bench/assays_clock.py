"""Measure the scheduler: `python -m bench.assays_clock [--pipelines 200] [--columns 5] [--hours 3]`.

Assays over 200 pipelines × 5 columns, one window an hour, on a clock that is moved by hand: what the database, the
log and the arithmetic cost together. The aim: less than 10 % of one core. The database's own time is shown beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import structlog
from sqlalchemy import func, select

from app.assays import scheduler, schemas, v1_service
from app.assays.tables import AssayResult
from app.identity.caller import Caller
from app.kit import db, migrate
from app.kit.context import Context
from app.kit.events import Events
from app.kit.postgres import EmbeddedPostgres
from app.kit.storage import open_storage
from app.pipelines.service import topic_name
from app.pipelines.tables import Pipeline
from app.settings import Settings
from app.workspaces.tables import Workspace
from bench.assays import peak_mb
from engine.logs.writer import PartitionWriter

START = datetime(2023, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
ADMIN = Caller("00000000-0000-4000-8000-000000000000", "bench", is_admin=True)


@dataclass
class Hand:
    """A clock that is moved by hand."""

    moment: datetime

    def now(self) -> datetime:
        return self.moment


def write(root: str, topic: str, rows_an_hour: int, hours: int, columns: int) -> None:
    rows = rows_an_hour * (hours + 1)
    rng = np.random.default_rng(len(topic))
    first = int(START.timestamp() * 1000)
    times = (first + np.arange(rows) * (3_600_000 / rows_an_hour)).astype(np.int64)
    said = json.dumps({"model_name": "m", "model_sha": "s"})
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array(times.tolist(), pa.int64()),
            pa.array([{"tensor": row} for row in rng.random((rows, columns), dtype=np.float32).tolist()]),
            pa.array([{"y": [0.5]}] * rows),
            pa.array([{"last_model": said}] * rows),
        ],
        names=["time", "in", "out", "metadata"],
    )
    writer = PartitionWriter(root, topic, "engine-1")
    writer.append(batch)
    writer.flush()
    writer.close()


def config(pipeline: Pipeline, column: int) -> schemas.ConfigIn:
    window = {"pipeline": pipeline.pipeline_id, "model": "m"}
    return schemas.ConfigIn.model_validate(
        {
            "name": f"{pipeline.pipeline_id} {column}",
            "pipeline_id": pipeline.id,
            "pipeline_name": pipeline.pipeline_id,
            "iopath": f"input tensor {column}",
            "baseline": {
                "Fixed": window | {"start_at": START.isoformat(), "end_at": (START + HOUR).isoformat()},
            },
            "window": window | {"width": "1 hours"},
            "summarizer": {},
            "alert_threshold": 0.25,
        }
    )


def database_cpu_s(folder: Path) -> float:
    """Return the processor's time of the database so far: of its processes, and of those that have ended."""
    leader = (folder / "postmaster.pid").read_text().split()[0]
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if stat.parent.name == leader:
            ticks += sum(map(int, fields[11:15]))
        elif fields[1] == leader:
            ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


async def run(folder: Path, url: str, given: argparse.Namespace) -> None:
    settings = Settings(home=folder)
    engine = db.connect(url)
    clock = Hand(START + HOUR)
    context = Context(
        settings, engine, db.sessions_on(engine), Events(db.plain_url(url)), open_storage(settings.blobs_url), clock
    )
    async with context.sessions.begin() as session:
        workspace = Workspace(name="bench", created_by=ADMIN.id, owner_id=ADMIN.id)
        session.add(workspace)
        await session.flush()
        pipelines = [Pipeline(pipeline_id=f"p{i}", workspace_id=workspace.id) for i in range(given.pipelines)]
        session.add_all(pipelines)
    for pipeline in pipelines:
        write(
            settings.logs_root, topic_name(workspace.id, pipeline.pipeline_id), given.rows, given.hours, given.columns
        )
        for column in range(given.columns):
            await v1_service.create(context, ADMIN, config(pipeline, column))
    used = []
    for hour in range(given.hours):
        clock.moment = START + (hour + 2) * HOUR + timedelta(seconds=5)
        cpu, database, began = time.process_time(), database_cpu_s(folder / "postgres"), time.perf_counter()
        while await scheduler.tick(context):
            pass
        used.append(
            (
                time.process_time() - cpu,
                database_cpu_s(folder / "postgres") - database,
                time.perf_counter() - began,
            )
        )
    async with context.sessions() as session:
        windows = await session.scalar(select(func.count()).select_from(AssayResult))
    assert windows == given.pipelines * given.columns * given.hours, windows
    cpu, database, wall = (sum(values) / len(values) for values in zip(*used, strict=True))
    memory = peak_mb()
    if given.json:
        print(
            json.dumps(
                {
                    "assays": given.pipelines * given.columns,
                    "scheduler_percent": cpu / 36,
                    "database_percent": database / 36,
                    "hour_takes_s": wall,
                    "memory_mb": memory,
                }
            )
        )
    else:
        print(
            f"{windows} windows of {given.rows} rows; an hour of them takes {wall:.1f} s, {cpu:.1f} s of the processor:"
        )
        print(f"{cpu / 36:.2f} % of a core   aim < 10 %{'' if cpu / 36 < 10 else '   MISSED'}")
        print(f"the database beside it {database / 36:.2f} %, largest resident memory {memory:.0f} MB")
    await engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipelines", type=int, default=200)
    parser.add_argument("--columns", type=int, default=5)
    parser.add_argument("--hours", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1000, help="records of a pipeline in an hour")
    parser.add_argument("--json", action="store_true", help="print one line for another program")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))  # debug lines cost time
    with tempfile.TemporaryDirectory() as made:
        server = EmbeddedPostgres(Path(made) / "postgres")
        url = server.start()
        try:
            migrate.upgrade(url)
            asyncio.run(run(Path(made), url, given))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
