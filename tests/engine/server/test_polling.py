"""When the event loop looks out for requests instead of going to sleep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.server import polling
from engine.server.polling import WINDOW_NS, BusyPoll


class Loop:
    """An event loop of which each turn takes a quarter of the window."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now_ns = 10**9
        self.busy = False
        self._next: list[Callable[[], None]] = []
        patch.setattr(polling.time, "perf_counter_ns", lambda: self.now_ns)
        self.poll = BusyPoll(self, lambda: self.busy)  # type: ignore[arg-type]

    def call_soon(self, callback: Callable[[], None], *_: Any) -> None:
        self._next.append(callback)

    def request(self, pause_ns: int = 0) -> None:
        """A request comes after a pause, and is answered at once."""
        self.now_ns += pause_ns
        self.poll.answered(self.now_ns, self.now_ns)

    def turns(self) -> int:
        """Go on until the loop would sleep; returns after how many turns."""
        count = 0
        while self._next:
            callbacks, self._next = self._next, []
            self.now_ns += WINDOW_NS // 4
            for callback in callbacks:
                callback()
            count += 1
            assert count < 100, "it never sleeps"
        return count


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop(monkeypatch)


def test_it_looks_out_while_requests_follow_replies_closely(loop: Loop) -> None:
    loop.request()
    assert loop.turns() == 0, "the first request says nothing yet"
    for _ in range(3):
        loop.request(WINDOW_NS // 2)
    assert loop.turns() == 4, "once, for as long as the window after the last reply"


def test_a_long_pause_ends_it_until_the_next_short_one(loop: Loop) -> None:
    loop.request()
    loop.request(WINDOW_NS // 2)
    loop.turns()
    loop.request(WINDOW_NS * 3)
    assert loop.turns() == 0
    loop.request(WINDOW_NS // 2)
    assert loop.turns() == 4


def test_it_leaves_the_processor_to_runs_in_threads(loop: Loop) -> None:
    loop.request()
    loop.busy = True
    loop.request(WINDOW_NS // 2)
    assert loop.turns() == 0
    loop.busy = False
    loop.request(WINDOW_NS // 2)
    loop.busy = True
    assert loop.turns() == 1, "it stops at once"
