"""A file of an upload without its patient: what the way to a result needs, with identifiers replaced, and nothing else.

What enters: a file and the site's key. What leaves: another file in its place. An allow-list (KEPT), since a list of
what to remove must know every place in which a name can stand. Source: PS3.15 Annex E, Basic Application Level
Confidentiality Profile: of what its Table E.1-1 protects, only instance UIDs are kept, replaced, and the type 2
attributes of patient and study, empty or pseudonyms. Geometry and pixels are untouched. Decision 21.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.sr.coding import Code
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from service.dicom.attribute import READ_ERRORS
from service.dicom.equipment import MANUFACTURER, MODEL_NAME
from service.dicom.header import (
    IN_FUNCTIONAL_GROUPS,
    MODALITY_OF,
    READ_TAGS,
    START_BYTES,
    guessed_transfer_syntax,
    lacks_preamble,
)
from service.dicom.limited_reader import LimitedReader
from service.dicom.outcome import TRACKING_ID
from service.dicom.seg import SOP_CLASSES
from service.errors import NotDeidentifiable, NotDicom

PROFILE = Code("113100", "DCM", "Basic Application Confidentiality Profile")
METHOD = "PS3.15 Annex E Basic Profile"
PSEUDONYM_CHARACTERS = 16  # hexadecimal: 64 bits, so that two patients of a site do not meet
OF_IMAGES = {
    *READ_TAGS, *(name for place in IN_FUNCTIONAL_GROUPS for name in place), "Modality", "SeriesNumber",
    "InstanceNumber", "PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
} - {"AcquisitionTime", "PatientID"}  # fmt: skip
OF_MASKS = {  # a SEG among the prompts, as far as it says which voxels, and which tumour
    "SegmentationType", "SegmentationFractionalType", "MaximumFractionalValue", "SegmentsOverlap",
    "LossyImageCompression", "ContentLabel", "SegmentSequence", "SegmentNumber", "SegmentAlgorithmType",
    "SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence", "CodeValue",
    "CodingSchemeDesignator", "CodeMeaning", "TrackingID", "TrackingUID", "SegmentLabel",
    "DimensionOrganizationSequence",
    "DimensionOrganizationUID", "DimensionOrganizationType", "DimensionIndexSequence", "DimensionIndexPointer",
    "FunctionalGroupPointer", "DimensionIndexValues", "FrameContentSequence", "SegmentIdentificationSequence",
    "ReferencedSegmentNumber", "DerivationImageSequence", "SourceImageSequence", "ReferencedSOPClassUID",
    "ReferencedSOPInstanceUID", "ReferencedFrameNumber", "ReferencedSeriesSequence", "ReferencedInstanceSequence",
}  # fmt: skip
KEPT = frozenset(Tag(name) for name in OF_IMAGES | OF_MASKS)
SAME_FOR_ALL = {Tag(name) for name in ("SOPClassUID", "ReferencedSOPClassUID")}  # UIDs of the standard's
PIXELS = Tag("PixelData")
WITH_PIXELS = {*MODALITY_OF, *SOP_CLASSES.values()}
# Free text in a SEG that is kept: what stands there instead.
REPLACED_TEXT = {
    Tag("TrackingID"): TRACKING_ID,
    Tag("SegmentLabel"): "tumour",
    Tag("ContentLabel"): "MASK",
    Tag("CodeMeaning"): "code",
}
LOOKED_AT = (
    "PatientID", "BurnedInAnnotation", "PatientIdentityRemoved", "Manufacturer", "ManufacturerModelName",
)  # fmt: skip
EMPTY = (
    "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName",
)  # fmt: skip


@dataclass(frozen=True)
class Pseudonyms:
    """The same identifier gives the same pseudonym; without the key neither leads to the other."""

    key: bytes = field(repr=False)

    @classmethod
    def keyed(cls, key: str) -> Pseudonyms:
        """Raises: NotDeidentifiable: there is no key."""
        if not key:
            raise NotDeidentifiable("De-identified processing is not set up here.")
        return cls(key.encode())

    def uid(self, original: str) -> str:
        """Source: PS3.5 B.2, UIDs derived from a UUID."""
        return f"2.25.{UUID(bytes=self._digest('uid', original)[:16], version=5).int}"

    def patient(self, original: str) -> str:
        return f"TAGS-{self._digest('patient', original).hex()[:PSEUDONYM_CHARACTERS].upper()}"

    def _digest(self, kind: str, original: str) -> bytes:
        return hmac.digest(self.key, f"{kind} {original}".encode(), hashlib.sha256)


@dataclass(frozen=True)
class Original:
    """What a file was: for the audit trail, and to find again what a request names by UID."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str = field(repr=False)


def deidentify(path: Path, pseudonyms: Pseudonyms) -> Original | None:
    """Replace the file by one without its patient; by an empty one where it is no DICOM that can be read. Blocking.

    Returns: what it was; None for what cannot be read. A SEG that this service has made without identity keeps its
    UIDs, so that it fits the same series once more.
    Raises: NotDeidentifiable: an image says that words are burned into its pixels. OSError: no room to write.
    """
    try:
        dataset = _read(path)
        original = _original(dataset)
        if _is_burned_in(dataset):
            raise NotDeidentifiable(
                "An image says by BurnedInAnnotation that words are burned into its pixels; they are not removed here."
            )
        kept = _without_patient(dataset, original, pseudonyms)
    except (NotDicom, *READ_ERRORS):
        path.write_bytes(b"")
        return None
    return original if _is_written(kept, path) else None


def _read(path: Path) -> Dataset:
    with LimitedReader(path) as stream:
        start = stream.read(START_BYTES)
        forced = lacks_preamble(start)
        stream.check_inflation(start)
        stream.seek(0)
        return dcmread(stream, force=forced, specific_tags=[*KEPT, *map(Tag, LOOKED_AT)])


def _original(dataset: Dataset) -> Original:
    names = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID")
    return Original(*(str(dataset.get(name) or "") for name in names))


def _is_burned_in(dataset: Dataset) -> bool:
    return dataset.get("SOPClassUID") in MODALITY_OF and str(dataset.get("BurnedInAnnotation", "")).upper() == "YES"


def _without_patient(dataset: Dataset, original: Original, pseudonyms: Pseudonyms) -> Dataset:
    ours = (dataset.get("Manufacturer"), dataset.get("ManufacturerModelName")) == (MANUFACTURER, MODEL_NAME)
    is_seg = original.sop_class_uid in SOP_CLASSES.values()
    done_before = ours and is_seg and dataset.get("PatientIdentityRemoved") == "YES"
    without = set() if original.sop_class_uid in WITH_PIXELS else {PIXELS}
    kept = _kept(dataset, without, None if done_before else pseudonyms)
    if ours and is_seg:  # by which a revision knows its earlier result
        kept.Manufacturer, kept.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    for name in EMPTY:
        setattr(kept, name, "")
    kept.PatientID = kept.PatientName = pseudonyms.patient(original.patient_id or original.study_instance_uid)
    kept.PatientIdentityRemoved = "YES"
    kept.DeidentificationMethod = [METHOD, _made_by()]
    kept.DeidentificationMethodCodeSequence = Sequence([_item(PROFILE)])
    kept.LongitudinalTemporalInformationModified = "REMOVED"
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(dataset.file_meta.get("TransferSyntaxUID") or guessed_transfer_syntax(dataset))
    meta.MediaStorageSOPClassUID = UID(original.sop_class_uid)
    meta.MediaStorageSOPInstanceUID = kept.SOPInstanceUID
    kept.file_meta = meta
    return kept


@cache
def _made_by() -> str:
    return f"TAGS {version('tags-service')}"


def _is_written(kept: Dataset, path: Path) -> bool:
    """In place of the file. An empty one, and False, for what cannot be written as DICOM."""
    written = path.with_name(f"{path.name}.deidentified")
    try:
        dcmwrite(written, kept, enforce_file_format=True)
        os.replace(written, path)
    except OSError:
        raise
    except READ_ERRORS:
        path.write_bytes(b"")
        return False
    finally:
        written.unlink(missing_ok=True)
    return True


def _kept(dataset: Dataset, without: Collection[BaseTag], pseudonyms: Pseudonyms | None) -> Dataset:
    """The attributes of KEPT at every depth. Args: pseudonyms: None leaves UIDs as they are."""
    kept = Dataset()
    for tag in sorted((KEPT - set(without)) & set(dataset.keys())):
        kind = dictionary_VR(tag)
        if tag in REPLACED_TEXT:
            kept.add_new(tag, kind, REPLACED_TEXT[tag])
        elif kind == "SQ":
            kept.add_new(tag, kind, Sequence([_kept(item, without, pseudonyms) for item in dataset[tag].value]))
        elif kind == "UI" and tag not in SAME_FOR_ALL:
            original = str(dataset[tag].value or "")
            kept.add_new(tag, kind, pseudonyms.uid(original) if original and pseudonyms else original)
        elif dataset.get_item(tag).VR != "SQ":  # a sequence under another's tag could hold anything
            kept[tag] = dataset.get_item(tag)
    return kept


def _item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item
