"""Selects on workspaces."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, TableClause, column, func, select, table
from sqlalchemy.dialects.postgresql import aggregate_order_by

from app.identity.caller import Caller
from app.workspaces.access import sees_workspace
from app.workspaces.tables import Workspace, WorkspaceUser

# What lies in a workspace belongs to modules above this one; only their ids are shown here.
_MODELS = table("models", column("id"), column("workspace_id"))
_VERSIONS = table("model", column("id"), column("models_pk_id"))
_PIPELINES = table("pipeline", column("id"), column("workspace_id"))


def listing(caller: Caller, user_id: str | None = None) -> Select[Any]:
    """Return the select of the workspaces the caller sees: row, ids of its model versions, ids of its pipelines.

    With `user_id`, only those this user belongs to.
    """
    versions = _ids(_VERSIONS.c.id, _VERSIONS.join(_MODELS, _MODELS.c.id == _VERSIONS.c.models_pk_id), _MODELS)
    pipelines = _ids(_PIPELINES.c.id, _PIPELINES, _PIPELINES)
    query = (
        select(Workspace, versions.c.ids, pipelines.c.ids)
        .outerjoin(versions, versions.c.workspace_id == Workspace.id)
        .outerjoin(pipelines, pipelines.c.workspace_id == Workspace.id)
        .where(sees_workspace(caller, Workspace.id))
        .order_by(Workspace.id)
    )
    if user_id is not None:
        mine = select(WorkspaceUser.workspace_id).where(WorkspaceUser.user_id == user_id)
        query = query.where(Workspace.id.in_(mine))
    return query


def _ids(key: Any, source: Any, owner: TableClause) -> Any:
    ids = func.array_agg(aggregate_order_by(key, key)).label("ids")
    return select(owner.c.workspace_id, ids).select_from(source).group_by(owner.c.workspace_id).subquery()
