"""The queue of the controller."""

from __future__ import annotations

import asyncio

from app.deployments.workqueue import FIRST_PAUSE_S, LONGEST_PAUSE_S, WorkQueue


async def test_a_key_that_is_added_twice_is_worked_on_once() -> None:
    queue = WorkQueue()
    for key in (1, 2, 1, 1):
        queue.add(key)

    assert [await queue.get(), await queue.get()] == [1, 2]
    queue.done(1)
    queue.done(2)
    assert await is_empty(queue)


async def test_a_key_is_never_worked_on_twice_at_once_but_comes_again() -> None:
    queue = WorkQueue()
    queue.add(1)
    assert await queue.get() == 1

    queue.add(1)
    assert await is_empty(queue)
    queue.done(1)

    assert await asyncio.wait_for(queue.get(), 1) == 1


async def test_an_earlier_time_wins() -> None:
    queue = WorkQueue()
    queue.add(1, 60)
    queue.add(1)

    assert await asyncio.wait_for(queue.get(), 1) == 1
    queue.done(1)
    assert await is_empty(queue)


async def test_a_later_time_is_waited_for() -> None:
    queue = WorkQueue()
    queue.add(1, 0.05)

    assert await is_empty(queue)
    assert await asyncio.wait_for(queue.get(), 1) == 1


async def test_failures_in_a_row_make_the_pause_grow_and_a_success_ends_that() -> None:
    queue = WorkQueue()

    async def pause() -> float:
        queue.add(1)
        queue._due[1] = 0.0  # the pause itself is not waited for
        queue._heap[:] = [(0.0, 0, 1)]
        assert await queue.get() == 1
        return queue.failed(1)

    pauses = [await pause() for _ in range(9)]

    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
    queue._due[1] = 0.0
    queue._heap[:] = [(0.0, 0, 1)]
    await queue.get()
    queue.done(1)
    assert await pause() == FIRST_PAUSE_S


async def is_empty(queue: WorkQueue) -> bool:
    try:
        await asyncio.wait_for(queue.get(), 0.01)
    except TimeoutError:
        return True
    return False
