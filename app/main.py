"""Puts the parts together: one process's context, its routes and its loops."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI

import app.schema  # noqa: F401 - makes every table known
from app.assays import notifications as assay_notices
from app.assays import scheduler as assay_clock
from app.assays import v1_routes as assays_v1
from app.assays import v2_routes as assays_v2
from app.connections import routes as connections
from app.connections import upkeep as connections_upkeep
from app.deployments import controller as deployments_controller
from app.deployments import routes as deployments
from app.graphql import routes as graphql
from app.identity import admin as identity_admin
from app.identity import faces as identity_faces
from app.identity import pages as identity_pages
from app.identity import parts as identity_parts
from app.identity import provider as identity_provider
from app.identity import routes as identity
from app.identity import upkeep as identity_upkeep
from app.identity.caller import CHECKS
from app.inference import errors as inference_errors
from app.inference import gateway as inference_gateway
from app.inference import routes as inference
from app.inference import routing as inference_routing
from app.kit import db, docs, health, http
from app.kit.context import Context, Loop
from app.kit.events import Events
from app.kit.storage import open_storage
from app.logs import routes as logs
from app.logs import upkeep as logs_upkeep
from app.models import inspection as models_inspection
from app.models import routes as models
from app.models import upload_routes as models_upload
from app.orchestration import packaging, runs
from app.orchestration import routes as orchestration
from app.orchestration import scheduler as task_clock
from app.pipelines import routes as pipelines
from app.settings import Settings
from app.workspaces import routes as workspaces

log = structlog.get_logger()

ROUTERS: list[APIRouter] = [
    health.router,
    docs.router,
    identity_provider.router,
    identity_pages.router,
    identity_admin.router,
    identity.router,
    workspaces.router,
    models.router,
    models_upload.router,
    connections.router,
    orchestration.router,
    pipelines.router,
    graphql.router,
    deployments.router,
    inference.router,
    logs.router,
    deployments.internal,
    orchestration.internal,
    assays_v1.router,
    assays_v2.router,
]
"""Every route of the API; a module adds its own here."""

GATEWAY_ROUTERS = [health.router, inference.router]
"""What a process answers that is a gateway and nothing else."""

LOOPS: dict[str, dict[str, Loop]] = {
    "api": {"routes": inference_routing.run},
    "gateway": {"routes": inference_routing.run},
    "controller": {"deployments": deployments_controller.run},
    "scheduler": {
        "identity": identity_upkeep.keep_up,
        "connections": connections_upkeep.run,
        "logs": logs_upkeep.run,
        "assays": assay_clock.run,
        "assay-notices": assay_notices.run,
        "tasks": task_clock.run,
    },
    "worker": {
        "models": models_inspection.run,
        "packaging": packaging.work,
        "task-runs": runs.work,
    },
}
"""Endless tasks by role: name to loop. A loop that ends or fails is started again after a pause."""

_PATIENCE_S = 5.0
"""How long a loop may take to end before it is cancelled once more."""

ALL_ROLES = ("api", "controller", "scheduler", "worker")
"""What one machine needs; the API is a gateway too."""


def make_context(settings: Settings, database_url: str) -> Context:
    """Open what one process needs: the database, the storage, the wake-ups."""
    engine = db.connect(database_url, settings.database_pool)
    return Context(
        settings=settings,
        database=engine,
        sessions=db.sessions_on(engine),
        events=Events(db.plain_url(database_url)),
        storage=open_storage(settings.blobs_url),
    )


async def open_parts(context: Context) -> None:
    """Make the long-lived objects that modules keep in `context.parts`."""
    await identity_parts.open_parts(context)


async def close_parts(context: Context) -> None:
    """Close what modules keep in `context.parts`."""
    await inference_gateway.close_parts(context)
    await identity_parts.close_parts(context)


def create_app(context: Context, roles: Sequence[str] = ALL_ROLES) -> FastAPI:
    """Return the application on `context`; the loops of `roles` run while it does."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        context.events.start()
        await open_parts(context)
        tasks = [
            asyncio.create_task(keep_running(context, name, loop), name=name)
            for role in roles
            for name, loop in LOOPS.get(role, {}).items()
        ]
        try:
            yield
        finally:
            await end(tasks)
            await close_parts(context)
            await context.events.stop()
            await context.database.dispose()

    api = FastAPI(
        title="Potoroo",
        version="0.1.0",
        description="An open, self-hosted MLOps control plane that speaks the Wallaroo MLOps API.",
        docs_url=None,
        redoc_url=None,
        openapi_url=docs.OPENAPI_URL,
        lifespan=lifespan,
        redirect_slashes=False,
        strict_content_type=False,
        responses=http.ERRORS,
    )
    api.state.context = context
    api.state.faces = http.install(api)
    identity_faces.register(api.state.faces)
    inference_errors.register(api.state.faces)
    graphql.register(api.state.faces)
    logs.register(api.state.faces)
    identity_pages.register(api.state.faces)
    routers = GATEWAY_ROUTERS if tuple(roles) == ("gateway",) else ROUTERS
    for router in routers:
        api.include_router(router)
    api.openapi = lambda: docs.document(api, routers, CHECKS, examples())  # type: ignore[method-assign]
    return api


def examples() -> dict[str, dict[str, Any]]:
    """Return what requests and answers look like, by method and path."""
    found: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "examples.json").read_bytes())
    return found


async def end(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel loops until they have ended: a cancellation is lost where something fails while it cleans up."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_PATIENCE_S)
    await asyncio.gather(*tasks, return_exceptions=True)


async def keep_running(context: Context, name: str, loop: Loop) -> None:
    """Run `loop` for ever: one that fails is logged and started again, with growing pauses."""
    pause_s = 1.0
    while True:
        started = asyncio.get_running_loop().time()
        try:
            await loop(context)
        except Exception as exc:  # a loop must not die of one bad turn
            if http.is_away(exc):
                log.warning("loop.database_away", loop=name)
            else:
                log.exception("loop.failed", loop=name)
        if asyncio.get_running_loop().time() - started > 60:
            pause_s = 1.0
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, 15.0)
