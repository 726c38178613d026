"""Audit events as values, and those that this service has. Pure; the XML is made in `service.audit.message`.

Of a patient an event names the Patient ID, which PS3.15 A.5.3 asks for, and a query's text, which A.5.3.10 asks for;
never a name, a date of birth or anything else of a dataset. A message tells of one patient, so of one study.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


@dataclass(frozen=True)
class Code:
    """A coded value (PS3.16)."""

    value: str
    meaning: str
    scheme: str = "DCM"


APPLICATION_ACTIVITY = Code("110100", "Application Activity")
BEGIN_TRANSFERRING = Code("110102", "Begin Transferring DICOM Instances")
INSTANCES_ACCESSED = Code("110103", "DICOM Instances Accessed")
INSTANCES_TRANSFERRED = Code("110104", "DICOM Instances Transferred")
STUDY_DELETED = Code("110105", "DICOM Study Deleted")
QUERY = Code("110112", "Query")
SECURITY_ALERT = Code("110113", "Security Alert")
USER_AUTHENTICATION = Code("110114", "User Authentication")
STARTED, STOPPED = Code("110120", "Application Start"), Code("110121", "Application Stop")
LOGIN, RESTRICTED_FUNCTION = Code("110122", "Login"), Code("110132", "Use of Restricted Function")
APPLICATION, DESTINATION, SOURCE = (
    Code("110150", "Application"),
    Code("110152", "Destination Role ID"),
    Code("110153", "Source Role ID"),
)
Action = Literal["C", "R", "U", "D", "E"]


class Outcome(StrEnum):
    """PS3.15 A.5.1: EventOutcomeIndicator."""

    SUCCESS = "0"
    MINOR_FAILURE = "4"
    SERIOUS_FAILURE = "8"


@dataclass(frozen=True)
class Participant:
    """Who took part. `network` is an IP address or a host's name; "" for this process itself."""

    user_id: str
    requestor: bool = False
    role: Code | None = None
    user_name: str = ""
    alternative_id: str = ""
    network: str = ""


@dataclass(frozen=True)
class Study:
    """A study, its patient, and how many instances of which SOP classes were concerned."""

    study_instance_uid: str
    patient_id: str = field(repr=False)
    instances: dict[str, int] = field(default_factory=dict)  # by SOP Class UID


@dataclass(frozen=True)
class AuditEvent:
    """One message. `query` is the text of a QIDO-RS query, which may hold what was searched for."""

    event: Code
    action: Action
    participants: tuple[Participant, ...]
    outcome: Outcome = Outcome.SUCCESS
    kind: Code | None = None
    study: Study | None = None
    query: str | None = field(default=None, repr=False)
    resource: str = ""  # what a refused caller asked for: a route's template


def started(us: Participant) -> AuditEvent:
    """PS3.15 A.5.3.1."""
    return AuditEvent(APPLICATION_ACTIVITY, "E", (_as(us, APPLICATION),), kind=STARTED)


def stopped(us: Participant) -> AuditEvent:
    return AuditEvent(APPLICATION_ACTIVITY, "E", (_as(us, APPLICATION),), kind=STOPPED)


def beginning(sender: Participant, receiver: Participant, study: Study) -> AuditEvent:
    """PS3.15 A.5.3.3: of a delivery, and of a C-STORE association at a study's first instance."""
    return AuditEvent(BEGIN_TRANSFERRING, "E", (_as(sender, SOURCE), _as(receiver, DESTINATION)), study=study)


def transferred(sender: Participant, receiver: Participant, study: Study, *, action: Action = "R") -> AuditEvent:
    """PS3.15 A.5.3.7. Args: action: C where we received, R where we sent."""
    parties = (_as(sender, SOURCE), _as(receiver, DESTINATION))
    return AuditEvent(INSTANCES_TRANSFERRED, action, parties, study=study)


def accessed(caller: Participant, us: Participant, study: Study) -> AuditEvent:
    """PS3.15 A.5.3.6: a segmentation reads the study for a caller, or by a rule, and gives the result to them."""
    return AuditEvent(INSTANCES_ACCESSED, "R", (caller, us), study=study)


def deleted(us: Participant, study: Study) -> AuditEvent:
    """PS3.15 A.5.3.8: by a retention rule."""
    return AuditEvent(STUDY_DELETED, "D", (us,), study=study)


def queried(caller: Participant, us: Participant, query: str) -> AuditEvent:
    """PS3.15 A.5.3.10."""
    return AuditEvent(QUERY, "E", (_as(caller, SOURCE), _as(us, DESTINATION)), query=query)


def not_authenticated(caller: Participant, us: Participant) -> AuditEvent:
    """PS3.15 A.5.3.12: a token or key that was not accepted."""
    return AuditEvent(USER_AUTHENTICATION, "E", (caller, us), outcome=Outcome.MINOR_FAILURE, kind=LOGIN)


def not_permitted(caller: Participant, us: Participant, route: str) -> AuditEvent:
    """PS3.15 A.5.3.11: a known caller without the role."""
    return AuditEvent(
        SECURITY_ALERT, "E", (us, caller), outcome=Outcome.MINOR_FAILURE, kind=RESTRICTED_FUNCTION, resource=route
    )


def _as(participant: Participant, role: Code) -> Participant:
    return Participant(**{**vars(participant), "role": role})
