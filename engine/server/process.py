"""One serving process: from a document on disk to a port that answers, and back down."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import gc
import json
import logging
import os
import resource
import signal
import socket
from pathlib import Path

import msgspec

from engine.contract.deployment import DeploymentDocument, EngineStatus, load_document
from engine.contract.handoff import socket_paths
from engine.logs.errors import LogError
from engine.runtime.engine import Engine
from engine.runtime.models import LoadError
from engine.server.access import Access, AccessPoll
from engine.server.app import EngineApp, write_atomically
from engine.server.commit import Logs
from engine.server.handoff import HandoffServer
from engine.server.lanes import Lane
from engine.server.listener import Listener
from engine.server.metrics import Metrics

log = logging.getLogger(__name__)

WATCH_S = 1.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
CANNOT_LOAD = 2
"""Exit status of an engine whose document makes no engine; the status file says why."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Which of the replica's processes this is."""

    number: int = 0
    workers: int = 1
    port: int | None = None
    """The port that all workers share; None: the document's."""

    def adapt(self, document: DeploymentDocument) -> DeploymentDocument:
        """Return the document as this process reads it: names and files of its own."""
        if self.workers == 1:
            return document
        path = document.handoff_socket
        return msgspec.structs.replace(
            document,
            replica=f"{document.replica}-{self.number}",
            port=document.port if self.port is None else self.port,
            status_file=worker_file(document.status_file, self.number),
            handoff_socket=socket_paths(path, self.workers)[self.number] if path else None,
        )


def worker_file(path: str | None, number: int) -> str | None:
    """Return where a worker keeps its part of a file of the replica."""
    return None if path is None else f"{path}.{number}"


def serving_threads(document: DeploymentDocument) -> int:
    """Return how many runs of big models go on at once in one process."""
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // (max(document.resources.threads, 1) * max(document.resources.workers, 1)))


def bind(host: str, port: int, *, shared: bool) -> socket.socket:
    """Bind a TCP socket; with `shared` other processes may bind it too."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


class EngineProcess:
    """Serve one document until told to stop."""

    def __init__(self, document_path: Path, place: Place) -> None:
        self._path = document_path
        self._place = place
        self._raw = document_path.read_bytes()
        self.document = place.adapt(load_document(self._raw))
        self._metrics = Metrics()
        self._stopping = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._mtime = document_path.stat().st_mtime_ns

    async def run(self) -> int:
        """Load, serve and drain; returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._hup)
        _raise_descriptor_limit()
        _keep_memory()
        engine = Engine(self.document)
        try:
            # The socket first: a port that is taken is found out before models are loaded.
            sock = bind(self.document.host, self.document.port, shared=self._place.workers > 1)
            engine.load()
        except (LoadError, OSError) as exc:
            return self._give_up(engine, str(exc))
        self.app = self._build(engine)
        self.app.port = sock.getsockname()[1]
        try:
            self._open_logs(engine)
        except LogError as exc:
            return self._give_up(engine, str(exc))
        self._listener = Listener(self.app, self.document.limits)
        self.app.start(self._listener)
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 50, 100)
        handoff = HandoffServer(self._listener, self.document.handoff_socket) if self.document.handoff_socket else None
        await self._listener.listen(sock)
        self._set_phase("Running")
        log.info("engine.running replica=%s port=%d", self.document.replica, self.app.port)
        self._start_tasks(loop)
        await self._stopping.wait()
        self._set_phase("Draining")
        for task in self._tasks:
            task.cancel()
        await self._listener.drain(self.document.limits.drain_s)
        if handoff is not None:  # only now: it is the way on which idle connections go back, and a sign of life
            handoff.close()
        self.app.desk.close()
        self.app.logs.close()
        return 0

    def _build(self, engine: Engine) -> EngineApp:
        settings = self.document.access
        access = Access() if settings is not None else None
        logs = Logs(self.document.log, self.document.replica, self._metrics)
        app = EngineApp(engine, logs, self._metrics, access, serving_threads(self.document))
        if access is not None and settings is not None:
            status_file = self.document.status_file
            copy = Path(f"{status_file}.access") if status_file else None
            app.poll = AccessPoll(access, settings, copy)
            app.poll.restore()
        return app

    def _open_logs(self, engine: Engine) -> None:
        for pipeline in engine.pipelines.values():
            self.app.logs.open(pipeline.document.topic)

    def _start_tasks(self, loop: asyncio.AbstractEventLoop) -> None:
        self._tasks.append(loop.create_task(self._watch()))
        if self.app.poll is not None:
            self._tasks.append(loop.create_task(self.app.poll.run()))
        status_file = self.document.status_file
        if self._place.workers > 1 and status_file is not None:
            self._numbers_file = Path(f"{status_file}.metrics")
            stem = status_file.removesuffix(f".{self._place.number}")
            others = [n for n in range(self._place.workers) if n != self._place.number]
            paths = [Path(f"{worker_file(stem, number)}.metrics") for number in others]
            self.app.siblings = lambda: [numbers for path in paths if (numbers := read_numbers(path)) is not None]
            self._tasks.append(loop.create_task(self._publish_numbers()))

    # Status.

    def _set_phase(self, phase: str, reason: str | None = None) -> None:
        self.app.phase, self.app.reason = phase, reason
        self._write_status(self.app.status())

    def _write_status(self, status: EngineStatus) -> None:
        if self.document.status_file is not None:
            write_atomically(Path(self.document.status_file), msgspec.json.encode(status))

    def _give_up(self, engine: Engine, reason: str) -> int:
        log.error("engine.cannot_start replica=%s reason=%s", self.document.replica, reason)
        pipelines, models = engine.status()
        document = self.document
        self._write_status(
            EngineStatus(
                replica=document.replica, revision=document.revision, phase="Error", reason=reason, pid=os.getpid(),
                host=document.host, port=0, started_at=0.0, pipelines=pipelines, models=models,
            )
        )  # fmt: skip
        return CANNOT_LOAD

    async def _publish_numbers(self) -> None:
        while True:
            numbers = [[name, label_set, value] for (name, label_set), value in self.app.numbers().items()]
            write_atomically(self._numbers_file, json.dumps(numbers).encode())
            await asyncio.sleep(WATCH_S)

    # New documents.

    def _hup(self) -> None:
        task = asyncio.get_running_loop().create_task(self.reload())
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            with contextlib.suppress(FileNotFoundError):  # being replaced, or the deployment is going away
                mtime = self._path.stat().st_mtime_ns
                if mtime != self._mtime:
                    self._mtime = mtime
                    await self.reload()

    async def reload(self) -> None:
        """Serve the document as it is now; the old one goes on until the new one is ready, and if it never is."""
        async with self._reloading:
            raw = self._path.read_bytes()
            if raw == self._raw:
                return
            try:
                document = self._place.adapt(load_document(raw))
                document = msgspec.structs.replace(
                    document, host=self.document.host, port=self.document.port,
                    handoff_socket=self.document.handoff_socket, status_file=self.document.status_file,
                )  # fmt: skip
                engine = Engine(document)
                lanes = await asyncio.to_thread(self._ready, engine)
                self._switch(document, engine, lanes)
            except (LoadError, LogError, msgspec.MsgspecError) as exc:
                log.error("engine.not_swapped replica=%s reason=%s", self.document.replica, exc)
                self._set_phase("Running", f"The new document is not served: {exc}")
                return
            self._raw = raw
            self._set_phase("Running")
            log.info("engine.swapped replica=%s revision=%d", document.replica, document.revision)
        await asyncio.to_thread(gc.collect)

    def _ready(self, engine: Engine) -> dict[str, Lane]:
        engine.load()
        return self.app.prepare(engine)

    def _switch(self, document: DeploymentDocument, engine: Engine, lanes: dict[str, Lane]) -> None:
        if document.log != self.document.log or document.replica != self.document.replica:
            old = self.app.logs
            old.close()
            self.app.logs = self.app.desk.logs = Logs(document.log, document.replica, self._metrics)
        self._open_logs(engine)
        self.document = document
        self.app.adopt(engine, lanes)


def read_numbers(path: Path) -> dict[tuple[str, str], float] | None:
    """Return the metrics that another worker wrote down last."""
    try:
        rows = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return {(name, label_set): value for name, label_set, value in rows}


def _keep_memory() -> None:
    """Tell glibc to keep freed buffers of the size of bodies instead of mapping fresh, unbacked pages every time."""
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_M_MMAP_THRESHOLD, 32 * 1024 * 1024)
        tune(_M_TRIM_THRESHOLD, 64 * 1024 * 1024)


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
