"""Retention, run by the worker: what is due goes, its audit message is written, its record is closed. Blocking.

The message is written after the objects are gone and before the record says so: without it the deletion stays open and
is taken up again.
"""

from __future__ import annotations

from collections.abc import Callable

from service.audit.event import Study, deleted
from service.audit.trail import AuditTrail
from service.ledger.ledger import Ledger
from service.ledger.retention import Keeping
from service.settings import Settings


class Retainer:
    """Args: report: called with the rule of each deletion that was completed."""

    def __init__(self, ledger: Ledger, settings: Settings, audit: AuditTrail, report: Callable[[str], None]) -> None:
        self._ledger, self._audit, self._report = ledger, audit, report
        self._keeping = Keeping(settings.keep_sources_s, settings.keep_results_s, settings.keep_failed_s)

    def sweep(self) -> int:
        """Returns: deletions completed. Raises: LedgerUnavailable, AuditUnavailable; the next sweep goes on."""
        if self._keeping.anything:
            self._ledger.retention.begin(self._keeping)
        unfinished = self._ledger.retention.unfinished()
        for item in unfinished:
            self._ledger.retention.remove_objects(item)
            study = Study(item.study_instance_uid, item.patient_id, item.sop_classes)
            self._audit.record(deleted(self._audit.us, study))
            self._ledger.retention.complete(item)
            self._report(item.rule)
        return len(unfinished)
