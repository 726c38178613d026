"""A lane runs one piece of work at a time, off the event loop, and never more than it admitted."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.errors import ModelBusy, ModelNotReady
from service.inference.lane import Lane


class Work:
    """Work that runs until it is let go; counts how often and how many at once."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()
        self.running = self.most_at_once = self.calls = 0

    def __call__(self) -> int:
        self.running += 1
        self.calls += 1
        self.most_at_once = max(self.most_at_once, self.running)
        self.begun.set()
        assert self.let_go.wait(10)
        self.running -= 1
        return self.calls


async def begun(work: Work) -> None:
    assert await asyncio.to_thread(work.begun.wait, 10)


async def test_work_runs_one_at_a_time_in_order_of_arrival():
    lane, work = Lane("test", max_waiting=3), Work()
    work.let_go.set()
    assert await asyncio.gather(*(lane.run(work, stop=lambda: None) for _ in range(4))) == [1, 2, 3, 4]
    assert work.most_at_once == 1
    await lane.close()


async def test_an_exception_reaches_the_caller_and_frees_the_place():
    lane = Lane("test", max_waiting=0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await lane.run(lambda: 1 // 0, stop=lambda: None)
    await lane.close()


async def test_more_than_may_wait_is_refused_at_once():
    lane, work = Lane("test", max_waiting=1), Work()
    admitted = [asyncio.create_task(lane.run(work, stop=lambda: None)) for _ in range(2)]
    await begun(work)
    with pytest.raises(ModelBusy, match="2 network calls") as refused:
        await lane.run(work, stop=lambda: None)
    assert refused.value.retry_after_s == 5
    work.let_go.set()
    assert await asyncio.gather(*admitted) == [1, 2]
    assert await lane.run(work, stop=lambda: None) == 3
    await lane.close()


async def test_cancelled_work_that_still_waits_never_begins():
    lane, work = Lane("test", max_waiting=1), Work()
    first = asyncio.create_task(lane.run(work, stop=lambda: None))
    await begun(work)
    second = asyncio.create_task(lane.run(work, stop=lambda: None))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    work.let_go.set()
    await first
    await lane.close()
    assert work.calls == 1


async def test_cancelled_work_that_runs_is_stopped_and_keeps_its_place_until_its_thread_is_done():
    lane, work = Lane("test", max_waiting=0), Work()
    stopped = threading.Event()
    running = asyncio.create_task(lane.run(work, stop=stopped.set))
    await begun(work)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert stopped.is_set()
    with pytest.raises(ModelBusy):
        await lane.run(work, stop=lambda: None)
    work.let_go.set()
    await asyncio.sleep(0.05)
    assert await lane.run(work, stop=lambda: None) == 2
    await lane.close()


async def test_a_closed_lane_refuses():
    lane = Lane("test", max_waiting=0)
    await lane.close()
    with pytest.raises(ModelNotReady):
        await lane.run(lambda: 1, stop=lambda: None)
