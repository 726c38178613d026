"""Audit events as DICOM audit messages: XML after the schema of PS3.15 A.5.1. Pure.

A study's or patient's ParticipantObjectName is mandatory where there is no query; it says what the object is, since a
patient's name is not needed to know who is meant.
"""

from __future__ import annotations

import base64
from datetime import datetime
from ipaddress import ip_address
from xml.etree.ElementTree import Element, SubElement, tostring  # nosec B405: writes only, parses nothing

from service.audit.event import AuditEvent, Code, Participant, Study

PERSON, SYSTEM_OBJECT = "1", "2"
PATIENT_ROLE, REPORT_ROLE, RESOURCE_ROLE = "1", "3", "13"
STUDY_UID, PATIENT_NUMBER = Code("110180", "Study Instance UID"), Code("2", "Patient Number", "RFC-3881")
SOP_CLASS_UID, URI = Code("110181", "SOP Class UID"), Code("12", "URI", "RFC-3881")
QIDO = "1.2.840.10008.5.1.4.1.2.2.1"  # the Study Root query, whose web form QIDO-RS is
APPLICATION_SERVER = "4"  # PS3.15 A.5.1.2.1
MACHINE_NAME, IP_ADDRESS = "1", "2"


def audit_message(event: AuditEvent, *, source_id: str, site_id: str, at: datetime) -> bytes:
    """One message, UTF-8, without an XML declaration. Args: at: with its time zone."""
    root = Element("AuditMessage")
    attributes = {
        "EventActionCode": event.action,
        "EventDateTime": at.isoformat(timespec="milliseconds"),
        "EventOutcomeIndicator": str(event.outcome),
    }
    identification = SubElement(root, "EventIdentification", attributes)
    _code(identification, "EventID", event.event)
    if event.kind:
        _code(identification, "EventTypeCode", event.kind)
    for participant in event.participants:
        _participant(root, participant)
    source = SubElement(root, "AuditSourceIdentification", {"AuditSourceID": clean(source_id)})
    if site_id:
        source.set("AuditEnterpriseSiteID", clean(site_id))
    SubElement(source, "AuditSourceTypeCode", {"csd-code": APPLICATION_SERVER})
    if event.study:
        _study(root, event.study)
    if event.query is not None:
        _query(root, event.query)
    if event.resource:
        _name(_object(root, event.resource, SYSTEM_OBJECT, RESOURCE_ROLE, URI), "route")
    written: bytes = tostring(root, encoding="utf-8")
    return written


def clean(text: str) -> str:
    """Without what XML cannot hold; a peer's name is the peer's own text."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _participant(root: Element, participant: Participant) -> None:
    attributes = {
        "UserID": clean(participant.user_id),
        "UserIsRequestor": "true" if participant.requestor else "false",
    }
    if participant.alternative_id:
        attributes["AlternativeUserID"] = clean(participant.alternative_id)
    if participant.user_name:
        attributes["UserName"] = clean(participant.user_name)
    if participant.network:
        attributes["NetworkAccessPointID"] = clean(participant.network)
        attributes["NetworkAccessPointTypeCode"] = _network_type(participant.network)
    element = SubElement(root, "ActiveParticipant", attributes)
    if participant.role:
        _code(element, "RoleIDCode", participant.role)


def _study(root: Element, study: Study) -> None:
    element = _object(root, study.study_instance_uid, SYSTEM_OBJECT, REPORT_ROLE, STUDY_UID)
    _name(element, "study")
    if study.instances:
        description = SubElement(element, "ParticipantObjectDescription")
        for sop_class_uid, count in sorted(study.instances.items()):
            SubElement(description, "SOPClass", {"UID": clean(sop_class_uid), "NumberOfInstances": str(count)})
    _name(_object(root, study.patient_id or "unknown", PERSON, PATIENT_ROLE, PATIENT_NUMBER), "patient")


def _query(root: Element, query: str) -> None:
    element = _object(root, QIDO, SYSTEM_OBJECT, REPORT_ROLE, SOP_CLASS_UID)
    SubElement(element, "ParticipantObjectQuery").text = base64.b64encode(query.encode()).decode()


def _object(root: Element, identifier: str, type_code: str, role: str, id_type: Code) -> Element:
    attributes = {
        "ParticipantObjectID": clean(identifier),
        "ParticipantObjectTypeCode": type_code,
        "ParticipantObjectTypeCodeRole": role,
    }
    element = SubElement(root, "ParticipantObjectIdentification", attributes)
    _code(element, "ParticipantObjectIDTypeCode", id_type)
    return element


def _name(element: Element, name: str) -> None:
    SubElement(element, "ParticipantObjectName").text = name


def _code(parent: Element, name: str, code: Code) -> None:
    attributes = {"csd-code": code.value, "codeSystemName": code.scheme, "originalText": code.meaning}
    SubElement(parent, name, attributes)


def _network_type(network: str) -> str:
    try:
        ip_address(network)
    except ValueError:
        return MACHINE_NAME
    return IP_ADDRESS
