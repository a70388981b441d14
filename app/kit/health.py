"""Is it alive, is it ready, how is it doing."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from sqlalchemy import text

from app.errors import Unavailable
from app.kit.context import context_of

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The state of this process."""

    status: str


@router.get("/livez")
async def livez() -> Health:
    """Answer as long as the process serves requests."""
    return Health(status="ok")


@router.get("/readyz")
async def readyz(request: Request) -> Health:
    """Answer 200 when requests can be served: the database answers."""
    try:
        async with asyncio.timeout(2), context_of(request).sessions() as session:
            await session.execute(text("SELECT 1"))
    except TimeoutError as exc:
        raise Unavailable("The database does not answer.") from exc
    return Health(status="ok")


@router.get("/metrics", response_class=Response)
async def metrics() -> Response:
    """Return Prometheus metrics of this process."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
