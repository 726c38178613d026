"""The answers of QIDO-RS in DICOM JSON (PS3.18 Tables 10.6.3-3 to -5): the usual attributes, and those asked for."""

from __future__ import annotations

from typing import Any

from service.dicom.facts import STUDY_KEYWORDS, TAGS
from service.dicomweb.query import Query
from service.ledger.search import InstanceRecord, SeriesRecord, StudyRecord

USUAL_STUDY = {TAGS[name] for name in STUDY_KEYWORDS}
USUAL_SERIES = {
    TAGS[name]
    for name in (
        "Modality", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "BodyPartExamined", "SeriesDate",
        "SeriesTime", "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime",
    )
}  # fmt: skip
USUAL_INSTANCE = {
    TAGS[name]
    for name in (
        "SOPClassUID",
        "SOPInstanceUID",
        "InstanceNumber",
        "Rows",
        "Columns",
        "BitsAllocated",
        "NumberOfFrames",
    )
}


def study_answer(record: StudyRecord, query: Query, root: str) -> dict[str, Any]:
    return _sorted(
        _chosen(record.attributes, USUAL_STUDY, query, within=USUAL_STUDY)
        | {
            "00080056": {"vr": "CS", "Value": ["ONLINE"]},
            "00080061": {"vr": "CS", "Value": list(record.modalities)},
            "00081190": {"vr": "UR", "Value": [f"{root}/studies/{record.study_instance_uid}"]},
            "00201206": {"vr": "IS", "Value": [record.series]},
            "00201208": {"vr": "IS", "Value": [record.instances]},
        }
    )


def series_answer(record: SeriesRecord, query: Query, root: str) -> dict[str, Any]:
    address = f"{root}/studies/{record.study_instance_uid}/series/{record.series_instance_uid}"
    return _sorted(
        _chosen(record.attributes, USUAL_STUDY | USUAL_SERIES, query)
        | {
            "00080056": {"vr": "CS", "Value": ["ONLINE"]},
            "00081190": {"vr": "UR", "Value": [address]},
            "00201209": {"vr": "IS", "Value": [record.instances]},
        }
    )


def instance_answer(record: InstanceRecord, query: Query, root: str) -> dict[str, Any]:
    address = f"{root}/studies/{record.study_instance_uid}/series/{record.series_instance_uid}"
    attributes = record.series_attributes | record.attributes
    return _sorted(
        _chosen(attributes, USUAL_STUDY | USUAL_SERIES | USUAL_INSTANCE, query)
        | {
            "00080056": {"vr": "CS", "Value": ["ONLINE"]},
            "00081190": {"vr": "UR", "Value": [f"{address}/instances/{record.sop_instance_uid}"]},
        }
    )


def _chosen(
    attributes: dict[str, Any], usual: set[str], query: Query, within: set[str] | None = None
) -> dict[str, Any]:
    """Args: within: attributes that may be shown at all; those of one series do not speak for its study."""
    kept = attributes if within is None else {tag: attributes[tag] for tag in within & attributes.keys()}
    if query.all_fields:
        return dict(kept)
    return {tag: attribute for tag, attribute in kept.items() if tag in usual or tag in query.fields}


def _sorted(attributes: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(attributes.items()))
