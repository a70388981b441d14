"""The vendor's house-price data: their statistics, and no drift against themselves."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.assays import Generation, Summarizer, describe, numbers, score, summarize, summarize_window

pytestmark = pytest.mark.vendor_data


def column(path: Path) -> list[float]:
    return [float(line.strip().rstrip(",")) for line in path.read_text().splitlines()]


def test_statistics_are_the_recorded_ones_but_for_the_population(vendor_data: Path) -> None:
    recorded: dict[str, Any] = json.loads((vendor_data / "assays/stats.json").read_text())["small_results_baseline.csv"]

    stats = describe(numbers(column(vendor_data / "assays/small_results_baseline.csv")))

    of_sample = stats.std * (stats.count / (stats.count - 1)) ** 0.5
    found = [stats.count, stats.min, stats.max, stats.mean, stats.median, of_sample]
    assert found == pytest.approx([recorded[k] for k in ("count", "min", "max", "mean", "median", "std")], rel=1e-12)


@pytest.mark.parametrize("generation", Generation)
def test_the_recorded_inferences_have_not_drifted_from_their_baseline(
    vendor_data: Path, generation: Generation
) -> None:
    spec = Summarizer(generation=generation)
    with (vendor_data / "assays/small_results_inference.csv").open() as file:
        window = numbers([float(row["out.variable"]) for row in csv.DictReader(file)])

    base = summarize(numbers(column(vendor_data / "assays/small_results_baseline.csv")), spec)

    assert score(base.aggregated, summarize_window(window, base.bins, spec).aggregated, spec).score == 0


def test_the_recorded_deviation_of_a_thousand_predictions_is_that_of_a_population(
    vendor_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    session = onnxruntime.InferenceSession(vendor_data / "houseprice/rf_model.onnx", providers=["CPUExecutionProvider"])
    houses = json.loads((vendor_data / "houseprice/xtest-1k.df.json").read_text())
    inputs = np.array([house["tensor"] for house in houses], dtype=np.float32)
    prices = numbers(session.run(None, {session.get_inputs()[0].name: inputs})[0])

    summary = summarize(prices, Summarizer())

    assert summary.statistics.std == pytest.approx(264051.04662, rel=1e-6)
    assert summary.bins.edges[0] == summary.statistics.min
