"""Tasks on a whole server: hostile bundles leave it responsive and the host clean; a killed one loses nothing."""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.inference.instance import Instance, eventually
from tests.orchestration.test_bundles import zipped

pytestmark = [pytest.mark.slow, pytest.mark.server]

LOG_BYTES = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[Instance]:
    """A server whose tasks have narrow limits."""
    # A short path: a Unix socket's name has room for about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="potoroo-t-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("POTOROO_TASK_SDK", "")
        patch.setenv("POTOROO_TASK_PROCESSES", "60")
        patch.setenv("POTOROO_TASK_MEMORY_BYTES", str(200 << 20))
        patch.setenv("POTOROO_TASK_LOG_BYTES", str(LOG_BYTES))
        made = Instance(Path(folder))
        try:
            made.start()
            made.sign_in()
            yield made
        finally:
            made.stop_everything()


def ask(server: Instance, path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(
        f"{server.base}/v1/api/{path}", json=body, headers={"Authorization": f"Bearer {server.token}"}, timeout=20
    )
    assert answer.is_success, answer.text
    return answer.json()


def upload(server: Instance, raw: bytes) -> httpx.Response:
    files = {
        "file": ("b.zip", raw, "application/octet-stream"),
        "metadata": (None, json.dumps({"workspace_id": server.workspace, "name": "b"}), "application/json"),
    }
    headers = {"Authorization": f"Bearer {server.token}"}
    return httpx.post(f"{server.base}/v1/api/orchestration/upload", files=files, headers=headers, timeout=60)


def started(server: Instance, code: str, path: str = "run_once", **more: Any) -> str:
    """Return a task of `code` that waits or runs."""
    answer = upload(server, zipped({"main.py": code}))
    assert answer.status_code == 202, answer.text
    body = {"orch_id": answer.json()["id"], "workspace_id": server.workspace, "json": {}} | more
    return str(ask(server, f"task/{path}", body)["id"])


def runs(server: Instance, task: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(server, "task/list_task_runs", {"task_id": task})
    return found


def ended(server: Instance, task: str, seconds: float = 60) -> tuple[str, list[str]]:
    """Return how the one run of a task ended and what it said; the server must answer at once all the while."""
    slowest = 0.0

    def over() -> list[dict[str, Any]]:
        nonlocal slowest
        began = time.monotonic()
        found = runs(server, task)
        slowest = max(slowest, time.monotonic() - began)
        return [run for run in found if run["status"] != "running"]

    [run] = eventually(over, seconds, 0.1)
    assert slowest < 5, f"the server was silent for {slowest:.1f} s"
    logs = ask(server, "task/get_logs_for_run", {"id": run["run_id"]})["logs"]
    return run["status"], [line.split(" ", 3)[3] for line in logs]


def left_over(mark: str) -> list[str]:
    """Return the command lines of processes that carry `mark` in their environment or their command."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        if mark.encode() in text and process.name != str(os.getpid()):
            found.append(process.name)
    return found


def is_clean(server: Instance, task: str) -> bool:
    folders = list((server.home / "run" / "tasks").glob("*"))
    return not left_over(f"WALLAROO_TASK_ID={task}") and not folders


def test_a_fork_bomb_is_stopped_and_says_so(server: Instance) -> None:
    task = started(server, "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", timeout=20)

    status, said = ended(server, task)

    assert status in ("failure", "timed_out")
    assert any("processes" in line or "time limit" in line for line in said[-2:]), said[-5:]
    eventually(lambda: is_clean(server, task))


def test_a_gigabyte_of_output_is_bounded(server: Instance) -> None:
    code = (
        "import sys\nprint('first')\nx = ('y' * 1023 + '\\n') * 1024\n"
        "for _ in range(1024): sys.stdout.write(x)\nprint('last')"
    )
    task = started(server, code, timeout=120)

    status, said = ended(server, task, 120)

    assert status == "success"
    assert sum(map(len, said)) < 1.2 * LOG_BYTES
    assert {"first", "last"} <= set(said)
    assert any("bytes of output were dropped" in line for line in said)
    blobs = [path.stat().st_size for path in (server.home / "blobs").rglob("*") if path.is_file()]
    assert max(blobs) < 1.5 * LOG_BYTES
    eventually(lambda: is_clean(server, task))


def test_a_child_that_outlives_its_task_is_stopped(server: Instance) -> None:
    code = (
        "import os, subprocess, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        os.environ.clear()\n"
        "        os.execve('/bin/sleep', ['sleep', '86123'], {})\n"
        "    os._exit(0)\n"
        "time.sleep(0.5)\n"
    )
    task = started(server, code)

    assert ended(server, task)[0] == "success"
    assert left_over("sleep\x0086123") == []
    eventually(lambda: is_clean(server, task))


def test_more_memory_than_allowed_is_named(server: Instance) -> None:
    status, said = ended(server, started(server, "import time\nx = bytearray(400 << 20)\ntime.sleep(60)"))

    assert status == "failure"
    assert "more than 200 MiB" in said[-1]


@pytest.mark.parametrize("name", ["link", "dir/../../out"])
def test_what_leaves_its_folder_is_refused(server: Instance, name: str) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("main.py", "")
        entry = zipfile.ZipInfo(name)
        entry.external_attr = (0o120777 if name == "link" else 0o100644) << 16
        archive.writestr(entry, "/etc/passwd")

    assert upload(server, packed.getvalue()).status_code == 400


def test_a_task_that_fills_its_folder_with_links_is_cleaned_without_following_them(
    server: Instance, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("stays")
    code = f"import os\nos.symlink({str(tmp_path)!r}, 'out')\nos.mkdir('locked')\nos.chmod('locked', 0)"
    task = started(server, code)

    assert ended(server, task)[0] == "success"
    eventually(lambda: is_clean(server, task))
    assert (tmp_path / "precious").read_text() == "stays"


def test_secrets_are_in_no_command_line_or_environment(server: Instance) -> None:
    task = started(server, "import time\nprint('here', flush=True)\ntime.sleep(60)")
    eventually(lambda: left_over(f"WALLAROO_TASK_ID={task}"))
    [token_file] = eventually(lambda: list((server.home / "run" / "tasks").glob("*/home/.cache/*/auth/keycloak.json")))
    document = json.loads(token_file.read_text())

    for secret in (document["access_token"], document["refresh_token"], (server.home / "secret.key").read_text()):
        assert left_over(secret.strip()) == []
    assert token_file.stat().st_mode & 0o077 == 0
    ask(server, "task/kill", {"id": task})
    assert ended(server, task)[0] in ("killed", "failure")


def test_a_killed_server_writes_its_runs_off_and_runs_none_twice(server: Instance, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    code = f"import time\nopen({str(starts)!r}, 'a').write('x')\ntime.sleep(300)"
    going = started(server, code)
    waiting = [started(server, f"open({str(tmp_path / str(i))!r}, 'a').write('x')") for i in range(6)]
    eventually(starts.exists)

    server.kill()
    eventually(lambda: not left_over(f"WALLAROO_TASK_ID={going}"), 20)
    server.start()
    server.sign_in()

    status, _ = ended(server, going)
    assert status == "failure"
    assert starts.read_text() == "x"
    for i, task in enumerate(waiting):
        status, _ = ended(server, task)
        written = (tmp_path / str(i)).read_text() if (tmp_path / str(i)).exists() else ""
        assert (status, written) in (("success", "x"), ("failure", ""), ("failure", "x"))
        assert len(runs(server, task)) == 1
    eventually(lambda: is_clean(server, going))
