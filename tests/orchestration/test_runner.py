"""The program that keeps a task inside its limits, run for real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RUNNER = ROOT / "app" / "orchestration" / "runner.py"
SHIM = ROOT / "app" / "orchestration" / "shim"


def run(folder: Path, code: str, **limits: Any) -> tuple[dict[str, Any], list[str]]:
    (folder / "main.py").write_text(code)
    spec = {
        "run_id": uuid.uuid4().hex,
        "argv": [sys.executable, "main.py"],
        "cwd": str(folder),
        "env": {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(SHIM), "PYTHONUNBUFFERED": "1"},
        "timeout_s": 30,
        "memory_bytes": 1 << 30,
        "processes": 64,
        "log_bytes": 1 << 20,
        "grace_s": 1,
        "parent": os.getpid(),
    } | limits
    (folder / "spec.json").write_text(json.dumps(spec))
    subprocess.run([sys.executable, "-I", str(RUNNER), str(folder)], check=True, timeout=120)
    return json.loads((folder / "result.json").read_text()), output(folder)


def output(folder: Path) -> list[str]:
    files = sorted(folder.glob("log.*"), key=lambda p: int(p.suffix[1:]))
    return b"".join(p.read_bytes() for p in files).decode().splitlines()


def test_output_is_kept_with_time_stream_and_mark(tmp_path: Path) -> None:
    result, lines = run(
        tmp_path, "import sys\nprint('hello')\nprint('oh', file=sys.stderr)\nsys.stdout.write('no end')"
    )

    assert result["status"] == "success"
    said = [re.fullmatch(r"(\S+Z) (stdout|stderr) (F|P) (.*)", line) for line in lines]
    assert all(said)
    assert {m[4] for m in said if m} >= {"hello", "oh", "no end"}
    assert next(m[2] for m in said if m and m[4] == "oh") == "stderr"


def test_a_failing_task_tells_its_exit_status_and_shows_its_traceback(tmp_path: Path) -> None:
    result, lines = run(tmp_path, "raise ValueError('boom')")

    assert (result["status"], result["exit_code"]) == ("failure", 1)
    assert any("ValueError: boom" in line for line in lines)


def test_a_signal_is_named(tmp_path: Path) -> None:
    result, _ = run(tmp_path, "import os\nos.kill(os.getpid(), 11)")

    assert result["status"] == "failure"
    assert "SIGSEGV" in result["text"]


def test_the_time_limit_stops_everything(tmp_path: Path) -> None:
    started = time.monotonic()
    result, _ = run(tmp_path, "import subprocess\nsubprocess.run(['sleep', '1000'])", timeout_s=1)

    assert result["status"] == "timed_out"
    assert time.monotonic() - started < 20


def test_the_memory_limit_is_kept_and_named(tmp_path: Path) -> None:
    code = "import time\nx = bytearray(300 << 20)\ntime.sleep(60)"

    result, _ = run(tmp_path, code, memory_bytes=100 << 20)

    assert result["status"] == "failure"
    assert "100 MiB" in result["text"]


def test_memory_that_processes_share_counts_once(tmp_path: Path) -> None:
    code = (
        "import os, time\nx = bytearray(os.urandom(1 << 20)) * 60\n"
        "for _ in range(4):\n  if os.fork() == 0: time.sleep(1.5); os._exit(0)\n"
        "time.sleep(1.5)\nprint('whole')"
    )

    result, _ = run(tmp_path, code, memory_bytes=150 << 20)

    assert result["status"] == "success", result


def test_a_child_that_outlives_the_task_is_stopped(tmp_path: Path) -> None:
    mark = str(100000 + os.getpid())
    code = f"import subprocess\nsubprocess.Popen(['sleep', '{mark}'], start_new_session=True)\nprint('left')"

    result, _ = run(tmp_path, code)

    assert result["status"] == "success"
    left = [p for p in Path("/proc").glob("[0-9]*") if _command(p) == f"sleep\0{mark}\0"]
    assert left == []


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.slow
def test_a_fork_bomb_leaves_the_host_clean(tmp_path: Path) -> None:
    result, _ = run(tmp_path, "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", timeout_s=4)

    assert result["status"] in ("timed_out", "failure")
    left = [p for p in Path("/proc").glob("[0-9]*") if _folder(p) == str(tmp_path)]
    assert left == []


def _folder(process: Path) -> str:
    try:
        return os.readlink(process / "cwd")
    except OSError:
        return ""


@pytest.mark.slow
def test_endless_output_is_bounded_and_keeps_its_two_ends(tmp_path: Path) -> None:
    code = "print('first line')\nfor i in range(300_000): print('filler', i)\nprint('last line')"

    result, lines = run(tmp_path, code, log_bytes=1 << 20)

    assert result["status"] == "success"
    assert sum(map(len, lines)) < 1.2 * (1 << 20)
    assert any(line.endswith("first line") for line in lines)
    assert any(line.endswith("last line") for line in lines)
    assert any("dropped" in line for line in lines)


def test_files_of_the_clients_fixed_path_are_the_tasks_own(tmp_path: Path) -> None:
    (tmp_path / "arguments.json").write_text('{"a": 1}')
    code = (
        "import json, pathlib, subprocess, sys\n"
        "print(json.load(open('/home/jovyan/arguments.json')))\n"
        "print(pathlib.Path('/home/jovyan/arguments.json').read_text())\n"
        "print(open('/home/jovyan2/x') if False else 'other paths stay')\n"
    )

    _, lines = run(tmp_path, code)

    assert [line.split(" F ")[1] for line in lines if "'a'" in line or '"a"' in line] == ["{'a': 1}", '{"a": 1}']


def test_a_long_line_comes_in_parts(tmp_path: Path) -> None:
    _, lines = run(tmp_path, "print('x' * 40000)")

    marks = [line.split(" ")[2] for line in lines if "xxx" in line]
    assert marks == ["P", "P", "F"]
    assert sum(line.count("x") for line in lines if "xxx" in line) == 40000
