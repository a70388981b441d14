"""A server that is told to stop stops, and leaves no database running behind it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.kit.context import Context
from app.main import end, keep_running


@contextmanager
def started() -> Iterator[tuple[subprocess.Popen[bytes], Path, str]]:
    """A server, its home, and where it says that it is ready."""
    # A short path: a Unix socket's name has room for about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="potoroo-stop-") as folder:
        home = Path(folder) / "home"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = os.environ | {"POTOROO_HOME": str(home), "POTOROO_PORT": str(port)}
        process = subprocess.Popen([sys.executable, "-m", "app", "serve"], env=environment, start_new_session=True)
        try:
            _wait(f"http://127.0.0.1:{port}/readyz", process)
            yield process, home, f"http://127.0.0.1:{port}/readyz"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_the_embedded_postgres_stops_with_the_server(sent: signal.Signals) -> None:
    with started() as (process, home, _):
        assert (home / "postgres" / "postmaster.pid").exists()

        process.send_signal(sent)
        process.wait(40)

        assert not (home / "postgres" / "postmaster.pid").exists()


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("sent", [signal.SIGQUIT, signal.SIGKILL])
def test_an_embedded_postgres_that_dies_is_started_anew(sent: signal.Signals) -> None:
    with started() as (process, home, ready):
        first = postmaster(home)
        os.kill(first, sent)
        while Path(f"/proc/{first}").exists():
            time.sleep(0.05)

        _wait(ready, process)

        assert postmaster(home) != first
        process.terminate()
        assert process.wait(40) == 0
        assert not (home / "postgres" / "postmaster.pid").exists()


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("after_s", [0.2, 1.5, 2.5, 4.0])
def test_a_server_whose_database_is_away_or_has_just_come_back_stops_when_told_to(after_s: float) -> None:
    with started() as (process, home, _):
        os.kill(postmaster(home), signal.SIGQUIT)  # Postgres' immediate shutdown
        time.sleep(after_s)

        process.terminate()

        assert process.wait(20) == 0
        assert not (home / "postgres" / "postmaster.pid").exists()


def postmaster(home: Path) -> int:
    return int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])


async def test_a_loop_that_fails_while_it_is_cancelled_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch, context: Context
) -> None:
    monkeypatch.setattr("app.main._PATIENCE_S", 0.1)
    turns = 0

    async def loop(_: Context) -> None:
        nonlocal turns
        turns += 1
        try:
            await asyncio.sleep(60)
        finally:
            raise OSError("the connection is gone too")

    task = asyncio.create_task(keep_running(context, "loop", loop))
    await asyncio.sleep(0.05)

    await asyncio.wait_for(end([task]), 10)

    assert task.cancelled()
    assert turns == 1


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server does not start")
