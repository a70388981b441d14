"""Comparing two summaries, bin by bin, to one score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from engine.assays.spec import Aggregation, BadSpec, Metric, Summarizer

EMPTY_BIN = 0.005
"""What an empty bin counts as in a PSI of densities, on either side."""


class Status(StrEnum):
    """What a score means under its thresholds."""

    OK = "Ok"
    WARNING = "Warning"
    ALERT = "Alert"
    BASELINE_RUN = "BaselineRun"


@dataclass(frozen=True, slots=True)
class Score:
    """The total, each bin's share (weighted), and for MaxDiff the bin that decided."""

    score: float
    scores: tuple[float, ...]
    bin_index: int | None = None


def score(baseline: Sequence[float], window: Sequence[float], spec: Summarizer) -> Score:
    """Return how far the aggregated values of `window` are from those of `baseline`.

    Raises `BadSpec` if the two do not have one value a bin each.
    """
    if len(baseline) != len(window):
        raise BadSpec(f"The baseline has {len(baseline)} bins, the window {len(window)}.")
    if not baseline:
        return Score(0.0, ())
    densities_as_psi = spec.metric is Metric.PSI and spec.aggregation is Aggregation.DENSITY
    each = [_psi(b, w) if densities_as_psi else abs(w - b) for b, w in zip(baseline, window, strict=True)]
    weights = spec.bin_weights
    if weights is not None:
        if len(weights) != len(each):
            raise BadSpec(f"bin_weights are for {len(weights)} bins, the baseline has {len(each)}.")
        total = _total(weights)
        each = [value * weight / total for value, weight in zip(each, weights, strict=True)]
    match spec.metric:
        case Metric.MAX_DIFF:
            worst = max(range(len(each)), key=each.__getitem__)
            return Score(each[worst], tuple(each), worst)
        case Metric.SUM_DIFF:
            return Score(_total(each) / 2, tuple(each))
        case Metric.PSI:
            return Score(_total(each), tuple(each))


def status_of(value: float, warning: float | None, alert: float | None) -> Status:
    """Return what `value` means; reaching a threshold counts as passing it."""
    if alert is not None and value >= alert:
        return Status.ALERT
    if warning is not None and value >= warning:
        return Status.WARNING
    return Status.OK


def _psi(b: float, w: float) -> float:
    b, w = b or EMPTY_BIN, w or EMPTY_BIN
    return (w - b) * math.log(w / b)


def _total(values: Sequence[float]) -> float:
    """Add from left to right: the compensated `sum` of newer interpreters gives other last digits."""
    total = 0.0
    for value in values:
        total += value
    return total
