"""An engine on another machine: its records reach the store of a real server, which is away for a while."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.server.test_engine_process import EngineUnderTest
from tests.inference.instance import Instance, eventually, model_bytes, running

pytestmark = [pytest.mark.server, pytest.mark.slow]

SPOOL_BYTES = 1_000_000


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    """A server for the tests of this file, with a pipeline that runs."""
    with tempfile.TemporaryDirectory(prefix="potoroo-") as folder:
        for one in running(Path(folder) / "home"):
            one.deploy("sums", one.upload("sum", model_bytes(1.0)))
            yield one


class Distant:
    """An engine of the pipeline whose records go through a spool."""

    def __init__(self, instance: Instance, folder: Path, when_full: str) -> None:
        (given,) = instance.home.glob("run/engines/*/*/document.json")
        self.partition = f"distant-{when_full}"
        document: dict[str, Any] = json.loads(given.read_bytes()) | {
            "replica": self.partition,
            "access": None,
            "handoff_socket": None,
            "port": 0,
            "status_file": str(folder / "status.json"),
            "log": {
                "root": instance.base,
                "spool": str(folder / "spool"),
                "token_file": str(given.parent / "access.token"),
                "spool_bytes_limit": SPOOL_BYTES,
                "when_full": when_full,
            },
        }
        self._folder, self._document = folder, document
        self.topic: str = document["pipelines"][0]["topic"]
        self.answered: list[int] = []
        self.refused = 0
        self.asked = 0
        self.start()

    def start(self) -> None:
        (self._folder / "status.json").unlink(missing_ok=True)
        self.engine = EngineUnderTest(self._folder, self._document)
        self.engine.wait_for("Running")

    def kill(self) -> None:
        self.engine.process.kill()
        self.engine.process.wait(10)

    def ask(self, times: int, rows: int = 1) -> float:
        """Infer on the next numbers; returns the median seconds."""
        taken = []
        with httpx.Client() as client:
            for _ in range(times):
                ids = list(range(self.asked + 1, self.asked + rows + 1))
                self.asked += rows
                began = time.perf_counter()
                reply = client.post(f"{self.engine.url}/infer", json=[{"tensor": [i, 0, 0, 0]} for i in ids])
                taken.append(time.perf_counter() - began)
                if reply.status_code == 200:
                    self.answered += ids
                else:
                    assert reply.status_code == 503
                    assert "wait for it already" in reply.text or "log" in reply.text
                    self.refused += rows
        return statistics.median(taken)

    def number(self, name: str) -> int:
        lines = httpx.get(f"{self.engine.url}/metrics").text.splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith(name + "{"))

    def stored(self, instance: Instance) -> list[int]:
        """Return the numbers in this engine's partition, read through the public API."""
        found: list[int] = []
        path = f"{instance.base}/v1/logs/topic/{self.topic}/partition/{self.partition}/records"
        while True:
            answer = httpx.get(path, params={"start": len(found), "page_size": 10_000}, headers=instance.headers)
            rows = answer.raise_for_status().json()
            if not rows:
                return found
            found += [int(row["in"]["tensor"][0]) for row in rows]


@pytest.mark.parametrize("when_full", ["refuse", "drop"])
def test_a_store_that_is_away_loses_nothing_up_to_the_spools_limit(
    instance: Instance, tmp_path: Path, when_full: str
) -> None:
    distant = Distant(instance, tmp_path, when_full)
    try:
        with_store = distant.ask(200)
        eventually(lambda: distant.stored(instance) == list(range(1, 201)))

        instance.kill()
        without_store = distant.ask(200)
        assert distant.number("potoroo_engine_log_waiting_rows") == 200
        distant.kill()
        distant.start()
        distant.ask(100)
        assert distant.answered == list(range(1, 501))
        assert without_store < 5 * with_store + 0.005

        distant.ask(120, rows=100)
        dropped = distant.number("potoroo_engine_log_dropped_rows_total")
        assert (distant.refused > 0, dropped > 0) == (when_full == "refuse", when_full == "drop")
        instance.start()
        eventually(lambda: distant.number("potoroo_engine_log_waiting_rows") == 0, 60)
        distant.ask(10)
        last = distant.answered[-1]
        eventually(lambda: last in distant.stored(instance), 60)

        stored = distant.stored(instance)
        assert len(set(stored)) == len(stored)
        assert stored == sorted(stored)
        assert len(stored) == len(distant.answered) - dropped
        assert set(stored) <= set(distant.answered)
        if when_full == "refuse":
            assert stored == distant.answered
    finally:
        distant.kill()
