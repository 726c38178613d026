"""How many may be inside at once. Counted on the event loop, so no lock is needed; full means a refusal at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.errors import ReceiverBusy


class Places:
    def __init__(self, limit: int) -> None:
        self._limit, self._taken = limit, 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Raises: ReceiverBusy."""
        if self._taken >= self._limit:
            raise ReceiverBusy(f"{self._limit} requests are being received; try again later")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
