"""Engines on a full disk: inference goes on or is refused, as the setting says, and recovers when there is room.

A limit on the size of files, put on the running process, stands for the full disk: the kernel cuts writes off as a
disk without room does.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.logs.reader import LogStore
from engine.logs.verify import verify
from tests.engine.server import models
from tests.engine.server.test_engine_process import EngineUnderTest, running
from tests.logs.test_writer import all_records

pytestmark = [pytest.mark.server, pytest.mark.slow]

TOPIC = "topic-fraud"


class Questions:
    """Asks an engine, one row at a time, and keeps what was answered."""

    def __init__(self, engine: EngineUnderTest, client: httpx.Client) -> None:
        self._engine = engine
        self._client = client
        self.answered: list[int] = []
        self.asked = 0

    def ask(self, count: int) -> list[int]:
        """Ask with the next ids; returns the statuses."""
        statuses = []
        for _ in range(count):
            self.asked += 1
            reply = self._client.post(f"{self._engine.url}/infer", json=[{"tensor": [self.asked, 0, 0]}])
            statuses.append(reply.status_code)
            if reply.status_code == 200:
                self.answered.append(self.asked)
            else:
                assert "log" in reply.text
        return statuses

    def dropped(self) -> int:
        """Return how many rows the engine says it dropped."""
        name = "potoroo_engine_log_dropped_rows_total{"
        lines = self._client.get(f"{self._engine.url}/metrics").text.splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith(name))


def limit_files(engine: EngineUnderTest, size: int) -> None:
    status = engine.status()
    assert status is not None
    resource.prlimit(status.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def stored(folder: Path) -> list[int]:
    return [int(row["in"]["tensor"][0]) for row in all_records(folder / "logs", TOPIC)]


@pytest.mark.parametrize("when_full", ["refuse", "drop"])
def test_a_full_disk_refuses_or_drops_and_recovers(tmp_path: Path, when_full: str) -> None:
    document: dict[str, Any] = models.document(
        tmp_path,
        {"fraud": models.linear(tmp_path / "m.onnx")},
        log={"root": str(tmp_path / "logs"), "when_full": when_full},
    )
    with running(tmp_path, document) as engine, httpx.Client() as client:
        questions = Questions(engine, client)
        assert questions.ask(20) == [200] * 20
        (file,) = (tmp_path / "logs").rglob("*.log")
        limit_files(engine, file.stat().st_size + 300)

        full = questions.ask(20)
        dropped = questions.dropped()
        limit_files(engine, resource.RLIM_INFINITY)
        after = questions.ask(20)

        assert after == [200] * 20
        assert questions.dropped() == dropped
        if when_full == "refuse":
            assert set(full) == {503}
            assert dropped == 0
            assert stored(tmp_path) == questions.answered
        else:
            assert set(full) == {200}
            assert dropped == 20
            assert stored(tmp_path) == [*range(1, 21), *range(41, 61)]
        assert [found.problems for found in verify(LogStore(tmp_path / "logs"))] == [[]]
