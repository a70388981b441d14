"""What the deployment routes take and give."""

from __future__ import annotations

import json
import uuid
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.pipelines.schemas import Id, NameField
from app.workspaces.schemas import WorkspaceIdField


def _object(value: object) -> object:
    """Read an object that came as JSON text: the guide calls `engine_config` a string."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError as exc:
            raise ValueError("is no valid JSON text") from exc
    return value


EngineConfig = Annotated[
    dict[str, Any] | None,
    BeforeValidator(_object),
    Field(
        examples=[{"cpus": 1, "replica_count": 1, "memory": "999Mi"}],
        description="Resources and replicas, flat as in the guide (`cpus`, `replica_count`, `memory`, …) or nested as "
        "clients send it (`engine.resources.limits.cpu`, …).",
    ),
]


class ModelRef(BaseModel):
    """A model version by its UUID; name and hash must be its own."""

    name: str = Field(max_length=253, examples=["apimodel"])
    version: str = Field(max_length=64, examples=["0b989008-5f1d-453e-8085-98d97be1b722"])
    sha: str = Field("", max_length=64, examples=["bc85ce596945f876256f41515c7501c399fd97ebcb9ab3dd41bf03f8937b4507"])


class DeployIn(BaseModel):
    """A pipeline version to deploy; its models are those its steps name, and those named here."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"deploy_id": "pipelinemodels", "pipeline_version_pk_id": 8},
                {
                    "deploy_id": "pipelinemodels",
                    "pipeline_version_pk_id": 8,
                    "pipeline_id": 8,
                    "models": [
                        {
                            "name": "apimodel",
                            "version": "0b989008-5f1d-453e-8085-98d97be1b722",
                            "sha": "bc85ce596945f876256f41515c7501c399fd97ebcb9ab3dd41bf03f8937b4507",
                        }
                    ],
                    "engine_config": {"cpus": 1, "replica_count": 1, "memory": "999Mi"},
                },
            ]
        }
    )
    deploy_id: NameField
    pipeline_version_pk_id: Id | None = Field(None, description="Number of the pipeline version.")
    pipeline_version: uuid.UUID | None = Field(
        None, description="UUID of the pipeline version, in place of its number."
    )
    pipeline_id: Id | None = Field(None, description="Number of the pipeline; alone: its newest version.")
    engine_config: EngineConfig = None
    model_configs: list[Id] | None = Field(None, max_length=1000, description="Model configurations to run.")
    model_ids: list[Id] | None = Field(
        None, max_length=1000, description="Model versions; their newest configurations."
    )
    models: list[ModelRef] | None = Field(None, max_length=1000)


class DeployOut(BaseModel):
    """The number of the deployment."""

    id: int = Field(examples=[5])


class UndeployIn(BaseModel):
    """A deployment, by its own number or its pipeline's."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"pipeline_id": 8, "deployment_id": 5}]})
    deployment_id: Id | None = None
    pipeline_id: Id | None = None


class Empty(BaseModel):
    """An empty object."""


class CopyIn(BaseModel):
    """A pipeline to copy, and what the copy is called."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "copiedmodelpipeline", "workspace_id": 7, "source_pipeline": 8}]}
    )
    name: NameField
    workspace_id: WorkspaceIdField
    source_pipeline: Id = Field(description="Number of the pipeline to copy.")
    deploy: str | None = Field(None, max_length=253, description="Deploy the copy at once, under this name.")
    engine_config: EngineConfig = None
    pipeline_version: uuid.UUID | None = Field(None, description="Version to copy; without it the newest.")


class CopyOut(BaseModel):
    """The copy."""

    pipeline_pk_id: int = Field(examples=[9])
    pipeline_variant_pk_id: int = Field(examples=[9])
    pipeline_version: uuid.UUID | None = Field(description="UUID of the copy's version, when a version was named.")
    deployment: DeployOut | None


class StatusIn(BaseModel):
    """A deployment by name and number, joined by a dash."""

    name: str = Field(max_length=300, examples=["pipelinemodels-5"])


class PodOut(BaseModel):
    """A process or pod; `status` in the words of Kubernetes."""

    ip: str | None = Field(examples=["127.0.0.1"])
    name: str = Field(examples=["engine-76b8f76d58-vbwqs"])
    status: str = Field(examples=["Running"])
    reason: str | None
    details: list[str]
    required_cpu: str | None = None
    required_memory: str | None = None


class EngineOut(PodOut):
    """An engine, and what it says of its pipelines and models; null until it answers."""

    pipeline_statuses: dict[str, Any] | None = Field(
        examples=[{"pipelines": [{"id": "pipelinemodels", "status": "Running"}]}]
    )
    model_statuses: dict[str, Any] | None = Field(
        examples=[
            {
                "models": [
                    {
                        "name": "apimodel",
                        "version": "0b989008-5f1d-453e-8085-98d97be1b722",
                        "sha": "bc85ce596945f876256f41515c7501c399fd97ebcb9ab3dd41bf03f8937b4507",
                        "status": "Running",
                    }
                ]
            }
        ]
    )


class SidekickOut(PodOut):
    """A process or pod that runs a model which is not native to the engine."""

    statuses: str | None = None


class StatusOut(BaseModel):
    """What is seen of a deployment at this moment."""

    status: str = Field(examples=["Running"], description="Running, Starting or Error.")
    details: list[str]
    engines: list[EngineOut]
    engine_lbs: list[PodOut]
    sidekicks: list[SidekickOut]


class UrlIn(BaseModel):
    """A deployed pipeline."""

    workspace_id: WorkspaceIdField
    pipeline_name: NameField


class UrlOut(BaseModel):
    """Where to infer."""

    url: str = Field(examples=["https://potoroo.example.org/v1/api/pipelines/infer/pipelinemodels-5/pipelinemodels"])
