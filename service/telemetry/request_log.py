"""One JSON line per request, from an allow-list; and the request id that ties it to the answer.

The fields of `RequestRecord` are the allow-list: counts, sizes, slugs and times. Nothing of a dataset, no UID, file
name, prompt text or exception text has a field to go to. See docs/decisions/0005-no-patient-data-in-logs.md.
"""

from __future__ import annotations

import hashlib
import secrets
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO
from uuid import UUID, uuid4

import structlog

# Ties the lines of one series together within one process and means nothing outside it.
_HASH_KEY_BYTES = 32


@dataclass
class RequestRecord:
    """What is known of one request; filled as it is handled, written once at its end."""

    request_id: str
    method: str
    trace_id: str = ""
    route: str = "unmatched"
    status: int = 0
    slug: str = ""
    seconds: float = 0.0
    bundle: str = ""
    engine: str = ""
    format: str = ""
    received_bytes: int = 0
    files: int = 0
    refused: int = 0  # of the instances of a STOW-RS request
    modality: str = ""
    shape_zyx: tuple[int, ...] = ()
    spacing_zyx_mm: tuple[float, ...] = ()
    points: int = 0
    boxes: int = 0
    with_text: bool = False
    with_mask: bool = False
    set_aside: int = 0
    found: bool | None = None
    series: str = ""  # keyed hash
    stages_ms: dict[str, float] = field(default_factory=dict)
    fault: str = ""  # exception types and code lines of an unforeseen error, without messages


def request_id(offered: str | None) -> str:
    """The caller's own X-Request-ID where it is a UUID, since any other text could hold a name; else a new one."""
    try:
        return str(UUID(offered or ""))
    except ValueError:
        return str(uuid4())


def describe_fault(error: BaseException) -> str:
    """Exception types and the code lines they came from. Never the message: it may quote a data element."""
    frames = traceback.extract_tb(error.__traceback__)
    place = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-6:]))
    return f"{type(error).__name__} at {place}"


class RequestLog:
    """Writes records as JSON lines to `stream` (standard output by default)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._key = secrets.token_bytes(_HASH_KEY_BYTES)
        self._logger = structlog.wrap_logger(
            structlog.PrintLogger(stream),
            processors=[structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer()],
        )

    def series_hash(self, series_instance_uid: str) -> str:
        """A keyed hash of the UID: equal within this process, not reversible outside it."""
        return hashlib.blake2b(series_instance_uid.encode(), key=self._key, digest_size=8).hexdigest()

    def write(self, record: RequestRecord) -> None:
        known = {name: value for name, value in asdict(record).items() if value not in ("", (), {}, None)}
        self._logger.info("request", **known)
