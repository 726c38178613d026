"""The DICOM listener: C-ECHO, C-STORE in, and reports of storage commitments that were asked for.

A C-STORE is answered once the object is durable: bytes synced, row committed. The data set is written as it comes off
the wire, hashed on the way, never decoded and encoded anew. Associations are threads of this process; their commits are
gathered by the ledger's receiver, which shares one disk sync among them. AE titles: ours must be called, and the caller
must be on the list where there is one. Any storage SOP class is taken, in any transfer syntax: what cannot be segmented
can be kept and answered for.
"""

from __future__ import annotations

import io
import itertools
import shutil
import socket
import ssl
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom.dsutils import create_file_meta, decode
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from service.audit.event import Participant, Study, beginning, transferred
from service.audit.trail import AuditTrail
from service.dicom.attribute import READ_ERRORS
from service.dicom.facts import Facts, new_digest, read_facts
from service.dimse.association import Association, Entity, Sink
from service.dimse.command import (
    C_ECHO,
    C_STORE,
    EVENT_TYPE,
    FIELD,
    N_EVENT_REPORT,
    SOP_CLASS,
    SOP_INSTANCE,
    Command,
)
from service.dimse.foreign import prepare_pynetdicom
from service.dimse.scu import read_report
from service.errors import AuditUnavailable, LedgerUnavailable, NotDicom, StorageFull
from service.ledger.ledger import Ledger
from service.ledger.receiving import Arrival, Origin
from service.ledger.trails import Trail
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.work_log import WorkLog, WorkRecord
from service.tls import own_context

# PS3.4 Table B.2-1 and PS3.7 Annex C
SUCCESS, OUT_OF_RESOURCES, MISMATCH, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000
PROCESSING_FAILURE, UNRECOGNIZED_OPERATION = 0x0110, 0x0211
IDLE_S = 120.0  # a modality that stops in mid-study frees its place
BACKLOG = 128
STOP_S = 10.0
SILENT_FACTOR = 2  # connections for each association that is allowed
PAUSE_S = 0.2  # when the system has no more descriptors
MAX_REPORT_BYTES = 16 * 1024 * 1024


@dataclass
class _Received:
    """What one association has brought: its log line, whose id goes with whatever follows from its images; for the
    audit trail patients by study, and instances by study and SOP class."""

    sender: Participant
    record: WorkRecord = field(default_factory=lambda: WorkRecord("", "association", 0, request_id=str(uuid4())))
    patients: dict[str, str] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))


class Listener:
    """Listens from the moment it is made until `close`. The `Service` of its associations."""

    def __init__(self, settings: Settings, ledger: Ledger, metrics: Metrics, audit: AuditTrail, log: WorkLog) -> None:
        """Raises: OSError: the port is taken."""
        prepare_pynetdicom()
        self._settings, self._ledger, self._metrics = settings, ledger, metrics
        self._audit, self._log = audit, log
        self._received: dict[Association, _Received] = {}
        self._directory, self._numbers = ledger.staging.directory(), itertools.count()
        callers = tuple(title.strip() for title in settings.dimse_calling_ae_titles.split(",") if title.strip())
        self._entity = Entity(settings.dimse_ae_title, callers, contexts(), IDLE_S)
        self._tls = dimse_context(settings)
        self._associations: dict[Association, threading.Thread] = {}
        self._lock = threading.Lock()
        self._closing = False
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self._server = socket.create_server((settings.host, settings.dimse_port or 0), family=family, backlog=BACKLOG)
        self._accepting = threading.Thread(target=self._accept, name="dimse", daemon=True)
        self._accepting.start()

    @property
    def port(self) -> int:
        return int(self._server.getsockname()[1])

    def close(self) -> None:
        self._closing = True
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # what wakes `accept`
        self._server.close()
        self._accepting.join(STOP_S)
        with self._lock:
            running = dict(self._associations)
        for association in running:
            association.stop()
        for thread in running.values():
            thread.join(STOP_S)
        shutil.rmtree(self._directory, ignore_errors=True)

    def begin(self, association: Association, command: Command, transfer_syntax_uid: str) -> Sink:
        if command.number(FIELD) == C_STORE:
            return _Image(self, association, command, transfer_syntax_uid)
        return _Message(self, command, transfer_syntax_uid)

    def perform(self, association: Association, command: Command) -> int:
        return SUCCESS if command.number(FIELD) == C_ECHO else UNRECOGNIZED_OPERATION

    def ended(self, association: Association) -> None:
        """Log and audit what an association that stored has brought. Nobody is left to be refused, so that a failure is
        only counted."""
        with self._lock:
            self._associations.pop(association, None)
            received = self._received.pop(association, None)
        if received is None:
            return
        received.record.outcome = "closed"
        self._log.write(received.record)
        for uid, counts in received.counts.items():
            study = Study(uid, received.patients[uid], dict(counts))
            with suppress(AuditUnavailable):
                self._audit.record(transferred(received.sender, self._audit.us, study, action="C"))

    def has_room(self) -> bool:
        free_bytes = self._ledger.store.free_bytes()
        return free_bytes is None or free_bytes >= self._settings.min_free_bytes

    def new_file(self) -> Path:
        self._directory.mkdir(exist_ok=True)  # stale staging is removed, and a quiet listener's looks stale
        return self._directory / f"{next(self._numbers):09}"

    def keep(self, association: Association, command: Command, staged: Path, digest: str) -> tuple[int, str]:
        """Returns: the status, and the outcome for the metrics."""
        try:
            facts = read_facts(staged, known_series=self._ledger.receiver.knows, digest=digest)
            if facts.sop_instance_uid != command.uid(SOP_INSTANCE):
                return MISMATCH, "refused"
            received = self._received_by(association)
            self._audit_first(received, facts)
            calling_ae, called_ae = association.requestor.ae_title, self._settings.dimse_ae_title
            trail = Trail(received.record.request_id)
            origin = Origin("cstore", calling_ae=calling_ae, called_ae=called_ae, trail=trail)
            (receipt,) = self._ledger.receiver.receive([Arrival(staged, facts, origin)])
            if self._audit.enabled:
                received.counts[facts.study_instance_uid][facts.sop_class_uid] += 1
        except NotDicom:
            return CANNOT_UNDERSTAND, "refused"
        except (StorageFull, LedgerUnavailable, AuditUnavailable, OSError):
            return OUT_OF_RESOURCES, "refused"  # a sender tries again after A7xx
        return SUCCESS, "duplicate" if receipt.duplicate else "stored"

    def _received_by(self, association: Association) -> _Received:
        with self._lock:
            if (received := self._received.get(association)) is None:
                requestor = association.requestor
                sender = Participant(requestor.ae_title, requestor=True, network=requestor.address)
                received = self._received[association] = _Received(sender)
        return received

    def _audit_first(self, received: _Received, facts: Facts) -> None:
        """The first instance of a study on an association is told before it is kept. Raises: AuditUnavailable."""
        if not self._audit.enabled or facts.study_instance_uid in received.patients:
            return
        (patient_id,) = facts.series_text("PatientID") if facts.series_json else ("",)
        patient_id = patient_id or self._ledger.series.patient_id(facts.study_instance_uid)
        self._audit.record(beginning(received.sender, self._audit.us, Study(facts.study_instance_uid, patient_id)))
        received.patients[facts.study_instance_uid] = patient_id

    def count(self, association: Association, outcome: str) -> None:
        self._metrics.instances.labels("cstore", outcome).inc()
        counts = self._received_by(association).record.instances
        counts[outcome] = counts.get(outcome, 0) + 1

    def report(self, command: Command, content: bytes, transfer_syntax_uid: str) -> int:
        """A destination's answer to a storage commitment, which another process may have asked for."""
        try:
            syntax = UID(transfer_syntax_uid)
            dataset = decode(io.BytesIO(content), syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
            report = read_report(command.number(EVENT_TYPE), dataset)
            self._ledger.commitments.answer(report.transaction_uid, report.failed)
        except (*READ_ERRORS, LedgerUnavailable):
            return PROCESSING_FAILURE
        return SUCCESS

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, address = self._server.accept()
            except OSError:  # closed, or no descriptor is left
                time.sleep(PAUSE_S)
                continue
            if len(self._associations) >= SILENT_FACTOR * self._settings.dimse_max_associations:
                connection.close()  # they are not even associations yet, and each has a thread
                continue
            if self._tls:  # the handshake is left to the association's thread: a silent client keeps nobody out
                try:
                    connection.getpeername()  # of one that is reset already `wrap_socket` would leave a descriptor open
                    connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                except OSError:
                    connection.close()
                    continue
            association = Association(
                connection, str(address[0]), self._entity, self, is_one_too_many=self._is_one_too_many
            )
            thread = threading.Thread(target=association.run, name="dimse-association", daemon=True)
            with self._lock:
                self._associations[association] = thread
            thread.start()

    def _is_one_too_many(self) -> bool:
        return len(self._associations) > self._settings.dimse_max_associations


class _Image:
    """The data set of a C-STORE on its way to a staged file. Implements Sink."""

    def __init__(
        self, listener: Listener, association: Association, command: Command, transfer_syntax_uid: str
    ) -> None:
        self._listener, self._association, self._command = listener, association, command
        self._digest = new_digest(transfer_syntax_uid)
        self._file: BinaryIO | None = None  # None: there is no room, and what comes is passed over
        self._path = Path()
        if not listener.has_room():
            return
        try:
            self._path = listener.new_file()
            self._file = self._path.open("xb", buffering=0)
            self._file.write(_start_of_file(command, transfer_syntax_uid))
        except OSError:
            self.abandon()

    def write(self, fragment: memoryview, /) -> None:
        if self._file is None:
            return
        self._digest.update(fragment)
        try:
            while fragment:
                fragment = fragment[self._file.write(fragment) :]
        except OSError:
            self.abandon()

    def finish(self) -> int:
        if self._file is None:
            status, outcome = OUT_OF_RESOURCES, "refused"
        else:
            self._file.close()
            digest = self._digest.hexdigest()
            status, outcome = self._listener.keep(self._association, self._command, self._path, digest)
            self.abandon()
        self._listener.count(self._association, outcome)
        return status

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)


class _Message:
    """The data set of any other request, in memory. Implements Sink."""

    def __init__(self, listener: Listener, command: Command, transfer_syntax_uid: str) -> None:
        self._listener, self._command, self._transfer_syntax_uid = listener, command, transfer_syntax_uid
        self._content = bytearray()

    def write(self, fragment: memoryview, /) -> None:
        if len(self._content) <= MAX_REPORT_BYTES:
            self._content += fragment

    def finish(self) -> int:
        if self._command.number(FIELD) != N_EVENT_REPORT:
            return UNRECOGNIZED_OPERATION
        if len(self._content) > MAX_REPORT_BYTES:
            return PROCESSING_FAILURE
        return self._listener.report(self._command, bytes(self._content), self._transfer_syntax_uid)

    def abandon(self) -> None:
        self._content.clear()


def _start_of_file(command: Command, transfer_syntax_uid: str) -> bytes:
    """Preamble and file meta information; PS3.10 7.1."""
    meta = create_file_meta(
        sop_class_uid=UID(command.uid(SOP_CLASS)),
        sop_instance_uid=UID(command.uid(SOP_INSTANCE)),
        transfer_syntax=UID(transfer_syntax_uid),
    )
    buffer: Any = io.BytesIO()
    buffer.write(bytes(128) + b"DICM")
    write_file_meta_info(buffer, meta)
    return bytes(buffer.getvalue())


def dimse_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS as the settings ask for it; None for plain DIMSE. Raises: TlsInvalid."""
    if not settings.dimse_tls or settings.tls_certificate_file is None:
        return None
    return own_context(settings, client_ca_file=settings.dimse_tls_client_ca_file)


def contexts() -> tuple[PresentationContext, ...]:
    """Beside storage: C-ECHO, and the reports of nodes that call back in the provider's role (PS3.4 J.3.3)."""
    commitment = build_context(StorageCommitmentPushModel)
    commitment.scu_role = commitment.scp_role = True
    return (build_context(Verification), commitment)
