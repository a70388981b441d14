"""How a column is looked at: bins, aggregation, metric, weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

MOST_BINS = 1000
"""More bins than this is a mistake, not a question about data."""
LARGEST_WEIGHT = 1e12
"""Weights are shares of their sum; larger ones would only lose digits."""


class BadSpec(ValueError):
    """The summarizer contradicts itself; the message says where."""


class Generation(StrEnum):
    """The two ways of the wire API to cut a column into bins."""

    V1 = "v1"
    V2 = "v2"


class BinMode(StrEnum):
    """Where the edges of the bins come from."""

    NONE = "None"
    EQUAL = "Equal"
    QUANTILE = "Quantile"
    QUANTILE_WITH_OUTLIERS = "QuantileWithExplicitOutliers"
    PROVIDED = "Provided"


class Aggregation(StrEnum):
    """What is compared, bin by bin."""

    EDGES = "Edges"
    DENSITY = "Density"
    CUMULATIVE = "Cumulative"


class Metric(StrEnum):
    """How the bins become one score."""

    PSI = "PSI"
    SUM_DIFF = "SumDiff"
    MAX_DIFF = "MaxDiff"


@dataclass(frozen=True, slots=True)
class Summarizer:
    """A checked description of bins and score; making a contradictory one raises `BadSpec`."""

    bin_mode: BinMode = BinMode.QUANTILE
    num_bins: int = 5
    provided: tuple[float, ...] = ()
    weights: tuple[float, ...] | None = None
    aggregation: Aggregation = Aggregation.DENSITY
    metric: Metric = Metric.PSI
    generation: Generation = Generation.V1

    def __post_init__(self) -> None:
        if self.bin_mode is not BinMode.NONE and not 1 <= self.num_bins <= MOST_BINS:
            raise BadSpec(f"num_bins must be between 1 and {MOST_BINS}, not {self.num_bins}.")
        if self.bin_mode is BinMode.PROVIDED:
            self._check_provided()
        elif self.provided:
            raise BadSpec(f"Edges go with bin mode Provided only, not with {self.bin_mode}.")
        if self.bin_mode is BinMode.QUANTILE_WITH_OUTLIERS and self.generation is Generation.V1:
            raise BadSpec("Bin mode QuantileWithExplicitOutliers belongs to the second generation of assays.")
        if self.weights is not None:
            self._check_weights(self.weights)

    @property
    def bin_count(self) -> int:
        """Return how many bins a column gets, outliers included."""
        if self.bin_mode is BinMode.NONE:
            return 0 if self.generation is Generation.V1 else 1  # clients of the second read the last edge of any
        if self.generation is Generation.V1:
            return self.num_bins + 2
        if self.bin_mode is BinMode.PROVIDED:
            return len(self.provided) + 1
        return self.num_bins if self.bin_mode is BinMode.QUANTILE else self.num_bins + 2

    @property
    def bin_weights(self) -> tuple[float, ...] | None:
        """Return one weight a bin, or None for no weights."""
        surplus = 0 if self.weights is None else len(self.weights) - self.bin_count
        if self.weights is None or surplus == 0:
            return self.weights
        return self.weights[1:-1] if surplus == 2 else self.weights[1:]  # written for outlier bins that do not exist

    def with_weights(self, weights: Sequence[float] | None) -> Summarizer:
        """Return the same description with other weights."""
        return replace(self, weights=None if weights is None else tuple(weights))

    def _check_provided(self) -> None:
        if not self.provided:
            raise BadSpec("Bin mode Provided needs edges.")
        if not all(math.isfinite(edge) for edge in self.provided):
            raise BadSpec("Edges must be finite numbers.")
        if any(a > b for a, b in pairwise(self.provided)):
            raise BadSpec("Edges must ascend.")
        if self.generation is Generation.V1 and len(self.provided) not in (self.num_bins, self.num_bins + 1):
            raise BadSpec(
                f"{self.num_bins} bins need {self.num_bins} or {self.num_bins + 1} edges, not {len(self.provided)}."
            )
        if len(self.provided) > MOST_BINS + 1:
            raise BadSpec(f"At most {MOST_BINS + 1} edges can be given.")

    def _check_weights(self, weights: tuple[float, ...]) -> None:
        lengths = {self.bin_count}
        if self.generation is Generation.V2 and self.bin_mode is BinMode.QUANTILE:
            lengths.add(self.bin_count + 2)
        if self.generation is Generation.V2 and self.bin_mode is BinMode.PROVIDED:
            lengths.add(self.bin_count + 1)
        if len(weights) not in lengths:
            wanted = " or ".join(str(length) for length in sorted(lengths))
            raise BadSpec(f"bin_weights must have {wanted} numbers, one a bin, not {len(weights)}.")
        if not all(0 <= weight <= LARGEST_WEIGHT for weight in weights):
            raise BadSpec(f"bin_weights must be numbers between 0 and {LARGEST_WEIGHT:g}.")
        if weights and not sum(self.bin_weights or ()) > 0:
            raise BadSpec("bin_weights must add up to more than zero.")
