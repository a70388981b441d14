"""What tests of models share: uploads in every form, and a look at what is left in storage."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.kit.context import Context
from app.models import inspection
from app.models.tables import ModelVersion
from app.workspaces.tables import Workspace
from tests.models import onnx_files

UPLOAD = "/v1/api/models/upload_and_convert"


@pytest.fixture(autouse=True)
def _nobody_inspects(context: Context) -> None:
    """No worker runs beside a test: answers do not wait for one."""
    context.settings.upload_wait_s = 0


def metadata(workspace: Workspace | int, **values: Any) -> dict[str, Any]:
    """What an upload says of the model."""
    return {
        "name": "fraud",
        "visibility": "private",
        "workspace_id": workspace if isinstance(workspace, int) else workspace.id,
        "conversion": {"framework": "onnx", "python_version": "3.8", "requirements": []},
    } | values


def form(meta: dict[str, Any] | None, blob: bytes | None, file_name: str = "fraud.onnx") -> list[tuple[str, Any]]:
    """The parts of an upload as the SDK sends them."""
    parts: list[tuple[str, Any]] = []
    if meta is not None:
        parts.append(("metadata", (None, json.dumps(meta), "application/json")))
    if blob is not None:
        parts.append(("file", (file_name, blob, "application/octet-stream")))
    return parts


def id_in(answer: httpx.Response) -> int:
    """The version's id in the answer to an upload."""
    assert answer.status_code in (200, 202), answer.text
    return int(answer.json()["insert_models"]["returning"][0]["models"][0]["id"])


async def upload(client: httpx.AsyncClient, workspace: Workspace, blob: bytes | None = None, **values: Any) -> int:
    """Upload a model; returns the id of its version."""
    blob = onnx_files.linear() if blob is None else blob
    return id_in(await client.post(UPLOAD, files=form(metadata(workspace, **values), blob)))


Settle = Callable[[int], Awaitable[ModelVersion]]


@pytest.fixture
async def settle(context: Context, session: AsyncSession) -> Settle:
    """Has a worker inspect a version; returns it as it is then."""

    async def inspected(version_id: int) -> ModelVersion:
        await inspection.settle(context, version_id)
        row = await session.scalar(
            select(ModelVersion).where(ModelVersion.id == version_id).execution_options(populate_existing=True)
        )
        assert row is not None
        return row

    return inspected


@pytest.fixture
async def left_over(context: Context, session: AsyncSession) -> Callable[[], Awaitable[list[Any]]]:
    """Everything that uploads have left: blobs, unfinished blobs, rows."""

    async def look() -> list[Any]:
        blobs = [k for prefix in ("models", "incoming") for k in await context.storage.keys(prefix)]
        return blobs + list(await session.scalars(select(ModelVersion.id)))

    return look
