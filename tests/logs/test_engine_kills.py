"""Engines that are killed under full load: every answered inference is in the log, once."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engine.logs.reader import LogStore
from engine.logs.store import open_store
from engine.logs.verify import verify
from engine.server.supervisor import read_status
from tests.engine.server import models
from tests.logs.test_writer import all_records

pytestmark = [pytest.mark.server, pytest.mark.slow]

TOPIC = "topic-fraud"
KILLS = int(os.environ.get("POTOROO_TEST_KILLS", "3"))
CLIENTS = 12


class Load:
    """Clients that ask without a pause and note which of their questions were answered."""

    def __init__(
        self, port: int, ids: itertools.count[int], *, path: str = "/pipelines/fraud", token: str = "", width: int = 3
    ) -> None:
        self.path = path
        self.token = token
        self.width = width
        self.answered: list[int] = []
        self.asked: list[int] = []
        self._ids = ids
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(port, n)) for n in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self, port: int, number: int) -> None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                file = connection.makefile("rb")
                while True:
                    with self._lock:
                        ids = [next(self._ids) for _ in range(1 + number % 3)]
                    self.asked += ids
                    body = json.dumps([{"tensor": [float(i), *[0.0] * (self.width - 1)]} for i in ids]).encode()
                    connection.sendall(
                        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer %b\r\n"
                        b"Content-Length: %d\r\n\r\n" % (self.path.encode(), self.token.encode(), len(body)) + body
                    )
                    status = file.readline()
                    length = 0
                    while (line := file.readline()) not in (b"\r\n", b""):
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.split(b":")[1])
                    if not status.startswith(b"HTTP/1.1 200") or len(file.read(length)) < length:
                        return
                    self.answered += ids
        except OSError:
            return

    def join(self) -> None:
        for thread in self._threads:
            thread.join(20)


def started(folder: Path, document: dict[str, Any]) -> tuple[subprocess.Popen[bytes], int]:
    status_path = Path(document["status_file"])
    status_path.unlink(missing_ok=True)
    path = folder / "document.json"
    path.write_text(json.dumps(document))
    process = subprocess.Popen([sys.executable, "-m", "engine.server", "--document", str(path)], start_new_session=True)
    deadline = time.monotonic() + 60
    while True:
        status = read_status(status_path)
        if status is not None and status.phase == "Running":
            return process, status.port
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.parametrize(("workers", "kills"), [(1, KILLS), (2, max(KILLS // 4, 1))])
def test_kills_under_load_lose_and_double_no_answered_inference(tmp_path: Path, workers: int, kills: int) -> None:
    document = models.document(tmp_path, {"fraud": models.linear(tmp_path / "m.onnx")}, resources={"workers": workers})
    ids = itertools.count(1)
    answered: list[int] = []
    asked: list[int] = []
    for run in range(kills):
        process, port = started(tmp_path, document)
        load = Load(port, ids)
        time.sleep(0.4 + 0.05 * (run % 5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        load.join()
        answered += load.answered
        asked += load.asked

    stored = [int(row["in"]["tensor"][0]) for row in all_records(tmp_path / "logs", TOPIC)]
    assert len(answered) > 100 * kills
    assert len(set(stored)) == len(stored)
    assert not set(answered) - set(stored)
    assert set(stored) <= set(asked)
    assert [checked.file for checked in verify(LogStore(tmp_path / "logs")) if checked.problems] == []
    assert len(open_store(tmp_path / "logs").partitions(TOPIC)) == workers
