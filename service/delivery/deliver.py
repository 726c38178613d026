"""One delivery: send what is not there yet, then ask until the destination says that it is.

A status alone proves nothing: some servers answer 200 and store nothing. So a delivery ends only when QIDO-RS finds the
objects or storage commitment takes them over; with `verify: none` it ends unproved, and is so noted. Sending twice is
harmless, since a result's UIDs never change, and rare, since the destination is asked first. Blocking.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from service.delivery.failure import DeliveryFailed
from service.dicomweb.client import DicomwebClient, Outgoing
from service.dimse import scu
from service.ledger.commitments import Commitments
from service.rules.document import Destination, DicomwebPeer, DimsePeer

QIDO_TRIES, QIDO_PAUSE_S = 6, 0.5  # an archive indexes within moments
COMMITMENT_WAIT_S, COMMITMENT_PAUSE_S = 30.0, 0.2


def deliver(
    destination: Destination,
    objects: Sequence[Outgoing],
    *,
    job_id: str,
    ae_title: str,
    commitments: Commitments,
    stage: Callable[[str], None],
) -> str:
    """Returns: how it was proved: "qido", "commitment" or "none". Raises: DeliveryFailed; what `stage` raises."""
    asked = destination.qido or destination.stow
    if destination.how_to_verify == "qido" and asked:
        return _deliver_with_qido(destination, asked, objects, ae_title, stage)
    stage("send")
    _send(destination, objects, ae_title)
    if destination.how_to_verify == "commitment" and destination.dimse:
        stage("verify")
        _commit(destination.dimse, objects, job_id, ae_title, commitments)
    return destination.how_to_verify


def _deliver_with_qido(
    destination: Destination,
    asked: DicomwebPeer,
    objects: Sequence[Outgoing],
    ae_title: str,
    stage: Callable[[str], None],
) -> str:
    with DicomwebClient(asked) as client:
        stage("look")
        missing = client.missing(objects)
        if missing:
            stage("send")
            _send(destination, missing, ae_title)
            stage("verify")
        for _ in range(QIDO_TRIES):
            if not missing:
                return "qido"
            missing = client.missing(missing)
            if missing:
                time.sleep(QIDO_PAUSE_S)
    detail = f"{len(missing)} of {len(objects)} objects were accepted, but the destination does not list them"
    raise DeliveryFailed("not-verified", detail)


def _send(destination: Destination, objects: Sequence[Outgoing], ae_title: str) -> None:
    if destination.stow:
        with DicomwebClient(destination.stow) as client:
            client.store(objects)
    elif destination.dimse:
        scu.store(destination.dimse, ae_title, objects)


def _commit(peer: DimsePeer, objects: Sequence[Outgoing], job_id: str, ae_title: str, commitments: Commitments) -> None:
    """Raises: DeliveryFailed: refused, some objects not taken over, or no report in time."""
    transaction_uid = scu.new_transaction_uid()
    commitments.ask(transaction_uid, job_id)
    deadline = time.monotonic() + COMMITMENT_WAIT_S

    def answered() -> bool:
        """Wherever the report arrives, on this association or at our own listener, it is in the ledger."""
        while commitments.failed(transaction_uid) is None and time.monotonic() < deadline:
            time.sleep(COMMITMENT_PAUSE_S)
        return commitments.failed(transaction_uid) is not None

    scu.request_commitment(
        peer,
        ae_title,
        objects,
        transaction_uid=transaction_uid,
        on_report=lambda report: commitments.answer(report.transaction_uid, report.failed),
        wait=answered,
    )
    failed = commitments.failed(transaction_uid)
    if failed is None:
        raise DeliveryFailed("not-verified", f"no storage commitment report within {COMMITMENT_WAIT_S:g} s")
    if failed:
        raise DeliveryFailed("not-verified", f"{len(failed)} of {len(objects)} objects were not committed")
