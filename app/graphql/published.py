"""What the endpoint shows and lets be changed: tables, columns, relationships, root fields; nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.identity.caller import Caller
from app.schema import assays, deployments, models, orchestration, pipelines, workspaces

LIST, BY_PK, INSERT, INSERT_ONE = "list", "by_pk", "insert", "insert_one"
UPDATE, UPDATE_BY_PK, DELETE = "update", "update_by_pk", "delete"


@dataclass(frozen=True, slots=True)
class Insertable:
    """How rows of a table may be added."""

    columns: tuple[str, ...]
    nested: tuple[str, ...] = ()
    """Array relationships whose rows may be added along."""
    presets: Mapping[str, Callable[[Caller], Any]] = field(default_factory=dict)
    """Columns whose value comes from the caller; another value for them is refused."""
    references: Mapping[str, str] = field(default_factory=dict)
    """Columns that name a row of another table, which the caller must be able to use."""
    same: tuple[str, ...] = ()
    """A row that has these columns in common is given back instead of a second one."""


@dataclass(frozen=True, slots=True)
class Updatable:
    """Which columns of a table's visible rows may be changed, and to what where not everything goes."""

    columns: tuple[str, ...]
    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Published:
    """One table on the wire."""

    row: type[Any]
    columns: tuple[str, ...]
    relations: tuple[str, ...] = ()
    roots: frozenset[str] = frozenset()
    insert: Insertable | None = None
    update: Updatable | None = None
    scalars: Mapping[str, str] = field(default_factory=dict)
    """Scalars that differ from what the column's type suggests."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Second names of columns, for documents that use them in filters."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _own_id(caller: Caller) -> str:
    return caller.id


def _owner(_: Caller) -> str:
    return "OWNER"


_VISIBILITY = Updatable(("visibility",), {"visibility": ("private", "public")})

TABLES: tuple[Published, ...] = (
    Published(
        workspaces.Workspace,
        _words("id name archived created_at created_by owner_id"),
        _words("users models pipelines user_default_workspaces"),
        frozenset({BY_PK, INSERT_ONE}),
        Insertable(
            _words("name archived created_by owner_id"),
            nested=_words("users user_default_workspaces"),
            presets={"owner_id": _own_id},
        ),
    ),
    Published(
        workspaces.WorkspaceUser,
        _words("id workspace_id user_id user_type"),
        _words("workspace"),
        frozenset({DELETE}),
        Insertable(_words("user_id user_type"), presets={"user_id": _own_id, "user_type": _owner}),
    ),
    Published(
        workspaces.UserDefaultWorkspace,
        _words("id user_id workspace_id"),
        _words("workspace"),
        frozenset({LIST}),
        Insertable(_words("user_id"), presets={"user_id": _own_id}),
    ),
    Published(models.Model, _words("id name owner_id workspace_id created_at updated_at"), _words("models workspace")),
    Published(
        models.ModelVersion,
        _words(
            "id model_id model_version models_pk_id sha status error_summary file_name image_path owner_id visibility "
            "conversion created_on_version created_at updated_at task_id file_size created_by"
        ),
        _words("model model_tags model_configs"),
        frozenset({LIST, BY_PK, UPDATE}),
        update=_VISIBILITY,
        scalars={"task_id": "String"},
    ),
    Published(
        models.ModelConfig,
        _words(
            "id model_id runtime tensor_fields filter_threshold input_schema output_schema batch_config "
            "dynamic_batching_config continuous_batching_config openai"
        ),
        _words("model"),
        frozenset({BY_PK, INSERT}),
        Insertable(
            _words("model_id runtime tensor_fields filter_threshold input_schema output_schema batch_config"),
            references={"model_id": "model"},
        ),
    ),
    Published(
        pipelines.Pipeline,
        _words("id pipeline_id workspace_id owner_id visibility created_at updated_at"),
        _words("pipeline_versions pipeline_tags deployment workspace"),
        frozenset({LIST, BY_PK, INSERT, UPDATE}),
        Insertable(
            _words("pipeline_id workspace_id visibility"),
            nested=_words("pipeline_versions"),
            presets={"owner_id": _own_id},
            references={"workspace_id": "workspace"},
        ),
        _VISIBILITY,
    ),
    Published(
        pipelines.PipelineVersion,
        _words("id pipeline_pk_id version definition owner_id created_on_version created_at updated_at"),
        _words("pipeline deployment_pipeline_versions deployment_model_configs pipeline_publishes"),
        frozenset({BY_PK}),
        Insertable(_words("definition"), presets={"owner_id": _own_id}),
    ),
    Published(
        deployments.Deployment,
        _words("id deploy_id deployed engine_config limit_status pipeline_id created_at updated_at updated_by"),
        _words("pipeline deployment_model_configs deployment_pipeline_versions"),
        frozenset({LIST, BY_PK, UPDATE_BY_PK}),
        update=Updatable(("deployed",), {"deployed": (True,)}),
    ),
    Published(
        deployments.DeploymentModelConfig,
        _words("id deployment_id model_config_id pipeline_version_pk_id"),
        _words("model_config deployment pipeline_version"),
        frozenset({INSERT}),
        Insertable(
            _words("deployment_id model_config_id"),
            references={"deployment_id": "deployment", "model_config_id": "model_config"},
        ),
    ),
    Published(
        deployments.DeploymentPipelineVersion,
        _words("id deployment_id pipeline_version_pk_id created_at updated_at"),
        _words("deployment pipeline_version"),
    ),
    Published(
        pipelines.PipelinePublish,
        _words(
            "id pipeline_version_id status chart_url engine_url pipeline_url engine_config user_images created_by "
            "created_at updated_at created_on_version"
        ),
        _words("pipeline_version"),
    ),
    Published(
        pipelines.Tag,
        _words("id tag"),
        _words("model_tags pipeline_tags"),
        frozenset({LIST, BY_PK, INSERT}),
        Insertable(_words("tag"), presets={"owner_id": _own_id}),
    ),
    Published(
        pipelines.ModelTag,
        _words("id model_id tag_id"),
        _words("model tag"),
        frozenset({INSERT, DELETE}),
        Insertable(
            _words("model_id tag_id"),
            references={"model_id": "model", "tag_id": "tag"},
            same=_words("model_id tag_id"),
        ),
    ),
    Published(
        pipelines.PipelineTag,
        _words("id pipeline_pk_id tag_pk_id"),
        _words("pipeline tag"),
        frozenset({INSERT, DELETE}),
        Insertable(
            _words("pipeline_pk_id tag_pk_id"),
            references={"pipeline_pk_id": "pipeline", "tag_pk_id": "tag"},
            same=_words("pipeline_pk_id tag_pk_id"),
        ),
    ),
    Published(
        orchestration.Orchestration,
        _words(
            "id name file_name owner_id status image_path created_on_version created_by sha task_id workspace_id "
            "file_size created_at updated_at"
        ),
        roots=frozenset({BY_PK}),
    ),
    Published(
        assays.Assay,
        _words("id name status pipeline_name created_on_version active warning_threshold alert_threshold pipeline_id"),
        roots=frozenset({LIST, BY_PK, UPDATE_BY_PK}),
        update=Updatable(_words("warning_threshold alert_threshold")),
    ),
    Published(
        pipelines.AlertConfiguration,
        _words("id name expression notifications pipeline_version_pk_id"),
        roots=frozenset({INSERT}),
        insert=Insertable(
            _words("name expression notifications pipeline_version_pk_id"),
            references={"pipeline_version_pk_id": "pipeline"},
        ),
    ),
    Published(
        pipelines.Comment,
        _words("id message user_id updated_at"),
        _words("model_variant_comments pipeline_comments"),
        frozenset({BY_PK}),
    ),
    Published(
        pipelines.ModelComment,
        _words("id model_pk_id comment_id"),
        _words("model"),
        frozenset({INSERT, DELETE}),
        Insertable(
            _words("model_pk_id comment_id"),
            references={"model_pk_id": "model", "comment_id": "comment"},
            same=_words("model_pk_id comment_id"),
        ),
        aliases={"model_id": "model_pk_id"},
    ),
    Published(
        pipelines.PipelineComment,
        _words("id pipeline_pk_id comment_pk_id"),
        _words("pipeline"),
        frozenset({INSERT, DELETE}),
        Insertable(
            _words("pipeline_pk_id comment_pk_id"),
            references={"pipeline_pk_id": "pipeline", "comment_pk_id": "comment"},
            same=_words("pipeline_pk_id comment_pk_id"),
        ),
    ),
)

FUNCTIONS: Mapping[str, str] = {"search_models": "model", "search_pipelines": "pipeline_version"}
"""Root fields that search, and the table whose rows they return."""
