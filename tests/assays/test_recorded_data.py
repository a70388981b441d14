"""The vendor's house-price data: their statistics, and no drift against themselves."""

from __future__ import annotations

import csv
import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from engine.assays import Generation, Summarizer, describe, numbers, score, summarize, summarize_window
from engine.assays.statistics import Numbers
from tests.assays.conftest import FixedClock, House
from tests.assays.history import append, config, narrow, records
from tests.assays.test_v2_api import preview, targeting

pytestmark = pytest.mark.vendor_data


def column(path: Path) -> list[float]:
    return [float(line.strip().rstrip(",")) for line in path.read_text().splitlines()]


def inferences(vendor_data: Path) -> list[dict[str, str]]:
    with (vendor_data / "assays/small_results_inference.csv").open() as file:
        return list(csv.DictReader(file))


def prices_of(vendor_data: Path, houses: list[list[float]]) -> Numbers:
    import onnxruntime

    session = onnxruntime.InferenceSession(vendor_data / "houseprice/rf_model.onnx", providers=["CPUExecutionProvider"])
    return numbers(session.run(None, {session.get_inputs()[0].name: np.array(houses, dtype=np.float32)})[0])


def batch(vendor_data: Path, name: str) -> list[list[float]]:
    return [house["tensor"] for house in json.loads((vendor_data / "houseprice" / name).read_text())]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")


@pytest.mark.parametrize("which", ["small_results_baseline.csv", "small_results_inference.csv: out.variable"])
def test_statistics_are_the_recorded_ones_but_for_the_population(vendor_data: Path, which: str) -> None:
    recorded: dict[str, Any] = json.loads((vendor_data / "assays/stats.json").read_text())[which]
    if "inference" in which:
        values = [float(row["out.variable"]) for row in inferences(vendor_data)]
    else:
        values = column(vendor_data / "assays/small_results_baseline.csv")

    stats = describe(numbers(values))

    of_sample = stats.std * (stats.count / (stats.count - 1)) ** 0.5
    found = [stats.count, stats.min, stats.max, stats.mean, stats.median, of_sample]
    assert found == pytest.approx([recorded[k] for k in ("count", "min", "max", "mean", "median", "std")], rel=1e-12)


def test_the_recorded_predictions_are_the_models_own(vendor_data: Path) -> None:
    rows = inferences(vendor_data)

    predicted = prices_of(vendor_data, [json.loads(row["in.tensor"]) for row in rows])

    recorded = [float(row["out.variable"]) for row in rows]
    assert predicted.tolist() == pytest.approx(recorded, rel=1e-6)  # they were written with eight digits


async def test_the_recorded_log_is_assayed_against_the_recorded_baseline(
    vendor_data: Path, ann: httpx.AsyncClient, house: House, clock: FixedClock
) -> None:
    recorded: dict[str, Any] = json.loads((vendor_data / "assays/stats.json").read_text())[
        "small_results_inference.csv: out.variable"
    ]
    rows = inferences(vendor_data)
    moments = [datetime.fromisoformat(row["time"]).replace(tzinfo=UTC) for row in rows]
    log = records([(t, float(row["out.variable"])) for t, row in zip(moments, rows, strict=True)], model="rf")
    append(house.root, house.topic, log, partition="recorded")
    clock.moment = moments[0] + timedelta(days=2)
    begin = (moments[0] - timedelta(minutes=1)).isoformat()
    # as the model gave them: the file's eight digits are next to single precision, not in it
    baseline = [narrow(price) for price in column(vendor_data / "assays/small_results_baseline.csv")]
    first = config(house.pipeline, baseline={"calculated": {"vector": baseline}}, run_until=None)
    first["window"] |= {"model": "rf", "width": "1 hours", "start": begin}
    second = preview(
        house,
        baseline={"Vector": baseline},
        targeting=targeting(house, model_id="rf"),
        window={"width": {"seconds": 3600}},
        preview_start=begin,
        preview_end=clock.moment.isoformat(),
    )

    (one,) = (await ann.post("/v1/api/assays/run_interactive", json=first)).json()
    (other,) = (await ann.post("/v2/api/assays/preview", json=second)).json()

    assert (one["score"], one["status"]) == (0, "Ok")
    assert other["scores"]["out.variable.0"]["score"] == 0
    for found in (one["window_summary"], other["summaries"]["out.variable.0"]["statistics"]):
        assert found["count"] == recorded["count"] == 500
        for name in ("min", "max", "mean", "median"):
            assert found[name] == pytest.approx(recorded[name], rel=1e-6)
        assert found["std"] == pytest.approx(recorded["std"] * (499 / 500) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("generation", Generation)
def test_large_houses_drift_as_far_as_they_can(vendor_data: Path, generation: Generation) -> None:
    spec = Summarizer(generation=generation)
    base = summarize(prices_of(vendor_data, batch(vendor_data, "smallinputs.df.json")), spec)

    window = summarize_window(prices_of(vendor_data, batch(vendor_data, "biginputs.df.json")), base.bins, spec)

    assert window.aggregated == (*[0.0] * (spec.bin_count - 1), 1.0)
    found = score(base.aggregated, window.aggregated, spec)
    emptied = [(0.005 - b) * math.log(0.005 / b) if b else 0.0 for b in base.aggregated[:-1]]
    last = base.aggregated[-1] or 0.005
    assert found.score == pytest.approx(sum(emptied) + (1 - last) * math.log(1 / last), rel=1e-12)
    assert found.score > 4  # the tutorial's own, over other ordinary houses, is 4.248


@pytest.mark.parametrize("generation", Generation)
def test_the_recorded_inferences_have_not_drifted_from_their_baseline(
    vendor_data: Path, generation: Generation
) -> None:
    spec = Summarizer(generation=generation)
    window = numbers([float(row["out.variable"]) for row in inferences(vendor_data)])

    base = summarize(numbers(column(vendor_data / "assays/small_results_baseline.csv")), spec)

    assert score(base.aggregated, summarize_window(window, base.bins, spec).aggregated, spec).score == 0


@pytest.mark.parametrize("recorded", [264051.044244, 264051.03125])
def test_the_recorded_deviation_of_a_thousand_predictions_is_that_of_a_population(
    vendor_data: Path, recorded: float
) -> None:
    summary = summarize(prices_of(vendor_data, batch(vendor_data, "xtest-1k.df.json")), Summarizer())

    assert summary.statistics.std == pytest.approx(recorded, rel=1e-6)
    assert summary.bins.edges[0] == summary.statistics.min
