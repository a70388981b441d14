"""How a run on another machine gets its bundle: by a secret that proves which run asks."""

from __future__ import annotations

import hmac
import uuid

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import NotFound, Unauthenticated
from app.kit.context import Context
from app.kit.secrets import WrongKey, box_of
from app.orchestration.tables import Orchestration, Task, TaskRun

_PREFIX = "task-bundle:"


def token_for(context: Context, run_id: str) -> str:
    """Return a secret that proves to us that its bearer carries out this run; we keep no copy."""
    return box_of(context).encrypt(f"{_PREFIX}{run_id}".encode()).decode()


def check_token(context: Context, run_id: uuid.UUID, token: str) -> None:
    """Raise `Unauthenticated` unless `token` was made for this run."""
    try:
        said = box_of(context).decrypt(token.encode())
    except (WrongKey, UnicodeEncodeError) as exc:
        raise Unauthenticated("This is no token of a task run.") from exc
    if not hmac.compare_digest(said, f"{_PREFIX}{run_id}".encode()):
        raise Unauthenticated("This token belongs to another task run.")


async def sha_of(session: AsyncSession, run_id: uuid.UUID) -> str:
    """Return the hash of the bundle of a run that goes on; raises `NotFound` when there is none."""
    found = await session.scalar(
        select(Orchestration.sha)
        .join(Task, Task.orch_id == Orchestration.id)
        .join(TaskRun, TaskRun.task_id == Task.id)
        .where(TaskRun.id == run_id, TaskRun.status == "running")
    )
    if found is None:
        raise NotFound(f"There is no task run {run_id} under way.")
    return found
