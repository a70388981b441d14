"""A column in numbers: its statistics, its bins, and what falls into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from engine.assays.bins import Bins, bins_of
from engine.assays.spec import Aggregation, BinMode, Summarizer
from engine.assays.statistics import NoFiniteValues, Numbers, Statistics, describe

_BY_RANK = (BinMode.QUANTILE, BinMode.QUANTILE_WITH_OUTLIERS)
"""Modes whose edges need the values in order; sorting is most of the work."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What an assay keeps of a column; `aggregated` has one value a bin."""

    statistics: Statistics
    bins: Bins
    aggregated: tuple[float, ...]
    aggregation: Aggregation


def summarize(values: Numbers, spec: Summarizer) -> Summary:
    """Return the summary of a baseline, in bins of its own.

    Raises `NoFiniteValues` if there is nothing to cut into bins.
    """
    if spec.bin_mode not in _BY_RANK:
        statistics = _described(values)
        bins = bins_of(values, statistics, spec)
        return Summary(statistics, bins, _aggregate(values, statistics, bins, spec), spec.aggregation)
    ordered: Numbers = np.sort(values)
    finite: Numbers = ordered[np.isfinite(ordered)]
    statistics = _described(ordered, is_sorted=len(finite) == len(ordered))
    bins = bins_of(finite, statistics, spec)
    return Summary(statistics, bins, _aggregate(ordered, statistics, bins, spec), spec.aggregation)


def _described(values: Numbers, *, is_sorted: bool = False) -> Statistics:
    try:
        return describe(values, is_sorted=is_sorted)
    except NoFiniteValues as exc:
        raise NoFiniteValues("The baseline holds no finite value.") from exc


def summarize_window(values: Numbers, bins: Bins, spec: Summarizer) -> Summary:
    """Return the summary of a window in the bins of its baseline.

    Aggregation Edges compares where the bins lie, so there the window is cut by itself.
    """
    statistics = describe(values)
    if spec.aggregation is Aggregation.EDGES and spec.bin_mode is not BinMode.NONE:
        return Summary(statistics, bins, summarize(values, spec).aggregated, spec.aggregation)
    return Summary(statistics, bins, _aggregate(values, statistics, bins, spec), spec.aggregation)


def shares(counts: Sequence[int]) -> tuple[float, ...]:
    """Return each count as a share of all."""
    total = sum(counts)
    return tuple(count / total for count in counts) if total else tuple(0.0 for _ in counts)


def _aggregate(values: Numbers, statistics: Statistics, bins: Bins, spec: Summarizer) -> tuple[float, ...]:
    if not len(bins):
        return ()
    if spec.aggregation is Aggregation.EDGES and spec.bin_mode is not BinMode.NONE:
        return (*bins.edges, statistics.max)  # the open bin ends, on a chart, where the data do
    densities = shares(bins.count(values))
    return tuple(accumulate(densities)) if spec.aggregation is Aggregation.CUMULATIVE else densities
