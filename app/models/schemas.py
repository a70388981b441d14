"""What the model routes take and give."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from app.kit.wire import WireTime
from app.workspaces.schemas import WorkspaceBrief, WorkspaceIdField

Id = Annotated[int, Field(ge=1, le=2**63 - 1)]
OptionalText = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")]
Name = Annotated[str, Field(max_length=255, pattern=r"^[^\x00]*$", examples=["apimodel"])]


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _storable(value: Any) -> Any:
    """Refuse what the database's JSON cannot hold: NUL characters and halves of surrogate pairs."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            if "\x00" in one or any("\ud800" <= c <= "\udfff" for c in one):
                raise ValueError("texts must not hold NUL characters or lone surrogates")
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one
    return value


StorableJson = Annotated[dict[str, JsonValue], AfterValidator(_storable)]
Visibility = Annotated[Literal["private", "public"], BeforeValidator(_lower)]
Schema = Annotated[
    str,
    Field(
        max_length=8 * 1024 * 1024,
        description="Base64 of an Arrow schema (`pyarrow.Schema.serialize()`).",
        pattern=r"^[^\x00]*$",
    ),
]


class ConversionIn(BaseModel):
    """What the model is made of, and what it is to run on."""

    framework: OptionalText = Field(examples=["onnx"])
    python_version: OptionalText = Field("3.8", examples=["3.8"])
    requirements: list[OptionalText] = Field(default=[], max_length=1000)
    arch: OptionalText | None = Field(None, examples=["x86"], description="x86, arm or power10.")
    accel: OptionalText | StorableJson | None = Field(None, examples=["none"])
    framework_config: StorableJson | None = None
    input_schema: Schema | None = Field(None, description="Accepted here and beside `conversion`.")
    output_schema: Schema | None = None


class UploadIn(BaseModel):
    """The `metadata` part of an upload."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "apimodel",
                    "visibility": "public",
                    "workspace_id": 7,
                    "conversion": {"framework": "onnx", "python_version": "3.8", "requirements": []},
                }
            ]
        }
    )
    name: OptionalText = Field(
        examples=["apimodel"],
        description="ASCII letters, digits and dashes, starts with a letter, at most 63 characters.",
    )
    visibility: Visibility = "private"
    workspace_id: WorkspaceIdField
    conversion: ConversionIn
    input_schema: Schema | None = None
    output_schema: Schema | None = None
    image_path: OptionalText | None = Field(None, description="A container image that serves the model.")
    registry_id: uuid.UUID | None = None


class StreamQuery(BaseModel):
    """What `upload_stream` is told: in the query beside a raw body, or as fields of a form."""

    name: OptionalText = Field(examples=["apiteststreammodel"])
    filename: OptionalText = Field(examples=["ccfraud.onnx"])
    visibility: Visibility = "private"
    workspace_id: WorkspaceIdField


class _UploadedId(BaseModel):
    id: int = Field(examples=[4], description="Number of the new model version.")


class _UploadedModels(BaseModel):
    models: list[_UploadedId]


class _Uploaded(BaseModel):
    returning: list[_UploadedModels]


class UploadOut(BaseModel):
    """The number of the new model version, where clients look for it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"insert_models": {"returning": [{"models": [{"id": 4}]}]}}]}
    )
    insert_models: _Uploaded

    @classmethod
    def of(cls, version_id: int) -> UploadOut:
        """Show `version_id`."""
        return cls(
            insert_models=_Uploaded(returning=[_UploadedModels(models=[_UploadedId(id=version_id)])]),
        )


class VersionRef(BaseModel):
    """A model version by its number."""

    model_version_id: Id = Field(examples=[4])


class ModelRef(BaseModel):
    """A model by its number (not that of a version)."""

    id: Id = Field(examples=[4])


class VersionsIn(BaseModel):
    """A model by its name, by its number, or by either: versions that match one of them are found."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model_id": "apimodel", "models_pk_id": 4}]})
    model_id: Name | None = Field(None, description="Name of the model.")
    models_pk_id: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = Field(None, description="Number of the model.")


class NamedModel(BaseModel):
    """A model by its name and workspace."""

    model_id: Name = Field(description="Name of the model.")
    workspace_id: WorkspaceIdField


class ListIn(BaseModel):
    """A workspace by its number, its name, or both."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"workspace_id": 7}, {"workspace_name": "lab"}]})
    workspace_id: Id | None = None
    workspace_name: OptionalText | None = None


class ListedVersionOut(BaseModel):
    """A model version in brief."""

    sha: str = Field(examples=["bc85ce596945f876256f41515c7501c399fd97ebcb9ab3dd41bf03f8937b4507"])
    models_pk_id: int = Field(examples=[4], description="Number of the model.")
    model_version: str = Field(examples=["0b989008-5f1d-453e-8085-98d97be1b722"])
    owner_id: str
    model_id: str = Field(examples=["apimodel"], description="Name of the model.")
    id: int = Field(examples=[4], description="Number of the version.")
    file_name: str | None = Field(examples=["ccfraud.onnx"])
    image_path: str | None = None
    status: str = Field(examples=["ready"])


class DetailedVersionOut(ListedVersionOut):
    """A model version with what clients would otherwise ask for one by one."""

    visibility: str = Field(examples=["private"])
    arch: str | None = Field(examples=["x86"])
    accel: JsonValue = Field(examples=["none"])
    updated_at: WireTime
    error_summary: str | None = None


class _WorkspaceName(BaseModel):
    id: int = Field(examples=[7])
    name: str = Field(examples=["lab"])


class ModelOut(BaseModel):
    """A model with its versions, the newest first."""

    id: int = Field(examples=[4])
    name: str = Field(examples=["apimodel"])
    owner_id: str
    created_at: WireTime
    updated_at: WireTime
    workspace: _WorkspaceName
    models: list[DetailedVersionOut]


class BriefConfigOut(BaseModel):
    """The configuration in force of a model's newest version."""

    id: int
    runtime: str = Field(examples=["onnx"])
    tensor_fields: list[str] | None
    filter_threshold: float | None


class ModelByIdOut(BaseModel):
    """A model, and how its newest version is to be run."""

    id: int = Field(examples=[4])
    owner_id: str
    workspace_id: int = Field(examples=[7])
    name: str = Field(examples=["apimodel"])
    updated_at: WireTime
    created_at: WireTime
    model_config_: BriefConfigOut | None = Field(alias="model_config", serialization_alias="model_config")


class FileInfoOut(BaseModel):
    """The uploaded file."""

    version: uuid.UUID = Field(description="UUID of the version.")
    sha: str = Field(description="SHA-256 of the file.")
    file_name: str
    size: int


class VersionOut(BaseModel):
    """A model version."""

    id: int = Field(examples=[4])
    name: str = Field(examples=["apimodel"])
    visibility: str
    workspace_id: int
    conversion: dict[str, JsonValue] | None
    image_path: str | None
    status: str = Field(examples=["ready"])
    task_id: uuid.UUID | None
    file_info: FileInfoOut
    created_on_version: str
    created_by: str | None
    created_at: str
    deployed: bool
    error_summary: str | None


class ConfigOut(BaseModel):
    """How a model version is to be run."""

    id: int
    model_version_id: int
    runtime: str = Field(examples=["onnx"])
    filter_threshold: float | None
    tensor_fields: list[str] | None
    input_schema: str | None
    output_schema: str | None
    batch_config: str | None
    dynamic_batching_config: dict[str, JsonValue] | None
    continuous_batching_config: dict[str, JsonValue] | None
    queue_depth: int | None
    sidekick_uri: str | None
    openai: dict[str, JsonValue] | None


class ConfiguredVersionOut(BaseModel):
    """A model version and its configuration in force."""

    model_version: VersionOut
    config: ConfigOut


class VersionByIdOut(BaseModel):
    """One model version."""

    model_version: ConfiguredVersionOut


class _ListedModel(BaseModel):
    id: int
    name: str
    owner_id: str
    workspace_id: int
    created_at: str
    updated_at: str


class ListItemOut(_ListedModel):
    """A model: flat for clients up to 2024.1, with its versions and workspace for those after."""

    model: _ListedModel
    model_versions: list[ConfiguredVersionOut]
    workspace: WorkspaceBrief


class ListOut(BaseModel):
    """The models, the newest first."""

    models: list[ListItemOut]


class ConfigRef(BaseModel):
    """A model version by its number."""

    model_id: Id = Field(examples=[4], description="Number of the model version.")


class ConfigByIdOut(BaseModel):
    """The configuration in force of a version."""

    model_config_: ConfigOut | None = Field(alias="model_config", serialization_alias="model_config")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DynamicBatchingIn(_Strict):
    """Requests that wait for each other."""

    max_batch_delay_ms: Annotated[int, Field(gt=0, le=2**31)] = 10
    batch_size_target: Annotated[int, Field(gt=0, le=2**31)] = 4
    batch_size_limit: Annotated[int, Field(gt=0, le=2**31)] | None = None


class ContinuousBatchingIn(_Strict):
    """Requests that join a running batch."""

    max_concurrent_batch_size: Annotated[int, Field(gt=0, le=2**31)]


class OpenAiIn(BaseModel):
    """How a language model answers in OpenAI's API; what lies in the two configurations is passed on as it is."""

    enabled: bool
    completion_config: StorableJson | None = None
    chat_completion_config: StorableJson | None = None


class ConfigIn(BaseModel):
    """A new configuration; what is not given stays as it is."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model_version_id": 4, "tensor_fields": ["tensor"]}, {"model_version_id": 4}]}
    )
    model_version_id: Id
    tensor_fields: list[Name] | None = Field(
        None, max_length=10_000, description="Names of the input columns, in the order of the model's inputs."
    )
    filter_threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    input_schema: Schema | None = None
    output_schema: Schema | None = None
    batch_config: Literal["single"] | None = Field(None, description="`single` feeds rows one at a time.")
    dynamic_batching_config: DynamicBatchingIn | None = None
    continuous_batching_config: ContinuousBatchingIn | None = None
    openai_config: OpenAiIn | None = None


class DeleteModelIn(NamedModel):
    """A model to delete; without `confirm_delete` the reply only tells what would be freed."""

    confirm_delete: bool | None = Field(None, examples=[True])


class DeleteVersionsIn(BaseModel):
    """Versions to delete, by their UUIDs; without `confirm_delete` the reply only tells what would be freed."""

    model_versions: list[uuid.UUID] = Field(
        min_length=1, max_length=1000, examples=[["0b989008-5f1d-453e-8085-98d97be1b722"]]
    )
    confirm_delete: bool | None = Field(None, examples=[True])


class FreedOut(BaseModel):
    """How many bytes of storage are freed."""

    bytes: int = Field(examples=[1928])


class LogsIn(VersionRef):
    """A version, and how many of the newest lines to return (null: all)."""

    lines: Annotated[int, Field(ge=0, le=2**31)] | None = Field(None, examples=[100])


class LogsOut(BaseModel):
    """Lines `<RFC 3339 time> <stdout|stderr> F <text>`, the oldest first."""

    logs: list[str] = Field(examples=[["2026-01-05T22:36:14.728106Z stdout F Inspecting ccfraud.onnx"]])
