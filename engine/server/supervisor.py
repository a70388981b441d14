"""Several serving processes on one port, for replicas with more than one worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from engine.contract.deployment import DeploymentDocument, EngineStatus
from engine.server.app import write_atomically
from engine.server.process import CANNOT_LOAD, bind, worker_file

log = logging.getLogger(__name__)

LOOK_S = 0.2
RESTART_S = 1.0


class Supervisor:
    """Start the workers, start dead ones anew, and say how they stand in one status file."""

    def __init__(self, document_path: Path, document: DeploymentDocument) -> None:
        self._path = document_path
        self._document = document
        self._workers: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._failed = False
        self._written: EngineStatus | None = None
        self._started_at = time.time()

    async def run(self) -> int:
        """Supervise until told to stop; returns the exit status."""
        document = self._document
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        loop.add_signal_handler(signal.SIGINT, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)
        self._forget_statuses()
        # Held, never listened on: it keeps the port for workers that come and go.
        with bind(document.host, document.port, shared=True) as sock:
            self._port = sock.getsockname()[1]
            keepers = [loop.create_task(self._keep(number)) for number in range(document.resources.workers)]
            while not self._stopping.is_set():
                self._write_status()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), LOOK_S)
            self._pass_on(signal.SIGTERM)
            if not self._failed:
                self._write_status("Draining")
            await asyncio.gather(*keepers)
        return CANNOT_LOAD if self._failed else 0

    def _forget_statuses(self) -> None:
        for number in range(self._document.resources.workers):
            path = worker_file(self._document.status_file, number)
            if path is not None:
                Path(path).unlink(missing_ok=True)

    def _pass_on(self, number: signal.Signals) -> None:
        for worker in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(number)

    async def _keep(self, number: int) -> None:
        while not self._stopping.is_set():
            worker = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "engine.server", "--document", str(self._path),
                "--worker", str(number), "--port", str(self._port), "--parent", str(os.getpid()),
            )  # fmt: skip
            self._workers[number] = worker
            status = await worker.wait()
            if status == CANNOT_LOAD:
                self._failed = True
                self._write_status()
                self._stopping.set()
            elif not self._stopping.is_set():
                log.error("worker.died number=%d status=%d", number, status)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), RESTART_S)

    def _write_status(self, phase: str | None = None) -> None:
        document = self._document
        if document.status_file is None:
            return
        statuses = [
            status
            for number in range(document.resources.workers)
            if (status := read_status(Path(f"{worker_file(document.status_file, number)}"))) is not None
        ]
        if not statuses:
            return
        troubled = next((status for status in statuses if status.phase == "Error"), None)
        running = len(statuses) == document.resources.workers and all(s.phase == "Running" for s in statuses)
        shown = troubled or min(statuses, key=lambda status: status.revision)
        merged = EngineStatus(
            replica=document.replica,
            revision=shown.revision,
            phase=phase or ("Error" if troubled else "Running" if running else "Starting"),  # type: ignore[arg-type]
            reason=next((status.reason for status in statuses if status.reason), None),
            pid=os.getpid(),
            host=document.host,
            port=self._port,
            started_at=self._started_at,
            pipelines=shown.pipelines,
            models=shown.models,
        )
        if merged != self._written:
            self._written = merged
            write_atomically(Path(document.status_file), msgspec.json.encode(merged))


def read_status(path: Path) -> EngineStatus | None:
    """Return what a status file says; None when there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=EngineStatus)
    except FileNotFoundError:
        return None
