"""What engines are told of who may infer, and the secret by which they ask."""

from __future__ import annotations

import hmac

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.deployments.tables import Deployment, DeploymentModelConfig
from app.errors import NotFound, Unauthenticated
from app.identity.keys import access_facts
from app.kit.context import Context
from app.kit.secrets import WrongKey, box_of
from app.models.service import artifact_key
from app.models.tables import ModelConfig, ModelVersion
from app.pipelines.tables import Pipeline
from app.workspaces.access import member_ids
from engine.contract.deployment import AccessDocument

_PREFIX = "engine-access:"


def access_token(context: Context, deployment_id: int) -> str:
    """Return a secret that proves to us that its bearer is an engine of this deployment; we keep no copy."""
    return box_of(context).encrypt(f"{_PREFIX}{deployment_id}".encode()).decode()


def check_access_token(context: Context, deployment_id: int, token: str) -> None:
    """Raise `Unauthenticated` unless `token` was made for this deployment."""
    try:
        said = box_of(context).decrypt(token.encode())
    except (WrongKey, UnicodeEncodeError) as exc:
        raise Unauthenticated("This is no token of an engine.") from exc
    if not hmac.compare_digest(said, f"{_PREFIX}{deployment_id}".encode()):
        raise Unauthenticated("This token belongs to an engine of another deployment.")


def deployment_of_token(context: Context, token: str) -> int | None:
    """Return the deployment that a token was made for; None when it is no token of an engine."""
    try:
        said = box_of(context).decrypt(token.encode()).decode("ascii", "replace")
    except (WrongKey, UnicodeEncodeError):
        return None
    number = said.removeprefix(_PREFIX)
    return int(number) if said != number and number.isdecimal() else None


async def workspace_of(session: AsyncSession, deployment_id: int) -> int | None:
    """Return the workspace that a deployment runs in; None when there is no such deployment."""
    return await session.scalar(select(Pipeline.workspace_id).join(Deployment).where(Deployment.id == deployment_id))


async def access_document(context: Context, deployment_id: int) -> AccessDocument:
    """Return who may infer on a deployment as of now; raises `NotFound` when there is no such deployment."""
    facts = await access_facts(context)
    async with context.sessions() as session:
        members = await _members(session, deployment_id)
    users = (set(members) | set(facts.admins)) - set(facts.disabled)
    return AccessDocument(
        issuers=facts.issuers,
        keys=facts.keys,
        users=sorted(users),
        revoked_sessions=facts.revoked_sessions,
        not_before=facts.not_before,
    )


async def artifact_key_of(context: Context, deployment_id: int, version_id: int) -> str:
    """Return the storage key of a model that a deployment runs; raises `NotFound` when it runs no such version."""
    async with context.sessions() as session:
        sha = await session.scalar(
            select(ModelVersion.sha)
            .join(ModelConfig, ModelConfig.model_id == ModelVersion.id)
            .join(DeploymentModelConfig, DeploymentModelConfig.model_config_id == ModelConfig.id)
            .where(DeploymentModelConfig.deployment_id == deployment_id, ModelVersion.id == version_id)
            .limit(1)
        )
    if sha is None:
        raise NotFound(f"Deployment {deployment_id} runs no model version {version_id}.")
    return artifact_key(sha)


async def _members(session: AsyncSession, deployment_id: int) -> list[str]:
    workspace_id = await workspace_of(session, deployment_id)
    if workspace_id is None:
        raise NotFound(f"There is no deployment {deployment_id}.")
    return await member_ids(session, workspace_id)
