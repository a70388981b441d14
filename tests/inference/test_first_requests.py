"""What the first requests to a new server must not wait for."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from tests.inference.instance import WIDTH, Instance, model_bytes, running

pytestmark = [pytest.mark.slow, pytest.mark.server]
ARROW = "application/vnd.apache.arrow.file"


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    with tempfile.TemporaryDirectory(prefix="potoroo-") as folder:
        yield from running(Path(folder) / "home")


def test_neither_engine_nor_server_loads_pandas(instance: Instance) -> None:
    pytest.importorskip("pandas", reason="what is not installed cannot be loaded")
    deployed = instance.deploy("sums", instance.upload("sum", model_bytes(1.0)))
    table = pa.table({"tensor": pa.array([[1.0] * WIDTH], pa.list_(pa.float32()))})
    body = io.BytesIO()
    with pa.ipc.new_file(body, table.schema) as file:
        file.write(table)

    answer = httpx.post(
        deployed.url, content=body.getvalue(), headers=instance.headers | {"Content-Type": ARROW, "Accept": ARROW}
    )
    logged = instance.call("pipelines/get_logs", {"pipeline_id": "sums", "workspace_id": instance.workspace})

    assert answer.status_code == 200
    assert len(logged.json()) == 1
    assert instance.process is not None
    for pid in [instance.process.pid, *instance.engine_pids()]:
        assert "/pandas/" not in Path(f"/proc/{pid}/maps").read_text()
