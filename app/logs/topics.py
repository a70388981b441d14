"""Which topics a caller may see: those of the pipelines of their workspaces."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import NotFound, Unauthenticated
from app.identity.caller import Caller
from app.kit.secrets import write_private
from app.pipelines import service as pipelines
from app.pipelines.tables import Pipeline
from app.settings import Settings
from app.workspaces import access
from app.workspaces.tables import Workspace

FAILURES = "-failures"
_TOPIC = re.compile(r"workspace-(\d{1,18})-pipeline-([A-Za-z0-9-]{1,253})-inference(-failures)?", re.ASCII)
_TOKEN_PREFIX = "plog."  # noqa: S105
KEY_FILE = "log.key"


def parse(topic: str) -> tuple[int, str] | None:
    """Return workspace and pipeline of a topic; None for a name that no pipeline has."""
    found = _TOPIC.fullmatch(topic)
    return (int(found[1]), found[2]) if found else None


async def of_pipeline(
    session: AsyncSession, caller: Caller, *, pipeline_id: int | None, name: str | None, workspace_id: int | None
) -> str:
    """Return the topic of a pipeline; raises `NotFound` when it does not exist for `caller`."""
    pipeline: Pipeline
    if pipeline_id is not None:
        pipeline = await pipelines.pipeline_by_id(session, caller, pipeline_id)
    else:
        pipeline = await pipelines.pipeline_by_name(session, caller, name or "", workspace_id)
    return pipelines.topic_name(pipeline.workspace_id, pipeline.pipeline_id)


async def sees(session: AsyncSession, caller: Caller, topic: str) -> bool:
    """Tell whether a topic exists as far as `caller` is concerned."""
    return topic in await visible(session, caller, [topic])


async def visible(session: AsyncSession, caller: Caller, topics: Iterable[str]) -> list[str]:
    """Return those of `topics` that `caller` may see: those of their workspaces; of an administrator, all."""
    topics = list(topics)
    if caller.is_admin:
        return topics
    workspaces = {topic: found[0] for topic in topics if (found := parse(topic)) is not None}
    if not workspaces:
        return []
    query = select(Workspace.id).where(
        Workspace.id.in_(set(workspaces.values())), access.sees_workspace(caller, Workspace.id)
    )
    seen = set(await session.scalars(query))
    return [topic for topic in topics if workspaces.get(topic) in seen]


async def check_appendable(session: AsyncSession, caller: Caller, topic: str) -> None:
    """Raise `NotFound` unless the topic is that of a pipeline that `caller` may see."""
    found = parse(topic)
    if found is None:
        raise NotFound(f"There is no topic {topic[:300]!r}.")
    await pipelines.pipeline_by_name(session, caller, found[1], found[0])


def append_token(settings: Settings, workspace_id: int) -> str:
    """Return the token with which an engine of a workspace appends to its topics over HTTP, and nothing else."""
    mark = hmac.new(_key(settings), f"append:{workspace_id}".encode(), hashlib.sha256).hexdigest()
    return f"{_TOKEN_PREFIX}{workspace_id}.{mark}"


def is_append_token(token: str) -> bool:
    """Tell whether a bearer token has the form of those that `append_token` gives."""
    return token.startswith(_TOKEN_PREFIX)


def check_append_token(settings: Settings, token: str, topic: str) -> None:
    """Raise `Unauthenticated` for a token of nobody, `NotFound` for a topic of another workspace."""
    workspace = token.removeprefix(_TOKEN_PREFIX).partition(".")[0]
    right = workspace.isdigit() and hmac.compare_digest(token.encode(), append_token(settings, int(workspace)).encode())
    if not right:
        raise Unauthenticated("The token is not valid.")
    found = parse(topic)
    if found is None or found[0] != int(workspace):
        raise NotFound(f"There is no topic {topic[:300]!r}.")


def _key(settings: Settings) -> bytes:
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().split(",")[0].strip().encode()
    path: Path = settings.home / KEY_FILE
    if not path.exists():
        import secrets

        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, secrets.token_hex(32) + "\n", replace=False)
    return path.read_text().strip().encode()
