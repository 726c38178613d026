"""The answer of STOW-RS (PS3.18 10.5.3, Annex I): DICOM JSON with what was stored, what was not, and why.

Orthanc and others count the items of ReferencedSOPSequence, so a duplicate is listed there like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class FailureReason(IntEnum):
    """PS3.18 Annex I.2.2, PS3.4 Table B.2-1."""

    PROCESSING_FAILURE = 0x0110
    STUDY_MISMATCH = 0xA900  # the data set is not what the address names
    OUT_OF_RESOURCES = 0xA700
    CANNOT_UNDERSTAND = 0xC000


@dataclass(frozen=True)
class Stored:
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True)
class Failed:
    """UIDs are "" where the part was too damaged to have any."""

    reason: FailureReason
    sop_class_uid: str = ""
    sop_instance_uid: str = ""


def store_status(stored: Sequence[Stored], failed: Sequence[Failed]) -> int:
    """200 for all, 202 for some, 409 for none."""
    return 200 if not failed else 202 if stored else 409


def store_answer(stored: Sequence[Stored], failed: Sequence[Failed], root: str) -> dict[str, Any]:
    """Args: root: the absolute address of the DICOMweb service, without a slash at the end."""
    answer: dict[str, Any] = {}
    studies = {item.study_instance_uid for item in stored}
    if len(studies) == 1:
        answer["00081190"] = {"vr": "UR", "Value": [f"{root}/studies/{studies.pop()}"]}
    if stored:
        answer["00081199"] = {"vr": "SQ", "Value": [_referenced(item, root) for item in stored]}
    if failed:
        answer["00081198"] = {"vr": "SQ", "Value": [_failed(item) for item in failed]}
    return answer


def _referenced(item: Stored, root: str) -> dict[str, Any]:
    address = f"{root}/studies/{item.study_instance_uid}/series/{item.series_instance_uid}"
    return {
        "00081150": {"vr": "UI", "Value": [item.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [item.sop_instance_uid]},
        "00081190": {"vr": "UR", "Value": [f"{address}/instances/{item.sop_instance_uid}"]},
    }


def _failed(item: Failed) -> dict[str, Any]:
    uids = (("00081150", item.sop_class_uid), ("00081155", item.sop_instance_uid))
    named = {tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids if uid}
    return named | {"00081197": {"vr": "US", "Value": [int(item.reason)]}}
