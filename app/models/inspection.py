"""The worker's loop: look into what was uploaded, in a process with limits, and say whether it can be run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import select, update

from app.errors import NotFound
from app.kit.context import Context
from app.kit.db import leadership
from app.kit.events import notify
from app.models import service, upkeep
from app.models.outcomes import SETTLED_TOPIC
from app.models.tables import ModelVersion
from app.models.uploads import TOPIC

log = structlog.get_logger()

_AT_ONCE = max(1, min(4, os.cpu_count() or 1))
_UNSETTLED = (service.PENDING, service.ATTEMPTING)
_PROGRAM = "engine.convert.inspect"
"""Started by its name: this half of the house does not import it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What an inspection found: the artifact's description, or why it cannot be used."""

    inspection: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


async def run(context: Context) -> None:
    """Inspect whatever waits, for ever."""
    wake = context.events.subscribe(TOPIC)
    housekeeping = asyncio.create_task(upkeep.run(context), name="models.upkeep")
    try:
        while True:
            await settle_all(context)
            await context.events.wait(wake, 5.0)
    finally:
        housekeeping.cancel()
        await asyncio.gather(housekeeping, return_exceptions=True)


async def settle_all(context: Context) -> None:
    """Inspect all versions that wait, a few at once; those that another worker holds are left to it."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def turn(version_id: int) -> bool:
        async with gate:
            return await settle(context, version_id)

    done = True
    while done:
        async with context.sessions() as session:
            waiting = await session.scalars(
                select(ModelVersion.id)
                .where(ModelVersion.status.in_(_UNSETTLED))
                .order_by(ModelVersion.id)
                .limit(_AT_ONCE * 8)
            )
        done = any(await asyncio.gather(*(turn(version_id) for version_id in waiting)))


async def settle(context: Context, version_id: int) -> bool:
    """Inspect one version and write down what was found; returns False when it is not ours to do.

    The claim is a lock that dies with this process, so that another takes the version up at once.
    """
    async with leadership(context.database, f"models/inspect/{version_id}") as claim:
        if claim is None:
            return False
        async with context.sessions.begin() as session:
            version = await session.scalar(
                select(ModelVersion)
                .where(ModelVersion.id == version_id, ModelVersion.status.in_(_UNSETTLED))
                .with_for_update(skip_locked=True)
            )
            if version is None:
                return False
            version.status = service.ATTEMPTING
        started = context.clock.now()
        finding = await examine(context, version)
        lines = report(started.isoformat(), context.clock.now().isoformat(), version, finding)
        async with context.sessions.begin() as session:
            await session.execute(
                update(ModelVersion)
                .where(ModelVersion.id == version_id)
                .values(
                    status=service.READY if finding.problem is None else service.ERROR,
                    error_summary=finding.problem,
                    inspection=finding.inspection | {"log": lines},
                )
            )
            await notify(session, SETTLED_TOPIC, str(version_id))
        log.info("model.inspected", version=version_id, problem=finding.problem)
        return True


async def examine(context: Context, version: ModelVersion) -> Finding:
    """Return what the version's artifact is found to be."""
    key = service.artifact_key(version.sha or "")
    if (path := context.storage.local_path(key)) is not None:
        return await _inspect(context, path)
    with tempfile.TemporaryDirectory(prefix="potoroo-inspect-") as folder:
        path = Path(folder) / "model"
        try:
            await context.storage.fetch(key, path)
        except NotFound:
            return Finding(problem="The uploaded file is no longer in storage; upload it again.")
        return await _inspect(context, path)


async def _inspect(context: Context, path: Path) -> Finding:
    if not await asyncio.to_thread(path.exists):
        return Finding(problem="The uploaded file is no longer in storage; upload it again.")
    settings = context.settings
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", _PROGRAM, str(path),
        "--memory-bytes", str(settings.inspection_memory_bytes), "--cpu-s", str(int(settings.inspection_s) + 1),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=_environment(),
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(), settings.inspection_s)
    except TimeoutError:
        return Finding(
            problem=f"Inspecting the model took longer than {settings.inspection_s:.0f} s, and was given up."
        )
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return _finding(process.returncode or 0, out, err)


def _environment() -> dict[str, str]:
    """Return what the inspection may know of this process's environment: nothing that is secret."""
    return {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH")}


def _finding(status: int, out: bytes, err: bytes) -> Finding:
    if status == 0:
        answer = json.loads(out)
        return Finding(inspection=answer.get("inspection", {}), problem=answer.get("problem"))
    last = err.decode("utf-8", "replace").strip().splitlines()[-1:] or [""]
    if status == -signal.SIGXCPU:
        return Finding(problem="Inspecting the model used more processor time than it may.")
    if status == -signal.SIGKILL:
        return Finding(problem="The inspection was killed, most likely because the machine ran out of memory.")
    log.warning("model.inspection_died", status=status, last_line=last[0][:500])
    what = f"signal {-status}" if status < 0 else f"exit status {status}"
    return Finding(problem=f"The inspection of the model ended with {what}: the file is damaged, or too large to load.")


def report(started: str, ended: str, version: ModelVersion, finding: Finding) -> list[str]:
    """Return the upload log of a version: lines `<time> <stream> F <text>`."""
    found = finding.inspection
    texts = [("stdout", started, f"Inspecting {version.file_name or 'the file'} ({version.file_size or 0:,} bytes).")]
    if found:
        opsets = ", ".join(f"{domain} {number}" for domain, number in found.get("opsets", {}).items())
        texts.append(
            ("stdout", ended, f"ONNX IR version {found.get('ir_version')}, operator sets: {opsets}, made by: "
             f"{found.get('producer') or 'unknown'}.")
        )  # fmt: skip
        for kind in ("inputs", "outputs"):
            texts += [
                ("stdout", ended, f"{kind[:-1]} {p['name']}: {p['type']} {p['shape']}")
                for p in found.get(kind, [])[:50]
            ]
    if finding.problem is None:
        texts.append(("stdout", ended, f"Loaded with {found.get('runtime', 'the engine')}: the model is ready."))
    else:
        texts.append(("stderr", ended, f"Error: {finding.problem}"))
    return [f"{time.replace('+00:00', 'Z')} {stream} F {' '.join(line.split())}" for stream, time, line in texts]
