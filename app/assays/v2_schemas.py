"""What the second generation of the assay routes takes."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Index = Annotated[int, Field(ge=0, le=2**31)]
Threshold = Annotated[float, Field(allow_inf_nan=False)]

_EXAMPLE: dict[str, Any] = {
    "name": "house price drift",
    "baseline": {"Static": ["2023-01-01T00:00:00Z", "2023-01-02T00:00:00Z"]},
    "scheduling": {
        "first_run": "2023-01-02T00:00:00Z",
        "run_frequency": {"SimpleRunFrequency": {"quantity": 1, "unit": "Day"}},
        "end": None,
    },
    "summarizer": {
        "UnivariateContinuous": {
            "bin_mode": {"Quantile": 5},
            "aggregation": "Density",
            "metric": "PSI",
            "bin_weights": None,
        }
    },
    "targeting": {
        "data_origin": {
            "pipeline_id": 1,
            "pipeline_name": "housepricepipe",
            "workspace_id": 4,
            "workspace_name": "housepricedrift",
            "model_id": "housepricemodel",
            "locations": None,
        },
        "iopath": [{"field": "out.variable", "indexes": [0], "thresholds": {"warning": 0.1, "alert": 0.25}}],
    },
    "window": {"width": {"seconds": 86400}},
}


class ThresholdsIn(BaseModel):
    """From where on a score warns or alerts."""

    warning: Threshold | None = None
    alert: Threshold | None = None


class PathIn(BaseModel):
    """A value of each record."""

    field: str = Field(examples=["out.variable"], max_length=1000)
    indexes: list[Index] | None = Field(None, description="Place in the list; null for a plain value.")
    thresholds: ThresholdsIn | None = None


class OriginIn(BaseModel):
    """Which records; early clients send the pipeline's name and the workspace's number only."""

    pipeline_id: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    pipeline_name: str | None = None
    workspace_id: int | None = None
    workspace_name: str | None = None
    model_id: str | None = Field(None, description="Name of the model.")
    locations: list[str] | None = None


class TargetingIn(BaseModel):
    """Which records, and which values of them."""

    data_origin: OriginIn
    iopath: list[PathIn] = Field(min_length=1, max_length=100)


class SchedulingIn(BaseModel):
    """When runs take place."""

    first_run: str
    run_frequency: dict[str, Any] = Field(description="`SimpleRunFrequency` {quantity, unit} or `Cron` text.")
    end: str | None = None


class WidthIn(BaseModel):
    """A time span."""

    seconds: float = Field(allow_inf_nan=False)


class WindowIn(BaseModel):
    """How long a window is."""

    width: WidthIn


class BinningIn(BaseModel):
    """A baseline to cut into bins."""

    baseline: dict[str, Any]
    summarizer: dict[str, Any]
    targeting: TargetingIn | None = None


class _Common(BinningIn):
    targeting: TargetingIn
    scheduling: SchedulingIn
    window: WindowIn


class PreviewIn(_Common):
    """An assay to compute at once, without storing anything."""

    preview_start: str
    preview_end: str


class ScheduleIn(_Common):
    """An assay to keep and to run."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})
    name: str = Field(min_length=1, max_length=512)


class AssayRef(BaseModel):
    """An assay by its UUID."""

    id: uuid.UUID


class AssayIdRef(BaseModel):
    """An assay by its UUID."""

    assay_id: uuid.UUID


class GetIn(BaseModel):
    """Which assays to list."""

    active: Literal["All", "ActiveOnly", "InactiveOnly"] = "All"
    workspace_id: int | None = None
    pipeline_name: str | None = None


class ActiveIn(BaseModel):
    """Whether an assay is to go on."""

    assay_id: uuid.UUID
    active: bool


class ResultsIn(BaseModel):
    """Which results to return."""

    id: uuid.UUID
    start: str | None = None
    end: str | None = None
    workspace_id: int | None = None
    debug: bool | None = Field(None, description="Show with each result what became of its notices.")


class ScoreIn(BinningIn):
    """Numbers to compare with a baseline."""

    targeting: TargetingIn
    window: dict[str, Any] = Field(description="`Raw` numbers, or `Stored` [start, end].")


class NextRunOut(BaseModel):
    """When an assay last ran, and when it runs next."""

    last_run: str | None
    next_run: str | None
