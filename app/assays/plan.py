"""An assay as it is computed, whichever generation of the API described it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from app.errors import Invalid
from engine.assays import Summarizer, Summary, Window

_DURATION = re.compile(r"\s*(\d{1,12})\s*(ms|milliseconds?|seconds?|minutes?|hours?|days?|weeks?)\s*")
_UNITS = {"m": "milliseconds", "s": "seconds", "i": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_PATH = re.compile(r"(inputs?|outputs?)\s+(\S+)(?:\s+(\d{1,9}))?")
LONGEST = timedelta(days=36600)


@dataclass(frozen=True, slots=True)
class Path:
    """One value of each record: a field of the inputs or outputs, and for a list the places in it."""

    side: Literal["in", "out"]
    field: str
    indexes: tuple[int, ...] | None = None

    @property
    def key(self) -> str:
        """Return what results call this path: `out.variable.0`, or `out.variable` for a plain value."""
        return f"{self.side}.{self.field}" + (f".{self.indexes[0]}" if self.indexes else "")


@dataclass(frozen=True, slots=True)
class Source:
    """Which records are looked at."""

    topic: str
    model: str | None = None
    locations: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Period:
    """`[start, end)` of records that are the baseline."""

    source: Source
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Vector:
    """The baseline's values themselves."""

    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """A baseline that was summarised before, by path."""

    summaries: Mapping[str, Summary]
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class Moving:
    """A baseline that moves: the `width` of records that ends `offset` before each window, not before `start`."""

    source: Source
    width: timedelta
    offset: timedelta = timedelta(0)
    start: datetime | None = None

    def before(self, window: Window) -> Period:
        """Return the baseline of one window; it is empty where everything lies before `start`."""
        end = window.start - self.offset
        start = end - self.width
        if self.start is not None:
            start = min(max(start, self.start), end)
        return Period(self.source, start, end)


Baseline = Period | Vector | Given | Moving


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on a score warns or alerts."""

    warning: float | None = None
    alert: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare with what."""

    source: Source
    paths: tuple[Path, ...]
    summarizer: Summarizer
    baseline: Baseline
    width: timedelta
    thresholds: Mapping[str, Thresholds]

    def with_baseline(self, baseline: Baseline) -> Plan:
        """Return the same plan against another baseline."""
        return replace(self, baseline=baseline)

    def with_thresholds(self, thresholds: Mapping[str, Thresholds]) -> Plan:
        """Return the same plan under other thresholds."""
        return replace(self, thresholds=thresholds)


def parse_path(text: str) -> Path:
    """Return the path that a v1 `iopath` names: `output dense_2 0`; raises `Invalid`."""
    found = _PATH.fullmatch(text.strip())
    if found is None:
        raise Invalid(
            f"iopath {text[:80]!r} is not of the form \"input|output <field> <index>\", as in 'output dense_2 0'."
        )
    side, field, index = found.groups()
    return Path("in" if side.startswith("input") else "out", field, None if index is None else (int(index),))


def parse_duration(text: str, what: str) -> timedelta:
    """Return the time span in `24 hours`, `30 minutes`, `86400000 ms`; raises `Invalid` naming `what`."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise Invalid(
            f"{what} {text[:40]!r} is not a time span: write a whole number of minutes, hours, days or weeks."
        )
    number, unit = int(found[1]), found[2]
    keyword = _UNITS["i" if unit.startswith("min") else unit[0]]
    try:
        span = timedelta(**{keyword: number})
    except OverflowError as exc:
        raise Invalid(f"{what} {text[:40]!r} is too long.") from exc
    return check_span(span, what)


def check_span(span: timedelta, what: str) -> timedelta:
    """Return `span` if windows can be that wide or far apart; raises `Invalid` otherwise."""
    if not timedelta(seconds=1) <= span <= LONGEST:
        raise Invalid(f"{what} must be between a second and a hundred years.")
    return span


def aware(moment: datetime) -> datetime:
    """Return `moment` in UTC; one without an offset is UTC already."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
