"""What clients see when parts die under traffic."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.inference.instance import WIDTH, Deployed, Instance, eventually, model_bytes, running

pytestmark = [pytest.mark.slow, pytest.mark.server]


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    """A server for the tests of this file."""
    with tempfile.TemporaryDirectory(prefix="potoroo-") as folder:
        yield from running(Path(folder) / "home")


@pytest.fixture(scope="module")
def deployed(instance: Instance) -> Deployed:
    """A pipeline that sums its rows."""
    return instance.deploy("sums", instance.upload("sum", model_bytes(1.0)))


class Traffic:
    """Clients that infer without a pause, and what they saw."""

    def __init__(self, instance: Instance, url: str, clients: int = 8) -> None:
        self.seen: Counter[int | str] = Counter()
        self.values: Counter[float] = Counter()
        self.log: list[tuple[float, int | str]] = []
        self._instance = instance
        self._url = url
        self._clients = clients

    async def _infer(self) -> None:
        async with httpx.AsyncClient(headers=self._instance.headers, timeout=10) as client:
            while True:
                try:
                    answer = await client.post(self._url, json=[{"tensor": [1.0] * WIDTH}])
                    outcome: int | str = answer.status_code
                    if outcome == 200:
                        self.values[answer.json()[0]["out"]["total"][0]] += 1
                    else:
                        await asyncio.sleep(0.01)
                except httpx.TransportError as exc:
                    outcome = repr(exc)
                self.seen[outcome] += 1
                self.log.append((time.monotonic(), outcome))

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[Traffic]:
        """Have the clients infer meanwhile."""
        tasks = [asyncio.create_task(self._infer()) for _ in range(self._clients)]
        try:
            await self.answered(20)
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def answered(self, more: int) -> None:
        """Return when so many more inferences were answered well."""
        wanted = self.seen[200] + more
        await asyncio.to_thread(eventually, lambda: self.seen[200] >= wanted)


async def test_an_engine_killed_under_traffic_is_missed_for_seconds_and_nobody_is_cut_off(
    instance: Instance, deployed: Deployed
) -> None:
    async with Traffic(instance, deployed.url).flowing() as traffic:
        (pid,) = instance.engine_pids()
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        await traffic.answered(100)

    assert set(traffic.seen) <= {200, 502, 503}
    failures = [moment for moment, outcome in traffic.log if outcome != 200]
    assert not failures or max(failures) - killed < 10
    assert instance.engine_pids() != [pid]


async def test_versions_change_over_without_a_failed_request(instance: Instance, deployed: Deployed) -> None:
    tenfold = await asyncio.to_thread(instance.upload, "tenfold", model_bytes(10.0))

    async with Traffic(instance, deployed.url).flowing() as traffic:
        again = await asyncio.to_thread(instance.deploy, "sums", tenfold)
        # The former engine goes a moment after the change, and with it the connections that it answered.
        await asyncio.to_thread(eventually, lambda: WIDTH * 10.0 in traffic.values)
        await traffic.answered(100)

    assert again.id == deployed.id
    assert set(traffic.seen) == {200}
    assert set(traffic.values) == {WIDTH * 1.0, WIDTH * 10.0}
    assert instance.infer(deployed.url).json()[0]["out"]["total"] == [WIDTH * 10.0]
    eventually(lambda: len(instance.engine_pids()) == 1)


def test_the_server_comes_back_after_kill_9_and_finds_its_engines(instance: Instance, deployed: Deployed) -> None:
    before = instance.engine_pids()
    instance.kill()

    instance.start()

    assert eventually(lambda: instance.infer(deployed.url)).status_code == 200
    assert instance.status(f"sums-{deployed.id}") == "Running"
    assert instance.engine_pids() == before


def test_engines_that_died_with_the_server_run_again_without_a_deploy(instance: Instance, deployed: Deployed) -> None:
    before = instance.engine_pids()
    instance.kill()
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    instance.start()

    eventually(lambda: instance.infer(deployed.url).status_code == 200)
    assert instance.engine_pids() != before


async def test_engines_answer_while_the_database_is_away_and_the_server_recovers(
    instance: Instance, deployed: Deployed
) -> None:
    async with Traffic(instance, deployed.url, clients=2).flowing() as traffic:
        (pid,) = instance.postgres_pid()
        os.kill(pid, signal.SIGQUIT)  # Postgres' immediate shutdown
        await asyncio.to_thread(eventually, lambda: not alive(pid))
        said = [await asyncio.to_thread(listed, instance)]
        async with asyncio.timeout(60):
            while said[-1][0] != 200:
                await traffic.answered(20)
                said.append(await asyncio.to_thread(listed, instance))

    assert said[0] == (503, 503)
    assert {status for status, _ in said} == {200, 503}
    assert set(traffic.seen) == {200}
    assert instance.postgres_pid() != [pid]


def listed(instance: Instance) -> tuple[int, int]:
    """Ask for the workspaces; returns the status and what the body says of it."""
    answer = httpx.post(f"{instance.base}/v1/api/workspaces/list", json={}, headers=instance.headers, timeout=30)
    return answer.status_code, answer.json().get("code", 200)


def test_undeploying_ends_in_404(instance: Instance, deployed: Deployed) -> None:
    assert instance.call("pipelines/undeploy", {"deployment_id": deployed.id}).json() == {}

    eventually(lambda: instance.status(f"sums-{deployed.id}") == "404")
    refused = instance.infer(deployed.url)
    assert refused.status_code == 404
    assert refused.json()["source"] == "platform"
    assert instance.engine_pids() == []


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
