"""Selects on models."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, Text, and_, cast, column, exists, select, table, true
from sqlalchemy.orm import aliased, contains_eager

from app.identity.caller import Caller
from app.models.tables import Model, ModelConfig, ModelVersion
from app.workspaces.access import sees_workspace
from app.workspaces.tables import Workspace

# Deployments belong to a module above this one; only whether a version is in use is asked here.
_DEPLOYMENTS = table("deployment", column("id"), column("deployed"), column("pipeline_id"))
_DEPLOYED_CONFIGS = table("deployment_model_configs", column("deployment_id"), column("model_config_id"))


def deployed_version_ids() -> Select[Any]:
    """Return the select of the ids of versions that are in a deployment which is on."""
    config = aliased(ModelConfig)
    return (
        select(config.model_id)
        .join(_DEPLOYED_CONFIGS, _DEPLOYED_CONFIGS.c.model_config_id == config.id)
        .join(_DEPLOYMENTS, _DEPLOYMENTS.c.id == _DEPLOYED_CONFIGS.c.deployment_id)
        .where(_DEPLOYMENTS.c.deployed.is_(true()))
    )


def is_deployed() -> ColumnElement[bool]:
    """Return the condition that a version is in a deployment which is on."""
    return ModelVersion.id.in_(deployed_version_ids())


def visible_versions(caller: Caller) -> Select[Any]:
    """Return the select of the versions the caller may see, each with its model."""
    return (
        select(ModelVersion)
        .join(ModelVersion.model)
        .options(contains_eager(ModelVersion.model))
        .where(sees_workspace(caller, Model.workspace_id))
    )


def is_in_force(config: Any) -> ColumnElement[bool]:
    """Return the condition that `config` is the newest of its version.

    Not a lateral `ORDER BY id LIMIT 1`: for that Postgres walks the primary key, for each version anew.
    """
    newer = aliased(ModelConfig)
    return ~exists(select(newer.id).where(newer.model_id == config.model_id, newer.id > config.id).correlate(config))


def configured(caller: Caller) -> Select[ModelVersion, ModelConfig, int, bool]:
    """Return the select of version, configuration in force, workspace id, whether it is deployed."""
    return (
        select(ModelVersion, ModelConfig, Model.workspace_id, is_deployed())
        .join(Model, Model.id == ModelVersion.models_pk_id)
        .join(ModelConfig, ModelConfig.model_id == ModelVersion.id)
        .where(sees_workspace(caller, Model.workspace_id), is_in_force(ModelConfig))
    )


MODEL_COLUMNS = [c.key for c in Model.__table__.c]
WORKSPACE_COLUMNS = ["id", "name", "archived", "created_by", "created_at"]
VERSION_COLUMNS = [c.key for c in ModelVersion.__table__.c if c.key != "inspection"]
CONFIG_COLUMNS = [c.key for c in ModelConfig.__table__.c if c.key != "created_at"]
"""What a listing's rows hold, in this order; the last column tells whether the version is deployed."""


def listing(
    caller: Caller, workspace_id: int | None, workspace_name: str | None, name: str | None = None
) -> Select[Any]:
    """Return the select of models with their workspaces, each model once per version, or once when it has none.

    The newest model comes first, and in each the version that changed last. Rows carry columns, not objects, and JSON
    as text: a listing has thousands.
    """
    versions = ModelVersion.__table__.c
    query = (
        select(
            *(Model.__table__.c[key].label(f"model_{key}") for key in MODEL_COLUMNS),
            *(Workspace.__table__.c[key].label(f"workspace_{key}") for key in WORKSPACE_COLUMNS),
            *(
                (cast(versions[key], Text) if key == "conversion" else versions[key]).label(f"version_{key}")
                for key in VERSION_COLUMNS
            ),
            *(ModelConfig.__table__.c[key].label(f"config_{key}") for key in CONFIG_COLUMNS),
            is_deployed().label("deployed"),
        )
        .select_from(Model)
        .join(Workspace, Workspace.id == Model.workspace_id)
        .outerjoin(ModelVersion, ModelVersion.models_pk_id == Model.id)
        .outerjoin(ModelConfig, and_(ModelConfig.model_id == ModelVersion.id, is_in_force(ModelConfig)))
        .where(sees_workspace(caller, Model.workspace_id))
        .order_by(Model.created_at.desc(), Model.id.desc(), versions.updated_at.desc(), versions.id.desc())
    )
    if workspace_id is not None:
        query = query.where(Model.workspace_id == workspace_id)
    if workspace_name is not None:
        query = query.where(Workspace.name == workspace_name)
    if name is not None:
        query = query.where(Model.name == name)
    return query
