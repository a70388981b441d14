"""What the pipeline routes take and give."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from app.kit.wire import WireTime
from app.workspaces.schemas import WorkspaceIdField
from app.workspaces.tables import Workspace

Id = Annotated[int, Field(ge=1, le=2**63 - 1)]
NameField = Annotated[
    str,
    Field(
        max_length=253,
        examples=["pipelinemodels"],
        description="Name of the pipeline: lower-case letters, digits and dashes, at most 63 characters.",
    ),
]

_STEP: dict[str, JsonValue] = {
    "ModelInference": {
        "models": [
            {
                "name": "apimodel",
                "version": "0b989008-5f1d-453e-8085-98d97be1b722",
                "sha": "bc85ce596945f876256f41515c7501c399fd97ebcb9ab3dd41bf03f8937b4507",
            }
        ]
    }
}


class CreateIn(BaseModel):
    """A pipeline and the definition of its next version."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"pipeline_id": "pipelineempty", "workspace_id": 7, "definition": {}},
                {"pipeline_id": "pipelinemodels", "workspace_id": 7, "definition": {"steps": [_STEP]}},
            ]
        }
    )
    pipeline_id: NameField
    workspace_id: WorkspaceIdField
    definition: dict[str, Any] | None = Field(
        None, description="The steps; `{}` for none. It is kept, and given back, exactly as sent."
    )


class CreateOut(BaseModel):
    """The pipeline and its new version."""

    pipeline_pk_id: int = Field(examples=[7], description="Number of the pipeline.")
    pipeline_variant_pk_id: int = Field(examples=[7], description="Number of the new version; deploy takes it.")
    pipeline_variant_version: uuid.UUID = Field(
        examples=["a6dd2cee-58d6-4d24-9e25-f531dbbb95ad"], description="UUID of the new version."
    )


class VersionIn(BaseModel):
    """A pipeline version."""

    version: uuid.UUID = Field(examples=["a6dd2cee-58d6-4d24-9e25-f531dbbb95ad"])


class VersionOut(BaseModel):
    """A pipeline version and what it does."""

    pipeline_id: str = Field(examples=["pipelinemodels"], description="Name of the pipeline.")
    version: uuid.UUID
    definition: dict[str, Any] | None = Field(examples=[{"steps": [_STEP]}])


class ListIn(BaseModel):
    """Which pipelines to list; without a workspace, all that the caller may see."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"workspace_id": 7}, {"workspace_name": "lab"}]})
    workspace_id: Id | None = None
    workspace_name: str | None = None


class PipelineRef(BaseModel):
    """A pipeline by its name and workspace."""

    pipeline_id: NameField
    workspace_id: WorkspaceIdField


class PipelineByNameIn(BaseModel):
    """A pipeline by its name, in one workspace or in all that the caller may see."""

    pipeline_name: NameField
    workspace_id: Id | None = Field(None, examples=[7])


class VersionsRef(BaseModel):
    """Pipeline versions by their UUIDs."""

    pipeline_versions: list[uuid.UUID] = Field(
        min_length=1, max_length=1000, examples=[["a6dd2cee-58d6-4d24-9e25-f531dbbb95ad"]]
    )


class PipelineOut(BaseModel):
    """A pipeline."""

    id: int = Field(examples=[7])
    name: str = Field(examples=["pipelinemodels"])
    created_at: WireTime
    updated_at: WireTime


class WorkspaceOut(BaseModel):
    """The workspace that a pipeline lies in."""

    id: int = Field(examples=[7])
    name: str = Field(examples=["lab"])
    archived: bool
    created_at: WireTime
    created_by: str | None
    group_id: int | None = None

    @classmethod
    def of(cls, row: Workspace) -> WorkspaceOut:
        """Show `row`."""
        return cls(
            id=row.id, name=row.name, archived=row.archived, created_at=row.created_at, created_by=row.created_by
        )


class ReplicasOut(BaseModel):
    """How many replicas a deployment keeps, and how many it may grow to."""

    prewarmed_replicas: int = Field(examples=[1])
    maximum_replicas: int = Field(examples=[1])


class ListedVersionOut(BaseModel):
    """A pipeline version as listings show it; `steps` is its definition."""

    id: str = Field(examples=["pipelinemodels"])
    workspace_id: int
    version: uuid.UUID
    steps: dict[str, Any]
    created_at: WireTime
    created_by: str | None
    created_on_version: str = Field(examples=["2024.1.0"])


class PipelineItem(BaseModel):
    """A pipeline with its workspace and the topic of its inference log."""

    pipeline: PipelineOut
    workspace: WorkspaceOut
    plateau_topic: str = Field(examples=["workspace-7-pipeline-pipelinemodels-inference"])


class ListedPipelineOut(PipelineItem):
    """A pipeline as listings show it; `deployment` is null unless it is deployed."""

    deployment: ReplicasOut | None
    pipeline_version: ListedVersionOut | None


class ListOut(BaseModel):
    """The pipelines, newest first."""

    pipelines: list[ListedPipelineOut]


class VersionsOut(BaseModel):
    """The versions of a pipeline, newest first."""

    pipeline_versions: list[ListedPipelineOut]
