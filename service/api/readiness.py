"""Whether the engine answers: a canary inference, its outcome reused for a moment, never two at once."""

from __future__ import annotations

import asyncio
import time

import anyio

from service.errors import ModelBusy, ModelNotReady, ModelUnavailable
from service.inference.engine import Engine
from service.telemetry.metrics import Metrics


class Readiness:
    """Triton calls itself ready after its Python stub died, so only an inference counts."""

    def __init__(self, engine: Engine, *, timeout_s: float, cache_s: float, metrics: Metrics) -> None:
        self._engine, self._timeout_s, self._cache_s, self._metrics = engine, timeout_s, cache_s, metrics
        self._lock = asyncio.Lock()
        self._checked_at = -float("inf")
        self._refusal: str | None = None

    async def check(self) -> None:
        """Raises: ModelNotReady."""
        async with self._lock:
            if time.monotonic() - self._checked_at >= self._cache_s:
                self._refusal = await self._canary()
                self._checked_at = time.monotonic()
                self._metrics.engine_up.set(self._refusal is None)
        if self._refusal is not None:
            raise ModelNotReady(self._refusal)

    async def _canary(self) -> str | None:
        """None when the engine answers, else why not."""
        try:
            with anyio.fail_after(self._timeout_s):
                await self._engine.check()
        except TimeoutError:
            return f"the engine's canary inference took longer than {self._timeout_s:g} s"
        except ModelBusy:
            return None  # it works, on others' requests
        except ModelUnavailable as error:
            return error.detail
        return None
