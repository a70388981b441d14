"""Where the windows of an assay lie in time: half-open, one every step, whole ones only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class Window:
    """`[start, end)`."""

    start: datetime
    end: datetime


def starts(
    first: datetime, step: timedelta, width: timedelta, until: datetime, *, after: datetime | None = None
) -> Iterator[Window]:
    """Yield the windows that begin at `first` and every `step` thereafter and have ended by `until`.

    With `after`, those that end at or before it are passed over without being looked at one by one.
    """
    k = 0
    if after is not None and first + width <= after:
        k = (after - width - first) // step + 1
    while (start := first + k * step) + width <= until:
        yield Window(start, start + width)
        k += 1


def last_start(first: datetime, step: timedelta, width: timedelta, until: datetime) -> datetime | None:
    """Return the start of the last window that has ended by `until`, or None if none has."""
    if first + width > until:
        return None
    return first + ((until - width - first) // step) * step
