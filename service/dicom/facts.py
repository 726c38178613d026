"""What the ledger notes of one DICOM file: who it is, what it says, and a digest of its content.

What enters: a Part 10 file. What leaves: `Facts`, whose attributes are DICOM JSON (PS3.18 F.2), safe for any database:
no NUL, no NaN. The digest covers the data set in its transfer syntax but not the file meta information, so that the
same object by STOW-RS and by C-STORE is one. Pixels are hashed, never decoded.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.tag import BaseTag

from service.dicom.attribute import READ_ERRORS, self_contained, text
from service.dicom.header import START_BYTES
from service.dicom.limited_reader import DEFLATED_UID, META_LENGTH_OFFSET, LimitedReader
from service.errors import NotDicom

UID_FORM = re.compile(r"[0-9.]{3,64}")  # PS3.5 9.1, but for leading zeros: they occur, and harm nobody
HEAD_BYTES = 64 * 1024  # holds the header of nearly every single-frame image
DEFERRED_BYTES = 65536  # a longer value stays on the disk
MAX_VALUE_CHARACTERS = 4096  # of an attribute kept for searching; longer ones stay in the file only

STUDY_KEYWORDS = (
    "SpecificCharacterSet", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyDescription",
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID",
)  # fmt: skip
SERIES_KEYWORDS = (
    "Modality", "SeriesDate", "SeriesTime", "SeriesDescription", "Manufacturer", "ManufacturerModelName",
    "InstitutionName", "StationName", "BodyPartExamined", "ProtocolName", "SeriesInstanceUID", "SeriesNumber",
    "Laterality", "PatientPosition", "FrameOfReferenceUID", "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime", "NumberOfSeriesRelatedInstances", "SliceThickness", "QualityControlImage",
)  # fmt: skip
INSTANCE_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "ImageType", "ContentDate", "ContentTime", "AcquisitionDate", "AcquisitionTime",
    "AcquisitionNumber", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames", "SliceLocation",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ContentLabel", "ContentDescription",
    "CompletionFlag", "VerificationFlag", "ConversionType",
)  # fmt: skip
TAGS = {
    keyword: f"{tag_for_keyword(keyword):08X}" for keyword in (*STUDY_KEYWORDS, *SERIES_KEYWORDS, *INSTANCE_KEYWORDS)
}
_SERIES_TAGS = frozenset(int(TAGS[keyword], 16) for keyword in (*STUDY_KEYWORDS, *SERIES_KEYWORDS))
_INSTANCE_TAGS = frozenset(int(TAGS[keyword], 16) for keyword in INSTANCE_KEYWORDS)


@dataclass(frozen=True)
class Facts:
    """Identity, digest and searchable attributes of one object."""

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    digest: str  # SHA-256, hexadecimal
    size_bytes: int
    instance_number: str
    series_json: str  # attributes of study and series; DICOM JSON as text: thousands may be held at once
    instance_json: str

    def series_text(self, *keywords: str) -> tuple[str, ...]:
        """Attributes of study and series as searchable text; "" for those that are absent."""
        attributes = json.loads(self.series_json)
        return tuple(attribute_text(attributes.get(TAGS[keyword], {})) for keyword in keywords)


def read_facts(
    path: Path, *, known_series: Callable[[str], bool] = lambda _: False, digest: str | None = None
) -> Facts:
    """Args: known_series: whether a series' attributes are on file already; they are then not read again, which is a
    third of the work, and `series_json` is "". digest: by `new_digest`, where it was made while the file was written.

    Raises: NotDicom: no Part 10 file, damaged, or without the UIDs by which it would be filed.
    """
    with LimitedReader(path) as stream:
        try:
            size_bytes = os.fstat(stream.fileno()).st_size
            head = stream.read(HEAD_BYTES)
            start = head[:START_BYTES]
            if start[128:132] != b"DICM":
                raise NotDicom("the file has no DICOM preamble")
            stream.check_inflation(start)
            dataset = _header_within(head, is_whole=size_bytes == len(head))
            if dataset is None:
                stream.seek(0)
                dataset = dcmread(stream, stop_before_pixels=True, defer_size=DEFERRED_BYTES)
            transfer_syntax_uid = str(dataset.file_meta.get("TransferSyntaxUID", ""))
            sop_instance_uid, sop_class_uid = _uid(dataset, "SOPInstanceUID"), _uid(dataset, "SOPClassUID")
            series_instance_uid = _uid(dataset, "SeriesInstanceUID")
            study_instance_uid = _uid(dataset, "StudyInstanceUID")
            is_known = known_series(series_instance_uid)
            series_json = "" if is_known else json.dumps(_attributes(dataset, _SERIES_TAGS))
            instance_attributes = _attributes(dataset, _INSTANCE_TAGS)
        except READ_ERRORS as error:
            raise NotDicom("the file is damaged or is no DICOM object") from error
        identity = (sop_instance_uid, sop_class_uid, series_instance_uid, study_instance_uid)
        if not all(identity) or not UID_FORM.fullmatch(transfer_syntax_uid):
            raise NotDicom(
                "SOPInstanceUID, SOPClassUID, SeriesInstanceUID, StudyInstanceUID or TransferSyntaxUID is bad"
            )
        digest = digest or _digest(stream, start, transfer_syntax_uid)
    return Facts(
        sop_instance_uid=sop_instance_uid,
        sop_class_uid=sop_class_uid,
        series_instance_uid=series_instance_uid,
        study_instance_uid=study_instance_uid,
        transfer_syntax_uid=transfer_syntax_uid,
        digest=digest,
        size_bytes=size_bytes,
        instance_number=attribute_text(instance_attributes.get(TAGS["InstanceNumber"], {})),
        series_json=series_json,
        instance_json=json.dumps(instance_attributes),
    )


def attribute_text(attribute: dict[str, Any]) -> str:
    """A DICOM JSON attribute as text: values joined by backslashes, a name by its alphabetic form."""
    values = attribute.get("Value", ())
    return "\\".join(value.get("Alphabetic", "") if isinstance(value, dict) else str(value) for value in values)


def _uid(dataset: Dataset, name: str) -> str:
    value = text(dataset, name)
    return value if UID_FORM.fullmatch(value) else ""


def _attributes(dataset: Dataset, tags: frozenset[int]) -> dict[str, Any]:
    """DICOM JSON of those that are there and valid."""
    found: dict[str, Any] = {}
    for tag in sorted(tags.intersection(map(int, dataset.keys()))):  # as numbers: pydicom compares tags in Python
        try:
            raw = self_contained(dataset, BaseTag(tag))
            found[f"{tag:08X}"] = _json(raw) if raw else dataset[tag].to_json_dict(None, MAX_VALUE_CHARACTERS)
        except READ_ERRORS:
            continue
    if storable(found):  # all at once, as nearly always: half the time of one by one
        return found
    return {tag: attribute for tag, attribute in found.items() if storable(attribute)}


@lru_cache(maxsize=512)
def _json(raw: RawDataElement) -> dict[str, Any]:
    """To be read only: it is shared."""
    return convert_raw_data_element(raw).to_json_dict(None, MAX_VALUE_CHARACTERS)


def storable(attributes: dict[str, Any]) -> bool:
    """Whether any database takes one attribute, or several: not too long, no NaN, no NUL or half a character, as
    PostgreSQL wants it."""
    try:
        encoded = json.dumps(attributes, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError):
        return False
    return len(encoded) <= MAX_VALUE_CHARACTERS and b"\\u0000" not in encoded


def _header_within(head: bytes, *, is_whole: bool) -> Dataset | None:
    """The header, parsed in memory, where pydicom's element-by-element reading costs no system calls; None where it
    goes on beyond the first bytes."""
    if DEFLATED_UID in head[:START_BYTES]:
        return None
    stream = io.BytesIO(head)
    try:
        dataset = dcmread(stream, stop_before_pixels=True)
    except READ_ERRORS:
        return None
    return dataset if is_whole or stream.tell() < len(head) else None


def new_digest(transfer_syntax_uid: str) -> hashlib._Hash:
    """To be fed with the data set as it comes, without file meta information; SHA-256."""
    return hashlib.sha256(transfer_syntax_uid.encode())


def _digest(stream: LimitedReader, start: bytes, transfer_syntax_uid: str) -> str:
    hashed = new_digest(transfer_syntax_uid)
    has_length = start[132:138] == b"\x02\x00\x00\x00UL"
    length = int.from_bytes(start[META_LENGTH_OFFSET:][:4], "little")
    stream.seek(META_LENGTH_OFFSET + 4 + length if has_length else 0)
    return hashlib.file_digest(stream, lambda: hashed).hexdigest()
