"""Engines as processes of this machine, on loopback.

Each replica has a folder `<run>/engines/<deployment>/<replica>/` with its document, its status and log files and, in
`process.json`, which process it is. Engines lead sessions of their own and outlive this one; the next finds them by
those folders.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from app.deployments.plan import STEADY, Replica, ReplicaPhase, backoff
from app.deployments.quantities import memory_quantity
from app.deployments.runtimes import processes
from app.deployments.runtimes.base import DoesNotFit, Launch
from app.deployments.runtimes.processes import Process
from app.kit.secrets import write_private
from app.kit.storage import Storage
from engine.contract.deployment import AccessSettings, EngineResources, EngineStatus, ModelDocument
from engine.contract.handoff import socket_paths

log = structlog.get_logger()

LONGEST_SOCKET_PATH = 90
"""A Unix socket's path has room for 107 bytes, and workers add their number."""
KILL_AFTER_S = 5.0
"""What an engine that was asked to go gets beyond its drain time."""
SPAWN_GRACE_S = 5.0
DATA_SLACK_BYTES = 1024**3
LOG_TAIL_BYTES = 16 * 1024


class Handle(msgspec.Struct, kw_only=True):
    """`process.json`: which process a replica is, and what became of it."""

    revision: int
    pid: int | None = None
    """None from before the start until it is known; the process is then found by its command line."""
    started: int = -1
    launched_at: datetime
    restarts: int = 0
    ended_at: datetime | None = None
    reason: str | None = None
    stopping_at: datetime | None = None
    memory_bytes: int | None = None
    cores: list[int] | None = None
    drain_s: float = 20.0


class LocalRuntime:
    """Runs engines on this machine."""

    def __init__(self, run_dir: Path, storage: Storage, access_url: Callable[[int], str]) -> None:
        self._root = run_dir / "engines"
        self._cache = run_dir / "models"
        self._storage = storage
        self._access_url = access_url
        self._call: Callable[[int], None] | None = None
        self._watched: dict[int, int] = {}
        self._exits: dict[int, int] = {}
        self._command = [sys.executable, "-m", "engine.server", "--document"]

    # What the controller asks.

    async def deployments(self) -> set[int]:
        """Return the deployments that have replicas here."""
        return {int(p.name) for p in await asyncio.to_thread(_folders, self._root) if p.name.isdigit()}

    async def observe(self, deployment_id: int) -> tuple[Replica, ...]:
        """Look at the processes and at what they say of themselves."""
        seen = await asyncio.to_thread(self._observe, deployment_id)
        for replica in seen:
            if replica.pid is not None:
                self._watch(deployment_id, replica.pid)
        return seen

    async def start(self, launch: Launch) -> None:
        """Start as many engines as the revision lacks."""
        self._check_room(launch)
        paths = {model.model_version_id: await self._fetch(model, launch) for model in launch.document.models}
        await asyncio.to_thread(self._start, launch, paths)

    async def restart(self, deployment_id: int, revision: int, now: datetime) -> None:
        """Start ended engines again, in the folders they had."""
        await asyncio.to_thread(self._restart, deployment_id, revision, now)

    async def stop(self, deployment_id: int, *, keep_revision: int | None = None) -> None:
        """Ask engines to drain and end."""
        await asyncio.to_thread(self._stop, deployment_id, keep_revision)

    async def logs(self, deployment_id: int, name: str, limit: int) -> list[str]:
        """Return the end of an engine's output."""
        folder = self._root / str(deployment_id)
        names = [p.name for p in await asyncio.to_thread(_folders, folder)]
        if name not in names:
            return []
        lines = await asyncio.to_thread(_tail, folder / name / "engine.log", limit * 400)
        return lines[::-1][:limit]

    def on_change(self, call: Callable[[int], None]) -> None:
        """Tell `call` of engines that end."""
        self._call = call

    async def close(self) -> None:
        """Stop watching; the engines stay."""
        loop = asyncio.get_running_loop()
        for descriptor in self._watched.values():
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self._watched.clear()

    # Seeing.

    def _observe(self, deployment_id: int) -> tuple[Replica, ...]:
        home = self._root / str(deployment_id)
        seen = [replica for folder in _folders(home) if (replica := self._look(folder)) is not None]
        if not seen:
            with contextlib.suppress(OSError):
                home.rmdir()
        return tuple(seen)

    def _look(self, folder: Path) -> Replica | None:
        handle = _read_handle(folder)
        if handle is None:  # we died while laying it out; nothing runs in it yet
            shutil.rmtree(folder, ignore_errors=True)
            return None
        now = datetime.now(UTC)
        process = self._process(folder, handle)
        alive = process is not None and process.is_alive
        if handle.stopping_at is not None:
            return self._see_off(folder, handle, process if alive else None, now)
        status = _read_status(folder)
        if alive and process is not None and handle.memory_bytes is not None:
            alive = self._keep_within(folder, handle, process)
        if not alive:
            return self._see_ended(folder, handle, status, now)
        assert process is not None  # noqa: S101 - alive
        base = Replica(
            name=folder.name,
            revision=handle.revision,
            phase=ReplicaPhase.PENDING,
            since=handle.launched_at,
            restarts=handle.restarts,
            pid=process.pid,
        )
        if status is None:
            return base
        phase = {"Running": ReplicaPhase.RUNNING, "Error": ReplicaPhase.FAILED}.get(status.phase, ReplicaPhase.PENDING)
        document = msgspec.json.decode((folder / "document.json").read_bytes(), type=_Addresses)
        sockets = socket_paths(document.handoff_socket, document.resources.workers) if document.handoff_socket else []
        return msgspec.structs.replace(
            base,
            phase=phase,
            reason=status.reason,
            is_final=phase is ReplicaPhase.FAILED,
            host=status.host,
            port=status.port,
            sockets=tuple(sockets),
            pipelines=tuple(msgspec.to_builtins(status.pipelines)),
            models=tuple(msgspec.to_builtins(status.models)),
        )

    def _process(self, folder: Path, handle: Handle) -> Process | None:
        if handle.pid is not None:
            return Process(handle.pid, handle.started)
        found = processes.find(str(folder / "document.json"))  # we died between starting it and writing that down
        if found is not None:
            handle.pid, handle.started = found.pid, found.started
            _write_handle(folder, handle)
        return found

    def _see_off(self, folder: Path, handle: Handle, process: Process | None, now: datetime) -> Replica | None:
        assert handle.stopping_at is not None  # noqa: S101 - the caller looked
        if process is None:
            self._remove(folder)
            return None
        if (now - handle.stopping_at).total_seconds() > handle.drain_s + KILL_AFTER_S:
            log.warning("engine.killed", engine=folder.name, why="it did not end when asked")
            process.kill_session()
        return Replica(
            name=folder.name,
            revision=handle.revision,
            phase=ReplicaPhase.STOPPING,
            since=handle.stopping_at,
            pid=process.pid,
        )

    def _see_ended(self, folder: Path, handle: Handle, status: EngineStatus | None, now: datetime) -> Replica:
        is_final = status is not None and status.phase == "Error"
        if handle.ended_at is None:
            if handle.pid is None and (now - handle.launched_at).total_seconds() < SPAWN_GRACE_S:
                return Replica(
                    name=folder.name, revision=handle.revision, phase=ReplicaPhase.PENDING, since=handle.launched_at
                )
            handle.ended_at = now
            if handle.reason is None:
                said = status.reason if status is not None and is_final else None
                handle.reason = said or self._why_ended(folder, handle)
            if now - handle.launched_at > STEADY:
                handle.restarts = 0
            _write_handle(folder, handle)
        return Replica(
            name=folder.name,
            revision=handle.revision,
            phase=ReplicaPhase.FAILED,
            reason=handle.reason,
            since=handle.ended_at,
            restarts=handle.restarts,
            is_final=is_final,
        )

    def _why_ended(self, folder: Path, handle: Handle) -> str:
        code = self._exits.pop(handle.pid, None) if handle.pid is not None else None
        if code is None and handle.pid is not None:
            code = processes.reap(handle.pid)
        if code is None:
            how = "The engine ended"
        elif code < 0:
            how = f"The engine was ended by {signal.Signals(-code).name}"
        else:
            how = f"The engine ended with exit status {code}"
        last = [line for line in _tail(folder / "engine.log", LOG_TAIL_BYTES) if line.strip()][-3:]
        return f"{how}; its last words: {' | '.join(last)}" if last else f"{how}."

    def _keep_within(self, folder: Path, handle: Handle, process: Process) -> bool:
        """End an engine that holds more memory than it may; returns whether it still runs."""
        assert handle.memory_bytes is not None  # noqa: S101 - the caller looked
        used = processes.resident_bytes(process.pid)
        if used <= handle.memory_bytes:
            return True
        handle.reason = (
            f"The engine was ended because it held {used / 1024**2:.0f} MiB of memory; its limit is "
            f"{memory_quantity(handle.memory_bytes)}. Deploy with a larger `memory`."
        )
        _write_handle(folder, handle)
        process.kill_session()
        return False

    # Doing.

    def _check_room(self, launch: Launch) -> None:
        needed, there = launch.wanted.engine.memory_bytes, processes.machine_memory_bytes()
        if needed is not None and needed > there:
            raise DoesNotFit(
                f"Deployment {launch.document.deploy_id!r} needs {memory_quantity(needed)} of memory for one replica; "
                f"this machine has {there / 1024**3:.1f} GiB.",
                memory=memory_quantity(needed),
            )

    async def _fetch(self, model: ModelDocument, launch: Launch) -> str:
        key = launch.blobs[model.model_version_id]
        own = self._storage.local_path(key)
        if own is not None:
            return str(own)
        cached = self._cache / model.sha
        if not cached.exists():
            await self._storage.fetch(key, cached)
        return str(cached)

    def _start(self, launch: Launch, paths: dict[int, str]) -> None:
        home = self._root / str(launch.deployment_id)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        handles = [handle for folder in _folders(home) if (handle := _read_handle(folder)) is not None]
        there = sum(1 for h in handles if h.revision == launch.revision and h.stopping_at is None)
        for _ in range(launch.replicas - there):
            self._spawn(self._lay_out(launch, home, paths))

    def _lay_out(self, launch: Launch, home: Path, paths: dict[int, str]) -> Path:
        """Write all that a new replica needs; `process.json` comes last and makes it count."""
        given, wanted = launch.document, launch.wanted.engine
        group = hashlib.sha256(f"{launch.deployment_id}/{launch.revision}".encode()).hexdigest()[:10]
        name = f"engine-{group}-{''.join(secrets.choice('bcdfghjklmnpqrstvwxz2456789') for _ in range(5))}"
        folder = home / name
        folder.mkdir(mode=0o700)
        write_private(folder / "access.token", launch.access_token, replace=True)
        cpus = max(1, min(math.ceil(wanted.cpus or 1), os.cpu_count() or 1))
        document = msgspec.structs.replace(
            given,
            replica=name,
            models=[msgspec.structs.replace(m, path=paths[m.model_version_id]) for m in given.models],
            resources=EngineResources(threads=1, workers=cpus, memory_bytes=wanted.memory_bytes),
            access=AccessSettings(url=self._access_url(launch.deployment_id), token_file=str(folder / "access.token")),
            handoff_socket=str(self._socket(folder)),
            status_file=str(folder / "status.json"),
        )
        (folder / "document.json").write_bytes(msgspec.json.encode(document))
        handle = Handle(
            revision=launch.revision,
            launched_at=datetime.now(UTC),
            memory_bytes=wanted.memory_bytes,
            cores=self._cores(cpus) if wanted.cpus is not None else None,
            drain_s=given.limits.drain_s,
        )
        _write_handle(folder, handle)
        return folder

    def _socket(self, folder: Path) -> Path:
        direct = folder / "gateway.sock"
        if len(str(direct).encode()) <= LONGEST_SOCKET_PATH:
            return direct
        short = Path(tempfile.gettempdir()) / f"potoroo-{os.getuid()}"
        short.mkdir(mode=0o700, exist_ok=True)
        if short.stat().st_uid != os.getuid() or short.stat().st_mode & 0o077:
            raise PermissionError(f"{short} belongs to somebody else; set TMPDIR to a folder of your own")
        return short / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:20]}.sock"

    def _cores(self, count: int) -> list[int] | None:
        """Choose the cores that the fewest engines are bound to; None when it would be all of them."""
        mine = sorted(os.sched_getaffinity(0))
        if count >= len(mine):
            return None
        taken = dict.fromkeys(mine, 0)
        for home in _folders(self._root):
            for folder in _folders(home):
                handle = _read_handle(folder)
                for core in (handle.cores if handle is not None else None) or []:
                    taken[core] = taken.get(core, 0) + 1
        return sorted(sorted(mine, key=lambda core: (taken[core], core))[:count])

    def _spawn(self, folder: Path) -> None:
        handle = _read_handle(folder)
        assert handle is not None  # noqa: S101 - laid out before
        process = processes.spawn(
            [*self._command, str(folder / "document.json")], folder / "engine.log", {"ORT_DISABLE_TELEMETRY": "1"}
        )
        handle.pid, handle.started = process.pid, process.started
        _write_handle(folder, handle)
        slack = None if handle.memory_bytes is None else handle.memory_bytes + DATA_SLACK_BYTES
        processes.limit(process, data_bytes=slack, cores=handle.cores)
        log.info("engine.started", engine=folder.name, pid=process.pid, revision=handle.revision)

    def _restart(self, deployment_id: int, revision: int, now: datetime) -> None:
        for folder in _folders(self._root / str(deployment_id)):
            handle = _read_handle(folder)
            if handle is None or handle.revision != revision or handle.stopping_at or handle.ended_at is None:
                continue
            if now - handle.ended_at < backoff(handle.restarts):
                continue
            log.warning("engine.restarted", engine=folder.name, restarts=handle.restarts + 1, reason=handle.reason)
            (folder / "status.json").unlink(missing_ok=True)
            handle.restarts += 1
            handle.pid, handle.started, handle.ended_at, handle.reason = None, -1, None, None
            handle.launched_at = datetime.now(UTC)
            _write_handle(folder, handle)
            self._spawn(folder)

    def _stop(self, deployment_id: int, keep_revision: int | None) -> None:
        for folder in _folders(self._root / str(deployment_id)):
            handle = _read_handle(folder)
            if handle is None or handle.revision == keep_revision or handle.stopping_at is not None:
                continue
            process = self._process(folder, handle)
            if process is None or not process.is_alive:
                self._remove(folder)
                continue
            handle.stopping_at = datetime.now(UTC)
            _write_handle(folder, handle)
            process.signal(signal.SIGTERM)
            log.info("engine.stopping", engine=folder.name, pid=process.pid)

    def _remove(self, folder: Path) -> None:
        self._socket(folder).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    # Being told.

    def _watch(self, deployment_id: int, pid: int) -> None:
        if pid in self._watched:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:  # it ended just now, or the kernel is too old: the next look will tell
            return
        self._watched[pid] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._ended, deployment_id, pid)

    def _ended(self, deployment_id: int, pid: int) -> None:
        descriptor = self._watched.pop(pid)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        code = processes.reap(pid)
        if code is not None:
            self._exits[pid] = code
        if self._call is not None:
            self._call(deployment_id)


class _Addresses(msgspec.Struct):
    """The part of a document that says where its engine can be reached."""

    handoff_socket: str | None = None
    resources: EngineResources = EngineResources()


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    except FileNotFoundError:
        return []


def _read_handle(folder: Path) -> Handle | None:
    try:
        return msgspec.json.decode((folder / "process.json").read_bytes(), type=Handle)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _write_handle(folder: Path, handle: Handle) -> None:
    write_private(folder / "process.json", msgspec.json.encode(handle).decode(), replace=True)


def _read_status(folder: Path) -> EngineStatus | None:
    try:
        return msgspec.json.decode((folder / "status.json").read_bytes(), type=EngineStatus)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _tail(path: Path, size_bytes: int) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size_bytes))
            return file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []
