"""The output of runs: files while they go on, one blob when they are over."""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path

from sqlalchemy import select

from app.kit.context import Context
from app.orchestration.runtimes import runtime_of
from app.orchestration.tables import TaskRun
from app.settings import Settings


def run_folder(settings: Settings, run_id: object) -> Path:
    """Return the folder of a run that goes on."""
    return settings.run_dir / "tasks" / str(run_id)


def log_files(folder: Path) -> list[Path]:
    """Return the files of a run's output, oldest first."""
    return sorted(folder.glob("log.*"), key=lambda path: int(path.suffix[1:]))


def joined(folder: Path) -> Path:
    """Return the whole output of a run that is over, as one file."""
    whole = folder / "whole.log"
    with whole.open("wb") as sink:
        for path in log_files(folder):
            with path.open("rb") as source:
                shutil.copyfileobj(source, sink)
    return whole


async def lines_of(context: Context, run: TaskRun, newest: int | None) -> list[str]:
    """Return the lines of a run's output, oldest first; with `newest` only so many of the last."""
    if newest == 0:
        return []
    kept: deque[bytes] = deque(maxlen=newest)
    if run.log_key is not None:
        if await context.storage.size(run.log_key) is None:  # past its retention
            return []
        rest = b""
        async for chunk in context.storage.stream(run.log_key):
            *lines, rest = (rest + chunk).split(b"\n")
            kept.extend(lines)
        if rest:
            kept.append(rest)
    else:
        kept.extend(await runtime_of(context).lines(str(run.id), newest))
        if not kept and run.status in ("queued", "running"):  # it may have ended since the row was read
            async with context.sessions() as session:
                log_key = await session.scalar(select(TaskRun.log_key).where(TaskRun.id == run.id))
            if log_key is not None:
                run.log_key = log_key
                return await lines_of(context, run, newest)
    return [line.decode("utf-8", "replace") for line in kept]


def newest_lines(folder: Path, newest: int | None) -> list[bytes]:
    """Return the lines written so far into `folder`, oldest first; with `newest` only so many of the last."""
    kept: deque[bytes] = deque(maxlen=newest)
    for path in log_files(folder):
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:  # dropped by the runner meanwhile
            continue
        lines.pop()  # what follows the last line's end is not whole yet
        kept.extend(lines)
    return list(kept)
