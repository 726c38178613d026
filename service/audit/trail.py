"""Where audit messages go: a file, one message a line, and syslog over TLS. Either, both or none.

With `required`, an event that cannot be written raises, and what it tells of does not happen; else it is counted and
the work goes on. A line is on the disk when `record` returns. Threads may share a trail. Blocking.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from service.audit.event import AuditEvent, Participant
from service.audit.message import audit_message
from service.audit.syslog import SyslogOverTls
from service.errors import AuditUnavailable
from service.settings import Settings
from service.tls import client_context


class AuditFile:
    """Appends lines; opened anew for each, so that a log rotation may move the file away."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, message: bytes, at: datetime) -> None:
        """Raises: OSError."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, message + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        pass


class AuditTrail:
    """`close` it when done. `enabled` is False where nothing is configured; then nothing need be looked up for it."""

    def __init__(self, settings: Settings, count_failure: Callable[[], None]) -> None:
        """Raises: TlsInvalid."""
        self._source_id, self._site_id = settings.audit_source_id, settings.audit_site_id
        self._required, self._count_failure = settings.audit_required, count_failure
        self._lock = threading.Lock()
        self._sinks: list[AuditFile | SyslogOverTls] = []
        if settings.audit_file:
            self._sinks.append(AuditFile(settings.audit_file))
        if settings.audit_syslog:
            host, _, port = settings.audit_syslog.rpartition(":")
            context = client_context(
                ca_file=settings.audit_syslog_ca_file,
                certificate_file=settings.tls_certificate_file,
                key_file=settings.tls_key_file,
                key_password=settings.tls_key_password.get_secret_value(),
            )
            self._sinks.append(SyslogOverTls(host.strip("[]"), int(port), context))
        self.us = Participant(settings.audit_source_id, alternative_id=f"AETITLES={settings.dimse_ae_title}")

    @property
    def enabled(self) -> bool:
        return bool(self._sinks)

    def record(self, event: AuditEvent) -> None:
        """Raises: AuditUnavailable: it could not be written everywhere, and the settings require that."""
        if not self._sinks:
            return
        at = datetime.now(UTC)
        message = audit_message(event, source_id=self._source_id, site_id=self._site_id, at=at)
        with self._lock:
            try:
                for sink in self._sinks:
                    sink.write(message, at)
            except OSError as error:
                self._count_failure()
                if self._required:
                    raise AuditUnavailable from error

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
