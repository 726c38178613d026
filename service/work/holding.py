"""Work on a job while its lease lasts: signs of life well within the lease, and an end to the work when it is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from anyio import to_thread

from service.errors import LedgerUnavailable
from service.ledger.jobs import Jobs, Lease, LeaseLost

T = TypeVar("T")
PERCENT = {  # how far a job is when it enters a stage; only ever rising
    "headers": 5, "pixels": 15, "prepare": 20, "encode": 30, "text": 45, "decode": 60, "restore": 80, "write": 90,
    "look": 10, "send": 30, "verify": 80,
}  # fmt: skip


class Progress:
    """What the signs of life say. Stages are entered from any thread."""

    def __init__(self) -> None:
        self.stage, self.percent = "claimed", 0

    def enter(self, stage: str) -> None:
        self.stage, self.percent = stage, max(self.percent, PERCENT.get(stage, 0))


async def while_held(
    jobs: Jobs, lease: Lease, progress: Progress, work: Coroutine[Any, Any, T], *, lease_s: float
) -> T:
    """The outcome of `work`, which is cancelled once another worker may have the job.

    Raises: LeaseLost, and whatever `work` raises.
    """
    working, beating = asyncio.ensure_future(work), asyncio.ensure_future(_beat(jobs, lease, progress, lease_s))
    try:
        await asyncio.wait({working, beating}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            beating.result()
        return working.result()
    finally:
        working.cancel()
        beating.cancel()
        await asyncio.gather(working, beating, return_exceptions=True)


async def _beat(jobs: Jobs, lease: Lease, progress: Progress, lease_s: float) -> None:
    """Raises: LeaseLost, in the end."""
    renewed_at = time.monotonic()
    shown = ("", -1)
    while True:
        await asyncio.sleep(min(lease_s / 3, 1.0))
        now = (progress.stage, progress.percent)
        if now == shown and time.monotonic() - renewed_at < lease_s / 3:
            continue
        try:
            await to_thread.run_sync(lambda: jobs.renew(lease, stage=progress.stage, percent=progress.percent))
            renewed_at, shown = time.monotonic(), now
        except LedgerUnavailable as error:
            if time.monotonic() - renewed_at > lease_s:
                raise LeaseLost from error
