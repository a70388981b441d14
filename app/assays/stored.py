"""Summaries as the database keeps them and as the two generations of the API show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from app.errors import Invalid
from engine.assays import Aggregation, BinMode, Bins, Generation, Statistics, Summarizer, Summary
from engine.assays.bins import window_names

Json = dict[str, Any]

INFINITY = "INFINITY"
"""How the second generation writes the edge of an open bin."""


def keep(summary: Summary) -> Json:
    """Return `summary` as the database keeps it: finite numbers only."""
    return {
        **statistics_of(summary.statistics),
        "edges": list(summary.bins.edges),
        "labels": list(summary.bins.labels),
        "has_left_outlier": summary.bins.has_left_outlier,
        "aggregated": [finite(value) for value in summary.aggregated],
        "aggregation": summary.aggregation.value,
    }


def restore(kept: Json) -> Summary:
    """Return what `keep` kept."""
    return Summary(
        Statistics(*(kept[name] for name in ("count", "min", "max", "mean", "median", "std"))),
        Bins(tuple(kept["edges"]), tuple(kept["labels"]), kept["has_left_outlier"]),
        tuple(kept["aggregated"]),
        Aggregation(kept["aggregation"]),
    )


def v1_summary(summary: Summary, start: datetime | None, end: datetime | None, *, is_window: bool = False) -> Json:
    """Return `summary` as the first generation shows it; a window's bins are named after their edges."""
    bins = summary.bins
    return {
        **statistics_of(summary.statistics),
        "edges": [*bins.edges, None] if len(bins) else [],
        "edge_names": list(window_names(bins) if is_window else bins.labels),
        "aggregated_values": [finite(value) for value in summary.aggregated],
        "aggregation": summary.aggregation.value,
        "start": zulu(start),
        "end": zulu(end),
    }


def v2_summary(key: str, summary: Summary, mode: Any, start: datetime | None, end: datetime | None) -> Json:
    """Return `summary` as the second generation shows it."""
    bins = summary.bins
    return {
        "name": key,
        "bins": {
            "edges": [*bins.edges, INFINITY] if len(bins) else [],
            "labels": list(bins.labels),
            "mode": mode,
        },
        "aggregated_values": [finite(value) for value in summary.aggregated],
        "aggregation": summary.aggregation.value,
        "statistics": statistics_of(summary.statistics),
        "start": zulu(start),
        "end": zulu(end),
    }


def statistics_of(statistics: Statistics) -> Json:
    """Return the statistics by name."""
    return {
        "count": statistics.count,
        "min": finite(statistics.min),
        "max": finite(statistics.max),
        "mean": finite(statistics.mean),
        "median": finite(statistics.median),
        "std": finite(statistics.std),
    }


def summary_from(given: Json, spec: Summarizer, *, edges: Sequence[Any], labels: Sequence[Any], mode: Any) -> Summary:
    """Return the summary that a client sends back as a baseline; raises `Invalid` where it contradicts itself."""
    numbers = [edge for edge in edges if edge is not None and edge not in (INFINITY, math.inf)]
    values = given.get("aggregated_values")
    if not isinstance(values, list) or len(values) != len(labels) or len(labels) != len(edges):
        raise Invalid("A baseline summary needs an edge, a name and an aggregated value for each bin.")
    if labels and len(numbers) != len(labels) - 1:
        raise Invalid("A baseline summary has one open bin, the last: its edge is null.")
    if not all(is_number(x) for x in [*numbers, *values]) or numbers != sorted(numbers):
        raise Invalid("A baseline summary needs finite numbers, its edges in ascending order.")
    named = labels[:1] == ["left_outlier"]
    outlier = named or mode is BinMode.EQUAL or mode is BinMode.QUANTILE_WITH_OUTLIERS
    outlier = outlier or (spec.generation is Generation.V1 and bool(labels))
    try:
        stats = Statistics(int(given["count"]), *(float(given[k]) for k in ("min", "max", "mean", "median", "std")))
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise Invalid("A baseline summary needs count, min, max, mean, median and std.") from exc
    if not all(math.isfinite(x) for x in (stats.min, stats.max, stats.mean, stats.median, stats.std)):
        raise Invalid("A baseline summary needs finite statistics.")
    try:
        aggregation = Aggregation(given.get("aggregation", spec.aggregation))
    except ValueError as exc:
        raise Invalid(f"There is no aggregation {given.get('aggregation')!r}.") from exc
    if aggregation is not spec.aggregation:
        raise Invalid(f"The baseline is aggregated as {aggregation}, the windows as {spec.aggregation}.")
    if len(labels) != spec.bin_count and spec.bin_weights is not None and len(spec.bin_weights) != len(labels):
        raise Invalid(f"bin_weights are for {len(spec.bin_weights)} bins, the baseline has {len(labels)}.")
    bins = Bins(tuple(map(float, numbers)), tuple(map(str, labels)), outlier)
    return Summary(stats, bins, tuple(map(float, values)), aggregation)


def finite(value: float) -> float | None:
    """Return `value`, or None for what JSON has no word for."""
    return value if math.isfinite(value) else None


def is_number(value: object) -> bool:
    """Tell whether `value` is a finite number (a truth value is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def zulu(moment: datetime | None) -> str | None:
    """Return `moment` as results show it: UTC with a `Z`."""
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def moment_of(text: Any, what: str) -> datetime:
    """Return the moment in ISO 8601 `text`, UTC if it has no offset; raises `Invalid` naming `what`."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError) as exc:
        raise Invalid(f"{what} {str(text)[:40]!r} is not a date and time in ISO 8601.") from exc
    if not 1 < moment.year < 9999:
        raise Invalid(f"{what} {str(text)[:40]!r} is too far away.")
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def spec_error(kept: Mapping[str, Any], name: str) -> Invalid:
    """Return the error for a member of a configuration that is missing or of the wrong kind."""
    return Invalid(f"{name} {str(kept.get(name.rpartition('.')[2]))[:60]!r} is not allowed here.")
