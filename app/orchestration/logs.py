"""The output of runs: files while they go on, one blob when they are over."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path

from app.kit.context import Context
from app.orchestration.tables import TaskRun
from app.settings import Settings


def run_folder(settings: Settings, run_id: object) -> Path:
    """Return the folder of a run that goes on."""
    return settings.run_dir / "tasks" / str(run_id)


def log_files(folder: Path) -> list[Path]:
    """Return the files of a run's output, oldest first."""
    return sorted(folder.glob("log.*"), key=lambda path: int(path.suffix[1:]))


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
        await asyncio.to_thread(_read, run_folder(context.settings, run.id), kept)
    return [line.decode("utf-8", "replace") for line in kept]


def _read(folder: Path, kept: deque[bytes]) -> None:
    for path in log_files(folder):
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:  # dropped by the runner meanwhile
            continue
        lines.pop()  # what follows the last line's end is not whole yet
        kept.extend(lines)
