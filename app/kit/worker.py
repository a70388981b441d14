"""Names of workers, by which the work they claimed is told apart, and found again when they are gone."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def host() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def name() -> str:
    """Return this process's name: machine, process number, and when the process started."""
    return f"{host()}:{os.getpid()}:{started(os.getpid())}"


def is_gone(worker: str) -> bool | None:
    """Tell whether the process named `worker` has ended; None when it belongs to another machine."""
    machine, pid, start = worker.rsplit(":", 2)
    if machine != host():
        return None
    return started(int(pid)) != start


def started(pid: int) -> str | None:
    """Return when process `pid` started, in the kernel's own count, or None when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
