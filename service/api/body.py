"""A request's body, handed on in blocks while it arrives, with its limits checked before each."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
from anyio import to_thread
from starlette.requests import Request

from service.errors import UploadStalled, UploadTooLarge

SLOWEST_BYTES_PER_S, GRACE_S = 1024, 60.0  # on the whole, once the grace is over: a drip holds a place as a stall does
BLOCK_BYTES = 1024 * 1024  # handed to a thread at once: fewer hops than per network packet


async def stream_blocks(
    request: Request, write: Callable[[bytes], None], *, max_bytes: int, idle_timeout_s: float
) -> int:
    """Feed the body to `write`, which runs in a thread. Returns: bytes received.

    Raises: UploadTooLarge (for a Content-Length over the limit before any byte is read), UploadStalled, what `write`
    raises; starlette.requests.ClientDisconnect when the client goes away.
    """
    refuse_longer(request, max_bytes)
    received_bytes, started = 0, time.monotonic()
    block = bytearray()
    chunks = aiter(request.stream())
    while True:
        try:
            with anyio.fail_after(idle_timeout_s):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise UploadStalled(f"no byte arrived for {idle_timeout_s:g} s") from error
        if chunk is not None:
            received_bytes += len(chunk)
            if received_bytes > max_bytes:
                raise UploadTooLarge(f"the body is larger than {max_bytes} bytes")
            lasted_s = time.monotonic() - started
            if lasted_s > GRACE_S and received_bytes < SLOWEST_BYTES_PER_S * lasted_s:
                raise UploadStalled(f"fewer than {SLOWEST_BYTES_PER_S} bytes a second arrived for {lasted_s:.0f} s")
            block += chunk
        if len(block) >= BLOCK_BYTES or chunk is None:
            await to_thread.run_sync(write, bytes(block))
            block.clear()
        if chunk is None:
            return received_bytes


def refuse_longer(request: Request, max_bytes: int) -> None:
    """Raises: UploadTooLarge: the body says itself that it is longer."""
    if int(request.headers.get("content-length", "0")) > max_bytes:
        raise UploadTooLarge(f"the body is larger than {max_bytes} bytes")
