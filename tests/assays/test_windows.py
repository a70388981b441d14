"""Where windows lie: the recorded numbers of analyses, and what holds always."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.assays import Window, last_start, starts

DAY = timedelta(days=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("first", "step", "width", "expected"),
    [
        ("2023-01-02", DAY, DAY, 30),
        ("2023-01-02", DAY / 2, DAY, 59),
        ("2022-01-03", 7 * DAY, 7 * DAY, 56),
        ("2023-01-02", DAY / 6, DAY / 6, 180),
    ],
)
def test_recorded_configurations_have_their_number_of_windows(first, step, width, expected):
    assert len(list(starts(at(first), step, width, at("2023-02-01")))) == expected


def test_a_window_that_has_not_ended_does_not_count():
    assert list(starts(at("2023-01-02"), DAY, DAY, at("2023-01-03") - timedelta(microseconds=1))) == []
    assert list(starts(at("2023-01-02"), DAY, DAY, at("2023-01-03"))) == [Window(at("2023-01-02"), at("2023-01-03"))]


spans = st.timedeltas(timedelta(minutes=1), timedelta(days=3))


@given(spans, spans, st.timedeltas(timedelta(0), timedelta(days=4)), st.timedeltas(timedelta(0), timedelta(days=2)))
def test_passing_over_is_the_same_as_filtering(step, width, length, skipped):
    first = at("2023-01-01")
    until, after = first + length, first + skipped
    everything = list(starts(first, step, width, until))

    assert list(starts(first, step, width, until, after=after)) == [w for w in everything if w.end > after]
    assert last_start(first, step, width, until) == (everything[-1].start if everything else None)
