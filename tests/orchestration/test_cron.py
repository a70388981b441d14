"""Schedules as crontab(5) reads them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Invalid
from app.orchestration import cron

MONDAY = datetime(2024, 1, 1, 10, 7, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("* * * * *", datetime(2024, 1, 1, 10, 8, tzinfo=UTC)),
        ("*/15 * * * *", datetime(2024, 1, 1, 10, 15, tzinfo=UTC)),
        ("0 0 * * 0", datetime(2024, 1, 7, tzinfo=UTC)),  # Sunday is 0 …
        ("0 0 * * 7", datetime(2024, 1, 7, tzinfo=UTC)),  # … and 7
        ("0 0 * * 1", datetime(2024, 1, 8, tzinfo=UTC)),
        ("0 0 * * mon-wed", datetime(2024, 1, 2, tzinfo=UTC)),
        ("0 0 * * 5-7", datetime(2024, 1, 5, tzinfo=UTC)),
        ("0 0 * * 6-1", datetime(2024, 1, 6, tzinfo=UTC)),
        ("0 0 13 * 5", datetime(2024, 1, 5, tzinfo=UTC)),  # day of month or day of week: either will do
        ("30 4 29 2 *", datetime(2024, 2, 29, 4, 30, tzinfo=UTC)),
        ("0 12 1 JAN *", datetime(2024, 1, 1, 12, tzinfo=UTC)),
        ("@hourly", datetime(2024, 1, 1, 11, tzinfo=UTC)),
        ("0 0 ? * 1/2", datetime(2024, 1, 3, tzinfo=UTC)),
    ],
)
def test_the_next_time_is_that_of_crontab(schedule: str, expected: datetime) -> None:
    assert cron.next_after(schedule, MONDAY) == expected


@pytest.mark.parametrize(
    "schedule", ["every tuesday", "", "* * * *", "61 * * * *", "* * * * 8", "0 0 31 2 *", "a b c d e"]
)
def test_what_is_no_schedule_or_never_due_is_refused(schedule: str) -> None:
    with pytest.raises(Invalid):
        cron.check(schedule)


@given(st.integers(1, 59), st.integers(0, 60 * 24 * 40))
def test_missed_times_are_coalesced_into_the_newest(step: int, gap_minutes: int) -> None:
    schedule = f"*/{step} * * * *"
    due = cron.next_after(schedule, MONDAY)
    assert due is not None
    now = due + timedelta(minutes=gap_minutes, seconds=11)

    newest = cron.last_up_to(schedule, due, now)

    following = cron.next_after(schedule, newest)
    assert due <= newest <= now
    assert following is not None
    assert following > now
