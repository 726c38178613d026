"""How many requests may be inside: a place for each from its first byte, a turn for those that compute.

Both are counted on the event loop, so no lock is needed. Full means a refusal at once, before a body is read: a queue
without an end would fill the disk with uploads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.errors import ModelBusy
from service.telemetry.metrics import Metrics


class Admission:
    def __init__(self, *, max_running: int, max_waiting: int, metrics: Metrics) -> None:
        self._places = max_running + max_waiting
        self._taken = 0
        self._turns = asyncio.Semaphore(max_running)
        self._metrics = metrics

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place. Raises: ModelBusy when all are taken."""
        if self._taken >= self._places:
            raise ModelBusy(f"{self._places} requests are being served or waiting; try again later")
        self._taken += 1
        self._metrics.waiting.inc()
        try:
            yield
        finally:
            self._taken -= 1
            self._metrics.waiting.dec()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn to compute, first come, first served."""
        async with self._turns:
            self._metrics.waiting.dec()
            self._metrics.running.inc()
            try:
                yield
            finally:
                self._metrics.running.dec()
                self._metrics.waiting.inc()
