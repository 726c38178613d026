"""One worker thread with a bounded queue: how CPU work leaves the event loop, and how "too much" is said at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.errors import ModelBusy, ModelNotReady

Result = TypeVar("Result")


class Lane:
    """Runs one piece of work at a time, in order of arrival. Used from one event loop."""

    def __init__(self, name: str, *, max_waiting: int) -> None:
        """Args: max_waiting: pieces of work that may wait beside the one that runs."""
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._capacity = 1 + max_waiting
        self._admitted = 0
        self._open = True

    async def run(self, work: Callable[[], Result], *, stop: Callable[[], None]) -> Result:
        """The result of `work()`, or its exception.

        Args: stop: called on cancellation if the work has begun, to make it end early. Work that was still waiting is
            never begun. The place is freed only when the thread is done, however the caller ended.
        Raises: ModelBusy, ModelNotReady: after `close`.
        """
        if not self._open:
            raise ModelNotReady("the engine is closed")
        if self._admitted >= self._capacity:
            raise ModelBusy(f"{self._admitted} network calls are running or waiting; try again later")
        loop = asyncio.get_running_loop()
        future = self._executor.submit(work)
        self._admitted += 1
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            stop()
            raise

    def _leave(self) -> None:
        self._admitted -= 1

    async def close(self) -> None:
        """Refuse new work, drop what waits, and wait for what runs."""
        self._open = False
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)
