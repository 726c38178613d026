"""Stage times of one request: what `Server-Timing`, the JSON answer, the metrics and the CLI's progress all read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stages:
    """Collects wall seconds per named stage, in order of first use. A stage entered twice adds up.

    Names in use: receive, unpack, headers, pixels, prepare, encode, text, decode, restore, write.
    """

    def __init__(self, on_enter: Callable[[str], None] | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._on_enter = on_enter

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self._on_enter:
            self._on_enter(name)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def server_timing(self) -> str:
        """The value of a `Server-Timing` header (milliseconds)."""
        return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in self.seconds.items())
