"""One JSON line per attempt at a job, per decision and per association, from an allow-list like that of requests."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TextIO

import structlog


@dataclass
class WorkRecord:
    """What is known of one attempt. `job_id` is ours and random, and so is `request_id`: that of the receipt from which
    this follows, as its own log line gives it."""

    job_id: str
    kind: str
    attempt: int
    outcome: str = ""
    slug: str = ""
    stages_ms: dict[str, float] = field(default_factory=dict)
    fault: str = ""  # exception types and code lines, without messages
    request_id: str = ""
    trace_id: str = ""
    instances: dict[str, int] = field(default_factory=dict)  # of an association, by outcome


class WorkLog:
    """Writes records as JSON lines to `stream` (standard output by default)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._logger = structlog.wrap_logger(
            structlog.PrintLogger(stream),
            processors=[structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer()],
        )

    def write(self, record: WorkRecord) -> None:
        known = {name: value for name, value in asdict(record).items() if value not in ("", {}, 0)}
        self._logger.info("work", **known)
