"""Clients take the first or the last of a model's versions for the newest, each in its own way."""

from __future__ import annotations

import httpx
import pytest

from app.models.tables import ModelVersion
from tests.conftest import ANN
from tests.factories import Make


@pytest.mark.parametrize(
    ("agent", "newest_is_last"),
    [
        ("python-httpx/0.23.3", True),
        ("WallarooSDK/2024.4.4", True),
        ("WallarooSDK/2025.1.6", False),
        ("WallarooSDK/2026.1.3", False),
        ("curl/8.0", False),
    ],
)
async def test_the_newest_version_is_where_the_client_looks(
    agent: str, newest_is_last: bool, ann: httpx.AsyncClient, make: Make
) -> None:
    first = await make.model_version(await make.workspace(member=ANN))
    second = await make.add(ModelVersion(model_id=first.model_id, models_pk_id=first.models_pk_id, status="ready"))

    reply = await ann.post("/v1/api/models/get", json={"id": first.models_pk_id}, headers={"User-Agent": agent})

    ids = [version["id"] for version in reply.json()["models"]]
    assert ids == ([first.id, second.id] if newest_is_last else [second.id, first.id])
