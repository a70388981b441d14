"""What the first generation of the assay routes takes and gives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Id = Annotated[int, Field(ge=1, le=2**63 - 1)]
Threshold = Annotated[float, Field(allow_inf_nan=False)]

Wire = dict[str, Any]
"""An answer whose shape is the clients' own; docs/assays.md lists its members."""

_EXAMPLE: Wire = {
    "name": "api assay",
    "pipeline_id": 1,
    "pipeline_name": "housepricepipe",
    "active": True,
    "status": "active",
    "iopath": "output dense_2 0",
    "baseline": {
        "Fixed": {
            "pipeline": "housepricepipe",
            "model": "housepricemodel",
            "start_at": "2023-01-01T00:00:00-05:00",
            "end_at": "2023-01-02T00:00:00-05:00",
        }
    },
    "window": {
        "pipeline": "housepricepipe",
        "model": "housepricemodel",
        "width": "24 hours",
        "start": None,
        "interval": None,
    },
    "summarizer": {
        "type": "UnivariateContinuous",
        "bin_mode": "Quantile",
        "aggregation": "Density",
        "metric": "PSI",
        "num_bins": 5,
        "bin_weights": None,
        "bin_width": None,
        "provided_edges": None,
        "add_outlier_edges": True,
    },
    "warning_threshold": 0,
    "alert_threshold": 0.1,
    "run_until": None,
    "workspace_id": 4,
}


class SummarizerIn(BaseModel):
    """How the column is cut into bins and compared."""

    model_config = ConfigDict(extra="allow")
    type: Literal["UnivariateContinuous"] = "UnivariateContinuous"
    bin_mode: Literal["None", "Equal", "Quantile", "Provided"] = "Quantile"
    aggregation: Literal["Edges", "Density", "Cumulative"] = "Density"
    metric: Literal["PSI", "SumDiff", "MaxDiff"] = "PSI"
    num_bins: int = Field(5, description="Without the outlier bins on either side.")
    bin_weights: list[float] | None = Field(None, description="One a bin, outliers included; any scale.")
    bin_width: float | None = Field(None, description="Accepted for old clients; unused.")
    provided_edges: list[float] | None = None
    add_outlier_edges: bool = Field(True, description="Accepted for old clients; there are always outlier bins.")


class WindowIn(BaseModel):
    """Which records, how long a window is, and how far apart windows begin."""

    model_config = ConfigDict(extra="allow")
    pipeline: str | None = Field(None, description="Name of the pipeline (clients of 2023.2).")
    pipeline_name: str | None = Field(None, description="Name of the pipeline (clients since 2023.4).")
    model: str | None = None
    model_name: str | None = None
    width: str = Field(examples=["24 hours"])
    start: str | None = Field(None, description="Start of the first window; the end of the baseline by default.")
    interval: str | None = Field(None, description="From start to start; the width by default.")
    path: str | None = Field(None, examples=["output dense_2 0"])
    workspace_id: int | None = None
    locations: list[str] | None = None


class ConfigIn(BaseModel):
    """An assay, in the spelling of any client."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_EXAMPLE]})
    id: int | None = None
    name: str = Field(min_length=1, max_length=512)
    pipeline_id: Id
    pipeline_name: str
    active: bool = True
    status: str = "created"
    iopath: str | None = Field(None, description='"input|output <field> <index>"; or `window.path`.')
    baseline: dict[str, Any] = Field(description="`Fixed`, `Sliding`, `static` or `calculated`.")
    window: WindowIn
    summarizer: SummarizerIn
    warning_threshold: Threshold | None = None
    alert_threshold: Threshold
    run_until: str | None = None
    workspace_id: int | None = None
    workspace_name: str | None = None
    created_at: str | None = None


class SummarizeIn(BaseModel):
    """A baseline to cut into bins."""

    summarizer: SummarizerIn
    baseline: dict[str, Any] = Field(description="`vector`, `fixed_window` or `sliding_window`.")


class CreateOut(BaseModel):
    """The number of the new assay."""

    assay_id: int = Field(examples=[5])


class ListIn(BaseModel):
    """Which assays to list; all that are given must hold."""

    pipeline_id: int | None = None
    workspace_id: int | None = None
    workspace_name: str | None = None


class ActiveIn(BaseModel):
    """Whether an assay is to go on."""

    id: Id
    active: bool


class AssayRef(BaseModel):
    """An assay by its number."""

    id: Id
    workspace_id: int | None = None
    workspace_name: str | None = None


class ResultsIn(BaseModel):
    """Which results to return."""

    assay_id: Id
    pipeline_id: int | None = None
    start: str | None = Field(None, description="Windows that start then or later.")
    end: str | None = Field(None, description="Windows that start then or earlier.")
    limit: int | None = Field(None, ge=1)
    workspace_id: int | None = None
    workspace_name: str | None = None


class BaselineIn(BaseModel):
    """Which records to return."""

    workspace_id: int | None = None
    pipeline_name: str
    start: str | None = None
    end: str | None = None
    model_name: str | None = None
    limit: int | None = Field(None, ge=1, le=100_000)
    next: dict[str, int] | None = Field(None, description="Positions to go on from, by partition.")
    locations: list[str] | None = None


class DriftWindow(BaseModel):
    """A stretch of time."""

    start: str
    end: str


class FilterIn(BaseModel):
    """Which configurations to return."""

    workspace_id: Id
    pipeline_id: Id
    sort_by: Literal["CreationDateDesc", "LastRunDateDesc"] = "CreationDateDesc"
    name: str | None = None
    active: bool | None = None
    drift_window: DriftWindow | None = Field(None, description="Assays with a result in this time.")
    locations: list[str] | None = None


class NotificationsIn(BaseModel):
    """Whom to tell when an assay's status changes; what is left out or null is told no more."""

    assay_id: int | str = Field(description="Number, or for the second generation the UUID.", examples=[5])
    webhook: str | None = Field(None, examples=["https://hooks.example.org/drift"], max_length=2000)
    email: str | None = Field(None, examples=["oncall@example.org"], max_length=320)


class NotificationsOut(BaseModel):
    """Whom an assay tells, and what became of the latest notices."""

    assay_id: int | str
    webhook: str | None
    email: str | None
    deliveries: list[dict[str, Any]]


class ReportIn(BaseModel):
    """Which assay to report on, and from when to when."""

    assay_id: int | str = Field(description="Number, or for the second generation the UUID.", examples=[5])
    start: str | None = None
    end: str | None = None


class BackfillIn(BaseModel):
    """Which windows to compute again."""

    assay_id: int | str
    start: str = Field(description="Windows that start then or later.", examples=["2023-01-01T00:00:00Z"])
    end: str | None = Field(None, description="Windows that start before; all later ones by default.")


class BackfillOut(BaseModel):
    """How many results were thrown away to be computed again."""

    discarded: int
