"""Records over the limit lose their largest columns, whichever way the engine answered, and say which."""

from __future__ import annotations

from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from engine.logs.query import read_page
from tests.engine.server import models
from tests.engine.server.test_engine_process import ARROW, running
from tests.logs.test_writer import all_records

pytestmark = pytest.mark.server

WIDTH = 500


def arrow_of(rows: int) -> bytes:
    table = pa.table({"tensor": pa.array([[0.5] * WIDTH] * rows, pa.list_(pa.float32()))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("form", ["json", "arrow"])
def test_large_inputs_are_dropped_from_the_log_and_named(tmp_path: Path, form: str) -> None:
    document = models.document(
        tmp_path,
        {"wide": models.linear(tmp_path / "m.onnx", width=WIDTH)},
        log={"root": str(tmp_path / "logs"), "record_bytes_limit": 1_000},
    )
    rows = [{"tensor": [0.5] * WIDTH}]
    with running(tmp_path, document) as engine, httpx.Client(base_url=engine.url) as client:
        for count in (1, 1, 1, 3, 3):
            if form == "json":
                reply = client.post("/infer", json=rows * count)
                assert reply.status_code == 200
                assert [len(row["in"]["tensor"]) for row in reply.json()] == [WIDTH] * count
            else:
                reply = client.post("/infer", content=arrow_of(count), headers={"content-type": ARROW})
                assert reply.status_code == 200

    kept = all_records(tmp_path / "logs", "topic-wide")
    assert len(kept) == 9
    for row in kept:
        assert row["metadata"]["dropped"] == ["in.tensor"]
        assert row["in"] == {}
        assert len(row["out"]["y"]) == 1
    table = read_page(tmp_path / "logs", "topic-wide").table
    assert table.num_rows == 9, "all of one schema"
