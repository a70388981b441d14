"""A pipeline with a past: the records and the configurations of the assay tests."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.logs.writer import PartitionWriter

DAY = timedelta(days=1)
DAY0 = datetime(2023, 1, 1, tzinfo=UTC)
MODEL = "house-model"


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def records(
    rows: list[tuple[datetime, Any]],
    *,
    model: str = MODEL,
    field: str = "variable",
    scalar: bool = False,
    **metadata: Any,
) -> pa.RecordBatch:
    said = {"last_model": json.dumps({"model_name": model, "model_sha": "abc"})} | metadata
    value: pa.DataType = pa.float32() if scalar else pa.list_(pa.float32())
    if rows and isinstance(rows[0][1], str):
        value = pa.string()
    return pa.RecordBatch.from_pydict(
        {
            "time": pa.array([ms(t) for t, _ in rows], pa.int64()),
            "in": pa.array([{"tensor": [0.5, float(i), 2.0]} for i, _ in enumerate(rows)]),
            "out": pa.array(
                [{field: v if scalar or isinstance(v, str) else [v]} for _, v in rows], pa.struct([(field, value)])
            ),
            "metadata": pa.array([said for _ in rows]),
        }
    )


def append(root: Path | str, topic: str, *batches: pa.RecordBatch, partition: str = "engine-1") -> None:
    writer = PartitionWriter(root, topic, partition)
    for batch in batches:
        writer.append(batch)
    writer.flush()
    writer.close()


def narrow(value: float) -> float:
    result: float = pa.scalar(value, pa.float32()).as_py()
    return result


@dataclass
class Past:
    """Eight days, 181 records each, none on the fourth, drifting from the sixth on."""

    rows: list[tuple[datetime, float]]

    def day(self, number: int) -> list[float]:
        return [v for t, v in self.rows if (t - DAY0).days == number]


def drifting_past(days: int = 8, missing: tuple[int, ...] = (3,)) -> Past:
    rnd = random.Random(7)
    return Past(
        [
            (
                DAY0 + timedelta(days=d, seconds=477 * i),
                narrow(rnd.gauss(12.9, 0.43) + (0.25 * (d - 4) if d > 4 else 0)),
            )
            for d in range(days)
            for i in range(181)
            if d not in missing
        ]
    )


def config(pipeline: Any, **changes: Any) -> dict[str, Any]:
    """Return a configuration as the guide writes it."""
    body = {
        "name": "drift of houses",
        "pipeline_id": pipeline.id,
        "pipeline_name": pipeline.pipeline_id,
        "active": True,
        "status": "active",
        "iopath": "output variable 0",
        "baseline": {
            "Fixed": {
                "pipeline": pipeline.pipeline_id,
                "model": MODEL,
                "start_at": DAY0.isoformat(),
                "end_at": (DAY0 + DAY).isoformat(),
            }
        },
        "window": {
            "pipeline": pipeline.pipeline_id,
            "model": MODEL,
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
        "warning_threshold": 0.1,
        "alert_threshold": 0.25,
        "run_until": (DAY0 + 8 * DAY).isoformat(),
        "workspace_id": pipeline.workspace_id,
    }
    return body | changes


def counts(values: list[float], edges: list[float]) -> list[int]:
    found = [0] * (len(edges) + 1)
    for value in values:
        place = 0 if value < edges[0] else next((k for k in range(1, len(edges)) if value <= edges[k]), len(edges))
        found[place] += 1
    return found


def quantile_edges(values: list[float], n: int) -> list[float]:
    ordered = sorted(values)
    return [ordered[0]] + [ordered[int(k / n * len(ordered) + 0.5) - 1] for k in range(1, n + 1)]


def psi(baseline: list[float], window: list[float], edges: list[float]) -> float:
    shares = [[c / sum(found) or 0.005 for c in found] for found in (counts(baseline, edges), counts(window, edges))]
    return sum((w - b) * math.log(w / b) for b, w in zip(*shares, strict=True))
