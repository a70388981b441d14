"""A process that is a gateway and nothing else."""

from __future__ import annotations

import httpx

from app.kit.context import Context
from app.main import create_app


async def test_a_gateway_answers_probes_and_inference_alone(context: Context) -> None:
    transport = httpx.ASGITransport(create_app(context, roles=("gateway",)))
    async with httpx.AsyncClient(transport=transport, base_url="http://potoroo.test") as client:
        alive = await client.get("/livez")
        inference = await client.post("/v1/api/pipelines/infer/fraud-1/fraud", content=b"[]")
        listing = await client.post("/v1/api/workspaces/list", json={})

    assert alive.status_code == 200
    assert inference.status_code == 401
    assert listing.status_code == 404
