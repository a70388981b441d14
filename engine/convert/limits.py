"""Bounds that a process sets itself before it opens a stranger's file."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_FILE_BYTES = 1024 * 1024
"""Enough for an answer whose reader gave a file instead of a pipe."""


def confine(memory_bytes: int, cpu_s: int) -> None:
    """Bound this process: its memory, its CPU time, files of hardly any size, no core dump; it ends with its parent.

    When memory runs out all the same, the kernel takes this process first.
    """
    parent = os.getppid()
    os.nice(5)  # whoever waits for an answer goes first
    for kind, soft in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ):
        _, hard = resource.getrlimit(kind)
        bound = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
        resource.setrlimit(kind, (bound, bound))
    with contextlib.suppress(OSError, AttributeError):  # systems that have no such call
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
