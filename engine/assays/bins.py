"""Cutting a column into bins, and counting what falls into each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from engine.assays.spec import BinMode, Generation, Summarizer
from engine.assays.statistics import Numbers, Statistics

_CHUNK = 65536
"""Values compared at a time: two megabits of answers and their input stay in the cache."""
_SEARCH_FROM = 48
"""With more edges than this a binary search a value is cheaper than a comparison an edge."""


@dataclass(frozen=True, slots=True)
class Bins:
    """Right edges of bins, ascending; the last bin has none and takes all above.

    With `has_left_outlier` the first bin takes what lies strictly below the first edge, and a value equal to that edge
    belongs to the second. All other bins include their right edge.
    """

    edges: tuple[float, ...]
    labels: tuple[str, ...]
    has_left_outlier: bool

    def __len__(self) -> int:
        return len(self.labels)

    def count(self, values: Numbers) -> list[int]:
        """Return how many of `values` fall into each bin."""
        if not self.labels:
            return []
        if len(self.edges) > _SEARCH_FROM:
            return self._search(values)
        limits = _limits(self.edges, values)
        up_to = [0] * len(limits)
        for start in range(0, len(values), _CHUNK):
            chunk = values[start : start + _CHUNK]
            for i, limit in enumerate(limits):
                up_to[i] += int(np.count_nonzero(chunk <= limit))
        if self.has_left_outlier:
            up_to[0] = _count_below(values, self.edges[0])
        return [b - a for a, b in pairwise((0, *up_to, len(values)))]

    def _search(self, values: Numbers) -> list[int]:
        edges = np.asarray(self.edges, dtype=np.float64)
        counts = np.zeros(len(self.edges) + 1, dtype=np.int64)
        for start in range(0, len(values), _CHUNK):
            chunk = values[start : start + _CHUNK].astype(np.float64, copy=False)
            where = np.searchsorted(edges, chunk, side="left")
            if self.has_left_outlier:
                where[chunk == edges[0]] = 1
            counts += np.bincount(where, minlength=len(counts))
        return [int(count) for count in counts]


def bins_of(ordered: Numbers, statistics: Statistics, spec: Summarizer) -> Bins:
    """Return the bins of a baseline; for quantiles `ordered` must be its finite values in ascending order."""
    n = spec.num_bins
    match spec.bin_mode, spec.generation:
        case BinMode.NONE, Generation.V1:
            return Bins((), (), has_left_outlier=False)
        case BinMode.NONE, _:
            return Bins((), ("all",), has_left_outlier=False)
        case BinMode.QUANTILE, Generation.V1:
            names = [f"q_{100 * k // n}" for k in range(1, n + 1)]
            return Bins(_ranked(ordered, n), ("left_outlier", *names, "right_outlier"), has_left_outlier=True)
        case BinMode.EQUAL, Generation.V1:
            edges = _equal(statistics, n)
            return Bins(edges, _v1_names("p", edges), has_left_outlier=True)
        case BinMode.PROVIDED, Generation.V1:
            edges = spec.provided
            if len(edges) == n:
                edges = (min(statistics.min, edges[0]), *edges)
            return Bins(edges, _v1_names("e", edges), has_left_outlier=True)
        case BinMode.QUANTILE, _:
            return Bins(_interpolated(ordered, n), _percent_labels(n), has_left_outlier=False)
        case BinMode.QUANTILE_WITH_OUTLIERS, _:
            inner = [f"{100 * (k - 1) // n}% - {100 * k // n}%" for k in range(1, n + 1)]
            edges = _ranked(ordered, n)
            labels = (f"< {scientific(edges[0])}", *inner, f"> {scientific(edges[-1])}")
            return Bins(edges, labels, has_left_outlier=True)
        case BinMode.EQUAL, _:
            edges = _equal(statistics, n)
            return Bins(edges, _between_labels(edges), has_left_outlier=True)
        case _:
            return Bins(spec.provided, _between_labels(spec.provided), has_left_outlier=False)


def window_names(bins: Bins) -> tuple[str, ...]:
    """Return the first generation's names of the same bins in a window: after their edges, whatever their origin."""
    return _v1_names("e", bins.edges) if bins.edges else ()


def scientific(number: float) -> str:
    """Return `number` with two decimals and the shortest exponent: 1.26e1, -5.30e-1, 0.00e0."""
    mantissa, exponent = f"{number:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _ranked(ordered: Numbers, n: int) -> tuple[float, ...]:
    """Return the minimum and the n quantiles that are samples themselves (closest observation, halves up)."""
    size = len(ordered)
    ranks = (max(1, (2 * k * size + n) // (2 * n)) for k in range(1, n + 1))
    return (float(ordered[0]), *(float(ordered[rank - 1]) for rank in ranks))


def _interpolated(ordered: Numbers, n: int) -> tuple[float, ...]:
    edges = []
    for k in range(1, n):
        whole, part = divmod(k * (len(ordered) - 1), n)
        low = float(ordered[whole])
        if part:
            high, share = float(ordered[whole + 1]), part / n
            step = high - low
            between = low + step * share if np.isfinite(step) else low * (1 - share) + high * share
            low = min(max(between, low), high)
        edges.append(low)
    return tuple(edges)


def _equal(statistics: Statistics, n: int) -> tuple[float, ...]:
    low, high = statistics.min, statistics.max
    span = high - low
    edges = []
    for i in range(n):
        edge = low + i * span / n if np.isfinite(i * span) else low * (1 - i / n) + high * (i / n)
        edges.append(min(max(edge, low), high))
    return (*edges, high)  # the maximum itself: rounding must not push it among the outliers


def _v1_names(prefix: str, edges: Sequence[float]) -> tuple[str, ...]:
    return ("left_outlier", *(f"{prefix}_{scientific(edge)}" for edge in edges[1:]), "right_outlier")


def _percent_labels(n: int) -> tuple[str, ...]:
    if n == 1:
        return ("<= 100%",)
    percents = [100 * k // n for k in range(1, n)]
    inner = (f"{a}% - {b}%" for a, b in pairwise(percents))
    return (f"< {percents[0]}%", *inner, f"> {percents[-1]}%")


def _between_labels(edges: Sequence[float]) -> tuple[str, ...]:
    names = [scientific(edge) for edge in edges]
    return (f"< {names[0]}", *(f"{a} - {b}" for a, b in pairwise(names)), f"> {names[-1]}")


def _limits(edges: Sequence[float], values: Numbers) -> list[np.float32 | float]:
    """Return the edges such that comparing in the values' own width is exact."""
    if values.dtype != np.float32:
        return list(edges)
    limits: list[np.float32 | float] = []
    for edge in edges:
        limit = _to_float32(edge)
        limits.append(np.nextafter(limit, np.float32(-np.inf)) if float(limit) > edge else limit)
    return limits


def _count_below(values: Numbers, edge: float) -> int:
    limit: np.float32 | float = edge
    if values.dtype == np.float32:
        limit = _to_float32(edge)
        if float(limit) < edge:
            limit = np.nextafter(limit, np.float32(np.inf))
    return sum(int(np.count_nonzero(values[start : start + _CHUNK] < limit)) for start in range(0, len(values), _CHUNK))


def _to_float32(edge: float) -> np.float32:
    with np.errstate(over="ignore", under="ignore"):
        return np.float32(edge)
