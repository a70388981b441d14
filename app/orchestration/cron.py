"""Five-field cron schedules as Kubernetes and crontab(5) read them, in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from apscheduler.triggers.cron import CronTrigger

from app.errors import Invalid

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


def check(schedule: str) -> None:
    """Raise `Invalid` unless `schedule` is a cron schedule that will ever be due."""
    if next_after(schedule, datetime.now(UTC)) is None:
        raise Invalid(f"The schedule {schedule!r} is never due.")


def next_after(schedule: str, moment: datetime) -> datetime | None:
    """Return the first time after `moment` at which `schedule` is due, or None when there is none.

    Raises `Invalid` when it is not a schedule.
    """
    start = moment.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    times = [found for t in _triggers(schedule) if (found := t.get_next_fire_time(None, start)) is not None]
    return min(times) if times else None


def last_up_to(schedule: str, due: datetime, now: datetime) -> datetime:
    """Return the newest time at which `schedule` was due in [`due`, `now`], where `due` is such a time itself.

    What was missed in between is coalesced into it.
    """
    newest = due
    for days in (1, 32, 366, 366 * 5):  # look close to now first: a minutely schedule has many times in a long gap
        found = next_after(schedule, max(now - timedelta(days=days), due) - timedelta(minutes=1))
        while found is not None and found <= now:
            newest = max(newest, found)
            found = next_after(schedule, found)
        if newest > due or now - timedelta(days=days) <= due:
            break
    return newest


def _triggers(schedule: str) -> list[CronTrigger]:
    fields = _NICKNAMES.get(schedule.strip().lower(), schedule).split()
    if len(fields) != 5:
        raise Invalid(
            f"{schedule!r} is not a schedule: give five fields, minute hour day-of-month month day-of-week, "
            "for example '*/5 * * * *'."
        )
    minute, hour, day, month, weekday = fields
    try:
        named = ",".join(_weekdays(part) for part in weekday.lower().replace("?", "*").split(","))
        day = day.replace("?", "*")

        def trigger(day: str, weekday: str) -> CronTrigger:
            return CronTrigger(
                minute=minute, hour=hour, day=day, month=month.lower(), day_of_week=weekday, timezone=UTC
            )

        if day.startswith("*") or weekday.startswith("*"):
            return [trigger(day, named)]
        return [trigger(day, "*"), trigger("*", named)]  # both restricted: either will do
    except (ValueError, TypeError) as exc:
        raise Invalid(f"{schedule!r} is not a schedule: {exc}.") from exc


def _weekdays(part: str) -> str:
    """Return one part of the day-of-week field with names for numbers; crontab's week starts with Sunday as 0 or 7."""
    body, slash, step = part.partition("/")
    if body == "*":
        days = list(range(7))
    else:
        first, dash, last = body.partition("-")
        start = _day(first)
        end = _day(last) if dash else start
        if dash and end < start:
            end += 7
        if not dash and slash:
            end = 6
        days = [d % 7 for d in range(start, end + 1)]
    if slash:
        if not re.fullmatch(r"[1-9]\d*", step):
            raise ValueError(f"{part!r} has no valid step")
        days = days[:: int(step)]
    return "*" if len(set(days)) == 7 else ",".join(_DAYS[d] for d in days)


def _day(word: str) -> int:
    if re.fullmatch(r"[0-7]", word):
        return int(word)
    if word in _DAYS:
        return _DAYS.index(word)
    raise ValueError(f"{word!r} is no day of the week")
