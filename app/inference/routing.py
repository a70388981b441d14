"""Which engine answers for which deployment: a copy in memory of what the controller saw, good without the database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.deployments import observed as sightings
from app.deployments.controller import SEEN_TOPIC
from app.deployments.plan import Phase, Replica, ReplicaPhase
from app.deployments.service import TOPIC
from app.deployments.tables import Deployment
from app.kit.context import Context
from app.kit.http import is_away
from app.pipelines.tables import Pipeline

log = structlog.get_logger()

PART = "routes"
"""Under this name `Context.parts` holds the process's `RoutingTable`."""

POLL_S = 5.0
GONE_S = 1.0
"""How long a deployment that was looked up and found off is not looked up again."""
_GONE_KEPT = 10_000
DOWN_S = 2.0
"""How long a replica that did not answer is left alone, unless something new is seen of it before."""


@dataclass(eq=False, slots=True)
class Target:
    """One replica that may answer."""

    name: str
    host: str
    port: int
    sockets: tuple[str, ...] = ()
    busy: int = 0
    """Requests that this process waits for it to answer."""
    turns: int = 0
    """Connections that were handed to it."""
    down_until: float = 0.0

    @property
    def key(self) -> tuple[str, str, int]:
        """Return what tells it apart from a former self that listened elsewhere."""
        return self.name, self.host, self.port


@dataclass(slots=True)
class Route:
    """A deployment that is on."""

    deployment_id: int
    deploy_id: str
    pipeline: str
    targets: list[Target] = field(default_factory=list)
    reason: str | None = None
    """Why nothing answers, when it is known."""

    def choose(self, now: float, tried: set[Target] | frozenset[Target] = frozenset()) -> Target | None:
        """Return the replica with the least to do, those that failed a moment ago last; None when all were tried."""
        left = [target for target in self.targets if target not in tried]
        return min(left, key=lambda t: (t.down_until > now, t.busy, t.turns), default=None)


class RoutingTable:
    """Finds the engines of a deployment."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._routes: dict[int, Route] = {}
        self._on_change: list[Callable[[], None]] = []
        self._loading = asyncio.Lock()
        self._gone_at: dict[str, float] = {}
        self.is_loaded = False

    def find(self, name: str) -> Route | None:
        """Return the route of `<deploy id>-<deployment id>`, or None when no such deployment is on."""
        deploy_id, _, number = name.rpartition("-")
        if not (number.isascii() and number.isdigit() and len(number) < 19):
            return None
        route = self._routes.get(int(number))
        return route if route is not None and route.deploy_id == deploy_id else None

    def targets(self) -> list[Target]:
        """Return all replicas of all deployments."""
        return [target for route in self._routes.values() for target in route.targets]

    def mark_down(self, target: Target) -> None:
        """Take a replica that did not answer out of the rotation for a moment."""
        target.down_until = asyncio.get_running_loop().time() + DOWN_S

    def on_change(self, call: Callable[[], None]) -> None:
        """Have `call` told whenever routes may have changed."""
        self._on_change.append(call)

    async def is_gone(self, name: str) -> bool:
        """Say whether a deployment is off, looking it up anew: the table hears of changes a moment later.

        Whoever asks for one that is off again and again is not looked up each time.
        """
        now = asyncio.get_running_loop().time()
        if now - self._gone_at.get(name, -GONE_S) < GONE_S:
            return self.find(name) is None
        try:
            await self.load()
        except (DBAPIError, PoolTimeout) as exc:
            if not is_away(exc):
                raise
        if self.find(name) is not None:
            return False
        if len(self._gone_at) >= _GONE_KEPT:
            self._gone_at.clear()
        self._gone_at[name] = now
        return True

    async def load(self) -> None:
        """Read all routes from the database."""
        async with self._loading:
            await self._load()

    async def _load(self) -> None:
        async with self._context.sessions() as session:
            rows = await session.execute(
                select(
                    Deployment.id,
                    Deployment.deploy_id,
                    Deployment.observed,
                    Deployment.running_revision,
                    Deployment.phase,
                    Deployment.reason,
                    Pipeline.pipeline_id,
                )
                .join(Pipeline, Pipeline.id == Deployment.pipeline_id)
                .where(Deployment.deployed)
            )
            routes = {}
            for row in rows:
                known = self._routes.get(row.id)
                before = {target.key: target for target in known.targets} if known else {}
                seen = sightings.read(row.observed).replicas
                targets = [
                    before.get((r.name, r.host or "", r.port or 0)) or _target(r)
                    for r in seen
                    if r.phase is ReplicaPhase.RUNNING and r.revision == row.running_revision and r.port
                ]
                reason = row.reason if row.phase == Phase.FAILED else None
                routes[row.id] = Route(row.id, row.deploy_id, row.pipeline_id, targets, reason)
        self._routes = routes
        self.is_loaded = True
        for call in self._on_change:
            call()

    async def follow(self) -> None:
        """Keep the table true, for ever; without the database it stays as it was."""
        events = self._context.events
        wake = events.subscribe(TOPIC, SEEN_TOPIC)
        while True:
            try:
                await self.load()
            except (DBAPIError, PoolTimeout) as exc:
                if not is_away(exc):
                    raise
                log.warning("routes.database_away")
            await events.wait(wake, POLL_S if self.is_loaded else 0.5)


def _target(replica: Replica) -> Target:
    return Target(replica.name, replica.host or "", replica.port or 0, replica.sockets)


def routes_of(context: Context) -> RoutingTable:
    """Return the process's routing table."""
    table: RoutingTable | None = context.parts.get(PART)
    if table is None:
        table = context.parts[PART] = RoutingTable(context)
    return table


async def run(context: Context) -> None:
    """Keep the process's routing table true."""
    await routes_of(context).follow()
