"""C-STORE out, and storage commitment asked for (PS3.4 Annex B and J).

Only the SOP classes and transfer syntaxes of the objects at hand are proposed, one syntax per context: some nodes
choose another than the object has, or answer nothing to what they do not know. Blocking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance  # type: ignore

from service.delivery.failure import DeliveryFailed, unreachable
from service.dicomweb.client import Outgoing
from service.dimse.foreign import prepare_pynetdicom
from service.rules.document import DimsePeer
from service.tls import TlsInvalid

WARNINGS = range(0xB000, 0xC000)  # stored, but not word for word; PS3.4 B.2.3
REQUEST_COMMITMENT = 1  # action type; PS3.4 J.3.2
COMMITTED, SOME_FAILED = 1, 2  # event types; PS3.4 J.3.3


@dataclass(frozen=True)
class Commitment:
    """What a node has taken over. `failed`: SOP Instance UIDs that it has not."""

    transaction_uid: str
    failed: tuple[str, ...]


def store(peer: DimsePeer, calling_ae_title: str, objects: Sequence[Outgoing]) -> None:
    """Raises: DeliveryFailed; some may have been stored all the same."""
    ae = entity(peer, calling_ae_title)
    for sop_class, transfer_syntax in sorted({(item.sop_class_uid, item.transfer_syntax_uid) for item in objects}):
        ae.add_requested_context(sop_class, transfer_syntax)
    with associated(ae, peer) as association:
        for item in objects:
            _store_one(association, item)


def request_commitment(
    peer: DimsePeer,
    calling_ae_title: str,
    objects: Sequence[Outgoing],
    *,
    transaction_uid: str,
    on_report: Callable[[Commitment], None],
    wait: Callable[[], bool],
) -> None:
    """Ask, and keep the association open while `wait` blocks, since some nodes report on it; others call back.

    Raises: DeliveryFailed: the node does not offer commitment, or refuses.
    """
    ae = entity(peer, calling_ae_title)
    ae.add_requested_context(StorageCommitmentPushModel)

    def reported(event: evt.Event) -> tuple[int, None]:
        on_report(read_report(event.event_type, event.event_information))
        return 0x0000, None

    role = build_role(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    with associated(ae, peer, [(evt.EVT_N_EVENT_REPORT, reported)], [role]) as association:
        request = commitment_request(objects, transaction_uid)
        status, _ = association.send_n_action(
            request, REQUEST_COMMITMENT, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        if not status or status.Status != 0x0000:
            code = f"{status.Status:04X}" if status else "no status"
            raise DeliveryFailed("commitment-refused", f"storage commitment was answered with {code}")
        wait()


def commitment_request(objects: Sequence[Outgoing], transaction_uid: str) -> Dataset:
    """PS3.4 Table J.3-1."""
    request = Dataset()
    request.TransactionUID = transaction_uid
    references = []
    for item in objects:
        reference = Dataset()
        reference.ReferencedSOPClassUID = item.sop_class_uid
        reference.ReferencedSOPInstanceUID = item.sop_instance_uid
        references.append(reference)
    request.ReferencedSOPSequence = references
    return request


def new_transaction_uid() -> str:
    return str(generate_uid())


def read_report(event_type: int | None, report: Dataset) -> Commitment:
    """PS3.4 Table J.3-2. An unknown event type counts as nothing committed."""
    failed = [str(item.ReferencedSOPInstanceUID) for item in report.get("FailedSOPSequence") or ()]
    if event_type not in (COMMITTED, SOME_FAILED):
        failed = ["*"]
    return Commitment(str(report.get("TransactionUID", "")), tuple(failed))


def entity(peer: DimsePeer, calling_ae_title: str) -> AE:
    prepare_pynetdicom()
    ae = AE(ae_title=calling_ae_title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = peer.timeout_s
    return ae


@contextmanager
def associated(ae: AE, peer: DimsePeer, handlers: Any = (), roles: Any = ()) -> Iterator[Association]:
    try:
        tls = (peer.tls.context(), peer.host) if peer.tls else None
    except TlsInvalid as error:
        raise unreachable(str(error)) from error
    association = ae.associate(
        peer.host, peer.port, ae_title=peer.ae_title, evt_handlers=list(handlers), ext_neg=list(roles), tls_args=tls
    )
    try:
        if not association.is_established:
            if association.is_rejected:
                raise unreachable("the association was rejected; check the AE titles")
            raise unreachable("no association could be made")
        yield association
    finally:
        if association.is_established:
            association.release()


def _store_one(association: Association, item: Outgoing) -> None:
    try:
        status = association.send_c_store(item.path)
    except ValueError as error:  # no accepted context
        raise DeliveryFailed("destination-refused", "the node does not accept this kind of object") from error
    except (RuntimeError, OSError, AttributeError) as error:
        raise unreachable("the association broke while sending") from error
    code = status.get("Status") if status else None
    if code is None:
        raise unreachable("the node did not answer C-STORE")
    if code != 0x0000 and code not in WARNINGS:
        if 0xA700 <= code < 0xA800:
            raise unreachable(f"the node is out of resources ({code:04X})")
        raise DeliveryFailed("destination-refused", f"C-STORE was answered with {code:04X}")
