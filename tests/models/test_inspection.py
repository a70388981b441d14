"""What a worker makes of an upload: ready, or an error that says what to do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from app.kit import db
from app.kit.context import Context
from app.models import inspection, upkeep
from app.models.outcomes import Outcomes, outcomes_of
from app.models.tables import ModelVersion
from tests.conftest import ANN
from tests.factories import Make
from tests.models import onnx_files
from tests.models.conftest import Settle, upload

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z (stdout|stderr) F \S.*")


async def test_a_model_becomes_ready_and_its_shape_is_known(ann: httpx.AsyncClient, make: Make, settle: Settle) -> None:
    version_id = await upload(ann, await make.workspace(member=ANN), onnx_files.linear(5))

    row = await settle(version_id)

    assert (row.status, row.error_summary) == ("ready", None)
    found = dict(row.inspection or {})
    assert found["inputs"] == [{"name": "x", "type": "tensor(float)", "shape": ["N", 5]}]
    assert found["outputs"] == [{"name": "y", "type": "tensor(float)", "shape": ["N", 1]}]
    assert (found["opsets"], found["ir_version"], found["producer"]) == ({"ai.onnx": 17}, 8, "tests")


@pytest.mark.parametrize(
    ("blob", "tells"),
    [
        (b"not a model" * 100, "no ONNX model"),
        (b"PK\x03\x04 a zip, perhaps", "no ONNX model"),
        (b"\x08\x08", "no graph"),
        (onnx_files.with_missing_data(), "weights.bin"),
        (onnx_files.with_missing_data_in_a_branch(), "secret.bin"),
        (onnx_files.linear(opset=999), "version 999 of the operator set ai.onnx"),
        (onnx_files.linear(ir=999), "IR version"),
        (onnx_files.linear(domain="com.example.made-up"), "com.example.made-up"),
        (onnx_files.without_shape_agreement(), "cannot load the model"),
        (onnx_files.linear()[:-20], "no ONNX model"),
    ],
    ids=["junk", "zip", "no graph", "external data", "external data in a branch", "opset", "IR version",
         "unknown operator", "shapes", "cut off"],
)  # fmt: skip
async def test_what_cannot_be_run_ends_in_an_error_that_says_why(
    ann: httpx.AsyncClient, make: Make, settle: Settle, blob: bytes, tells: str
) -> None:
    version_id = await upload(ann, await make.workspace(member=ANN), blob)

    row = await settle(version_id)

    assert row.status == "error"
    assert tells in (row.error_summary or "")
    assert str(Path.cwd().anchor + "tmp") not in (row.error_summary or "")
    shown = (await ann.post("/v1/api/models/get_version_by_id", json={"model_version_id": version_id})).json()
    assert shown["model_version"]["model_version"]["error_summary"] == row.error_summary


async def test_a_file_larger_than_any_onnx_model_is_told_so(context: Context, make: Make) -> None:
    version = await make.model_version(await make.workspace(), status="pending_load_native")
    path = context.storage.local_path(f"models/{version.sha}")
    assert path is not None
    path.parent.mkdir(parents=True)
    with path.open("wb") as sparse:
        sparse.truncate(3 * 1024**3)

    finding = await inspection.examine(context, version)

    assert "at most 2 GiB" in (finding.problem or "")


@pytest.mark.parametrize(
    ("setting", "value", "tells"),
    [
        ("inspection_s", 0.02, "took longer"),
        ("inspection_memory_bytes", 60 * 1024**2, "inspection"),
    ],
)
async def test_an_inspection_has_bounds(
    ann: httpx.AsyncClient, make: Make, settle: Settle, context: Context, setting: str, value: Any, tells: str
) -> None:
    setattr(context.settings, setting, value)
    version_id = await upload(ann, await make.workspace(member=ANN))

    row = await settle(version_id)

    assert row.status == "error"
    assert tells in (row.error_summary or "")


async def test_a_lost_file_is_told(make: Make, settle: Settle) -> None:
    version = await make.model_version(await make.workspace(), status="pending_load_native")

    row = await settle(version.id)

    assert "no longer in storage" in (row.error_summary or "")


async def test_a_version_that_another_worker_holds_is_left_to_it_and_taken_up_when_that_dies(
    ann: httpx.AsyncClient, make: Make, context: Context, session: AsyncSession
) -> None:
    version_id = await upload(ann, await make.workspace(member=ANN))
    other = db.connect(str(context.database.url.render_as_string(hide_password=False)), pool=1)

    async with db.leadership(other, f"models/inspect/{version_id}") as held:
        assert held is not None
        (await session.get_one(ModelVersion, version_id)).status = "attempting_load_native"
        await session.commit()
        while_held = await inspection.settle(context, version_id)
        await held.invalidate()  # the other worker dies: its connection is gone, and its lock with it
    await other.dispose()
    afterwards = await inspection.settle(context, version_id)

    await session.refresh(await session.get_one(ModelVersion, version_id))
    assert (while_held, afterwards) == (False, True)
    assert (await session.get_one(ModelVersion, version_id)).status == "ready"


async def test_the_log_of_an_upload_is_lines_that_clients_can_read(
    ann: httpx.AsyncClient, bob: httpx.AsyncClient, make: Make, settle: Settle
) -> None:
    lab = await make.workspace(member=ANN)
    good, bad = await upload(ann, lab), await upload(ann, lab, b"junk")
    path = "/v1/api/models/get_upload_logs"
    before = (await ann.post(path, json={"model_version_id": good})).json()
    for version_id in (good, bad):
        await settle(version_id)

    whole = (await ann.post(path, json={"model_version_id": good, "lines": None})).json()["logs"]
    last = (await ann.post(path, json={"model_version_id": bad, "lines": 1})).json()["logs"]

    assert before == {"logs": []}
    assert all(LINE.fullmatch(line) for line in whole + last)
    assert whole[-1].endswith("the model is ready.")
    assert len(last) == 1
    assert "stderr F Error:" in last[0]
    assert (await bob.post(path, json={"model_version_id": good})).status_code == 404


async def test_the_inspection_learns_no_secret_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTOROO_SECRET_KEY", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    assert "secret" not in inspection._environment().values()


async def test_whoever_waits_is_woken_when_the_version_settles(make: Make, context: Context) -> None:
    lab = await make.workspace()
    ready = await make.model_version(lab)
    pending = await make.model_version(lab, status="pending_load_native")
    waiting: Outcomes = outcomes_of(context)

    await asyncio.wait_for(waiting.wait(ready.id, 60), 10)
    await asyncio.wait_for(waiting.wait(pending.id, 0.1), 10)

    assert outcomes_of(context) is waiting


async def test_blobs_that_no_version_uses_are_swept_when_they_are_old(
    ann: httpx.AsyncClient, make: Make, context: Context
) -> None:
    async def orphan() -> Any:
        yield b"left by a crash"

    await upload(ann, await make.workspace(member=ANN))
    blob = await context.storage.put("models", orphan())

    await upkeep.sweep(context, upkeep.timedelta(hours=1))
    young = await context.storage.keys("models")
    await upkeep.sweep(context, upkeep.timedelta(seconds=-5))
    old = await context.storage.keys("models")

    assert blob.key in young
    assert len(old) == 1
    assert blob.key not in old


@pytest.fixture
def cases(vendor_data: Path) -> Callable[[], list[Path]]:
    return lambda: sorted(vendor_data.rglob("*.onnx"))


@pytest.mark.vendor_data
async def test_every_recorded_model_is_ready(
    ann: httpx.AsyncClient, make: Make, settle: Settle, cases: Callable[[], list[Path]]
) -> None:
    lab = await make.workspace(member=ANN)

    found = {path.name: (await settle(await upload(ann, lab, path.read_bytes()))).status for path in cases()}

    assert found
    assert set(found.values()) == {"ready"}
