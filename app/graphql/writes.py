"""Writes that mean more than a row: they follow the rules of the modules they belong to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.deployments import service as deployments
from app.graphql.errors import CHECK_FAILED, CONSTRAINT, DATA, PERMISSION, Fault
from app.identity.caller import Caller
from app.kit.names import check_label, check_name
from app.models.tables import ModelConfig
from app.pipelines.service import check_definition
from app.pipelines.tables import ModelTag, PipelineTag, Tag
from app.workspaces import access
from app.workspaces import service as workspaces
from app.workspaces.tables import UserDefaultWorkspace, WorkspaceUser

DEFAULT_SUFFIX = " - Default Workspace"


async def make_workspace(
    session: AsyncSession, caller: Caller, given: dict[str, Any], values: dict[str, Any]
) -> int | None:
    """Return the caller's default workspace if that is what is asked for; else only check and complete `values`."""
    creator = values.get("created_by")
    if creator not in (None, caller.id, caller.email):
        raise Fault(CHECK_FAILED, PERMISSION)
    name = values.get("name") or ""
    members = _data(given, "users")
    defaults = _data(given, "user_default_workspaces")
    if any(row.get("user_id") not in (None, caller.id) for row in (*members, *defaults)):
        raise Fault(CHECK_FAILED, PERMISSION)
    if defaults:
        if not name.endswith(DEFAULT_SUFFIX):
            raise Fault(f"A default workspace is named {workspaces.default_name(caller)!r}.", PERMISSION)
        return await _default_workspace(session, caller, creator)
    values["created_by"] = creator or caller.email or caller.id
    check_name("Workspace", name)
    return None


async def _default_workspace(session: AsyncSession, caller: Caller, creator: str | None) -> int:
    has_one = await session.scalar(select(UserDefaultWorkspace.id).where(UserDefaultWorkspace.user_id == caller.id))
    found = await workspaces.ensure_default(session, caller)
    if has_one is None and found.owner_id == caller.id:
        found.created_by = creator or caller.email or ""
        await session.flush()
    return found.id


def _data(given: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return list((given.get(name) or {}).get("data") or ())


async def own_workspace(session: AsyncSession, caller: Caller, key: int) -> None:
    """Make the caller an owner of the workspace they have just made."""
    row = {"workspace_id": key, "user_id": caller.id, "user_type": access.OWNER}
    await session.execute(insert(WorkspaceUser).values(row).on_conflict_do_nothing())


async def leave_workspaces(session: AsyncSession, caller: Caller, keys: list[int]) -> None:
    """Put members out of their workspaces, by the rules of workspaces."""
    rows = await session.execute(
        select(WorkspaceUser.workspace_id, WorkspaceUser.user_id)
        .where(WorkspaceUser.id.in_(keys))
        .order_by(WorkspaceUser.id)
    )
    for workspace_id, user_id in rows.all():
        await workspaces.remove_user(session, caller, workspace_id, user_id)


async def complete_config(session: AsyncSession, values: dict[str, Any]) -> dict[str, Any]:
    """Give a configuration the runtime of the one before it when the client leaves that open."""
    fields = values.get("tensor_fields")
    if fields is not None and not (isinstance(fields, list) and all(isinstance(f, str) for f in fields)):
        raise Fault("tensor_fields is a list of names.", DATA)
    if values.get("runtime") is None:
        before = select(ModelConfig.runtime).where(ModelConfig.model_id == values.get("model_id"))
        newest = await session.scalar(before.order_by(ModelConfig.id.desc()).limit(1))
        return values | {"runtime": newest or "onnx"}
    return values


async def check_pipeline(_: AsyncSession, values: dict[str, Any]) -> dict[str, Any]:
    """Hold a new pipeline to the rules of names and visibility."""
    if values.get("pipeline_id") is not None:
        check_label("Pipeline", values["pipeline_id"])
    if values.get("visibility") is None:
        values.pop("visibility", None)
    elif values["visibility"] not in ("private", "public"):
        raise Fault(CHECK_FAILED, PERMISSION)
    return values


async def check_version(_: AsyncSession, values: dict[str, Any]) -> dict[str, Any]:
    """Hold a new version to the rules of definitions."""
    definition = values.get("definition")
    if definition is not None:
        if not isinstance(definition, dict):
            raise Fault("A definition is an object.", DATA)
        check_definition(definition)
    return values


async def keep_orphans(
    session: AsyncSession, caller: Caller, table: type[ModelTag] | type[PipelineTag], keys: list[int]
) -> None:
    """Take tags off; one that is then on nothing belongs to the caller, who may put it on something else."""
    column = ModelTag.tag_id if table is ModelTag else PipelineTag.tag_pk_id
    tags = set(await session.scalars(select(column).where(table.id.in_(keys))))
    for row in await session.scalars(select(table).where(table.id.in_(keys))):
        await session.delete(row)
    await session.flush()
    linked = (
        select(ModelTag.id).where(ModelTag.tag_id == Tag.id).exists(),
        select(PipelineTag.id).where(PipelineTag.tag_pk_id == Tag.id).exists(),
    )
    orphans = update(Tag).where(Tag.id.in_(tags), ~linked[0], ~linked[1]).values(owner_id=caller.id)
    await session.execute(orphans.execution_options(synchronize_session=False))


async def _replace_model(
    session: AsyncSession, caller: Caller, _: dict[str, Any], values: dict[str, Any]
) -> int | None:
    if values.get("deployment_id") is None or values.get("model_config_id") is None:
        raise Fault("Not-NULL violation. deployment_id and model_config_id are needed.", CONSTRAINT)
    row = await deployments.replace_model(session, caller, values["deployment_id"], values["model_config_id"])
    return row.id


async def _redeploy(session: AsyncSession, caller: Caller, key: int) -> None:
    await deployments.redeploy(session, caller, key)


async def _untag_models(session: AsyncSession, caller: Caller, keys: list[int]) -> None:
    await keep_orphans(session, caller, ModelTag, keys)


async def _untag_pipelines(session: AsyncSession, caller: Caller, keys: list[int]) -> None:
    await keep_orphans(session, caller, PipelineTag, keys)


INSTEAD_OF_INSERT: Mapping[
    str, Callable[[AsyncSession, Caller, dict[str, Any], dict[str, Any]], Awaitable[int | None]]
] = {"workspace": make_workspace, "deployment_model_configs": _replace_model}
"""Makes a row and returns its key, or returns None to let the row be inserted as it stands."""

BEFORE_INSERT: Mapping[str, Callable[[AsyncSession, dict[str, Any]], Awaitable[dict[str, Any]]]] = {
    "model_config": complete_config,
    "pipeline": check_pipeline,
    "pipeline_version": check_version,
}
AFTER_INSERT: Mapping[str, Callable[[AsyncSession, Caller, int], Awaitable[None]]] = {"workspace": own_workspace}
INSTEAD_OF_UPDATE: Mapping[str, Callable[[AsyncSession, Caller, int], Awaitable[None]]] = {"deployment": _redeploy}
INSTEAD_OF_DELETE: Mapping[str, Callable[[AsyncSession, Caller, list[int]], Awaitable[None]]] = {
    "workspace_users": leave_workspaces,
    "model_tag": _untag_models,
    "pipeline_tag": _untag_pipelines,
}
