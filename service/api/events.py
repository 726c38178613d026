"""Server-sent events from a ledger that any replica may change: what is watched is read again and again, and sent when
it differs from what was sent last. A comment in between tells proxies that the stream lives."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from anyio import to_thread
from starlette.responses import StreamingResponse

from service.errors import LedgerUnavailable

LOOK_S = 0.5
SILENCE_S = 15.0  # proxies close what is silent for a minute


def event_stream(
    read: Callable[[], dict[str, Any]],
    *,
    last: Callable[[dict[str, Any]], bool],
    allowed: Callable[[], Awaitable[bool]],
) -> StreamingResponse:
    """Args: read: what is watched; blocking. last: whether nothing will change any more. allowed: whether the one who
    watches still may."""

    async def events() -> AsyncIterator[str]:
        sent, sent_at = "", time.monotonic()
        while await allowed():
            try:
                document = await to_thread.run_sync(read)
            except LedgerUnavailable:
                document = None
            text = json.dumps(document)
            if document is not None and text != sent:
                yield f"data: {text}\n\n"
                sent, sent_at = text, time.monotonic()
                if last(document):
                    return
            elif time.monotonic() - sent_at > SILENCE_S:
                yield ": still here\n\n"
                sent_at = time.monotonic()
            await asyncio.sleep(LOOK_S)

    return StreamingResponse(
        events(), media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
