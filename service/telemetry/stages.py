"""Stage times of one request: what `Server-Timing`, the JSON answer, the metrics and the CLI's progress all read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from opentelemetry.trace import Tracer

from service.telemetry.tracing import OFF, span


class Stages:
    """Collects wall seconds per named stage, in order of first use. A stage entered twice adds up.

    Each is a span of `tracer` too. Names in use: receive, unpack, deidentify, headers, pixels, prepare, encode,
    text, decode, restore, write, keep, deliver.
    """

    def __init__(self, on_enter: Callable[[str], None] | None = None, tracer: Tracer = OFF) -> None:
        self.seconds: dict[str, float] = {}
        self._on_enter, self._tracer = on_enter, tracer

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self._on_enter:
            self._on_enter(name)
        started = time.perf_counter()
        try:
            if self._tracer is OFF:
                yield
            else:
                with span(self._tracer, name):
                    yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def server_timing(self) -> str:
        """The value of a `Server-Timing` header (milliseconds)."""
        return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in self.seconds.items())
