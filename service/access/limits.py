"""How much one client may ask: requests per minute (a bucket that refills), and requests at once.

A client is an authenticated caller, else an address. Counted on the event loop of one process, so no lock is needed;
replicas count for themselves. Forgotten once a client is idle and its bucket full, so that memory stays bounded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import TooManyRequests

MAX_CLIENTS = 10_000  # beyond, those that are at rest are forgotten


@dataclass
class _Client:
    left: float
    looked_at: float
    inside: int = 0


class ClientLimits:
    def __init__(self, *, per_minute: int, at_once: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._at_once, self._clock = per_minute, at_once, clock
        self._clients: dict[str, _Client] = {}

    def enter(self, client: str) -> Callable[[], None]:
        """Count one request in. Returns: what counts it out. Raises: TooManyRequests."""
        known = self._refilled(client)
        if known.left < 1:
            wait_s = math.ceil((1 - known.left) * 60 / self._per_minute)
            raise TooManyRequests(f"more than {self._per_minute} requests in a minute; wait {wait_s} s")
        if known.inside >= self._at_once:
            raise TooManyRequests(f"{self._at_once} requests of this client are being answered; wait for one to end")
        known.left -= 1
        known.inside += 1

        def leave() -> None:
            known.inside -= 1

        return leave

    def _refilled(self, client: str) -> _Client:
        now = self._clock()
        known = self._clients.get(client)
        if known is None:
            if len(self._clients) >= MAX_CLIENTS:
                self._forget(now)
            known = self._clients[client] = _Client(float(self._per_minute), now)
        known.left = self._level(known, now)
        known.looked_at = now
        return known

    def _level(self, known: _Client, now: float) -> float:
        return min(self._per_minute, known.left + (now - known.looked_at) * self._per_minute / 60)

    def _forget(self, now: float) -> None:
        rested = [
            name for name, known in self._clients.items()
            if not known.inside and self._level(known, now) >= self._per_minute
        ]  # fmt: skip
        for name in rested:
            del self._clients[name]
