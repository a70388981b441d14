"""A queue of keys: each is in it once, and never worked on twice at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


class WorkQueue:
    """Keys that are due now or later.

    A key that is added while it is worked on comes again afterwards. One that fails comes again after a pause that
    grows with each failure in a row.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: dict[int, float] = {}
        self._heap: list[tuple[float, int, int]] = []
        self._numbers = itertools.count()
        self._working: set[int] = set()
        self._again: dict[int, float] = {}
        self._failures: dict[int, int] = {}
        self._changed = asyncio.Event()

    def add(self, key: int, delay_s: float = 0.0) -> None:
        """Have `key` worked on in `delay_s` seconds, or earlier if it is due earlier already."""
        due = self._loop.time() + delay_s
        if key in self._working:
            self._again[key] = min(due, self._again.get(key, due))
        elif due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heap, (due, next(self._numbers), key))
            self._changed.set()

    async def get(self) -> int:
        """Return the next key that is due; `done` or `failed` must follow."""
        while True:
            while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
                heapq.heappop(self._heap)  # was moved to an earlier time
            now = self._loop.time()
            if self._heap and self._heap[0][0] <= now:
                _, _, key = heapq.heappop(self._heap)
                del self._due[key]
                self._working.add(key)
                return key
            self._changed.clear()
            wait_s = self._heap[0][0] - now if self._heap else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()

    def done(self, key: int, next_look_s: float | None = None) -> None:
        """Say that `key` is worked off, and when to look at it again by itself."""
        self._failures.pop(key, None)
        self._release(key, next_look_s)

    def failed(self, key: int) -> float:
        """Say that the work on `key` failed; returns the seconds until it comes again."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), LONGEST_PAUSE_S)
        self._again.pop(key, None)  # a wake-up does not cut the pause short
        self._release(key, pause_s)
        return pause_s

    def _release(self, key: int, next_look_s: float | None) -> None:
        self._working.discard(key)
        again = self._again.pop(key, None)
        if again is not None:
            self.add(key, max(0.0, again - self._loop.time()))
        if next_look_s is not None:
            self.add(key, next_look_s)
