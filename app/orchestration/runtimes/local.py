"""Runs tasks as processes of this machine.

Each run has a folder of its own: its home, where the bundle lies unpacked, and the files by which the worker and the
runner speak. Tasks run as the server's own user: limits protect the machine, but this is no place for strangers' code.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import structlog

from app.kit.secrets import write_private
from app.orchestration import bundles, environments
from app.orchestration.environments import folder_of, python_of
from app.orchestration.logs import joined, newest_lines, run_folder
from app.orchestration.runtimes.base import Outcome, RunSpec
from app.settings import Settings

log = structlog.get_logger()

_HERE = Path(__file__).parent.parent
_RUNNER = _HERE / "runner.py"
_SHIM = _HERE / "shim"
_GRACE_S = 5.0
_PASSED_ON = (
    "LANG",
    "TZ",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
)


class LocalTasks:
    """Tasks as processes below this one, each kept by a runner of its own."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._settings, self._url = settings, url

    async def execute(self, spec: RunSpec, stop: asyncio.Event) -> Outcome:
        """Run to the end; when `stop` is set, end it early. Cancelled, it stops everything the run started."""
        folder = run_folder(self._settings, spec.run_id)
        try:
            environment = await self._environment_of(spec)
        except environments.PackagingFailed as exc:
            return Outcome("failure", f"The task's environment cannot be made: {exc}")
        await asyncio.to_thread(self._prepare, replace(spec, environment=environment), folder)
        runner = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(_RUNNER),
            str(folder),
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        asked = asyncio.create_task(stop.wait())
        ended = asyncio.create_task(runner.communicate())
        try:
            await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                runner.send_signal(signal.SIGTERM)
            _, complaint = await ended
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                runner.send_signal(signal.SIGUSR1)
            await asyncio.wait({ended}, timeout=_GRACE_S)
            raise
        finally:
            asked.cancel()
            if runner.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    runner.kill()
        return await asyncio.to_thread(_outcome, folder, runner.returncode, complaint)

    async def _environment_of(self, spec: RunSpec) -> str:
        """Return the run's environment, made again where another machine made it or somebody cleared it away."""
        if environments.is_ready(self._settings, spec.environment):
            return spec.environment
        own = (await asyncio.to_thread(bundles.inspect, spec.bundle)).requirements
        wanted = environments.requirements_of(self._settings, own)
        return await environments.ensure(self._settings, wanted, lambda line: log.debug("environment.made", said=line))

    def _prepare(self, spec: RunSpec, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        home = folder / "home"
        code = home / "bundle"
        code.mkdir(parents=True)
        folder.chmod(0o700)
        bundles.unpack(spec.bundle, code)
        (home / "arguments.json").write_text(json.dumps(spec.arguments))
        if spec.token_file is not None:
            cache = home / ".cache" / "wallaroo_sdk" / "auth"
            cache.mkdir(parents=True)
            write_private(cache / "keycloak.json", json.dumps(spec.token_file), replace=True)
        entry = code / spec.entry_point
        settings = self._settings
        parent = {
            "run_id": spec.run_id,
            "argv": [str(python_of(settings, spec.environment)), entry.name],
            "cwd": str(entry.parent),
            "env": self._environment(spec, home),
            "timeout_s": spec.timeout_s,
            "memory_bytes": settings.task_memory_bytes,
            "processes": settings.task_processes,
            "log_bytes": settings.task_log_bytes,
            "grace_s": _GRACE_S,
            "parent": os.getpid(),
        }
        write_private(folder / "spec.json", json.dumps(parent), replace=True)

    def _environment(self, spec: RunSpec, home: Path) -> dict[str, str]:
        settings = self._settings
        environment = folder_of(settings, spec.environment)
        passed_on = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
        return passed_on | {
            "PATH": f"{environment / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home),
            "VIRTUAL_ENV": str(environment),
            "PYTHONPATH": str(_SHIM),
            "PYTHONUNBUFFERED": "1",
            "MPLBACKEND": "Agg",
            "NO_PROXY": ",".join(filter(None, [passed_on.get("NO_PROXY"), "127.0.0.1", "localhost"])),
            "POTOROO_RUN_ID": spec.run_id,
            "WALLAROO_TASK_ID": spec.task_id,
            "WALLAROO_URL": self._url,
            "WALLAROO_AUTH_URL": self._url,
            "TASK_ID": spec.task_id,
            "TASK_DEBUG": "true" if spec.debug else "false",
            "ORCH_ID": spec.orchestration_id,
            "ORCH_SHA": spec.sha,
            "ORCH_OWNER_ID": spec.owner_id,
        }

    async def lines(self, run_id: str, newest: int | None) -> list[bytes]:
        """Return what a run that goes on has written, oldest first; with `newest` only so many of the last lines."""
        return await asyncio.to_thread(newest_lines, run_folder(self._settings, run_id), newest)

    async def clean(self, run_id: str) -> None:
        """Remove what is left of a run, its processes too; no error when there is nothing."""
        await asyncio.to_thread(_clean, run_folder(self._settings, run_id), run_id)


def _outcome(folder: Path, code: int | None, complaint: bytes) -> Outcome:
    """Return how the runner says the run ended, with its output in one file."""
    whole = joined(folder)
    try:
        result = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        said = complaint.decode("utf-8", "replace").strip().splitlines()[-1:]
        return Outcome("failure", " ".join([f"The task's runner ended with status {code}.", *said]), whole)
    return Outcome(result["status"], result["text"], whole)


def _clean(folder: Path, run_id: str) -> None:
    mark = f"POTOROO_RUN_ID={run_id}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            left_over = mark in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if left_over:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(process.name), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
