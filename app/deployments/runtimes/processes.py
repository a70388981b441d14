"""Processes that outlive us: started in a session of their own, recognised again by their id and their start time."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
"""What an engine sees of our environment: no secret of ours is among it."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told apart from a later one that got the same id by when it started (clock ticks since boot)."""

    pid: int
    started: int

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        found = look(self.pid)
        return found is not None and found.started == self.started

    def signal(self, number: int) -> None:
        """Send a signal, unless it is gone."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill_session(self) -> None:
        """Kill it and all it started: it leads a process group."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


def look(pid: int) -> Process | None:
    """Return the process `pid` if it runs now (a zombie does not)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    if fields[0] in ("Z", "X"):
        return None
    return Process(pid, int(fields[19]))


def find(argument: str) -> Process | None:
    """Return the process of ours that leads its session and was started with `argument` on its command line."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            leads = os.getsid(int(entry.name)) == int(entry.name)
        except OSError:
            continue
        if leads and argument.encode() in command:
            return look(int(entry.name))
    return None


def spawn(command: Sequence[str], log_file: Path, extra: dict[str, str]) -> Process:
    """Start `command` in a session of its own, its output appended to `log_file`."""
    environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ} | extra
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        command[0],
        list(command),
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log_file), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP, signal.SIGCHLD],
    )
    return look(pid) or Process(pid, -1)


def reap(pid: int) -> int | None:
    """Return how our child `pid` ended (negative: by that signal), once; None while it runs or if it is not ours."""
    try:
        done, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if done else None


def limit(process: Process, *, data_bytes: int | None, cores: Sequence[int] | None) -> None:
    """Bound the process's data (private writable memory) and the cores it runs on."""
    with contextlib.suppress(ProcessLookupError):
        if data_bytes is not None:
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (data_bytes, data_bytes))
        if cores:
            os.sched_setaffinity(process.pid, cores)


def resident_bytes(pid: int) -> int:
    """Return the memory that `pid` and its descendants hold (pages they share are counted for each)."""
    try:
        total = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return total + sum(resident_bytes(int(child)) for child in children)


def machine_memory_bytes() -> int:
    """Return how much memory this machine (or the container we run in) has."""
    total = os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total
