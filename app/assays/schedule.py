"""When an assay's windows end: every so often, or by a cron expression."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from apscheduler.triggers.cron import CronTrigger

from app.errors import Invalid
from engine.assays import Window

_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Windows of `width` that end at `first`, and then every `step` or whenever `cron` says, `until` the end."""

    first: datetime
    width: timedelta
    step: timedelta | None
    cron: str | None = None
    until: datetime | None = None

    def windows(self, begin: datetime, now: datetime) -> Iterator[Window]:
        """Yield the windows that end at `begin` or later, and have ended by `now`."""
        end = self.at_or_after(begin)
        while end is not None and end <= now:
            yield Window(end - self.width, end)
            end = self.at_or_after(end + _INSTANT)

    def at_or_after(self, moment: datetime) -> datetime | None:
        """Return when the first window ends that does not end before `moment`; None past the end of the schedule."""
        moment = max(moment, self.first)
        if self.step is not None:
            end: datetime | None = self.first + -((self.first - moment) // self.step) * self.step
        else:
            end = _trigger(self.cron or "").get_next_fire_time(None, moment)
            end = None if end is None else end.astimezone(UTC)
        return None if end is None or (self.until is not None and end > self.until) else end

    def last_by(self, moment: datetime) -> datetime | None:
        """Return when the last window ends that has ended by `moment`; None if none has, or by cron."""
        moment = moment if self.until is None else min(moment, self.until)
        if self.step is None or moment < self.first:
            return None
        return self.first + ((moment - self.first) // self.step) * self.step

    def after(self, end: datetime) -> datetime | None:
        """Return when the window after the one that ends at `end` does."""
        return self.at_or_after(end + _INSTANT)


def check_cron(expression: str) -> str:
    """Return `expression` if it is a cron schedule of five fields; raises `Invalid` otherwise."""
    try:
        _trigger(expression)
    except ValueError as exc:
        raise Invalid(f"{expression[:80]!r} is not a cron schedule of five fields: {exc}") from exc
    return expression


def _trigger(expression: str) -> CronTrigger:
    fields = expression.split()
    if len(fields) != 5:
        raise ValueError(f"it has {len(fields)} fields")
    minute, hour, day, month, weekday = fields
    return CronTrigger(minute=minute, hour=hour, day=day, month=month, day_of_week=_named(weekday), timezone=UTC)


def _named(weekdays: str) -> str:
    """Return the days of the week by name: cron counts from Sunday, the library from Monday."""
    days, slash, every = weekdays.partition("/")
    named = "".join(_WEEKDAYS[int(c)] if c in "01234567" else c for c in days) if days != "*" else "*"
    return named + slash + every
