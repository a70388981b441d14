"""Runs one task's process: a program of its own that needs nothing but the standard library.

It is started on a specification file, keeps the task inside its limits, writes its output as container runtimes do
(`<time> <stdout|stderr> <F|P> <text>`), stops everything the task started, and leaves a result file. When the worker
that started it dies, it ends the task and itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LOOK_S = 0.25
_LINE_BYTES = 16 * 1024


class Log:
    """The task's output, bounded: its beginning is kept, and of the rest the newest part."""

    def __init__(self, folder: Path, limit_bytes: int, *, echo: bool = False) -> None:
        self._folder, self._echo = folder, echo
        self._head_limit = limit_bytes // 2
        self._part_limit = limit_bytes // 4
        self._number = 0
        self._file: BinaryIO = (folder / "log.0").open("ab", buffering=0)
        self._size = 0
        self.dropped_bytes = 0

    def write(self, data: bytes) -> None:
        """Append whole lines; with `echo` they go to the standard output, too."""
        if self._echo:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        while len(data) > self._part_limit and (cut := data.rfind(b"\n", 0, self._part_limit) + 1):
            self._append(data[:cut])
            data = data[cut:]
        self._append(data)

    def _append(self, data: bytes) -> None:
        limit = self._head_limit if self._number == 0 else self._part_limit
        if self._size + len(data) > limit and self._size:
            self._turn()
        self._file.write(data)
        self._size += len(data)

    def _turn(self) -> None:
        self._file.close()
        self._number += 1
        old = self._folder / f"log.{self._number - 2}"
        if self._number - 2 > 0 and old.exists():
            self.dropped_bytes += old.stat().st_size
            old.unlink()
        self._file = (self._folder / f"log.{self._number}").open("ab", buffering=0)
        self._size = 0

    def close(self) -> None:
        """Close the file in use."""
        self._file.close()


class Stream:
    """One pipe of the task, cut into lines."""

    def __init__(self, name: str, pipe: BinaryIO, log: Log) -> None:
        self.name, self.pipe, self._log, self._rest = name, pipe, log, b""

    def read(self) -> bool:
        """Take what there is; returns False at the end."""
        chunk = os.read(self.pipe.fileno(), 256 * 1024)
        if not chunk:
            if self._rest:
                self._log.write(self._line(self._rest, "F"))
                self._rest = b""
            return False
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        out = []
        if lines:
            stamp = prefix(self.name, "F")
            if max(map(len, lines)) <= _LINE_BYTES:
                out.append(stamp + (b"\n" + stamp).join(lines) + b"\n")
            else:
                out += [self._line(line, "F") for line in lines]
        while len(self._rest) >= _LINE_BYTES:
            out.append(self._line(self._rest[:_LINE_BYTES], "P"))
            self._rest = self._rest[_LINE_BYTES:]
        if out:
            self._log.write(b"".join(out))
        return True

    def _line(self, text: bytes, mark: str) -> bytes:
        parts = []
        while len(text) > _LINE_BYTES:
            parts.append(prefixed(self.name, "P", text[:_LINE_BYTES]))
            text = text[_LINE_BYTES:]
        parts.append(prefixed(self.name, mark, text))
        return b"".join(parts)


def prefix(stream: str, mark: str) -> bytes:
    """Return what stands before the text of a line that comes now."""
    now = time.time_ns()
    stamp = datetime.fromtimestamp(now // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{stamp}.{now % 1_000_000_000:09d}Z {stream} {mark} ".encode()


def prefixed(stream: str, mark: str, text: bytes) -> bytes:
    """Return one line of the log."""
    return prefix(stream, mark) + text + b"\n"


def descendants(pid: int) -> list[int]:
    """Return the processes below `pid`, as far as they can be seen."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        for thread in threads:
            with contextlib.suppress(OSError, ValueError):
                children = [int(x) for x in Path(f"/proc/{parent}/task/{thread}/children").read_text().split()]
                found += children
                waiting += children
    return found


def resident_bytes(pids: list[int]) -> int:
    """Return the memory the processes hold together, shared pages counted for each."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE")


def held_bytes(pids: list[int]) -> int:
    """Return the memory the processes hold together, shared pages counted once; slower than `resident_bytes`."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError, StopIteration):
            total += resident_bytes([pid])
    return total


class Cage:
    """A limit on processes that a fork bomb cannot outrun: a control group where one can be made, else none."""

    def __init__(self, name: str, processes: int) -> None:
        self.folder: Path | None = None
        for root in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
            if (
                not Path(root, "pids.max" if root.endswith("pids") else "cgroup.controllers").exists()
                and not Path(root, "cgroup.procs").exists()
            ):
                continue
            folder = Path(root) / f"potoroo-{name}"
            try:
                folder.mkdir()
                (folder / "pids.max").write_text(str(processes))
            except OSError:
                with contextlib.suppress(OSError):
                    folder.rmdir()
                continue
            self.folder = folder
            break

    def enter(self) -> None:
        """Put the calling process, and so its children, into the cage."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def inmates(self) -> list[int]:
        """Return the processes in the cage."""
        if self.folder is None:
            return []
        with contextlib.suppress(OSError):
            return [int(x) for x in (self.folder / "cgroup.procs").read_text().split()]
        return []

    def remove(self) -> None:
        """Take the cage away; it is empty by now."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                self.folder.rmdir()


class Runner:
    """One task's process and everything below it."""

    def __init__(self, spec: dict[str, Any], folder: Path) -> None:
        self.spec, self.folder = spec, folder
        self.log = Log(folder, spec["log_bytes"], echo=spec.get("echo", False))
        self.cage = Cage(spec["run_id"], spec["processes"])
        self.stop_reason: str | None = None
        self.peak_bytes = 0
        self.status: int | None = None
        self.child: subprocess.Popen[bytes]

    def say(self, text: str) -> None:
        """Write a line of our own into the log."""
        self.log.write(prefixed("stdout", "F", f"WALLAROO: {text}".encode()))

    def run(self) -> dict[str, Any]:
        """Run the task to its end and return how it ended."""
        self.say("Setting up task run...")
        self.say("Task environment ready. Running...")
        started = time.monotonic()
        self.child = subprocess.Popen(  # noqa: S603 - running the user's code is what this program is for
            self.spec["argv"],
            cwd=self.spec["cwd"],
            env=self.spec["env"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=self._limit,  # noqa: PLW1509 - this program has one thread
        )
        assert self.child.stdout is not None and self.child.stderr is not None  # noqa: S101, PT018
        ready = selectors.DefaultSelector()
        for stream in (
            Stream("stdout", self.child.stdout, self.log),  # type: ignore[arg-type]
            Stream("stderr", self.child.stderr, self.log),  # type: ignore[arg-type]
        ):
            ready.register(stream.pipe, selectors.EVENT_READ, stream)
        deadline = started + self.spec["timeout_s"] if self.spec["timeout_s"] else None
        next_look = started
        ended_at: float | None = None
        while ready.get_map():
            for key, _ in ready.select(_LOOK_S if self.status is None else 0.05):
                if not key.data.read():
                    ready.unregister(key.fileobj)
            self._reap()
            now = time.monotonic()
            if self.status is None and now >= next_look:
                next_look = now + _LOOK_S
                self._look(deadline, now)
            if self.status is not None:
                ended_at = ended_at or now
                self._kill_all()
                if now - ended_at > 5:  # a pipe that leaked to somebody out of reach
                    break
        while self.status is None:
            time.sleep(0.02)
            self._reap()
            self._look(deadline, time.monotonic())
        self._kill_all()
        self.child.returncode = os.waitstatus_to_exitcode(self.status)
        self.cage.remove()
        result = self._result(self.child.returncode, time.monotonic() - started)
        if self.log.dropped_bytes:
            self.say(f"{self.log.dropped_bytes:,} bytes of output were dropped from the middle of this log.")
        self.say(result["text"])
        self.log.close()
        return result

    def _limit(self) -> None:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        self.cage.enter()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if os.geteuid() != 0 and self.spec.get(
            "user_limit", True
        ):  # counted per user, so on top of what the user has already
            own = sum(1 for p in Path("/proc").glob("[0-9]*") if _owner(p) == os.geteuid())
            _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
            limit = own + int(self.spec["processes"])
            if hard == resource.RLIM_INFINITY or limit < hard:
                resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))

    def _reap(self) -> bool:
        """Take note of who has ended; return whether nobody is left, which the kernel knows better than `/proc`."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return False
                if pid == self.child.pid:
                    self.status = status
        except ChildProcessError:
            return True

    def _look(self, deadline: float | None, now: float) -> None:
        if self.stop_reason is not None:
            self._kill_all()
            return
        pids = descendants(os.getpid())
        size = resident_bytes(pids)
        if size > self.spec["memory_bytes"]:
            size = held_bytes(pids)
        self.peak_bytes = max(self.peak_bytes, size)
        if deadline is not None and now >= deadline:
            self.stop("timed_out")
        elif size > self.spec["memory_bytes"]:
            self.stop("memory")
        elif len(pids) > self.spec["processes"]:
            self.stop("processes")

    def stop(self, reason: str) -> None:
        """End the task: politely when it was asked for, at once when it broke a limit."""
        if self.stop_reason is None:
            self.stop_reason = reason
        if reason == "killed" and self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child.pid, signal.SIGTERM)
            end = time.monotonic() + self.spec["grace_s"]
            while self.status is None and time.monotonic() < end:
                time.sleep(0.05)
                self._reap()
        self._kill_all()

    def _kill_all(self) -> None:
        """Kill whatever is left of the task, however fast it multiplies."""
        for _ in range(200):
            is_alone = self._reap()
            pids = set(descendants(os.getpid())) | set(self.cage.inmates())
            if is_alone and not pids:
                return
            for wanted in (signal.SIGSTOP, signal.SIGKILL):
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, wanted)
            time.sleep(0.005)

    def _result(self, code: int, elapsed_s: float) -> dict[str, Any]:
        spec, reason = self.spec, self.stop_reason
        texts = {
            "timed_out": f"The task was stopped after its time limit of {spec['timeout_s']} s.",
            "memory": f"The task was stopped: it used more than {spec['memory_bytes'] / 1024**2:.0f} MiB of memory.",
            "processes": f"The task was stopped: it started more than {spec['processes']} processes.",
            "killed": "The task was killed on request.",
            "worker": "The task was stopped because its worker ended.",
        }
        if reason is not None:
            status, text = {"timed_out": "timed_out", "killed": "killed"}.get(reason, "failure"), texts[reason]
        elif code < 0:
            status, text = "failure", f"The task ended by signal {signal.Signals(-code).name}."
        elif code:
            status, text = "failure", f"The task ended with exit status {code}."
        else:
            status, text = "success", "The task finished."
        measured = {"exit_code": code, "elapsed_s": round(elapsed_s, 3), "peak_bytes": self.peak_bytes}
        return {"status": status, "text": text} | measured


def _owner(process: Path) -> int:
    try:
        return process.stat().st_uid
    except OSError:
        return -1


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def main() -> None:
    """Run the task that the specification named on the command line tells of."""
    folder = Path(sys.argv[1])
    spec = json.loads((folder / "spec.json").read_text())
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    runner = Runner(spec, folder)
    signal.signal(signal.SIGTERM, lambda *_: runner.stop("killed"))
    signal.signal(signal.SIGUSR1, lambda *_: runner.stop("worker"))
    _prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
    if os.getppid() != spec["parent"]:
        runner.stop_reason = "worker"
    try:
        result = runner.run()
    except OSError as exc:
        result = {"status": "failure", "text": f"The task could not be started: {exc}.", "exit_code": None}
    if "termination_log" in spec:  # in a pod, the last words of a container are read from there
        Path(spec["termination_log"]).write_text(json.dumps(result))
    draft = folder / "result.json.new"
    draft.write_text(json.dumps(result))
    draft.replace(folder / "result.json")


if __name__ == "__main__":
    main()
