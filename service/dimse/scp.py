"""The DICOM listener: C-ECHO, C-STORE in, and reports of storage commitments that were asked for.

A C-STORE is answered once the object is durable: bytes synced, row committed. The data set is written as it came, never
decoded and encoded anew. Associations are threads of this process; their commits are gathered by the ledger's receiver,
which shares one disk sync among them. AE titles: ours must be called, and the caller must be on the list where there is
one. Any storage SOP class is taken, in any transfer syntax: what cannot be segmented can be kept and answered for.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from functools import cache
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from service.dicom.facts import read_facts
from service.dimse.scu import read_report
from service.errors import LedgerUnavailable, NotDicom, StorageFull
from service.ledger.ledger import Ledger
from service.ledger.receiving import Arrival, Origin
from service.ledger.trails import Trail
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.work_log import WorkLog, WorkRecord

# PS3.4 Table B.2-1
SUCCESS, OUT_OF_RESOURCES, MISMATCH, CANNOT_UNDERSTAND, PROCESSING_FAILURE = 0x0000, 0xA700, 0xA900, 0xC000, 0x0110
MAX_PDU_BYTES = 0  # any: large PDUs mean fewer turns of a Python loop
IDLE_S = 120.0  # a modality that stops in mid-study frees its place


class Listener:
    """Listens from the moment it is made until `close`."""

    def __init__(self, settings: Settings, ledger: Ledger, metrics: Metrics, log: WorkLog) -> None:
        """Raises: OSError: the port is taken."""
        _config.UNRESTRICTED_STORAGE_SERVICE = True  # private and future SOP classes too
        _config.ENFORCE_UID_CONFORMANCE = False
        silence()
        self._settings, self._ledger, self._metrics, self._log = settings, ledger, metrics, log
        self._records: WeakKeyDictionary[Any, WorkRecord] = WeakKeyDictionary()  # by association
        self._directory, self._numbers = ledger.staging.directory(), itertools.count()
        self._ae = AE(ae_title=settings.dimse_ae_title)
        self._ae.maximum_pdu_size = MAX_PDU_BYTES
        self._ae.maximum_associations = settings.dimse_max_associations
        self._ae.network_timeout = IDLE_S
        self._ae.require_called_aet = True
        callers = [title.strip() for title in settings.dimse_calling_ae_titles.split(",") if title.strip()]
        self._ae.require_calling_aet = callers
        self._ae.supported_contexts = list(storage_contexts())
        self._ae.add_supported_context(Verification)
        self._ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        handlers: list[Any] = [
            (evt.EVT_C_ECHO, lambda _: SUCCESS),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_EVENT_REPORT, self._report),
            (evt.EVT_CONN_CLOSE, self._closed),
        ]
        assert settings.dimse_port is not None
        self._server = self._ae.start_server((settings.host, settings.dimse_port), block=False, evt_handlers=handlers)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.server_address[1])

    def close(self) -> None:
        self._ae.shutdown()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _store(self, event: evt.Event) -> int:
        status, outcome = self._keep(event)
        self._metrics.instances.labels("cstore", outcome).inc()
        counts = self._record_of(event).instances
        counts[outcome] = counts.get(outcome, 0) + 1
        return status

    def _record_of(self, event: evt.Event) -> WorkRecord:
        """The association's log line; its id goes with whatever follows from its images."""
        return self._records.setdefault(event.assoc, WorkRecord("", "association", 0, request_id=str(uuid4())))

    def _closed(self, event: evt.Event) -> None:
        record = self._records.pop(event.assoc, None)
        if record:
            record.outcome = "closed"
            self._log.write(record)

    def _keep(self, event: evt.Event) -> tuple[int, str]:
        """Returns: the status, and the outcome for the metrics."""
        free_bytes = self._ledger.store.free_bytes()
        if free_bytes is not None and free_bytes < self._settings.min_free_bytes:
            return OUT_OF_RESOURCES, "refused"
        staged = self._directory / f"{next(self._numbers):09}"
        try:
            self._directory.mkdir(exist_ok=True)  # stale staging is removed, and a quiet listener's looks stale
            staged.write_bytes(event.encoded_dataset())
            facts = read_facts(staged, known_series=self._ledger.receiver.knows)
            if facts.sop_instance_uid != getattr(event.request, "AffectedSOPInstanceUID", None):
                return MISMATCH, "refused"
            requestor = event.assoc.requestor
            trail = Trail(self._record_of(event).request_id)
            called_ae = self._settings.dimse_ae_title
            origin = Origin("cstore", calling_ae=requestor.ae_title, called_ae=called_ae, trail=trail)
            (receipt,) = self._ledger.receiver.receive([Arrival(staged, facts, origin)])
        except NotDicom:
            return CANNOT_UNDERSTAND, "refused"
        except (StorageFull, LedgerUnavailable, OSError):
            return OUT_OF_RESOURCES, "refused"  # a sender tries again after A7xx
        finally:
            staged.unlink(missing_ok=True)
        return SUCCESS, "duplicate" if receipt.duplicate else "stored"

    def _report(self, event: evt.Event) -> tuple[int, None]:
        """A destination's answer to a storage commitment, which another process may have asked for."""
        report = read_report(event)
        try:
            self._ledger.commitments.answer(report.transaction_uid, report.failed)
        except LedgerUnavailable:
            return PROCESSING_FAILURE, None
        return SUCCESS, None


@cache
def storage_contexts() -> tuple[PresentationContext, ...]:
    """Every standard storage SOP class in every transfer syntax; others are taken as they are proposed."""
    classes = [context.abstract_syntax for context in AllStoragePresentationContexts if context.abstract_syntax]
    return tuple(build_context(sop_class, list(AllTransferSyntaxes)) for sop_class in classes)


def silence() -> None:
    """pynetdicom logs data sets; nothing of it reaches a log (decision 5)."""
    logger = logging.getLogger("pynetdicom")
    logger.handlers = [logging.NullHandler()]
    logger.propagate = False
    logger.setLevel(logging.CRITICAL)
