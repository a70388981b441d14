"""Busy polling: after a reply the event loop looks out for the next request for a moment before it goes to sleep.

A client on the same machine that waits for one reply before it asks again does so within tens of microseconds. Putting
a processor to sleep and waking it takes longer than that, and it wakes with cold caches.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

WINDOW_NS = 100_000
"""How long to look out, and the longest pause between a reply and a request after which it is done again."""


class BusyPoll:
    """Keeps an event loop awake while requests follow replies closely.

    A pause longer than the window ends it until the next short one, so an idle engine sleeps, and one whose clients
    are far away never polls. Whoever else wants the processor gets it; while the process itself has something to do in
    other threads, it does not poll.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, is_busy: Callable[[], bool]) -> None:
        self._loop = loop
        self._is_busy = is_busy
        self._answered_ns = 0
        self._is_polling = False

    def answered(self, began_ns: int, now_ns: int) -> None:
        """Take note of a reply, and of when work on its request began."""
        pays = began_ns - self._answered_ns < WINDOW_NS
        self._answered_ns = now_ns
        if pays and not self._is_polling and not self._is_busy():
            self._is_polling = True
            self._loop.call_soon(self._poll)

    def _poll(self) -> None:
        if time.perf_counter_ns() - self._answered_ns < WINDOW_NS and not self._is_busy():
            os.sched_yield()
            self._loop.call_soon(self._poll)
        else:
            self._is_polling = False
