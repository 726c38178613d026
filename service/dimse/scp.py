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
import ssl
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from service.audit.event import Participant, Study, beginning, transferred
from service.audit.trail import AuditTrail
from service.dicom.facts import Facts, read_facts
from service.dimse.scu import read_report
from service.errors import AuditUnavailable, LedgerUnavailable, NotDicom, StorageFull
from service.ledger.ledger import Ledger
from service.ledger.receiving import Arrival, Origin
from service.ledger.trails import Trail
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.work_log import WorkLog, WorkRecord
from service.tls import AcceptedInThread, own_context

# PS3.4 Table B.2-1
SUCCESS, OUT_OF_RESOURCES, MISMATCH, CANNOT_UNDERSTAND, PROCESSING_FAILURE = 0x0000, 0xA700, 0xA900, 0xC000, 0x0110
MAX_PDU_BYTES = 0  # any: large PDUs mean fewer turns of a Python loop
IDLE_S = 120.0  # a modality that stops in mid-study frees its place


@dataclass
class _Received:
    """What one association has brought: its log line, whose id goes with whatever follows from its images; for the
    audit trail patients by study, and instances by study and SOP class."""

    sender: Participant
    record: WorkRecord = field(default_factory=lambda: WorkRecord("", "association", 0, request_id=str(uuid4())))
    patients: dict[str, str] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))


class Listener:
    """Listens from the moment it is made until `close`."""

    def __init__(self, settings: Settings, ledger: Ledger, metrics: Metrics, audit: AuditTrail, log: WorkLog) -> None:
        """Raises: OSError: the port is taken."""
        _config.UNRESTRICTED_STORAGE_SERVICE = True  # private and future SOP classes too
        _config.ENFORCE_UID_CONFORMANCE = False
        silence()
        self._settings, self._ledger, self._metrics = settings, ledger, metrics
        self._audit, self._log = audit, log
        self._received: WeakKeyDictionary[Any, _Received] = WeakKeyDictionary()  # by association
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
        accepting: Any = AcceptedInThread(dimse_context(settings))
        self._server = self._ae.start_server(
            (settings.host, settings.dimse_port), block=False, ssl_context=accepting, evt_handlers=handlers
        )

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
        counts = self._received_by(event).record.instances
        counts[outcome] = counts.get(outcome, 0) + 1
        return status

    def _received_by(self, event: evt.Event) -> _Received:
        if (received := self._received.get(event.assoc)) is None:
            requestor = event.assoc.requestor
            sender = Participant(requestor.ae_title, requestor=True, network=requestor.address)
            received = self._received[event.assoc] = _Received(sender)
        return received

    def _closed(self, event: evt.Event) -> None:
        """Log and audit what an association that stored has brought. Nobody is left to be refused, so that a failure is
        only counted."""
        if (received := self._received.pop(event.assoc, None)) is None:
            return
        received.record.outcome = "closed"
        self._log.write(received.record)
        for uid, counts in received.counts.items():
            study = Study(uid, received.patients[uid], dict(counts))
            with suppress(AuditUnavailable):
                self._audit.record(transferred(received.sender, self._audit.us, study, action="C"))

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
            received = self._received_by(event)
            self._audit_first(received, facts)
            trail = Trail(received.record.request_id)
            called_ae = self._settings.dimse_ae_title
            origin = Origin("cstore", calling_ae=requestor.ae_title, called_ae=called_ae, trail=trail)
            (receipt,) = self._ledger.receiver.receive([Arrival(staged, facts, origin)])
            if self._audit.enabled:
                received.counts[facts.study_instance_uid][facts.sop_class_uid] += 1
        except NotDicom:
            return CANNOT_UNDERSTAND, "refused"
        except (StorageFull, LedgerUnavailable, AuditUnavailable, OSError):
            return OUT_OF_RESOURCES, "refused"  # a sender tries again after A7xx
        finally:
            staged.unlink(missing_ok=True)
        return SUCCESS, "duplicate" if receipt.duplicate else "stored"

    def _audit_first(self, received: _Received, facts: Facts) -> None:
        """The first instance of a study on an association is told before it is kept. Raises: AuditUnavailable."""
        if not self._audit.enabled or facts.study_instance_uid in received.patients:
            return
        (patient_id,) = facts.series_text("PatientID") if facts.series_json else ("",)
        patient_id = patient_id or self._ledger.series.patient_id(facts.study_instance_uid)
        self._audit.record(beginning(received.sender, self._audit.us, Study(facts.study_instance_uid, patient_id)))
        received.patients[facts.study_instance_uid] = patient_id

    def _report(self, event: evt.Event) -> tuple[int, None]:
        """A destination's answer to a storage commitment, which another process may have asked for."""
        report = read_report(event)
        try:
            self._ledger.commitments.answer(report.transaction_uid, report.failed)
        except LedgerUnavailable:
            return PROCESSING_FAILURE, None
        return SUCCESS, None


def dimse_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS as the settings ask for it; None for plain DIMSE. Raises: TlsInvalid."""
    if not settings.dimse_tls or settings.tls_certificate_file is None:
        return None
    return own_context(settings, client_ca_file=settings.dimse_tls_client_ca_file)


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
