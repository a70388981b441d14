"""A server that is told to stop leaves no database running behind it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.server]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_the_embedded_postgres_stops_with_the_server(sent: signal.Signals) -> None:
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
            assert (home / "postgres" / "postmaster.pid").exists()

            process.send_signal(sent)
            process.wait(40)

            assert not (home / "postgres" / "postmaster.pid").exists()
        finally:
            if process.poll() is None:
                process.kill()


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
