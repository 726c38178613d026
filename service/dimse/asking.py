"""C-ECHO, C-FIND and C-GET out: whether a node answers, knows an object, and gives it back (PS3.4 Annex A and C).

For `tags doctor`. Blocking.
"""

from __future__ import annotations

from pydicom import Dataset
from pynetdicom import build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)

from service.delivery.failure import DeliveryFailed
from service.dicomweb.client import Outgoing
from service.dimse.scu import associated, entity
from service.rules.document import DimsePeer

SUCCESS = 0x0000
PENDING = (0xFF00, 0xFF01)  # PS3.4 Table C.4-1


def echo(peer: DimsePeer, calling_ae_title: str) -> None:
    """Raises: DeliveryFailed."""
    ae = entity(peer, calling_ae_title)
    ae.add_requested_context(Verification)
    with associated(ae, peer) as association:
        status = association.send_c_echo()
    if not status or status.Status != SUCCESS:
        raise DeliveryFailed("destination-refused", "C-ECHO was not answered with success")


def is_found(peer: DimsePeer, calling_ae_title: str, item: Outgoing) -> bool:
    """Whether C-FIND lists the object. Raises: DeliveryFailed: the node does not offer the query, or fails."""
    ae = entity(peer, calling_ae_title)
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    with associated(ae, peer) as association:
        answers = list(association.send_c_find(_wanted(item), StudyRootQueryRetrieveInformationModelFind))
    if not answers or not answers[-1][0] or answers[-1][0].Status != SUCCESS:
        raise DeliveryFailed("destination-refused", "C-FIND did not end with success")
    found = [identifier for status, identifier in answers if status and status.Status in PENDING and identifier]
    return any(str(identifier.get("SOPInstanceUID", "")) == item.sop_instance_uid for identifier in found)


def fetched(peer: DimsePeer, calling_ae_title: str, item: Outgoing) -> Dataset | None:
    """The object by C-GET, None where the node sends none. Raises: DeliveryFailed: C-GET is not offered, or fails."""
    ae = entity(peer, calling_ae_title)
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelGet)
    ae.add_requested_context(item.sop_class_uid, item.transfer_syntax_uid)
    received: list[Dataset] = []

    def keep(event: evt.Event) -> int:
        received.append(event.dataset)
        return SUCCESS

    role = build_role(item.sop_class_uid, scp_role=True)
    with associated(ae, peer, [(evt.EVT_C_STORE, keep)], [role]) as association:
        answers = list(association.send_c_get(_wanted(item), StudyRootQueryRetrieveInformationModelGet))
    if not answers or not answers[-1][0] or answers[-1][0].Status != SUCCESS:
        raise DeliveryFailed("destination-refused", "C-GET did not end with success")
    return received[0] if received else None


def _wanted(item: Outgoing) -> Dataset:
    wanted = Dataset()
    wanted.QueryRetrieveLevel = "IMAGE"
    wanted.StudyInstanceUID = item.study_instance_uid
    wanted.SeriesInstanceUID = item.series_instance_uid
    wanted.SOPInstanceUID = item.sop_instance_uid
    return wanted
