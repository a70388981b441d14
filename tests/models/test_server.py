"""Uploads to a whole server: large, many at once, and cut short by its death."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.inference.instance import Instance, eventually, model_bytes, running

pytestmark = [pytest.mark.server, pytest.mark.slow]
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    yield from running(tmp_path_factory.mktemp("server") / "home")


def peak_mib(pid: int) -> float:
    """The most memory that the process has held since its mark was last cleared."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def test_a_large_upload_takes_hardly_any_memory(server: Instance) -> None:
    assert server.process is not None
    pid, size_mib = server.process.pid, int(os.environ.get("POTOROO_TEST_UPLOAD_MIB", "1024"))
    query = {"name": "large", "filename": "large.onnx", "workspace_id": server.workspace}
    digest, block = hashlib.sha256(), bytes(MIB)

    def body() -> Iterator[bytes]:
        for _ in range(size_mib):
            digest.update(block)
            yield block

    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before, began = peak_mib(pid), time.monotonic()
    answer = httpx.post(
        f"{server.base}/v1/api/models/upload_stream",
        params=query, content=body(), headers=server.headers, timeout=600,
    )  # fmt: skip
    took, more = time.monotonic() - began, peak_mib(pid) - before

    assert answer.status_code == 200, answer.text
    versions = server.call("models/list_versions", {"model_id": "large"}).json()
    print(f"upload of {size_mib} MiB: {took:.1f} s, {more:.0f} MiB more memory")
    assert versions[-1]["sha"] == digest.hexdigest()
    assert more < 200
    gone = {"model_id": "large", "workspace_id": server.workspace, "confirm_delete": True}
    assert server.call("models/delete_model", gone).json() == {"bytes": size_mib * MIB}


def test_many_uploads_at_once_all_become_ready(server: Instance) -> None:
    count = 200

    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=count)
        async with httpx.AsyncClient(
            base_url=server.base, headers=server.headers, timeout=120, limits=limits
        ) as client:
            return await asyncio.gather(*(one(client, n) for n in range(count)))

    async def one(client: httpx.AsyncClient, number: int) -> httpx.Response:
        metadata = {
            "name": f"many-{number % 20}",
            "visibility": "private",
            "workspace_id": server.workspace,
            "conversion": {"framework": "onnx", "python_version": "3.8", "requirements": []},
        }
        raw = model_bytes(float(number // 2))  # each file twice: versions share it
        files = {"metadata": (None, json.dumps(metadata), "application/json"), "file": ("m.onnx", raw)}
        return await client.post("/v1/api/models/upload", files=files)

    began = time.monotonic()
    answers = asyncio.run(all_at_once())
    uploaded = time.monotonic() - began

    assert {a.status_code for a in answers} == {200}, next(a.text for a in answers if a.status_code != 200)
    ids = {a.json()["insert_models"]["returning"][0]["models"][0]["id"] for a in answers}
    assert len(ids) == count

    def states() -> list[str]:
        listed = server.call("models/list", {"workspace_id": server.workspace}).json()["models"]
        return [v["model_version"]["status"] for m in listed for v in m["model_versions"]]

    eventually(lambda: set(states()) == {"ready"}, 300, every=0.5)
    print(f"{count} uploads at once: {uploaded:.1f} s, all ready after {time.monotonic() - began:.1f} s")
    assert len(states()) == count


def test_a_server_killed_during_an_upload_keeps_nothing_of_it(server: Instance) -> None:
    incoming = server.home / "blobs" / "incoming"
    before = sorted(p.name for p in (server.home / "blobs" / "models").iterdir())
    query = {"name": "cut", "filename": "cut.onnx", "workspace_id": server.workspace}
    killed = threading.Event()

    def body() -> Iterator[bytes]:
        for _ in range(20):
            yield os.urandom(MIB)
        killed.wait(60)

    def send() -> None:
        with pytest.raises(httpx.TransportError):
            httpx.post(
                f"{server.base}/v1/api/models/upload_stream",
                params=query, content=body(), headers=server.headers, timeout=60,
            )  # fmt: skip

    client = threading.Thread(target=send)
    client.start()
    eventually(lambda: any(p.stat().st_size > 4 * MIB for p in incoming.iterdir()))

    server.kill()
    killed.set()
    client.join()
    server.start()

    eventually(lambda: not list(incoming.iterdir()))
    assert server.call("models/list_versions", {"model_id": "cut"}).json() == []
    assert sorted(p.name for p in (server.home / "blobs" / "models").iterdir()) == before
