"""What the log routes take and give."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from app.workspaces.schemas import WorkspaceIdField
from engine.logs.query import Order, TimeRange

Name = Annotated[str, Field(max_length=253, examples=["logpipeline"])]


class TopicNameIn(BaseModel):
    """A pipeline, by its number or by name and workspace."""

    pipeline_pk_id: int | None = Field(None, ge=1, le=2**63 - 1, examples=[7], description="Number of the pipeline.")
    pipeline_name: Name | None = None
    workspace_id: WorkspaceIdField | None = None

    @model_validator(mode="after")
    def _names_one(self) -> TopicNameIn:
        if self.pipeline_pk_id is None and self.pipeline_name is None:
            raise ValueError("give pipeline_pk_id, or pipeline_name with workspace_id")
        return self


class PipelineTopicNameIn(BaseModel):
    """A pipeline by its name; without a workspace, the newest of that name."""

    pipeline_name: Name
    workspace_id: WorkspaceIdField | None = None


class TopicNameOut(BaseModel):
    """The log topic of a pipeline."""

    topic_name: str = Field(examples=["workspace-1-pipeline-logpipeline-inference"])


class GetLogsIn(BaseModel):
    """Which logs of a pipeline are wanted."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"pipeline_id": "logpipeline", "workspace_id": 7, "order": "Desc"}]}
    )
    pipeline_id: Name | None = Field(None, description="Name of the pipeline, as clients up to 2023.2 call it.")
    pipeline_name: Name | None = Field(None, description="Name of the pipeline.")
    workspace_id: WorkspaceIdField
    order: Order | None = Field(None, description="`Desc` (newest first; the default) or `Asc`, in any case.")
    cursor: str | None = Field(None, description="`x-iteration-cursor` of the page before.")
    page_size: int = Field(1000, ge=1, le=2**31 - 1, description="Most records of a page; more than 10000 give 10000.")
    start_time: str | None = Field(None, description="RFC 3339; goes together with end_time.")
    end_time: str | None = Field(None, description="RFC 3339, included; goes together with start_time.")

    @field_validator("order", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("page_size", mode="before")
    @classmethod
    def _default_size(cls, value: object) -> object:
        return 1000 if value is None else value

    @model_validator(mode="after")
    def _is_whole(self) -> GetLogsIn:
        if self.pipeline_name is None and self.pipeline_id is None:
            raise ValueError("pipeline_name is required")
        self.time_range()
        return self

    @property
    def name(self) -> str:
        """Name of the pipeline."""
        return self.pipeline_name or self.pipeline_id or ""

    def time_range(self) -> TimeRange | None:
        """Return the wanted range, if one was given."""
        from app.logs.times import time_range

        return time_range(self.start_time, self.end_time, "start_time", "end_time")


class Topic(BaseModel):
    """A topic of the log store."""

    name: str


class TopicsOut(BaseModel):
    """Topics of the log store."""

    topics: list[Topic]


class SpanOut(BaseModel):
    """Positions of rows: from `start` to below `end`."""

    start: int
    end: int


class TopicOut(BaseModel):
    """What a topic holds; an unknown topic has no partitions."""

    partitions: dict[str, SpanOut]
    bytes: int


class InsertedOut(BaseModel):
    """Where the records went."""

    span: SpanOut


class OkOut(BaseModel):
    """The log store is well."""

    ok: str = "true"
