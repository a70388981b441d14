"""Times in questions to the log."""

from __future__ import annotations

from datetime import UTC, datetime

from engine.logs.query import TimeRange


def time_range(start: str | None, end: str | None, start_name: str, end_name: str) -> TimeRange | None:
    """Return the range between two RFC 3339 times; raises `ValueError` for one alone, or for what is no time."""
    if not start and not end:
        return None
    if not start or not end:
        raise ValueError(f"{start_name} and {end_name} go together; give both or none")
    found = TimeRange(_milliseconds(start, start_name), _milliseconds(end, end_name))
    if found.start > found.end:
        raise ValueError(f"{start_name} lies after {end_name}")
    return found


def _milliseconds(text: str, name: str) -> int:
    try:
        # a plus sign that was not percent-encoded arrives as a space
        moment = datetime.fromisoformat(text.strip().replace(" ", "+") if "T" in text else text.strip())
    except ValueError:
        raise ValueError(f"{name} {text[:40]!r} is no RFC 3339 time, like 2024-05-01T10:00:00Z") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
