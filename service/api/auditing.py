"""Requests as audit events: who asked, from where, for which study. An event is written before its answer is given."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from anyio import to_thread
from starlette.requests import Request

from service.access.caller import Caller
from service.api.gateway import Gateway
from service.audit.event import (
    AuditEvent,
    Participant,
    Study,
    not_authenticated,
    not_permitted,
    queried,
    transferred,
)
from service.dicom.facts import Facts, attribute_text
from service.errors import RoleMissing, TagsError, Unauthenticated
from service.ledger.search import InstanceRecord

PATIENT_ID = "00100020"


def asking(request: Request) -> Participant:
    """Whoever sent the request."""
    found: Caller | TagsError = request.state.caller
    address = request.client.host if request.client else ""
    if isinstance(found, TagsError):
        return Participant("unknown", requestor=True, network=address)
    return Participant(found.name, requestor=True, user_name=found.alias, alternative_id=found.how, network=address)


async def audit(gateway: Gateway, *events: AuditEvent) -> None:
    """Raises: AuditUnavailable."""

    def record() -> None:
        for event in events:
            gateway.audit.record(event)

    if gateway.audit.enabled:
        await to_thread.run_sync(record)


async def audit_refusal(request: Request, gateway: Gateway, error: TagsError) -> None:
    """Of a caller whom the route does not let in. Raises: AuditUnavailable."""
    if isinstance(error, Unauthenticated):
        await audit(gateway, not_authenticated(asking(request), gateway.audit.us))
    elif isinstance(error, RoleMissing):
        route = f"{request.method} {request.scope['route'].path}"
        await audit(gateway, not_permitted(asking(request), gateway.audit.us, route))


async def audit_received(request: Request, gateway: Gateway, stored: Sequence[Facts]) -> None:
    """STOW-RS. Raises: AuditUnavailable."""
    if not gateway.audit.enabled:
        return
    studies = studies_of(
        (facts.study_instance_uid, facts.series_text("PatientID")[0], facts.sop_class_uid) for facts in stored
    )
    sender, us = asking(request), gateway.audit.us
    await audit(gateway, *(transferred(sender, us, study, action="C") for study in studies))


async def audit_given(request: Request, gateway: Gateway, held: Sequence[InstanceRecord]) -> None:
    """WADO-RS. Raises: AuditUnavailable."""
    if not gateway.audit.enabled:
        return
    studies = studies_of(
        (item.study_instance_uid, attribute_text(item.series_attributes.get(PATIENT_ID, {})), item.sop_class_uid)
        for item in held
    )
    await audit(gateway, *(transferred(gateway.audit.us, asking(request), study) for study in studies))


def studies_of(objects: Iterable[tuple[str, str, str]]) -> list[Study]:
    """Each once, with its objects counted. Args: objects: StudyInstanceUID, PatientID and SOPClassUID of each."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for study_instance_uid, patient_id, sop_class_uid in objects:
        counts[(study_instance_uid, patient_id)][sop_class_uid] += 1
    return [Study(uid, patient_id, dict(classes)) for (uid, patient_id), classes in counts.items()]


async def audit_query(request: Request, gateway: Gateway) -> None:
    """QIDO-RS. Raises: AuditUnavailable."""
    query = f"{request.url.path}?{request.url.query}"
    await audit(gateway, queried(asking(request), gateway.audit.us, query))
