"""A whole instance that is killed under load, asked through its public URL: every answered inference is kept, once."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from engine.logs.reader import LogStore
from engine.logs.verify import verify
from tests.inference.instance import WIDTH, Instance, eventually, model_bytes, running
from tests.logs.test_engine_kills import Load
from tests.logs.test_writer import all_records

pytestmark = [pytest.mark.server, pytest.mark.slow]

KILLS = int(os.environ.get("POTOROO_TEST_GROUP_KILLS", "5"))


@pytest.fixture
def instance() -> Iterator[Instance]:
    """A server of this test's own."""
    with tempfile.TemporaryDirectory(prefix="potoroo-") as folder:
        yield from running(Path(folder) / "home")


def kill_all(instance: Instance) -> None:
    """Kill the server and all its engines at once."""
    engines = instance.engine_pids()
    assert instance.process is not None
    for pid in [instance.process.pid, *engines]:
        os.killpg(os.getpgid(pid), signal.SIGKILL)
    instance.process.wait()


def test_killing_server_and_engines_loses_and_doubles_no_answered_inference(instance: Instance) -> None:
    deployed = instance.deploy("sums", instance.upload("sum", model_bytes(1.0)), engine={"cpu": 1, "replicas": 2})
    topic = instance.call("plateau/get_topic_name", {"workspace_id": instance.workspace, "pipeline_name": "sums"})
    path = urlsplit(deployed.url).path
    ids = itertools.count(1)
    answered: list[int] = []
    asked: list[int] = []

    for run in range(KILLS):
        eventually(lambda: instance.infer(deployed.url).status_code == 200, 60)
        load = Load(instance.port, ids, path=path, token=instance.token, width=WIDTH)
        time.sleep(1.0 + 0.2 * run)
        kill_all(instance)
        load.join()
        assert len(load.answered) > 50
        answered += load.answered
        asked += load.asked
        instance.start()

    rows = all_records(instance.home / "logs", topic.json()["topic_name"])
    stored = [int(row["in"]["tensor"][0]) for row in rows if row["in"]["tensor"] != [1.0] * WIDTH]
    assert len(set(stored)) == len(stored)
    assert not set(answered) - set(stored)
    assert set(stored) <= set(asked)
    assert [found.problems for found in verify(LogStore(instance.home / "logs")) if found.problems] == []
